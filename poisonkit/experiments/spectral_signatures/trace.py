"""Beyond the paper: whose trace the filter finds, the trigger's or that of a wrong label."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from poisonkit.attacks.backdoor import Trigger
from poisonkit.defenses.spectral import outlier_scores
from poisonkit.errors import unknown
from poisonkit.evaluation import evaluate, predict
from poisonkit.experiments.networks import Context, Cost
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats
from poisonkit.experiments.spectral_signatures.limits import FACTORS, poisons_left
from poisonkit.experiments.spectral_signatures.removal import rows_of
from poisonkit.experiments.spectral_signatures.setting import (
    QUICK,
    SMALL,
    Placement,
    SpectralConfig,
    units,
)
from poisonkit.experiments.spectral_signatures.signature import statistics
from poisonkit.experiments.spectral_signatures.steps import (
    Poisoned,
    begin,
    hits,
    is_captured,
    train_on,
)
from poisonkit.images import ImageSet
from poisonkit.models import features
from poisonkit.poison import Poison
from poisonkit.statistics import auroc, mean_and_deviation, wilson
from poisonkit.store import Json

#: What is done to the marked images: the attack, or one half of it.
KINDS = ("trigger and wrong label", "wrong label", "trigger")


@dataclass(frozen=True, kw_only=True)
class TraceConfig(SpectralConfig):
    """As :class:`SpectralConfig`, for the attack and for each half of it.

    Attributes
    ----------
    kinds : of :data:`KINDS`. ``wrong label`` gives the attack's images their wrong label and
        leaves them as they are; ``trigger`` stamps as many of the target's own images, which
        keep their label.
    placement : ``replaced`` by default, so that no image is trained on under two labels:
        without the trigger an added image is a copy of one that keeps its label.
    """

    pairs: tuple[tuple[str, str], ...] = (
        ("airplane", "bird"),
        ("cat", "horse"),
        ("ship", "frog"),
    )
    shares: tuple[float, ...] = (0.10,)
    placement: Placement = "replaced"
    kinds: tuple[str, ...] = KINDS


def trace_units(config: TraceConfig) -> list[Json]:
    """One trial for each kind, pair, share and seed."""
    refuse_repeats(kinds=config.kinds)
    for kind in config.kinds:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
    return [{**unit, "kind": kind} for kind in config.kinds for unit in units(config)]


def halved(poison: Poison, train: ImageSet, trigger: Trigger, *, kind: str, seed: int) -> Poison:
    """Return the attack's poison, or the half of it that a kind names.

    Parameters
    ----------
    seed : of the choice of the target's own images.
    """
    if kind == "wrong label":
        return replace(poison, images=train.x[poison.rows])
    if kind == "trigger":
        own = train.indices_of(int(poison.labels[0]))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(own), generator=generator)[: len(poison)].sort().values
        rows = own[chosen.to(train.device)]
        return replace(poison, images=trigger.stamp(train.x[rows]), rows=rows, clean_label=True)
    return poison


def _begin(config: TraceConfig, unit: Json, context: Context) -> tuple[Poisoned, Cost]:
    half = partial(halved, kind=unit["kind"], seed=unit["seed"])
    return begin(config, unit, context, alter=half)


def trace_trial(
    config: TraceConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Train once, and see how far the marked images stand out among their label's."""
    data, cost = _begin(config, unit, context)
    model = train_on(config, data.train, unit["seed"], context, cost, unit["kind"])
    own = data.train.y == data.target
    images, mask = data.train.x[own], data.mask[own]
    representation = features(model, images, config.tap, pool=config.pool)
    scores = outlier_scores(representation, centred=config.centred)
    found = statistics(representation, mask)
    left = poisons_left(scores.cpu(), mask.cpu())
    numbers = {
        **unit,
        **data.facts(),
        "label_images": len(mask),
        "natural_before": evaluate(model, data.test),
        "hits_before": hits(model, data),
        "source_test_images": len(data.source_test),
        "source_hits": int((predict(model, data.source_test.x) == data.target).sum()),
        "fitted": int((predict(model, images[mask]) == data.target).sum()),
        "auroc": auroc(mask, scores),
        "left": left[FACTORS.index(1.5)],
        "rise": found["all"]["singular_values"][0] / found["clean"]["singular_values"][0],
    }
    numbers["captured"] = is_captured(numbers["hits_before"], len(data.triggered))
    arrays = {"scores": scores.float().cpu(), "poisoned": mask.cpu()}
    return {**numbers, "cost": cost.as_json()}, arrays


def trace_summary(config: TraceConfig, trials: Sequence[Json]) -> Json:
    """For each kind, pair and share: how far its marked images stand out, and what is left."""
    return {"rows": rows_of(trials, ("kind", "source", "target", "share"), row=_row)}


def _row(own: Sequence[Json]) -> Json:
    successes = sum(trial["hits_before"] for trial in own)
    total = sum(trial["triggered_images"] for trial in own)
    return {
        "runs": len(own),
        "captured": sum(trial["captured"] for trial in own),
        "poisons": own[0]["poisons"],
        "poisoned_before": successes / total,
        "poisoned_before_interval": list(wilson(successes, total)),
        "fitted": mean_and_deviation([trial["fitted"] / trial["poisons"] for trial in own]),
        **{
            name: mean_and_deviation([trial[name] for trial in own])
            for name in ("auroc", "left", "rise", "natural_before")
        },
    }


TRACE = Experiment(
    name="spectral_signatures/trace",
    summary="beyond the paper: whose trace the filter finds, the trigger's or a wrong label's",
    version=1,
    config=TraceConfig,
    profiles={"quick": {**QUICK, "trials": 2}, "small": SMALL, "paper": {}},
    variants={"paper": {}},
    units=trace_units,
    trial=trace_trial,
    check=_begin,
    summarise=trace_summary,
)
