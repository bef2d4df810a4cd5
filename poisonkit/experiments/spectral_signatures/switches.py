"""Each place where paper and released code differ, switched by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from poisonkit.errors import unknown
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats, with_options
from poisonkit.experiments.spectral_signatures.removal import removal_trial, rows_of
from poisonkit.experiments.spectral_signatures.setting import (
    QUICK,
    SMALL,
    SpectralConfig,
    units,
)
from poisonkit.experiments.spectral_signatures.steps import begin
from poisonkit.store import Json

#: What each switch changes of the paper's setting; the layer of the last three is the
#: configuration's ``other_tap``.
SWITCHES: Mapping[str, Mapping[str, object]] = {
    "paper": {},
    "uncentred": {"centred": False},
    "percentile": {"removal": "percentile"},
    "known": {"removal": "known"},
    "target label": {"labels": "target"},
    "pooled": {"pool": "mean"},
    "replaced": {"placement": "replaced"},
    "bytes": {"standardise": "bytes"},
    "layer": {},
    "released, paper's data": {
        "centred": False,
        "removal": "percentile",
        "labels": "target",
    },
    "released": {
        "centred": False,
        "removal": "percentile",
        "labels": "target",
        "placement": "replaced",
        "standardise": "bytes",
    },
}
_OTHER_LAYER = ("layer", "released, paper's data", "released")


@dataclass(frozen=True, kw_only=True)
class SwitchesConfig(SpectralConfig):
    """As :class:`SpectralConfig`, with the switches to try.

    Attributes
    ----------
    switches : keys of :data:`SWITCHES`.
    other_tap : the layer that the released code reads.
    """

    switches: tuple[str, ...] = tuple(SWITCHES)
    other_tap: str = "group3.2"


def _switch_units(config: SwitchesConfig) -> list[Json]:
    refuse_repeats(switches=config.switches)
    for name in config.switches:
        if name not in SWITCHES:
            raise unknown("switch", name, SWITCHES)
    return [{**unit, "switch": name} for name in config.switches for unit in units(config)]


def _switch_trial(
    config: SwitchesConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    return removal_trial(_chosen(config, unit), unit, context)


def _switch_check(config: SwitchesConfig, unit: Json, context: Context) -> object:
    return begin(_chosen(config, unit), unit, context)


def _chosen(config: SwitchesConfig, unit: Json) -> SwitchesConfig:
    options = dict(SWITCHES[unit["switch"]])
    if unit["switch"] in _OTHER_LAYER:
        options["tap"] = config.other_tap
    found = with_options(config, options)
    assert isinstance(found, SwitchesConfig)
    return found


def _switch_summary(config: SwitchesConfig, trials: Sequence[Json]) -> Json:
    return {"rows": rows_of(trials, ("switch", "source", "target", "share"))}


_ONE_PAIR: Mapping[str, object] = {"pairs": (("airplane", "bird"),), "shares": (0.10,)}
SWITCHING = Experiment(
    name="spectral_signatures/switches",
    summary="what each difference between the paper and the released code changes",
    version=1,
    config=SwitchesConfig,
    profiles={
        "quick": {**QUICK, "trials": 2, "other_tap": "block2"},
        "small": {**SMALL, **_ONE_PAIR, "other_tap": "stage3.0"},
        "paper": _ONE_PAIR,
    },
    variants={"paper": {}},
    units=_switch_units,
    trial=_switch_trial,
    check=_switch_check,
    summarise=_switch_summary,
)
