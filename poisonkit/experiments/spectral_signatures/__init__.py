"""Spectral Signatures in Backdoor Attacks (Tran, Li and Madry, 2018): the experiments."""

from poisonkit.experiments.spectral_signatures.removal import REMOVAL
from poisonkit.experiments.spectral_signatures.setting import SpectralConfig
from poisonkit.experiments.spectral_signatures.signature import SIGNATURE

__all__ = ["REMOVAL", "SIGNATURE", "SpectralConfig"]
