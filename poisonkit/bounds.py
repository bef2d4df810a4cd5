"""Bounds of what an attack may change about an image, on the [0, 1] scale and on bytes."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poisonkit.errors import PoisonError, unknown


def levels(epsilon: float) -> int:
    """Return the largest whole change of a value 0..255 within ``epsilon`` on the [0, 1] scale."""
    return math.floor(255 * epsilon + 1e-9)


def check_epsilon(epsilon: float) -> None:
    """Refuse a bound that no change of an image on the [0, 1] scale could have."""
    if not 0 < epsilon <= 1:
        raise PoisonError(f"epsilon must lie in (0, 1], not {epsilon}")
    if not levels(epsilon):
        raise PoisonError(
            f"epsilon={epsilon} is less than 1/255, one level of a pixel: rounded poisons would "
            "be the images that they are made from"
        )


def round_within(x: Tensor, bases: Tensor, *, limit: int) -> Tensor:
    """Return images as uint8, no value farther than ``limit`` from its base's.

    Where rounding would lead farther, the value stays at the limit; values outside [0, 1]
    become the nearest that there are.
    """
    change = ((x.clamp(0, 1) * 255).round().short() - bases.short()).clamp(-limit, limit)
    return (bases.short() + change).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What an attack promises about every poisoned image.

    Attributes
    ----------
    kind : ``linf``, no channel value moves by more than ``value`` (in units of
        1/255); or ``pixels``, at most ``value`` pixels of an image differ.
    value : the limit, on uint8 images.
    """

    kind: Literal["linf", "pixels"]
    value: int

    def __post_init__(self) -> None:
        if self.kind not in ("linf", "pixels"):
            raise unknown("bound", self.kind, ("linf", "pixels"))

    def measure(self, images: Tensor, bases: Tensor) -> Tensor:
        """Return, for each uint8 image, the quantity that the bound limits, int64 [P]."""
        difference = (images.short() - bases.short()).abs()
        if self.kind == "linf":
            return difference.flatten(1).amax(1).long()
        return (difference.amax(1) > 0).flatten(1).sum(1)
