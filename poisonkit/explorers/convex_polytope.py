"""Explorers of the Convex Polytope chapter: a target in the plane, and poisons of one's own."""

from dataclasses import replace
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure

from poisonkit.experiments.convex_polytope.data import begin
from poisonkit.experiments.convex_polytope.proposition import Scene, widest
from poisonkit.experiments.convex_polytope.setting import PolytopeConfig
from poisonkit.experiments.convex_polytope.steps import crafted, substitutes
from poisonkit.experiments.convex_polytope.victims import attack_frozen
from poisonkit.experiments.networks import Cost
from poisonkit.explorers.shared import context_of, new_button, on_press, show
from poisonkit.figures.convex_polytope.proposition import draw_scene
from poisonkit.figures.convex_polytope.success import METHODS
from poisonkit.plots import COLOURS, draw_poisons, legend_below, panels
from poisonkit.simplex import convex_coefficients

#: Points of each class in the plane, and poisons.
POINTS, POISONS = 30, 5


def plane_explorer(*, seed: int = 0) -> widgets.VBox:
    """Move a target in the plane: its nearest point in the polytope, the coefficients, the line."""
    across = widgets.FloatSlider(-2, min=-6, max=6, step=0.1, description="target, first")
    along = widgets.FloatSlider(0, min=-6, max=6, step=0.1, description="second")
    spread = widgets.FloatSlider(2, min=0.1, max=4, step=0.1, description="spread")
    output = widgets.Output()

    def draw(_: object = None) -> None:
        show(output, target_figure((across.value, along.value), spread=spread.value, seed=seed))

    for control in (across, along, spread):
        control.observe(draw, names="value")
    draw()
    return widgets.VBox([widgets.HBox([across, along]), spread, output])


def target_figure(target: tuple[float, float], *, spread: float, seed: int = 0) -> Figure:
    """Draw five poisons, a target, its coefficients, and the classifier with the widest margin.

    Parameters
    ----------
    spread : mean distance of the poisons from their mean, which lies at (-2, 0).
    """
    generator = np.random.default_rng(seed)
    own = generator.normal((5, 0), 1, size=(POINTS, 2))
    other = generator.normal((-5.5, 0), (0.7, 1), size=(POINTS, 2))
    around = generator.normal(size=(POISONS, 2))
    around -= around.mean(0)
    around *= spread / np.linalg.norm(around, axis=1).mean()
    around[:, 0] -= 2
    scene = Scene(own, other, around, np.array(target))
    vertices = torch.from_numpy(scene.poisons)
    c = convex_coefficients(vertices, torch.from_numpy(scene.target), tolerance=1e-12)
    nearest = (c @ vertices).numpy()
    line = widest(scene)
    figure, [[plane, bars]] = panels(1, 2, size=(10, 4.2))
    draw_scene(plane, scene, line)
    plane.plot(*zip(scene.target, nearest, strict=True), ":", color="black")
    for number, point in enumerate(scene.poisons, 1):
        plane.annotate(str(number), point, xytext=(5, 5), textcoords="offset points")
    legend_below(figure, plane)
    bars.bar(np.arange(POISONS) + 1, c.numpy(), color=COLOURS["poisoned"])
    bars.set(xlabel="poison", ylabel="coefficient c", ylim=(0, 1.05))
    distance = float(np.linalg.norm(scene.target - nearest))
    fitted = bool(line.takes(scene.poisons).all())
    taken = "the poisons' class" if line.takes(scene.target[None])[0] else "its own class"
    words = "" if fitted else "\nnot all poisons can be fitted"
    title = f"distance to the polytope {distance:.2f}:\ntarget taken for {taken}{words}"
    bars.set_title(title, fontsize="small")
    return figure


def poison_explorer(
    config: PolytopeConfig, *, device: str = "auto", data_root: Path | None = None
) -> widgets.VBox:
    """Craft poisons for a target of one's choice, and see them and what victims make of it.

    Crafting begins when the button is pressed (at ``quick`` also once at the start).
    """
    context = context_of(device, data_root)
    objective = widgets.Dropdown(
        options=[(name, key) for key, name in METHODS.items()],
        value="polytope",
        description="poisons by",
    )
    limit = min(1.0, 2 * config.procedure.epsilon)
    epsilon = widgets.FloatSlider(
        config.procedure.epsilon,
        min=limit / 40,
        max=limit,
        step=limit / 40,
        description="epsilon",
        readout_format=".3f",
    )
    poisons = widgets.IntSlider(
        config.poisons, min=1, max=config.fine_tuning_per_class, description="poisons"
    )
    target = widgets.IntSlider(1, min=1, max=config.targets, description="target")
    button, status, output = new_button("Craft"), widgets.HTML(), widgets.Output()

    def craft() -> None:
        status.value = "Crafting ..."
        procedure = replace(config.procedure, objective=objective.value, epsilon=epsilon.value)
        own = replace(
            config,
            procedure=procedure,
            poisons=poisons.value,
            targets_at_once=1,
        )
        data, cost = begin(own, context)
        nets = substitutes(own, data.pretraining, context, cost)
        found = crafted(own, data, nets, procedure, target.value - 1, context, cost)
        entries = [attack_frozen(own, data, name, found, context, Cost()) for name in own.victims]
        fooled = [e["victim"] for e in entries if e["predictions"] == [data.poison_label]]
        status.value = (
            f"{len(fooled)} of {len(entries)} victims take target {target.value} for "
            f"class {own.poison_class}: {', '.join(fooled) or 'none'}."
        )
        figure = draw_poisons(
            found.targets.x[0].cpu(),
            data.fine_tuning.x[list(data.rows)].cpu(),
            {METHODS[objective.value]: found.rounded[0].cpu()},
            epsilon=epsilon.value,
            target_class=own.target_class,
            poison_class=own.poison_class,
        )
        show(output, figure)

    on_press(button, status, craft, at_once=config.profile == "quick")
    rows = [widgets.HBox([objective, target]), widgets.HBox([epsilon, poisons])]
    return widgets.VBox([*rows, button, status, output])
