"""Learning to Confuse (Feng, Cai and Zhou, 2019): the experiments."""

from poisonkit.experiments.deep_confuse.attack import CIFAR10, IMAGENET2, MNIST, NETWORK
from poisonkit.experiments.deep_confuse.defences import DEFENCE
from poisonkit.experiments.deep_confuse.label_map import LABEL_MAP
from poisonkit.experiments.deep_confuse.setting import ConfuseConfig
from poisonkit.experiments.deep_confuse.strength import EPSILON, SHARE
from poisonkit.experiments.deep_confuse.switches import SWITCHING
from poisonkit.experiments.deep_confuse.transfer import (
    TRANSFER,
    TRANSFER_CIFAR10,
    TRANSFER_IMAGENET2,
)

ALL = (
    MNIST,
    CIFAR10,
    IMAGENET2,
    NETWORK,
    EPSILON,
    SHARE,
    TRANSFER,
    TRANSFER_CIFAR10,
    TRANSFER_IMAGENET2,
    LABEL_MAP,
    DEFENCE,
    SWITCHING,
)

__all__ = ["ALL", "ConfuseConfig"]
