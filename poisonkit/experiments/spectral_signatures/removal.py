"""Table 2: train, filter, train again."""

from collections.abc import Callable, Sequence

from torch import Tensor

from poisonkit.evaluation import evaluate
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.spectral_signatures.setting import (
    PROFILES,
    VARIANTS,
    SpectralConfig,
    units,
)
from poisonkit.experiments.spectral_signatures.steps import (
    begin,
    filter_images,
    hits,
    is_captured,
    train_on,
)
from poisonkit.models import features
from poisonkit.statistics import mean_and_deviation, wilson
from poisonkit.store import Json


def removal_trial(
    config: SpectralConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Train, filter, train again; and once on clean data for reference (Table 2)."""
    data, cost = begin(config, unit, context)
    seed, total = unit["seed"], len(data.triggered)
    before = train_on(config, data.train, seed, context, cost, "poisoned")
    representation = features(before, data.train.x, config.tap, pool=config.pool)
    result = filter_images(config, representation, data)
    # A new initialisation, as line 14 of Algorithm 1 asks.
    kept = data.train.select(result.keep)
    after = train_on(config, kept, seed + 1_000_000, context, cost, "filtered")
    clean = train_on(config, data.clean, seed, context, cost, "clean")
    hits_before = hits(before, data)
    numbers = {
        **unit,
        **data.facts(),
        "natural_before": evaluate(before, data.test),
        "hits_before": hits_before,
        "captured": is_captured(hits_before, total),
        "poisons_left": int((data.mask & result.keep).sum()),
        "removed": int((~result.keep).sum()),
        "removed_from_target": int((~result.keep & (data.train.y == data.target)).sum()),
        "natural_after": evaluate(after, data.test),
        "hits_after": hits(after, data),
        "natural_clean": evaluate(clean, data.test),
        "hits_clean": hits(clean, data),
    }
    own = data.train.y == data.target
    arrays = {"scores": result.scores[own].float(), "poisoned": data.mask[own]}
    return {**numbers, "cost": cost.as_json()}, arrays


def removal_summary(config: SpectralConfig, trials: Sequence[Json]) -> Json:
    """Means over the seeds of each pair and share, and pooled rates with intervals."""
    return {"rows": rows_of(trials)}


def removal_row(own: Sequence[Json]) -> Json:
    """Return the columns of Table 2 over some trials."""
    total = sum(trial["triggered_images"] for trial in own)
    row: Json = {"runs": len(own), "captured": sum(trial["captured"] for trial in own)}
    for moment in ("before", "after", "clean"):
        successes = sum(trial[f"hits_{moment}"] for trial in own)
        row[f"poisoned_{moment}"] = successes / total
        row[f"poisoned_{moment}_interval"] = list(wilson(successes, total))
        mean, deviation = mean_and_deviation([trial[f"natural_{moment}"] for trial in own])
        row[f"natural_{moment}"] = mean
        row[f"natural_{moment}_deviation"] = deviation
    left, spread = mean_and_deviation([trial["poisons_left"] for trial in own])
    row |= {"poisons_left": left, "poisons_left_deviation": spread}
    row["poisons"] = own[0]["poisons"]
    return row


def rows_of(
    trials: Sequence[Json],
    keys: Sequence[str] = ("source", "target", "share"),
    *,
    row: Callable[[Sequence[Json]], Json] = removal_row,
) -> list[Json]:
    """Summarise the trials that agree in ``keys``, in the order in which they first appear.

    Parameters
    ----------
    row : makes the other columns of such trials.
    """
    groups: dict[tuple[object, ...], list[Json]] = {}
    for trial in trials:
        groups.setdefault(tuple(trial[key] for key in keys), []).append(trial)
    return [dict(zip(keys, names, strict=True)) | row(own) for names, own in groups.items()]


REMOVAL = Experiment(
    name="spectral_signatures/removal",
    summary="Table 2: accuracy before and after the filter, and poisons left",
    version=2,
    config=SpectralConfig,
    profiles=PROFILES,
    variants=VARIANTS,
    units=units,
    trial=removal_trial,
    check=begin,
    summarise=removal_summary,
)
