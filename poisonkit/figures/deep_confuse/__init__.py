"""The figures and tables of the Deep Confuse chapter."""

from poisonkit.figures.deep_confuse.accuracy import (
    accuracy_table,
    curves_figure,
    noise_table,
    trials_figure,
)
from poisonkit.figures.deep_confuse.first_steps import steps_figure, steps_table
from poisonkit.figures.deep_confuse.label_map import (
    confusion_figure,
    draw_confusion,
    label_map_table,
    map_by_class_table,
)
from poisonkit.figures.deep_confuse.measures import (
    defences_figure,
    defences_table,
    switches_figure,
    switches_table,
)
from poisonkit.figures.deep_confuse.pictures import components_figure, images_figure, noise_figure
from poisonkit.figures.deep_confuse.shared import NETWORKS, PAPER_DATA
from poisonkit.figures.deep_confuse.strength import (
    epsilon_figure,
    epsilon_slider,
    share_figure,
)
from poisonkit.figures.deep_confuse.transfer import transfer_figure, transfer_table

__all__ = [
    "NETWORKS",
    "PAPER_DATA",
    "accuracy_table",
    "components_figure",
    "confusion_figure",
    "curves_figure",
    "defences_figure",
    "defences_table",
    "draw_confusion",
    "epsilon_figure",
    "epsilon_slider",
    "images_figure",
    "label_map_table",
    "map_by_class_table",
    "noise_figure",
    "noise_table",
    "share_figure",
    "steps_figure",
    "steps_table",
    "switches_figure",
    "switches_table",
    "transfer_figure",
    "transfer_table",
    "trials_figure",
]
