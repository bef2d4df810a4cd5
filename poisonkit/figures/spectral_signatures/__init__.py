"""The figures and tables of the Spectral Signatures chapter."""

from poisonkit.figures.spectral_signatures.filtering import (
    removal_figure,
    removal_table,
    runs_table,
    switches_table,
)
from poisonkit.figures.spectral_signatures.limits import (
    layers_figure,
    lemma_figure,
    limits_figure,
    removals_figure,
    removals_slider,
)
from poisonkit.figures.spectral_signatures.signature import (
    auroc_table,
    figure_1,
    figure_2,
    pattern_slider,
    spectrum_table,
)
from poisonkit.figures.spectral_signatures.threshold import threshold_figure, threshold_slider
from poisonkit.figures.spectral_signatures.trace import (
    trace_figure,
    trace_scores_figure,
    trace_table,
)

__all__ = [
    "auroc_table",
    "figure_1",
    "figure_2",
    "layers_figure",
    "lemma_figure",
    "limits_figure",
    "pattern_slider",
    "removal_figure",
    "removal_table",
    "removals_figure",
    "removals_slider",
    "runs_table",
    "spectrum_table",
    "switches_table",
    "threshold_figure",
    "threshold_slider",
    "trace_figure",
    "trace_scores_figure",
    "trace_table",
]
