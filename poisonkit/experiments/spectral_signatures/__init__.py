"""Spectral Signatures in Backdoor Attacks (Tran, Li and Madry, 2018): the experiments."""

from poisonkit.experiments.spectral_signatures.lemma import LEMMA
from poisonkit.experiments.spectral_signatures.limits import LIMITS
from poisonkit.experiments.spectral_signatures.related import ARCHITECTURES, SUBPOPULATIONS
from poisonkit.experiments.spectral_signatures.removal import REMOVAL
from poisonkit.experiments.spectral_signatures.setting import SpectralConfig
from poisonkit.experiments.spectral_signatures.signature import SIGNATURE
from poisonkit.experiments.spectral_signatures.switches import SWITCHING
from poisonkit.experiments.spectral_signatures.trace import TRACE

ALL = (SIGNATURE, REMOVAL, SUBPOPULATIONS, ARCHITECTURES, LEMMA, LIMITS, TRACE, SWITCHING)

__all__ = [
    "ALL",
    "ARCHITECTURES",
    "LEMMA",
    "LIMITS",
    "REMOVAL",
    "SIGNATURE",
    "SUBPOPULATIONS",
    "SWITCHING",
    "TRACE",
    "SpectralConfig",
]
