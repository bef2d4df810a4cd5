"""MetaPoison (Huang et al., 2019): the experiments."""

from poisonkit.experiments.metapoison.crafting import CRAFTING, VICTIMS
from poisonkit.experiments.metapoison.limits import LIMITS, TARGETS
from poisonkit.experiments.metapoison.mechanism import MECHANISM
from poisonkit.experiments.metapoison.setting import MetaConfig
from poisonkit.experiments.metapoison.switches import SWITCHING
from poisonkit.experiments.metapoison.variations import BUDGET, SCENARIO, TRAINING

ALL = (CRAFTING, VICTIMS, BUDGET, TRAINING, SCENARIO, MECHANISM, LIMITS, TARGETS, SWITCHING)

__all__ = ["ALL", "MetaConfig"]
