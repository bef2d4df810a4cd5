"""Learning to Confuse (Feng, Cai and Zhou, 2019): the experiments."""

from poisonkit.experiments.deep_confuse.attack import CIFAR10, IMAGENET2, MNIST, NETWORK
from poisonkit.experiments.deep_confuse.defences import DEFENCE
from poisonkit.experiments.deep_confuse.first_steps import FIRST_STEPS
from poisonkit.experiments.deep_confuse.label_map import LABEL_MAP, NETWORK_LABEL_MAP
from poisonkit.experiments.deep_confuse.setting import ConfuseConfig
from poisonkit.experiments.deep_confuse.strength import (
    EPSILON,
    NETWORK_EPSILON,
    NETWORK_SHARE,
    SHARE,
)
from poisonkit.experiments.deep_confuse.switches import SWITCHING
from poisonkit.experiments.deep_confuse.transfer import (
    NETWORK_TRANSFER,
    TRANSFER,
    TRANSFER_CIFAR10,
    TRANSFER_IMAGENET2,
)

ALL = (
    MNIST,
    CIFAR10,
    IMAGENET2,
    NETWORK,
    NETWORK_EPSILON,
    NETWORK_SHARE,
    NETWORK_TRANSFER,
    NETWORK_LABEL_MAP,
    EPSILON,
    SHARE,
    TRANSFER,
    TRANSFER_CIFAR10,
    TRANSFER_IMAGENET2,
    FIRST_STEPS,
    LABEL_MAP,
    DEFENCE,
    SWITCHING,
)

__all__ = ["ALL", "ConfuseConfig"]
