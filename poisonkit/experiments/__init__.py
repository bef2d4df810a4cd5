"""All experiments by name."""

from poisonkit.experiments import deep_confuse, spectral_signatures
from poisonkit.experiments.running import PROFILES, Experiment, run

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in (*spectral_signatures.ALL, *deep_confuse.ALL)
}

__all__ = ["EXPERIMENTS", "PROFILES", "Experiment", "run"]
