"""Figures 2, 3 and 9: the images, the noise, and what the network makes of them."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from poisonkit.claims.deep_confuse import NEIGHBOURS, agree_with_neighbours
from poisonkit.figures.common import Html, percent
from poisonkit.plots import change_of, class_colours, legend_below, panels, show_images
from poisonkit.store import Record

_WORDNET = {"n01560419": "bulbul", "n01910747": "jellyfish", "n02058221": "albatross"}
#: So many images fit side by side.
_ACROSS = 10


def images_figure(record: Record) -> Figure:
    """Show one training image of each class, the same perturbed, and its noise.

    The noise is scaled: black is -epsilon, white is +epsilon.
    """
    arrays = record.arrays
    rows = {name: arrays[f"0.images.{name}"][:_ACROSS] for name in ("clean", "perturbed", "noise")}
    names = _class_names(record)
    return image_rows(rows, [names[label] for label in arrays["0.images.labels"].tolist()])


def _class_names(record: Record) -> list[str]:
    """Return the names of the classes, identifiers of ImageNet by what they stand for."""
    names = record.metrics["trials"][0]["class_names"]
    return [_WORDNET.get(name, name) for name in names]


def noise_figure(clean: Tensor, perturbed: Tensor, epsilon: float) -> Figure:
    """Show images, the same perturbed, and the change: grey is none, black and white epsilon."""
    change = change_of(perturbed, clean, epsilon)
    return image_rows({"clean": clean, "perturbed": perturbed, "change": change})


def image_rows(rows: Mapping[str, Tensor], titles: Sequence[str] = ()) -> Figure:
    """Show images in named rows, with a title above each column."""
    across = max(len(images) for images in rows.values())
    side = 8.5 / max(across, 5)
    size = (max(side * across, 4), (side + 0.1) * len(rows) + 0.3)
    figure, axes = panels(len(rows), across, size=size)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            show_images(axis, image, "")
        line[0].set_axis_on()
        line[0].set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize="small")
        for spine in line[0].spines.values():
            spine.set_visible(False)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize="small")
    return figure


def components_figure(record: Record) -> Figure | Html:
    """Draw Figure 3: the last hidden layer along two principal components, coloured by class.

    The components are those of the perturbed training images (left); clean test images
    (right) are projected onto the same ones, on the same axes. The titles give the share of
    images that have the most frequent class of their nearest neighbours in this plane.
    """
    if "0.components.train" not in record.arrays:
        return Html("<p>The last hidden layer of this record's network is not known.</p>")
    class_names = _class_names(record)
    figure, [axes] = panels(1, 2, size=(8.5, 4.2))
    titles = {"train": "perturbed training images", "test": "clean test images"}
    for axis, (part, title) in zip(axes, titles.items(), strict=True):
        points, labels = (record.arrays[f"0.components.{part}{end}"] for end in ("", "_labels"))
        if len(points) > NEIGHBOURS:
            share = percent(agree_with_neighbours(points, labels), digits=1)
            title += f"\n{share} have their {NEIGHBOURS} neighbours' class"
        for label, (name, colour) in enumerate(
            zip(class_names, class_colours(len(class_names)), strict=True)
        ):
            own = points[labels == label].numpy()
            axis.plot(*own.T, ".", color=colour, ms=4, alpha=0.7, label=name)
        axis.set(title=title, xlabel="first component")
    limits = [axes[0].get_xlim(), axes[1].get_xlim()], [axes[0].get_ylim(), axes[1].get_ylim()]
    for axis in axes:
        for ends, set_limits in zip(limits, (axis.set_xlim, axis.set_ylim), strict=True):
            set_limits(min(low for low, _ in ends), max(high for _, high in ends))
    axes[0].set_ylabel("second component")
    columns = len(class_names) if max(map(len, class_names)) < 3 else 5
    legend_below(figure, axes[0], columns=columns, title="class", markerscale=3, handletextpad=0.2)
    return figure
