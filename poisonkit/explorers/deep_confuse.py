"""Explorers of the Deep Confuse chapter: the bound of the noise, and the label map."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from poisonkit.attacks.deep_confuse import check_label_map
from poisonkit.attacks.generated_noise import craft, perturb
from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import evaluate
from poisonkit.experiments.deep_confuse.data import Data, begin, load_data
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.deep_confuse.setting import ConfuseConfig
from poisonkit.experiments.deep_confuse.steps import (
    confusion,
    hit_rate,
    train_perturbed,
)
from poisonkit.experiments.networks import Context, Cost
from poisonkit.explorers.shared import context_of, message, new_button, on_press, show
from poisonkit.figures.deep_confuse import draw_confusion, noise_figure
from poisonkit.images import ImageSet
from poisonkit.models.generators import NoiseGenerator
from poisonkit.plots import panels

#: Classes that the noise explorer shows side by side.
_ACROSS = 10


def noise_explorer(
    config: ConfuseConfig, *, device: str = "auto", data_root: Path | None = None
) -> widgets.VBox:
    """Show images, their noise and the sum while epsilon moves.

    The generator is that of the configuration, with its noise scaled. It is learned, or
    found in the store, when the button is pressed (at ``quick`` also once at the start).
    """
    context = context_of(device, data_root)
    limit = min(1.0, 2 * config.epsilon)
    epsilon = widgets.FloatSlider(
        config.epsilon,
        min=0,
        max=limit,
        step=limit / 40,
        description="epsilon",
        readout_format=".3f",
    )
    number = widgets.IntSlider(0, min=0, max=0, description="image")
    button, status, output = new_button("Get the generator"), widgets.HTML(), widgets.Output()
    found: list[tuple[ImageSet, NoiseGenerator]] = []

    def get() -> None:
        status.value = "Learning the generator, or reading it ..."
        data, _ = begin(config, context)
        learned = learned_generator(config, data, config.seed, context, Cost())
        found[:] = [(data.train, learned.generator)]
        number.max = min(int(data.train.y.bincount().min()), 100) - 1
        status.value = (
            f"Generator of seed {config.seed}, learned at an epsilon of {config.epsilon:g}."
        )
        draw()

    def draw(_: object = None) -> None:
        if found:
            images, generator = found[0]
            generator.epsilon = epsilon.value
            shown = images.x[_one_of_each(images, number.value)]
            show(output, noise_figure(shown, perturb(generator, shown), limit))

    epsilon.observe(draw, names="value")
    number.observe(draw, names="value")
    on_press(button, status, get, at_once=config.profile == "quick")
    return widgets.VBox([widgets.HBox([epsilon, number]), button, status, output])


def _one_of_each(images: ImageSet, number: int) -> Tensor:
    rows = [images.indices_of(label)[number] for label in range(min(images.classes, _ACROSS))]
    return torch.stack(rows)


def label_map_explorer(
    config: ConfuseConfig, *, device: str = "auto", data_root: Path | None = None
) -> widgets.VBox:
    """Learn a label-specific attack for a map of one's choice, and see what it does.

    A generator is learned and a network trained, at the configuration's scale, when the
    button is pressed (at ``quick`` also once at the start).
    """
    context = context_of(device, data_root)
    button, status, output = new_button("Learn and train"), widgets.HTML(), widgets.Output()
    try:
        data = load_data(config, context)
    except PoisonkitError as error:
        status.value = message(error)
        return widgets.VBox([status])
    names, classes = data.train.class_names, data.train.classes
    first = getattr(config, "label_map", ())
    if len(first) != classes:
        first = [(label + 1) % classes for label in range(classes)]
    shift = widgets.IntSlider(1, min=0, max=classes - 1, description="shift by")
    choices: list[Any] = [
        widgets.Dropdown(
            options=[(name, label) for label, name in enumerate(names)],
            value=wanted,
            description=f"{names[label]} →",
            layout=widgets.Layout(width="18%"),
            style={"description_width": "50%"},
        )
        for label, wanted in enumerate(first)
    ]

    def move(_: object = None) -> None:
        for label, choice in enumerate(choices):
            choice.value = (label + shift.value) % classes

    def learn() -> None:
        status.value = "Learning a generator and training a network ..."
        result = _attack_by(config, tuple(choice.value for choice in choices), data, context)
        status.value = (
            f"Of the clean test images {result.hits:.1%} are called what the map says, "
            f"{result.accuracy:.1%} what they are."
        )
        show(output, _confusion(result))

    shift.observe(move, names="value")
    on_press(button, status, learn, at_once=config.profile == "quick")
    chosen = widgets.HBox(choices, layout=widgets.Layout(flex_flow="row wrap"))
    return widgets.VBox([shift, chosen, button, status, output])


@dataclass(frozen=True, kw_only=True)
class _Attacked:
    label_map: tuple[int, ...]
    confusion: Tensor
    accuracy: float
    hits: float


def _attack_by(
    config: ConfuseConfig, label_map: tuple[int, ...], data: Data, context: Context
) -> _Attacked:
    check_label_map(label_map, data.learning)
    chosen = replace(config, procedure=replace(config.procedure, label_map=label_map))
    begin(chosen, context)
    learned = learned_generator(chosen, data, chosen.seed, context, Cost())
    noisy, _ = craft(data.train, learned.generator).apply(data.train)
    network, _ = train_perturbed(
        chosen,
        data.train,
        noisy,
        learned.generator,
        chosen.seed,
        context,
        Cost(),
        "label map",
    )
    counts = confusion(network, data.test)
    return _Attacked(
        label_map=label_map,
        confusion=counts.double() / counts.sum(1, keepdim=True),
        accuracy=evaluate(network, data.test),
        hits=hit_rate(network, data.test, label_map),
    )


def _confusion(result: _Attacked) -> Figure:
    figure, [[axes]] = panels(1, 1, size=(5.5, 5))
    draw_confusion(axes, result.confusion.tolist(), result.label_map)
    return figure
