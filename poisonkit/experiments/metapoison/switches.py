"""Places where paper and released code differ, switched one by one."""

from collections.abc import Mapping
from dataclasses import dataclass

from poisonkit.errors import unknown
from poisonkit.experiments.metapoison.setting import RELEASED, SHORTER, MetaConfig, profiles_of
from poisonkit.experiments.metapoison.variations import one_at_a_time
from poisonkit.experiments.metapoison.victims import runs
from poisonkit.experiments.settings import refuse_repeats, with_options
from poisonkit.store import Json

#: Which network, how many surrogates, steps and epochs: the scale, which no switch changes.
_SCALE = (
    "model",
    "procedure.surrogates",
    "procedure.steps",
    "procedure.drops",
    "recipe.epochs",
)
#: What each switch changes of the paper's setting; the seven after it are the released code's,
#: ``released`` all of them together with how it trains. (When poisons are changed, the setting
#: follows the code, and the switch Algorithm 1.)
SWITCHES: Mapping[str, Mapping[str, object]] = {
    "paper": {},
    "margin loss": {"procedure.objective": "margin"},
    "loss of all unrolled steps": {"procedure.losses": "all"},
    "smaller change, and of colours": {
        "procedure.epsilon": 8 / 255,
        "procedure.colour": 0.04,
    },
    "first batch's poisons in all steps": {"procedure.later": "first"},
    "range of pixels may be left": {"procedure.clipped": False},
    "poisons not rounded": {"rounded": False},
    "released": {name: value for name, value in RELEASED.items() if name not in _SCALE},
    "poisons changed after every batch": {"procedure.update": "batch"},
    "target normalised as in use": {"procedure.normalised_with": "averages"},
    "surrogates trained on poisons": {"procedure.trajectory": "poisoned"},
    "surrogates trained on clean images": {"procedure.trajectory": "clean"},
    "one unrolled step": {"procedure.unroll": 1},
    "two unrolled steps": {"procedure.unroll": 2},
    "sign of the gradient": {"procedure.optimizer": "sign"},
}


def _without(*names: str) -> tuple[str, ...]:
    return tuple(name for name in SWITCHES if name not in names)


@dataclass(frozen=True, kw_only=True)
class MetaSwitchesConfig(MetaConfig):
    """As :class:`MetaConfig`, with the switches to try.

    Attributes
    ----------
    switches : keys of :data:`SWITCHES`.
    """

    switches: tuple[str, ...] = _without("surrogates trained on clean images", "two unrolled steps")


def _switch_units(config: MetaSwitchesConfig) -> list[Json]:
    refuse_repeats(switches=config.switches)
    for name in config.switches:
        if name not in SWITCHES:
            raise unknown("switch", name, SWITCHES)
    return [run for name in config.switches for run in runs(config, switch=name)]


def _switched(config: MetaSwitchesConfig, unit: Json) -> MetaConfig:
    found = with_options(config, SWITCHES[unit["switch"]])
    assert isinstance(found, MetaConfig)
    return found


SWITCHING = one_at_a_time(
    "switch",
    _switched,
    name="switches",
    summary="what each difference between the paper and the released code changes",
    config=MetaSwitchesConfig,
    units=_switch_units,
    version=5,
    profiles=profiles_of(
        paper={"pairs": 2},
        quick={
            # Digits have no colours, and two unrolled steps take twice the time; the others are
            # what the profile does anyway, or nearly so with one unrolled step alone. Rounding is
            # looked at by ``metapoison/limits``.
            "switches": (
                "paper",
                "margin loss",
                "poisons changed after every batch",
                "target normalised as in use",
                "surrogates trained on clean images",
                "sign of the gradient",
            ),
        },
        # Every switch crafts anew, a quarter of an hour and more for each pair. The number of
        # poisons is that of ``metapoison/limits``, whose poisons and victims are shared.
        small={
            **SHORTER,
            "pairs": 2,
            "victims": 4,
            "poisons": 200,
            "switches": (
                "paper",
                "margin loss",
                "smaller change, and of colours",
                "released",
                "poisons changed after every batch",
                "target normalised as in use",
            ),
        },
    ),
)
