"""The house style, and the figure pieces that several pages share.

Every function draws what it is given and returns the figure; nothing here
computes a result.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

#: One colour for each role, the same on every page; distinguishable without colour vision.
COLOURS = {
    "clean": "#4477aa",
    "poisoned": "#cc3311",
    "after": "#228833",
    "reference": "#bbbbbb",
    "paper": "#000000",
}


def use_style() -> None:
    """Set the house style for all figures drawn afterwards."""
    sns.set_theme(context="notebook", style="ticks", palette=list(COLOURS.values()))
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 150,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.labelsize": "medium",
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        }
    )


def panels(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Return a figure of ``size`` inches and its axes as an array [rows, columns].

    pyplot forgets the figure at once, so a notebook shows it once, where it is asked to.
    """
    figure = plt.figure(figsize=size)
    plt.close(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def class_colours(classes: int) -> list[tuple[float, float, float]]:
    """Return one colour a class."""
    return list(sns.color_palette("tab10" if classes <= 10 else "husl", classes))


def legend_below(
    figure: Figure,
    *axes: Axes,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """Put what is labelled in ``axes`` below the figure, by default in one line or in threes.

    Parameters
    ----------
    labels : in place of the axes' own.
    options : more of :meth:`Figure.legend`.
    """
    found = [part.get_legend_handles_labels() for part in axes]
    handles = [handle for part, _ in found for handle in part]
    figure.legend(
        handles,
        labels or [label for _, part in found for label in part],
        loc="outside lower center",
        ncols=columns or (len(handles) if len(handles) <= 5 else 3),
        columnspacing=1,
        fontsize="small",
        **options,
    )


def two_histograms(axes: Axes, values: Tensor, poisoned: Tensor, *, label: str) -> None:
    """Draw clean and poisoned values of one quantity over each other, each as a share."""
    bins = 20 if len(values) < 1000 else 50
    numbers, mask = values.cpu().numpy(), poisoned.cpu().numpy().astype(bool)
    edges = np.linspace(float(numbers.min()), float(numbers.max()), bins + 1)
    for name, part in (("clean", numbers[~mask]), ("poisoned", numbers[mask])):
        shares = np.histogram(part, edges)[0] / max(len(part), 1)
        # A slider draws one for each frame, and an outline is drawn sooner than fifty bars.
        axes.stairs(shares, edges, fill=True, color=COLOURS[name], alpha=0.65, label=name)
    axes.set(xlabel=label, ylabel="share of images")


def show_images(axes: Axes, image: Tensor, title: str) -> None:
    """Show one uint8 image [C, H, W] without axes, pixels as sharp squares."""
    array = image.permute(1, 2, 0).cpu().numpy()
    axes.imshow(array.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, fontsize="small")
    axes.set_axis_off()


def change_of(images: Tensor, clean: Tensor, epsilon: float) -> Tensor:
    """Return the difference of uint8 images as images: grey is none, black and white epsilon."""
    change = (images.float() - clean.float()) / (255 * epsilon)
    return ((change + 1) * 127.5).round().clamp(0, 255).to(images.dtype)


def draw_poisons(
    target: Tensor,
    bases: Tensor,
    poisons: Mapping[str, Tensor],
    *,
    epsilon: float,
    target_class: str,
    poison_class: str,
) -> Figure:
    """Draw a target [C, H, W], at most six bases [k, C, H, W], poisons and their changes.

    Grey is no change; black and white are ``epsilon``.

    Parameters
    ----------
    poisons : [k, C, H, W] of each way to craft them; "" where there is one only.
    """
    shown = min(len(bases), 6)
    lines = 1 + 2 * len(poisons)
    figure, axes = panels(lines, 1 + shown, size=(9, 1.55 * lines))
    for part in axes.flat:
        part.set_axis_off()
    show_images(axes[0][0], target, f"target: {target_class}")
    for place in range(shown):
        show_images(axes[0][1 + place], bases[place], f"base: {poison_class}")
    for (name, images), above, below in zip(poisons.items(), axes[1::2], axes[2::2], strict=True):
        for part, text in (
            (above[0], "\n".join([*name.split(), "poisons"])),
            (below[0], "their\nchange"),
        ):
            part.text(0.5, 0.5, text, ha="center", va="center", fontsize="small")
        for place in range(shown):
            show_images(above[1 + place], images[place], "")
            change = change_of(images[place], bases[place], epsilon)
            show_images(below[1 + place], change, "")
    return figure


@dataclass(frozen=True)
class Slider:
    """Frames behind a slider that needs no kernel and no script from elsewhere."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


_slider_numbers = count()


def slider(frames: Sequence[tuple[str, Figure]], *, label: str, start: int = 0) -> Slider:
    """Return figures as one picture with a slider under it.

    Parameters
    ----------
    frames : (caption, figure) pairs, in the order of the slider.
    label : what the slider changes.
    start : the frame shown first.
    """
    pictures = []
    for index, (caption, figure) in enumerate(frames):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
        data = base64.b64encode(buffer.getvalue()).decode()
        hidden = "" if index == start else " hidden"
        pictures.append(
            f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}" '
            f'style="max-width:100%"{hidden}>'
        )
    name = f"poisonkit-slider-{next(_slider_numbers)}"
    script = (
        "const box=this.closest('.poisonkit-slider');"
        "box.querySelectorAll('img').forEach((image,k)=>{image.hidden=k!=this.value;"
        "if(k==this.value)box.querySelector('output').value=image.alt});"
    )
    return Slider(
        f'<div class="poisonkit-slider"><div class="frames">{"".join(pictures)}</div>'
        f'<label for="{name}">{escape(label)}</label> '
        f'<input id="{name}" type="range" min="0" max="{len(frames) - 1}" value="{start}" '
        f'style="width:60%" oninput="{script}"> '
        f"<output>{escape(frames[start][0])}</output></div>"
    )
