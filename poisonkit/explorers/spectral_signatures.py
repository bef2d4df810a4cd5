"""Explorers of the Spectral Signatures chapter: the trigger, and the filter's threshold."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from torch import Tensor

from poisonkit.attacks.backdoor import PATTERNS, Trigger
from poisonkit.defenses.spectral import outlier_scores
from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import evaluate
from poisonkit.experiments.networks import Context, Cost
from poisonkit.experiments.settings import with_options
from poisonkit.experiments.spectral_signatures.setting import SpectralConfig
from poisonkit.experiments.spectral_signatures.steps import (
    Poisoned,
    check_request,
    hits,
    poisoned_data,
    train_on,
)
from poisonkit.experiments.spectral_signatures.trace import KINDS, TraceConfig, halved
from poisonkit.explorers.shared import context_of, message, new_button, on_press, show
from poisonkit.figures.spectral_signatures import threshold_figure
from poisonkit.models import Classifier, features
from poisonkit.plots import panels, show_images


def trigger_explorer(
    config: SpectralConfig, *, device: str = "auto", data_root: Path | None = None
) -> widgets.VBox:
    """Show a few images of the source class with a trigger that can be changed at once."""
    images = context_of(device, data_root).load(
        config.dataset, "train", image_size=config.image_size
    )
    source = config.pairs[0][0]
    shown = images.x[images.indices_of(images.label_of(source))[:5]].cpu()
    pattern, row, column = _place_controls(config, images.image_size)
    colour: list[widgets.IntSlider] = [
        widgets.IntSlider(value, 0, 255, description=name, continuous_update=False)
        for value, name in zip(
            _colour(config, images.channels),
            ("red", "green", "blue") if images.channels == 3 else ("grey",),
            strict=True,
        )
    ]
    output = widgets.Output()

    def draw(_: object = None) -> None:
        trigger = Trigger(
            pattern=pattern.value,
            position=(row.value, column.value),
            colour=tuple(control.value for control in colour),
            border="clip",
        )
        figure, axes = panels(1, len(shown), size=(10, 2.4))
        for axis, image in zip(axes[0], trigger.stamp(shown), strict=True):
            show_images(axis, image, source)
        show(output, figure)

    controls = [pattern, row, column, *colour]
    for control in controls:
        control.observe(draw, names="value")
    draw()
    return widgets.VBox([widgets.HBox([pattern, row, column]), widgets.HBox(colour), output])


@dataclass
class _Trained:
    data: Poisoned
    model: Classifier
    summary: str


def removal_explorer(
    config: SpectralConfig, *, device: str = "auto", data_root: Path | None = None
) -> widgets.VBox:
    """Train on a backdoor of one's choice, then move layer and threshold over the scores.

    Training runs at the configuration's scale when the button is pressed (at ``quick``
    also once at the start); layer, centring and threshold answer at once. With a
    :class:`~poisonkit.experiments.spectral_signatures.trace.TraceConfig` a half of the attack
    can be chosen, too.
    """
    context = context_of(device, data_root)
    images = context.load(config.dataset, "train", image_size=config.image_size)
    pattern, row, column = _place_controls(config, images.image_size)
    share = widgets.FloatSlider(
        config.shares[0], min=0.01, max=0.3, step=0.01, description="share", readout_format=".0%"
    )
    kinds = config.kinds if isinstance(config, TraceConfig) else KINDS[:1]
    kind = widgets.Dropdown(options=kinds, value=kinds[0], description="marked by")
    layer = widgets.Dropdown(options=[config.tap], value=config.tap, description="layer")
    centred = widgets.Checkbox(config.centred, description="centred", indent=False)
    factor = widgets.FloatSlider(1.5, min=0, max=4, step=0.1, description="removal", readout=True)
    button = new_button("Poison and train")
    status, output = widgets.HTML(), widgets.Output()
    trained: list[_Trained] = []

    def train() -> None:
        status.value = "Training ..."
        place = (row.value, column.value)
        trained[:] = [_train(config, context, pattern.value, place, share.value, kind.value)]
        # New options choose the first of them, which nobody asked for.
        layer.unobserve(score, names="value")
        layer.options = list(trained[0].model.taps)
        layer.value = config.tap
        layer.observe(score, names="value")
        score()

    cached: dict[str, Tensor] = {}

    def score(_: object = None) -> None:
        if not trained:
            return
        data = trained[0].data
        own = data.train.y == data.target
        try:
            found = features(trained[0].model, data.train.x[own], layer.value, pool=config.pool)
            cached["scores"] = outlier_scores(found, centred=centred.value).cpu()
            cached["poisoned"] = data.mask[own].cpu()
        except PoisonkitError as error:
            status.value = message(error)
            return
        status.value = trained[0].summary
        draw()

    def draw(_: object = None) -> None:
        if cached:
            removed = math.ceil(factor.value * int(cached["poisoned"].sum()))
            removed = min(removed, len(cached["scores"]) - 1)
            figure = threshold_figure(
                cached["scores"], cached["poisoned"], removed=removed, centred=centred.value
            )
            show(output, figure)

    layer.observe(score, names="value")
    centred.observe(score, names="value")
    factor.observe(draw, names="value")
    on_press(button, status, train, at_once=config.profile == "quick")
    return widgets.VBox(
        [
            widgets.HBox([pattern, row, column]),
            widgets.HBox([share, *([kind] if len(kinds) > 1 else []), button]),
            status,
            widgets.HBox([layer, centred, factor]),
            output,
        ]
    )


def _train(
    config: SpectralConfig,
    context: Context,
    pattern: str,
    place: tuple[int, int],
    share: float,
    kind: str,
) -> _Trained:
    chosen = with_options(config, {"pattern": pattern, "position": place, "shares": (share,)})
    source, target = chosen.pairs[0]
    unit = {"source": source, "target": target, "share": share, "seed": chosen.seed}
    half = partial(halved, kind=kind, seed=chosen.seed)
    data = poisoned_data(chosen, unit, context, alter=half)
    check_request(chosen, data)
    model = train_on(chosen, data.train, chosen.seed, context, Cost(), kind)
    what = "poisoned images" if kind == KINDS[0] else f"images marked by the {kind} alone"
    summary = (
        f"{data.count} {what}. Natural accuracy {evaluate(model, data.test):.1%}; "
        f"of {len(data.triggered)} triggered images of {source}, {hits(model, data)} are "
        f"called {target}."
    )
    return _Trained(data=data, model=model, summary=summary)


def _place_controls(config: SpectralConfig, image_size: tuple[int, int]) -> tuple[Any, Any, Any]:
    row, column = config.position or (image_size[0] // 2, image_size[1] // 2)
    shape = config.pattern if config.pattern in PATTERNS else "X"
    return (
        widgets.Dropdown(options=list(PATTERNS), value=shape, description="pattern"),
        widgets.IntSlider(row, 0, image_size[0] - 1, description="row"),
        widgets.IntSlider(column, 0, image_size[1] - 1, description="column"),
    )


def _colour(config: SpectralConfig, channels: int) -> tuple[int, ...]:
    return config.colour or (255,) * channels
