"""Beyond the paper: how many poisons, which trigger and which layer the filter needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poisonkit.defenses.spectral import outlier_scores
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.evaluation import evaluate
from poisonkit.experiments.networks import Context, Cost
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats
from poisonkit.experiments.spectral_signatures.setting import (
    QUICK,
    SMALL,
    SpectralConfig,
    units,
)
from poisonkit.experiments.spectral_signatures.steps import (
    Poisoned,
    begin,
    hits,
    is_captured,
    train_on,
)
from poisonkit.models import features
from poisonkit.statistics import auroc, mean_and_deviation, wilson
from poisonkit.store import Json

#: Removals, as multiples of epsilon, for which the poisons left are recorded.
FACTORS = tuple(0.125 * step for step in range(33))


@dataclass(frozen=True, kw_only=True)
class LimitsConfig(SpectralConfig):
    """As :class:`SpectralConfig`; every trained network is read at many layers.

    Attributes
    ----------
    patterns : shapes of the trigger; ``pattern`` is not used.
    layers : (tap, pool) of the representations to filter by.
    """

    pairs: tuple[tuple[str, str], ...] = (("airplane", "bird"),)
    shares: tuple[float, ...] = (0.002, 0.005, 0.01, 0.02, 0.05, 0.10, 0.20)
    patterns: tuple[str, ...] = ("X", "L", "pixel")
    layers: tuple[tuple[str, str], ...] = (
        ("stem", "flatten"),
        ("group1.4", "flatten"),
        ("group2.4", "flatten"),
        ("group3.2", "flatten"),
        ("group3.3", "flatten"),
        ("group3.3", "mean"),
        ("group3.4", "flatten"),
        ("pool", "flatten"),
    )


def limits_units(config: LimitsConfig) -> list[Json]:
    """One trial for each shape, share and seed."""
    if not config.layers or not config.patterns:
        raise PoisonkitError("layers and patterns must name at least one each")
    if len(config.pairs) != 1:
        raise PoisonkitError(f"pairs must name one pair, not {len(config.pairs)}")
    refuse_repeats(patterns=config.patterns, layers=config.layers)
    for _, pool in config.layers:
        if pool not in ("flatten", "mean"):
            raise unknown("pooling", pool, ("flatten", "mean"))
    return [{**unit, "pattern": pattern} for pattern in config.patterns for unit in units(config)]


def _begin(config: LimitsConfig, unit: Json, context: Context) -> tuple[Poisoned, Cost]:
    chosen = replace(config, pattern=unit["pattern"])
    return begin(chosen, unit, context, taps=[tap for tap, _ in config.layers])


def limits_trial(
    config: LimitsConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Train once, then score the poisoned label at every layer."""
    data, cost = _begin(config, unit, context)
    model = train_on(config, data.train, unit["seed"], context, cost, "poisoned")
    own = data.train.y == data.target
    images, mask = data.train.x[own], data.mask[own].cpu()
    layers: Json = {}
    arrays: dict[str, Tensor] = {"poisoned": mask}
    for tap, pool in config.layers:
        scores = outlier_scores(
            features(model, images, tap, pool=pool), centred=config.centred
        ).cpu()
        name = layer_name(tap, pool)
        layers[name] = {
            "auroc": auroc(mask, scores),
            "left": poisons_left(scores, mask),
        }
        if (tap, pool) == (config.tap, config.pool):
            arrays["scores"] = scores.float()
    numbers = {
        **unit,
        **data.facts(),
        "label_images": len(mask),
        "natural_before": evaluate(model, data.test),
        "hits_before": hits(model, data),
        "layers": layers,
    }
    numbers["captured"] = is_captured(numbers["hits_before"], len(data.triggered))
    return {**numbers, "cost": cost.as_json()}, arrays


def layer_name(tap: str, pool: str) -> str:
    """Return how a representation is called in records and figures."""
    return tap if pool == "flatten" else f"{tap}, pooled"


def poisons_left(scores: Tensor, poisoned: Tensor) -> list[int]:
    """Return the poisoned images left when ``factor * epsilon`` of a label's are removed.

    One number for each of :data:`FACTORS`; epsilon is the number of poisoned images.
    """
    gone = poisoned[scores.argsort(descending=True, stable=True)].long().cumsum(0)
    total = int(poisoned.sum())
    removed = [min(math.ceil(factor * total), len(scores) - 1) for factor in FACTORS]
    found = torch.cat([gone.new_zeros(1), gone])
    return [total - int(found[count]) for count in removed]


def limits_summary(config: LimitsConfig, trials: Sequence[Json]) -> Json:
    """For each shape and share: the backdoor's rate, and each layer's poisons left."""
    rows = []
    at = FACTORS.index(1.5)
    for pattern in config.patterns:
        for source, target in config.pairs:
            for share in config.shares:
                own = [
                    trial
                    for trial in trials
                    if (trial["pattern"], trial["source"], trial["target"], trial["share"])
                    == (pattern, source, target, share)
                ]
                successes = sum(trial["hits_before"] for trial in own)
                total = sum(trial["triggered_images"] for trial in own)
                row: Json = {"pattern": pattern, "source": source, "target": target}
                row |= {"share": share, "runs": len(own), "poisons": own[0]["poisons"]}
                row["captured"] = sum(trial["captured"] for trial in own)
                row["poisoned_before"] = successes / total
                row["poisoned_before_interval"] = list(wilson(successes, total))
                row["layers"] = {
                    name: {
                        "auroc": mean_and_deviation(
                            [trial["layers"][name]["auroc"] for trial in own]
                        ),
                        "left": mean_and_deviation(
                            [trial["layers"][name]["left"][at] for trial in own]
                        ),
                    }
                    for name in own[0]["layers"]
                }
                rows.append(row)
    return {"factors": list(FACTORS), "rows": rows}


_SMALL_LAYERS: Mapping[str, object] = {
    "layers": (
        ("stage1.1", "flatten"),
        ("stage2.1", "flatten"),
        ("stage3.0", "flatten"),
        ("stage3.1", "flatten"),
        ("stage3.1", "mean"),
        ("hidden", "flatten"),
    ),
}
LIMITS = Experiment(
    name="spectral_signatures/limits",
    summary="beyond the paper: where the filter stops working",
    version=1,
    config=LimitsConfig,
    profiles={
        "quick": {
            **QUICK,
            "shares": (0.02, 0.05, 0.10, 0.30),
            "trials": 2,
            "layers": (
                ("block1", "flatten"),
                ("block2", "flatten"),
                ("block3", "flatten"),
                ("block3", "mean"),
                ("hidden", "flatten"),
            ),
        },
        "small": {**SMALL, **_SMALL_LAYERS},
        "paper": {},
    },
    variants={"paper": {}},
    units=limits_units,
    trial=limits_trial,
    check=_begin,
    summarise=limits_summary,
)
