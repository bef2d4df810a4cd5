"""All experiments by name."""

from poisonkit.experiments import (
    convex_polytope,
    deep_confuse,
    metapoison,
    spectral_signatures,
)
from poisonkit.experiments.running import PROFILES, Experiment, run

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for chapter in (spectral_signatures, deep_confuse, metapoison, convex_polytope)
    for experiment in chapter.ALL
}

__all__ = ["EXPERIMENTS", "PROFILES", "Experiment", "run"]
