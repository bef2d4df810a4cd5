"""Explorer of the MetaPoison chapter: poisons of one's own, step by step."""

from dataclasses import dataclass, replace
from pathlib import Path

import ipywidgets as widgets
from matplotlib.figure import Figure

from poisonkit.experiments.metapoison.pairs import Data, Pair, begin
from poisonkit.experiments.metapoison.setting import MetaConfig
from poisonkit.experiments.metapoison.steps import Poisons, crafted, kept_steps, train_victim
from poisonkit.experiments.metapoison.victims import outcome
from poisonkit.experiments.networks import Context
from poisonkit.explorers.shared import context_of, new_button, on_press, show
from poisonkit.plots import COLOURS, draw_poisons, panels
from poisonkit.store import Json


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What was crafted, and what victims make of the target after each kept step."""

    config: MetaConfig
    data: Data
    pair: Pair
    poisons: Poisons
    victims: list[list[Json]]


def _craft(config: MetaConfig, context: Context) -> _Found:
    data, pair, cost = begin(config, 0, context)
    poisons = crafted(config, data, pair, context, cost)
    victims = []
    for poison in poisons.course:
        images, _ = poison.apply(data.train, targets=pair.targets.x)
        entries = []
        for number in range(config.victims):
            network, course = train_victim(config, data, images, pair, number, context, cost)
            entries.append(outcome(pair, network, course, data))
        victims.append(entries)
    return _Found(config=config, data=data, pair=pair, poisons=poisons, victims=victims)


def _figure(found: _Found, kept: int) -> Figure:
    """Draw the poisons of a step, and how sure each victim is of the wanted label."""
    rows = list(found.pair.rows[:6])
    names = found.data.train.class_names
    return draw_poisons(
        found.pair.targets.x[0].cpu(),
        found.data.train.x[rows].cpu(),
        {"": found.poisons.course[kept].images[: len(rows)].cpu()},
        epsilon=found.config.procedure.epsilon,
        target_class=names[int(found.pair.targets.y[0])],
        poison_class=names[found.pair.poison_label],
    )


def _course(found: _Found, kept: int) -> Figure:
    figure, [[axes]] = panels(1, 1, size=(8, 2.6))
    steps = kept_steps(found.config)
    for number in range(found.config.victims):
        values = [100 * entries[number]["wanted_probability"][0] for entries in found.victims]
        axes.plot(steps, values, "o-", color=COLOURS["poisoned"], alpha=0.6, ms=4)
    axes.axvline(steps[kept], color=COLOURS["reference"], ls="--", zorder=0)
    axes.set(xlabel="crafting step", ylabel="wanted label,\none line a victim (%)")
    axes.set_ylim(-3, 103)
    return figure


def crafting_explorer(
    config: MetaConfig, *, device: str = "auto", data_root: Path | None = None
) -> widgets.VBox:
    """Craft poisons for a target of one's choice, and step through the crafting.

    Crafting begins when the button is pressed (at ``quick`` also once at the start).
    """
    # Poisons are shown, so they are images.
    config = replace(config, rounded=True)
    context = context_of(device, data_root)
    start = replace(config, pairs=1, poisons=min(config.poisons, 1))
    data, pair, _ = begin(start, 0, context)
    names = data.train.class_names
    own = names[int(pair.targets.y[0])]
    poisoned = widgets.Dropdown(
        options=names, value=names[pair.poison_label], description="poisons"
    )
    aimed = widgets.Dropdown(options=names, value=own, description="target")
    wanted = widgets.Dropdown(
        options=["the poisons' class", *names], value="the poisons' class", description="taken for"
    )
    count = int((data.train.y == pair.poison_label).sum())
    poisons = widgets.IntSlider(
        min(config.poisons, count), min=1, max=count, description="how many"
    )
    number = widgets.IntText(config.target or 0, description="target no.")
    limit = min(1.0, 2 * config.procedure.epsilon)
    epsilon = widgets.FloatSlider(
        config.procedure.epsilon,
        min=limit / 40,
        max=limit,
        step=limit / 40,
        description="epsilon",
        readout_format=".3f",
    )
    last = len(kept_steps(config)) - 1
    step = widgets.SelectionSlider(
        options=[(str(value), k) for k, value in enumerate(kept_steps(config))],
        value=last,
        description="step",
    )
    button, status = new_button("Craft"), widgets.HTML()
    pictures, course = widgets.Output(), widgets.Output()
    state: list[_Found] = []

    def draw(_: object = None) -> None:
        if not state:
            return
        found, kept = state[-1], int(step.value)
        show(pictures, _figure(found, kept))
        show(course, _course(found, kept))
        label = names[found.pair.wanted]
        entries = found.victims[kept]
        taken = sum(entry["predictions"] == [label] for entry in entries)
        status.value = (
            f"After {kept_steps(found.config)[kept]} steps {taken} of {len(entries)} victims take "
            f"the target, of class {names[int(found.pair.targets.y[0])]}, for class {label}."
        )

    def craft() -> None:
        status.value = "Crafting, and training victims ..."
        chosen = None if wanted.value == "the poisons' class" else wanted.value
        procedure = replace(config.procedure, epsilon=epsilon.value)
        asked = replace(
            config,
            pairs=1,
            targets=1,
            poison_class=poisoned.value,
            target_class=aimed.value,
            target=number.value,
            wanted_class=chosen,
            poisons=poisons.value,
            procedure=procedure,
        )
        state.append(_craft(asked, context))
        draw()

    step.observe(draw, names="value")
    on_press(button, status, craft, at_once=config.profile == "quick")
    rows = [
        widgets.HBox([poisoned, aimed, wanted]),
        widgets.HBox([number, poisons, epsilon]),
        widgets.HBox([button, step]),
    ]
    return widgets.VBox([*rows, status, pictures, course])
