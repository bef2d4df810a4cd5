"""All experiments by name."""

from poisonkit.experiments.running import PROFILES, Experiment, run
from poisonkit.experiments.spectral_signatures import REMOVAL, SIGNATURE

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in (SIGNATURE, REMOVAL)
}

__all__ = ["EXPERIMENTS", "PROFILES", "Experiment", "run"]
