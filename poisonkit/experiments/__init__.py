"""All experiments by name."""

from poisonkit.experiments.running import PROFILES, Experiment, run
from poisonkit.experiments.spectral_signatures import (
    ARCHITECTURES,
    LEMMA,
    LIMITS,
    REMOVAL,
    SIGNATURE,
    SUBPOPULATIONS,
    SWITCHING,
)

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        SIGNATURE,
        REMOVAL,
        SUBPOPULATIONS,
        ARCHITECTURES,
        LEMMA,
        LIMITS,
        SWITCHING,
    )
}

__all__ = ["EXPERIMENTS", "PROFILES", "Experiment", "run"]
