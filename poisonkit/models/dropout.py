"""Dropout between the convolutions of a network's units.

Convex Polytope's substitutes have it there, both when they are trained and while poisons
are crafted with them (section 4).
"""

from torch import nn

from poisonkit.errors import PoisonkitError

#: What torchvision, timm and this package call a unit's second and third convolution.
LATER_CONVOLUTIONS = ("conv2", "conv3", "c3x3_b", "c1x1_c")


def add_dropout(body: nn.Module, rate: float, *, name: str) -> None:
    """Put dropout before each convolution of a unit but the first; after an Inception unit.

    A network that has no such units names the parts before which it goes in an attribute
    ``dropout_before``.

    Parameters
    ----------
    rate : probability with which a value is set to 0, in (0, 1).
    name : the network's, for messages.
    """
    if not 0 < rate < 1:
        raise PoisonkitError(f"a dropout rate must lie in [0, 1), not {rate}")
    units = list(body.modules())
    places = sum(_add_to(unit, rate) for unit in units)
    if not places:
        raise PoisonkitError(f"{name} has no place for dropout")


def _add_to(unit: nn.Module, rate: float) -> int:
    """Add dropout within one unit, and return at how many places."""
    from torchvision.models.googlenet import Inception
    from torchvision.models.mobilenetv2 import InvertedResidual

    if isinstance(unit, InvertedResidual):
        # The last two are the projection and its normalisation.
        last = len(unit.conv) - 2
        later = [str(number) for number in (last - 1, last) if number > 0]
        return _before(unit.conv, later, rate)
    if isinstance(unit, nn.Sequential):
        inceptions = [key for key, part in unit.named_children() if isinstance(part, Inception)]
        for key in inceptions:
            unit.set_submodule(key, nn.Sequential(unit.get_submodule(key), nn.Dropout(rate)))
        return len(inceptions)
    return _before(unit, getattr(unit, "dropout_before", LATER_CONVOLUTIONS), rate)


def _before(unit: nn.Module, parts: list[str] | tuple[str, ...], rate: float) -> int:
    known = dict(unit.named_modules())
    found = [part for part in parts if part in known]
    for part in found:
        unit.set_submodule(part, nn.Sequential(nn.Dropout(rate), known[part]))
    return len(found)
