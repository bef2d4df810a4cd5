"""Proposition 1 and Figure 1 in numbers: surrounding a target against coming close to it."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from poisonkit.errors import PoisonkitError, unknown
from poisonkit.experiments.networks import Context, Cost
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.settings import refuse_repeats
from poisonkit.statistics import wilson
from poisonkit.store import Json

Placement = Literal["polytope", "collision"]
PLACEMENTS: tuple[Placement, ...] = ("polytope", "collision")
#: Penalty of the support vector machine; so large that nothing that can be fitted is given up.
PENALTY = 1e6


@dataclass(frozen=True, kw_only=True)
class PropositionConfig:
    """Two classes of points, a target of one of them, and poisons of the other around it.

    Attributes
    ----------
    dimensions : of the space; at least as many as there are poisons.
    points : of each class, normal with unit variance around means that are ``gap`` apart.
    poisons : k, how many poisons there are.
    spread, narrow : mean distance of the poisons from their own mean where they are to
        surround the target, and where they are to collide with it.
    distances : from the target to the polytope of the poisons, that is, to their mean.
    placements : whether the poisons surround the target or collide with it.
    trials : independent draws.
    """

    profile: Literal["quick", "small", "paper"] = "paper"
    variant: Literal["paper"] = "paper"
    seed: int = 0
    dimensions: tuple[int, ...] = (8, 32, 128)
    points: int = 50
    gap: float = 6.0
    poisons: int = 5
    spread: float = 4.0
    narrow: float = 0.2
    distances: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0)
    placements: tuple[Placement, ...] = PLACEMENTS
    trials: int = 200


@dataclass(frozen=True)
class Scene:
    """Points [n, d] of the poisons' class and of the target's, poisons [k, d], target [d]."""

    own: np.ndarray
    other: np.ndarray
    poisons: np.ndarray
    target: np.ndarray


def draw(
    config: PropositionConfig,
    placement: Placement,
    dimensions: int,
    distance: float,
    seed: int | Sequence[int],
) -> Scene:
    """Draw one scene; those of a seed differ in their poisons' distance and placement only."""
    generator = np.random.default_rng(seed)
    shift = np.zeros(dimensions)
    shift[0] = config.gap / 2
    own = generator.normal(size=(config.points, dimensions)) + shift
    other = generator.normal(size=(config.points, dimensions)) - shift
    target = generator.normal(size=dimensions) - shift
    around = generator.normal(size=(config.poisons, dimensions))
    around -= around.mean(0)
    around /= np.linalg.norm(around, axis=1).mean()
    # At a right angle to the polytope, so that its distance is that of its mean.
    basis = np.linalg.svd(around, full_matrices=False)[2][: config.poisons - 1]
    aside = generator.normal(size=dimensions)
    aside -= basis.T @ (basis @ aside)
    aside /= np.linalg.norm(aside)
    spread = config.spread if placement == "polytope" else config.narrow
    return Scene(own, other, target + spread * around + distance * aside, target)


@dataclass(frozen=True)
class Line:
    """A linear classifier: a point is of the poisons' class where ``weight @ x + bias > 0``."""

    weight: np.ndarray
    bias: float

    def takes(self, points: np.ndarray) -> np.ndarray:
        """Tell which points [n, d] it takes for the poisons' class."""
        return points @ self.weight + self.bias > 0


def widest(scene: Scene) -> Line:
    """Train the linear classifier with the widest margin on everything but the target."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import SVC

    x = np.concatenate([scene.own, scene.poisons, scene.other])
    y = np.repeat([1, 0], [len(scene.own) + len(scene.poisons), len(scene.other)])
    with warnings.catch_warnings():
        # Where nothing fits all points it never gets there; then the poisons are not fitted.
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine = SVC(kernel="linear", C=PENALTY, max_iter=20_000).fit(x, y)
    return Line(machine.coef_[0], float(machine.intercept_[0]))


def captured(scene: Scene) -> tuple[bool, bool]:
    """Tell whether the widest classifier takes all poisons, and the target, for their class."""
    line = widest(scene)
    return bool(line.takes(scene.poisons).all()), bool(line.takes(scene.target[None])[0])


def in_the_plane(distances: Mapping[Placement, float], *, seed: int = 0) -> dict[Placement, Scene]:
    """Draw two poisons in the plane, their segment at the given distance from the target.

    Of the draws from ``seed`` on, the first in which the poisons of every placement can be
    fitted; what becomes of the target does not matter for the choice.
    """
    config = PropositionConfig(dimensions=(2,), poisons=2, points=20, gap=8.0)
    for number in itertools.count(seed):
        scenes = {k: draw(config, k, 2, distance, number) for k, distance in distances.items()}
        if all(captured(scene)[0] for scene in scenes.values()):
            break
    return scenes


def _units(config: PropositionConfig) -> list[Json]:
    refuse_repeats(
        dimensions=config.dimensions, distances=config.distances, placements=config.placements
    )
    for placement in config.placements:
        if placement not in PLACEMENTS:
            raise unknown("placement", placement, PLACEMENTS)
    if config.poisons < 2 or config.points < 2:
        raise PoisonkitError("there must be at least 2 poisons and 2 points of each class")
    if config.trials < 1:
        raise PoisonkitError(f"there must be at least 1 draw of each scene, not {config.trials}")
    if min(config.dimensions, default=0) < config.poisons:
        raise PoisonkitError(
            f"{config.poisons} poisons and a direction beside them need as many dimensions"
        )
    if min(config.distances, default=-1) < 0 or min(config.spread, config.narrow) <= 0:
        raise PoisonkitError("distances must not be negative, and spreads must be positive")
    return [
        {"dimensions": dimensions, "placement": placement}
        for dimensions in config.dimensions
        for placement in config.placements
    ]


def _trial(
    config: PropositionConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Draw all scenes of one kind."""
    cost = Cost()
    placement, dimensions = unit["placement"], unit["dimensions"]
    rows = []
    for distance in config.distances:
        found = []
        for number in range(config.trials):
            # The draws that Proposition 1 is judged by have nothing in common.
            seed = (config.seed + number, dimensions, PLACEMENTS.index(placement))
            scene = draw(config, placement, dimensions, distance, seed)
            nearest = float(np.linalg.norm(scene.poisons - scene.target, axis=1).min())
            found.append((*captured(scene), nearest))
        rows.append(
            {
                "distance": distance,
                "fitted": sum(fitted for fitted, _, _ in found),
                "captured": sum(fitted and hit for fitted, hit, _ in found),
                "nearest": float(np.mean([nearest for _, _, nearest in found])),
            }
        )
    numbers: Json = {**unit, "rows": rows, "data_checksum": "drawn from the seed"}
    return {**numbers, "cost": cost.as_json()}, {}


def _summary(config: PropositionConfig, trials: Sequence[Json]) -> Json:
    """How often a classifier that fits the poisons takes the target for one of them."""
    rows = []
    for trial in trials:
        for row in trial["rows"]:
            low, high = wilson(row["captured"], row["fitted"]) if row["fitted"] else (0.0, 1.0)
            shown = {"dimensions": trial["dimensions"], "placement": trial["placement"]}
            rows.append({**shown, **row, "low": low, "high": high})
    return {"rows": rows}


PROPOSITION = Experiment(
    name="convex_polytope/proposition",
    summary="Proposition 1 and Figure 1: surrounding a target against coming close to it",
    version=2,
    config=PropositionConfig,
    profiles={"quick": {"trials": 20}, "small": {}, "paper": {}},
    variants={"paper": {}},
    units=_units,
    trial=_trial,
    summarise=_summary,
)
