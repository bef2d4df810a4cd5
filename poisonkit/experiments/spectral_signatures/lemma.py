"""Lemma 3.1 in numbers: how large a gap between the means makes two parts separable."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poisonkit.defenses.spectral import top_singular_vectors
from poisonkit.devices import choose_device
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.experiments.networks import Context, Cost
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats
from poisonkit.statistics import mean_and_deviation
from poisonkit.store import Json
from poisonkit.training import mixed

#: The lemma asks for a squared gap of at least so many times sigma^2 / epsilon.
BOUND = 6.0


@dataclass(frozen=True, kw_only=True)
class LemmaConfig:
    """Two distributions D and W of covariance at most I (sigma = 1), mixed (1 - epsilon) : epsilon.

    Attributes
    ----------
    dimensions, samples : d, and the number of points drawn from the mixture.
    epsilons : shares of W.
    gaps : squared distances of the two means, in units of sigma^2 / epsilon; the
        lemma's bound is 6.
    distributions : keys of :data:`DISTRIBUTIONS`.
    trials : independent draws.
    """

    profile: Literal["quick", "small", "paper"] = "paper"
    variant: Literal["paper"] = "paper"
    seed: int = 0
    trials: int = 20
    dimensions: int = 256
    samples: int = 50_000
    epsilons: tuple[float, ...] = (0.02, 0.05, 0.10, 0.20)
    gaps: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 12.0, 24.0)
    distributions: tuple[str, ...] = ("gaussian", "spiked", "heavy tails")


def gaussian(count: int, dimensions: int, epsilon: float, generator: torch.Generator) -> Tensor:
    """Unit variance in every direction."""
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64)


def spiked(count: int, dimensions: int, epsilon: float, generator: torch.Generator) -> Tensor:
    """Unit variance along one direction at a right angle to the gap, 0.1 along the others.

    While the gap is small, the top singular vector follows that direction instead.
    """
    drawn = gaussian(count, dimensions, epsilon, generator)
    drawn[:, 2:] *= math.sqrt(0.1)
    drawn[:, 0] *= math.sqrt(0.1)
    return drawn


def heavy_tails(count: int, dimensions: int, epsilon: float, generator: torch.Generator) -> Tensor:
    """Unit variance that comes, along the gap, from a share 1.2 epsilon of far-off points.

    The proof bounds tails by Chebyshev's inequality; this distribution nearly attains it.
    """
    drawn = gaussian(count, dimensions, epsilon, generator)
    share = 1.2 * epsilon
    far = torch.rand(count, generator=generator, dtype=torch.float64) < share
    reach = math.sqrt((1 - share) / share)
    drawn[:, 0] = torch.where(far, reach, -1 / reach)
    return drawn


#: Each draws points of mean zero; the gap will lie along the first axis.
DISTRIBUTIONS = {"gaussian": gaussian, "spiked": spiked, "heavy tails": heavy_tails}


def overlap(clean: Tensor, poisoned: Tensor) -> float:
    """Return the smallest e such that some threshold t loses and keeps less than e.

    That is the minimum over t of the larger of Pr[clean > t] and Pr[poisoned < t];
    the parts are epsilon-spectrally separable if it is below epsilon.
    """
    values = torch.cat([clean, poisoned]).sort().values
    lost = len(clean) - torch.searchsorted(clean.sort().values, values, right=True)
    spared = torch.searchsorted(poisoned.sort().values, values)
    # In double precision, so that an overlap of exactly epsilon is not below it.
    return float(torch.maximum(lost.double() / len(clean), spared.double() / len(poisoned)).min())


def lemma_units(config: LemmaConfig) -> list[Json]:
    """One trial for each distribution, epsilon and seed."""
    refuse_repeats(distributions=config.distributions, epsilons=config.epsilons, gaps=config.gaps)
    for name in config.distributions:
        if name not in DISTRIBUTIONS:
            raise unknown("distribution", name, DISTRIBUTIONS)
    for epsilon in config.epsilons:
        if not 0 < epsilon < 0.5:
            raise PoisonkitError(f"epsilon must lie in (0, 1/2), not {epsilon}")
        if round(epsilon * config.samples) < 1 / epsilon:
            raise PoisonkitError(
                f"{config.samples} samples are too few to resolve a share of {epsilon}"
            )
    if config.dimensions < 3 or min(config.gaps, default=0) <= 0:
        raise PoisonkitError("there must be at least 3 dimensions, and all gaps positive")
    return [
        {"distribution": name, "epsilon": epsilon, "seed": config.seed + number}
        for name in config.distributions
        for epsilon in config.epsilons
        for number in range(config.trials)
    ]


def lemma_trial(
    config: LemmaConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Draw D and W once, and move them apart."""
    cost = Cost()
    epsilon = unit["epsilon"]
    # Draws of one seed have nothing in common: they are counted as independent ones.
    kind = mixed(unit["seed"], [*DISTRIBUTIONS].index(unit["distribution"]))
    generator = torch.Generator().manual_seed(mixed(kind, round(1e6 * epsilon)))
    poisons = round(epsilon * config.samples)
    draw = DISTRIBUTIONS[unit["distribution"]]
    device = choose_device(context.device)
    clean = draw(config.samples - poisons, config.dimensions, epsilon, generator).to(device)
    # The far-off points of W lie towards D, those of D towards W.
    poisoned = -draw(poisons, config.dimensions, epsilon, generator).to(device)
    overlaps, alignments = [], []
    for gap in config.gaps:
        moved = poisoned.clone()
        moved[:, 0] += math.sqrt(gap / epsilon)
        points = torch.cat([clean, moved])
        centred = points - points.mean(0)
        _, vectors = top_singular_vectors(centred)
        distance = (centred @ vectors[0]).abs()
        overlaps.append(overlap(distance[: len(clean)], distance[len(clean) :]))
        alignments.append(float(vectors[0][0].abs()))
    numbers = {
        **unit,
        "overlaps": overlaps,
        "alignments": alignments,
        "data_checksum": "drawn from the seed",
    }
    return {**numbers, "cost": cost.as_json()}, {}


def lemma_summary(config: LemmaConfig, trials: Sequence[Json]) -> Json:
    """For each distribution, epsilon and gap: overlap, alignment, and how often separable."""
    rows = []
    for name in config.distributions:
        for epsilon in config.epsilons:
            own = [t for t in trials if (t["distribution"], t["epsilon"]) == (name, epsilon)]
            for place, gap in enumerate(config.gaps):
                found = [trial["overlaps"][place] for trial in own]
                rows.append(
                    {
                        "distribution": name,
                        "epsilon": epsilon,
                        "gap": gap,
                        "runs": len(own),
                        "separable": sum(value < epsilon for value in found),
                        "overlap": mean_and_deviation(found),
                        "alignment": mean_and_deviation([t["alignments"][place] for t in own]),
                    }
                )
    return {"bound": BOUND, "rows": rows}


_SMALL: Mapping[str, object] = {"trials": 10, "dimensions": 64, "samples": 20_000}
LEMMA = Experiment(
    name="spectral_signatures/lemma",
    summary="Lemma 3.1: how large a gap between the means makes the parts separable",
    version=4,
    config=LemmaConfig,
    profiles={
        "quick": {"trials": 3, "dimensions": 16, "samples": 4_000, "epsilons": (0.05, 0.10, 0.20)},
        "small": _SMALL,
        "paper": {},
    },
    variants={"paper": {}},
    units=lemma_units,
    trial=lemma_trial,
    summarise=lemma_summary,
)
