"""All experiments by name."""

from poisonkit.experiments import convex_polytope, deep_confuse, spectral_signatures
from poisonkit.experiments.running import PROFILES, Experiment, run

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (*spectral_signatures.ALL, *deep_confuse.ALL, *convex_polytope.ALL)
}

__all__ = ["EXPERIMENTS", "PROFILES", "Experiment", "run"]
