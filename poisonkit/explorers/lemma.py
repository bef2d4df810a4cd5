"""Explorer of Lemma 3.1: two clouds in the plane, and the top singular vector of both."""

import math

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from poisonkit.defenses.spectral import top_singular_vectors
from poisonkit.experiments.spectral_signatures.lemma import BOUND, overlap
from poisonkit.explorers.shared import show
from poisonkit.plots import COLOURS, panels, two_histograms

POINTS = 2000


def lemma_explorer(*, seed: int = 0) -> widgets.VBox:
    """Move the gap, the share and the spread at a right angle to the gap; see what v does."""
    gap = widgets.FloatSlider(6, min=0.1, max=12, step=0.1, description="squared gap")
    epsilon = widgets.FloatSlider(0.1, min=0.02, max=0.4, step=0.02, description="epsilon")
    along = widgets.FloatSlider(0.3, min=0.1, max=1, step=0.1, description="sd along")
    across = widgets.FloatSlider(1, min=0.1, max=1, step=0.1, description="sd across")
    output = widgets.Output()

    def draw(_: object = None) -> None:
        figure = plane_figure(
            gap=gap.value,
            epsilon=epsilon.value,
            spread=(along.value, across.value),
            seed=seed,
        )
        show(output, figure)

    for control in (gap, epsilon, along, across):
        control.observe(draw, names="value")
    draw()
    rows = [widgets.HBox([gap, epsilon]), widgets.HBox([along, across])]
    return widgets.VBox([*rows, output])


def plane_figure(
    *, gap: float, epsilon: float, spread: tuple[float, float], seed: int = 0
) -> Figure:
    """Draw two Gaussian clouds, the top singular vector v, and the distances along it.

    Parameters
    ----------
    gap : squared distance of the means in units of 1 / epsilon (sigma is 1).
    spread : standard deviations along the gap and at a right angle to it.
    """
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(POINTS, 2, generator=generator) * torch.tensor(spread)
    poisoned = torch.arange(POINTS) >= POINTS - round(epsilon * POINTS)
    points[poisoned, 0] += math.sqrt(gap / epsilon)
    centre = points.mean(0)
    _, [vector] = top_singular_vectors(points - centre)
    distance = ((points - centre) @ vector).abs()
    found = overlap(distance[~poisoned], distance[poisoned])
    figure, [[plane, histogram]] = panels(1, 2, size=(10, 3.6))
    for name, mask in (("clean", ~poisoned), ("poisoned", poisoned)):
        plane.plot(*points[mask].T, ".", color=COLOURS[name], ms=2, alpha=0.5, label=name)
    length = float(distance.max())
    ends = torch.stack([centre - length * vector, centre + length * vector])
    plane.plot(*ends.T, color="black", lw=1, label="top singular vector v")
    plane.set(xlabel="along the gap", ylabel="at a right angle to it", aspect="equal")
    plane.set_adjustable("datalim")
    plane.legend(markerscale=4, fontsize="small")
    two_histograms(histogram, distance, poisoned, label="distance from the mean along v")
    separable = "separable" if found < epsilon else "not separable"
    bound = "at or above" if gap >= BOUND else "below"
    histogram.set_title(f"overlap {found:.3f}: {separable} (gap {bound} the bound)")
    return figure
