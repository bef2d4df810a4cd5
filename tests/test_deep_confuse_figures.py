"""The Deep Confuse figures and tables show what their records say, each number in its place."""

from typing import Any

import numpy as np
import pytest
import torch
from figure_readers import close, marks, named, points, summed_up
from matplotlib.colors import to_hex

from poisonkit.claims.deep_confuse_reported import FIGURE_4, FIGURE_5, FIGURE_8
from poisonkit.experiments.deep_confuse.defences import DEFENCES
from poisonkit.figures import deep_confuse as figures
from poisonkit.plots import COLOURS, class_colours
from poisonkit.store import Json, Record

CLEAN, PERTURBED = COLOURS["clean"], COLOURS["poisoned"]


def made(name: str, trials: list[Json], arrays: Json | None = None, **options: Any) -> Record:
    return summed_up(f"deep_confuse/{name}", trials, arrays, **{"dataset": "digits", **options})


def columns(table: Any) -> dict[str, list[object]]:
    return {name: list(values) for name, values in table.data.items()}


def check_bars(container: Any, colour: str, expected: Any) -> None:
    """Hold an errorbar against its (x, mean, deviation)."""
    line, _, [drawn] = container.lines
    assert to_hex(line.get_color()) == colour
    assert close(points(line), [(x, mean) for x, mean, _ in expected])
    ends = [segment[:, 1] for segment in drawn.get_segments()]
    assert close(ends, [(mean - spread, mean + spread) for _, mean, spread in expected])


MEANS: dict[str, dict[str, float]] = {
    "clean": {"accuracy": 0.91, "batch_statistics": 0.89},
    "perturbed": {"accuracy": 0.23, "batch_statistics": 0.31, "on_perturbed_test": 0.97},
    "unrounded": {"accuracy": 0.17, "batch_statistics": 0.13},
    "on_noise": {"train": 0.83, "test": 0.79},
    "noise_alone": {"train": 0.67, "test": 0.61},
}


def attacked(dataset: str, **config: Any) -> Record:
    """Three runs, of which each number deviates by a hundredth of itself."""
    trials = [
        {"generator": generator}
        | {kind: {name: v * factor for name, v in own.items()} for kind, own in MEANS.items()}
        for generator, factor in ((0, 0.99), (0, 1), (1, 1.01))
    ]
    return made("mnist", trials, dataset=dataset, **config)


def test_table_1_has_clean_and_perturbed_each_beside_the_papers_own_number() -> None:
    noisy, clean = "perturbed images", "clean images"
    assert columns(figures.accuracy_table(attacked("mnist"))) == {
        "Trained on": [clean, noisy, f"{noisy}, noise not rounded", noisy],
        "Tested on": [clean, clean, clean, noisy],
        "Eval mode": ["91.00 ± 0.91 %", "23.00 ± 0.23 %", "17.00 ± 0.17 %", "97.00 ± 0.97 %"],
        "Batch statistics": ["89.00 ± 0.89 %", "31.00 ± 0.31 %", "13.00 ± 0.13 %", "-"],
        "Paper": ["99.32 ± 0.05 %", "0.25 ± 0.04 %", "-", "-"],
        "Runs": ["3, of 2 generators"] * 4,
    }
    # Where noise is drawn anew, what is not rounded is no other row.
    found = columns(figures.accuracy_table(attacked("digits", noise="anew")))
    assert "Paper" not in found
    assert found["Eval mode"] == ["91.00 ± 0.91 %", "23.00 ± 0.23 %", "97.00 ± 0.97 %"]


def test_table_2_tells_noise_of_training_images_from_that_of_test_images() -> None:
    assert columns(figures.noise_table(attacked("cifar10"))) == {
        "Trained on": ["perturbed images"] * 2 + ["noise alone"] * 2,
        "Tested on": ["noise of training images", "noise of test images"] * 2,
        "Accuracy": ["83.00 ± 0.83 %", "79.00 ± 0.79 %", "67.00 ± 0.67 %", "61.00 ± 0.61 %"],
        "Paper": ["78.57 %", "72.98 %", "-", "-"],
        "Runs": ["3, of 2 generators"] * 4,
    }
    assert "Paper" not in columns(figures.noise_table(attacked("digits")))


COURSES: list[tuple[str, dict[str, list[float]]]] = [
    ("clean", {"train": [0.5, 0.7, 0.9], "test": [0.45, 0.6, 0.8]}),
    ("perturbed", {"train": [0.55, 0.75, 0.95], "test": [0.3, 0.2, 0.1]}),
]


def trained(dataset: str) -> Record:
    """Two runs, the second 0.04 above the first."""
    trials = [
        {kind: {part: np.add(own, more) for part, own in parts.items()} for kind, parts in COURSES}
        for more in (0.0, 0.04)
    ]
    return made("", trials, dataset=dataset, recipe={"epochs": 3})


def test_curves_are_means_of_their_kind_and_part_and_bands_reach_the_outermost_runs() -> None:
    panels: list[Any] = figures.curves_figure(trained("digits")).axes
    for axes, (kind, parts), colour in zip(panels, COURSES, (CLEAN, PERTURBED), strict=True):
        assert axes.get_title() == f"trained on {kind} images"
        drawn = {line.get_linestyle(): line for line in axes.lines if line.get_color() == colour}
        for style, part, band in zip(("--", "-"), parts, axes.collections, strict=True):
            expected = [(k, 100 * v + 2) for k, v in enumerate(parts[part], start=1)]
            assert close(points(drawn[style]), expected)
            corners = band.get_paths()[0].vertices
            for epoch, mean in expected:
                own = corners[corners[:, 0] == epoch, 1]
                assert (own.min(), own.max()) == pytest.approx((mean - 2, mean + 2))
    assert named(panels[1], "on the training images").get_linestyle() == "--"
    assert named(panels[1], "on clean test images").get_linestyle() == "-"


def test_the_papers_curves_end_at_our_last_epoch_beside_the_perturbed_ones_only() -> None:
    clean, perturbed, above = figures.curves_figure(trained("cifar10")).axes
    assert not [line for line in clean.lines if line.get_marker() in ("D", "^")]
    told = FIGURE_8["cifar10"]
    for part, name, marker in (("train", "the training", "^"), ("test", "clean test", "D")):
        line = named(perturbed, f"paper, on {name} images")
        assert line.get_marker() == marker
        assert close(points(line), [(step / 20, y) for step, y in told[part].items()])
    # Of 60 iterations, over 3 epochs: both axes tell the same place.
    assert above.get_xlim() == pytest.approx([20 * end for end in perturbed.get_xlim()])


#: After 10, 20, 30 and 40 trials, in percent.
SCORES = {
    0: {"validation": [60, 30, 30, 50], "test": [65, 35, 25, 15]},
    7: {"validation": [80, 70, 90, 72], "test": [85, 75, 95, 82]},
}


def learning(selection: str, label_map: Any = None) -> Record:
    trials = []
    for generator, scores in SCORES.items():
        both = zip((10, 20, 30, 40), *scores.values(), strict=True)
        checks = [{"trial": at, "validation": v / 100, "test": t / 100} for at, v, t in both]
        trials += [{"generator": generator, "learning": {"checks": checks}}] * 2
    return made("", trials, selection=selection, procedure={"label_map": label_map})


def test_each_generator_has_a_line_for_held_out_and_one_for_test_images() -> None:
    [axes] = figures.trials_figure(learning("validation")).axes
    for colour, (generator, scores) in zip(class_colours(2), SCORES.items(), strict=True):
        for (part, own), style in zip(scores.items(), ("-", "--"), strict=True):
            line = named(axes, f"generator {generator}, {part} images")
            assert close(points(line), list(zip((10, 20, 30, 40), own, strict=True)))
            assert (line.get_linestyle(), line.get_color()) == (style, colour)
    assert points(named(axes, "guessing")) == [(0, 10), (1, 10)]
    # Guessing misses the label that a map asks for.
    [axes] = figures.trials_figure(learning("test", [1, 0])).axes
    assert axes.get_ylabel() == "not called as wished (%)"
    assert points(named(axes, "guessing")) == [(0, 90), (1, 90)]


#: Where the rings are; of equals the last is kept.
RINGS = {"validation": [(30, 30), (20, 70)], "test": [(40, 15), (20, 75)]}
RINGS["last"] = [(40, 50), (40, 72)]


@pytest.mark.parametrize(("rule", "expected"), RINGS.items())
def test_rings_mark_what_the_rule_selects(rule: str, expected: list[tuple[int, int]]) -> None:
    [axes] = figures.trials_figure(learning(rule)).axes
    rings = [line for line in axes.lines if line.get_marker() == "o" and points(line)]
    assert close([points(ring)[0] for ring in rings], expected)
    assert [ring.get_color() for ring in rings] == class_colours(2)


#: Shares in percent, and accuracy and hit rate with their deviations; the map is 2, 0, 1.
MAPPED: dict[str, tuple[list[list[int]], tuple[int, int], tuple[int, int]]] = {
    "clean": ([[80, 15, 5], [10, 70, 20], [0, 2, 98]], (91, 1), (3, 2)),
    "any wrong label": ([[30, 45, 25], [33, 11, 56], [62, 24, 14]], (23, 3), (41, 4)),
    "label map": ([[4, 19, 77], [81, 6, 13], [9, 88, 3]], (13, 5), (71, 6)),
}


#: The paper's map.
NEXT = [*range(1, 10), 0]


def mapped(dataset: str, label_map: tuple[int, ...] | list[int] = (2, 0, 1)) -> Record:
    trials = [
        {"kind": kind, "confusion": shares}
        | {"accuracy": (a + step * b) / 100, "hit_rate": (c + step * d) / 100}
        for kind, (shares, (a, b), (c, d)) in MAPPED.items()
        for step in (-1, 0, 1)
    ]
    return made("label_map", trials, dataset=dataset, label_map=[*label_map])


def test_each_confusion_matrix_stands_below_its_kind_with_frames_where_the_map_points() -> None:
    panels: list[Any] = figures.confusion_figure(mapped("digits")).axes[:3]
    words = ("clean images", "for any wrong label", "for the label map")
    for axes, (shares, *_), title in zip(panels, MAPPED.values(), words, strict=True):
        assert axes.get_title().endswith(title)
        assert np.allclose(axes.collections[0].get_array().ravel(), np.ravel(shares))
        assert [text.get_text() for text in axes.texts] == [str(v or "") for v in np.ravel(shares)]
        # By what it is called, and by class.
        assert [frame.get_xy() for frame in axes.patches] == [(2, 0), (0, 1), (1, 2)]
        assert (axes.get_xlabel(), axes.get_ylabel()[:8]) == ("called (%)", "class of")


def test_accuracy_and_hit_rate_of_each_kind_have_their_bars_runs_and_the_papers_marks() -> None:
    axes: Any = figures.confusion_figure(mapped("mnist", NEXT)).axes[3]
    rates = ("called what they are", "called what the map says")
    told = ([(-0.12, 99.32), (0.88, 0.25), (1.88, 1.48)], [(1.12, 0.0), (2.12, 79.7)])
    runs = []
    for number, (colour, shift) in enumerate(((CLEAN, -0.12), (PERTURBED, 0.12))):
        assert named(axes, rates[number]).get_color() == colour
        assert close(marks(axes, "D", colour), told[number])
        for place, (_, *both) in enumerate(MAPPED.values()):
            mean, spread = both[number]
            expected = [(place + shift, mean, spread)]
            check_bars(axes.containers[3 * number + place], colour, expected)
            runs += [(place + shift, mean + step * spread) for step in (-1, 0, 1)]
    assert close(marks(axes, ".", "black"), runs)
    # Not beside other data, nor beside another map.
    for other in (mapped("digits", NEXT), mapped("mnist")):
        assert not marks(figures.confusion_figure(other).axes[3], "D", CLEAN)


def test_the_label_maps_table_tells_accuracy_from_hit_rate_and_ours_from_the_papers() -> None:
    found = columns(figures.label_map_table(mapped("mnist", NEXT)))
    noisy = "images perturbed for"
    assert found == {
        "Trained on": ["clean images", f"{noisy} any wrong label", f"{noisy} the label map"],
        "Accuracy": ["91.00 ± 1.00 %", "23.00 ± 3.00 %", "13.00 ± 5.00 %"],
        "Accuracy, paper": ["99.32 ± 0.05 %", "0.25 ± 0.04 %", "1.48 ± 0.21 %"],
        "Hit rate": ["3.00 ± 2.00 %", "41.00 ± 4.00 %", "71.00 ± 6.00 %"],
        "Hit rate, paper": ["-", "0.00 %", "79.70 ± 0.38 %"],
        "Runs": [3, 3, 3],
    }
    for other in (mapped("digits", NEXT), mapped("mnist")):
        assert len(columns(figures.label_map_table(other))) == 4
    # Class by class it is the share at the map's own place.
    found = columns(figures.map_by_class_table(mapped("mnist")))
    assert found["Wanted"] == [2, 0, 1]
    assert found["Clean images"] == ["5 %", "10 %", "2 %"]
    assert found["Images perturbed for any wrong label"] == ["25 %", "33 %", "24 %"]
    assert found["Images perturbed for the label map"] == ["77 %", "81 %", "88 %"]


def stepped(dataset: str) -> Record:
    """Two runs of one way, the second a tenth above the first, and one of another."""
    clean, perturbed = (0.2, 0.15, 0.02, 0.3), (0.1, 0.4, 0.6, 0.9)
    trials = [
        {
            "way": way,
            "steps": [1, 3, 6, 9],
            "steps_in_epoch": 3,
            "clean": [value + more for value in clean],
            "perturbed": [value + more for value in perturbed],
        }
        for way, more in (("gradient descent", 0.0), ("gradient descent", 0.1), ("other", 0.05))
    ]
    ways = ["gradient descent", "other"]
    return made("first_steps", trials, None, dataset=dataset, ways=ways)


def test_steps_are_means_on_the_left_and_single_runs_over_each_other_on_the_right() -> None:
    record = stepped("mnist")
    left, right = figures.steps_figure(record).axes
    assert left.get_xscale() == "log"
    runs = record.metrics["trials"]
    first, second = class_colours(2)
    own = [line for line in left.lines if line.get_color() == first]
    styles = {line.get_linestyle(): points(line) for line in own}
    for kind, style in (("clean", "-"), ("perturbed", "--")):
        means = [50 * sum(both) for both in zip(runs[0][kind], runs[1][kind], strict=True)]
        assert close(styles[style], list(zip([1, 3, 6, 9], means, strict=True)))
    # The ends of the first two epochs and of the training.
    ends = {line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ":"}
    assert ends == {3, 6, 9}
    assert {text.get_text() for text in left.texts} == {"1", "2", "3"}
    for colour, of in ((first, runs[:2]), (second, runs[2:])):
        drawn = [
            points(line)
            for line in right.lines
            if line.get_color() == colour and len(points(line)) == 4
        ]
        planes = [
            [(100 * x, 100 * y) for x, y in zip(run["perturbed"], run["clean"], strict=True)]
            for run in of
        ]
        assert close(drawn, planes)
        assert close(marks(right, "s", colour), [plane[-1] for plane in planes])
    # The paper's curves need no unit there.
    told = FIGURE_8["mnist"]
    paper = named(right, "paper, by iteration")
    assert close(points(paper), [(told["train"][k], told["test"][k]) for k in told["train"]])
    for text in right.texts:
        step = int(text.get_text())
        assert text.xy == (told["train"][step], told["test"][step])
    # Where the paper's curve has no such iteration, none is named.
    for dataset, named_there in (
        ("mnist", {"1", "5", "20"}),
        ("imagenet2", {"20"}),
        ("digits", set()),
    ):
        texts = figures.steps_figure(stepped(dataset)).axes[1].texts
        assert {text.get_text() for text in texts} == named_there


def test_a_training_of_one_epoch_ends_once() -> None:
    trials = [{**t, "steps_in_epoch": 9} for t in stepped("digits").metrics["trials"]]
    record = made("first_steps", trials, None, dataset="digits", ways=["gradient descent"])
    left = figures.steps_figure(record).axes[0]
    assert {line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ":"} == {9}
    assert [text.get_text() for text in left.texts] == ["1"]


def test_every_measure_has_a_meaning_in_the_table() -> None:
    names = [*DEFENCES]
    trials = [{"defence": name, "clean": 0.9, "perturbed": 0.2} for name in names]
    record = made("defences", trials, None, defences=names, epsilon=0.3, attack_steps=7)
    meanings = columns(figures.defences_table(record))["Meaning"]
    assert len({*meanings}) == len(names)
    assert "-" not in meanings


def test_the_table_of_steps_has_the_lowest_accuracy_and_two_ends() -> None:
    found = columns(figures.steps_table(stepped("mnist")))
    after = ["fewest clean images right*: step 6", "one epoch: step 3", "3 epochs: step 9"]
    assert found["Trained"] == ["gradient descent"] * 3 + ["other"] * 3
    assert found["After"] == after * 2
    assert found["Clean test images"] == [
        "7.00 ± 7.07 %", "20.00 ± 7.07 %", "35.00 ± 7.07 %", "7.00 %", "20.00 %", "35.00 %",
    ]  # fmt: skip
    assert found["Perturbed training images"][:2] == ["65.00 ± 7.07 %", "45.00 ± 7.07 %"]
    assert found["Runs"] == [2, 2, 2, 1, 1, 1]


#: In percent: two runs of the upper row, and one of the lower.
RUNS = {"clean": (90, 92, 85), "perturbed": (20, 26, 31)}


def compared(experiment: str, key: str, *names: str, **config: Any) -> Record:
    both = zip((names[0], *names), *RUNS.values(), strict=True)
    trials = [{key: name, "clean": a / 100, "perturbed": b / 100} for name, a, b in both]
    return made(experiment, trials, None, **config, **{f"{key}s": names})


def check_dots(axes: Any, label: str, colour: str, shift: float, runs: tuple[int, ...]) -> None:
    """Hold a series against its runs: means, single runs, and the interval of the upper row."""
    low, high, single = runs
    mean, half, lower = (low + high) / 2, (high - low) / 2**0.5, round(1 + shift, 2)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    here = [line for line in axes.lines if {*np.round(line.get_ydata(), 6)} <= {shift, lower}]
    dots = [point for line in here if line.get_color() == "black" for point in points(line)]
    assert close(dots, [(low, shift), (high, shift), (single, lower)])
    own = [line for line in here if line.get_color() == colour]
    [bar] = [points(line) for line in own if len(points(line)) == 2]
    assert close(bar, [(mean - half, shift), (mean + half, shift)])
    circles = [line for line in own if line.get_marker() == "o" and points(line)]
    assert close([points(line)[0] for line in circles], [(mean, shift), (single, lower)])
    handle = named(axes, label)
    assert handle in own
    assert {line.get_markerfacecolor() for line in circles} == {handle.get_markerfacecolor()}


def check_compared(axes: Any, table: Any, *names: str) -> dict[str, list[object]]:
    check_dots(axes, "trained on clean images", CLEAN, -0.11, RUNS["clean"])
    check_dots(axes, "trained on perturbed images", PERTURBED, 0.11, RUNS["perturbed"])
    assert points(named(axes, "guessing")) == [(10, 0), (10, 1)]
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == [*names]
    found = columns(table)
    assert next(iter(found.values())) == [*names]
    assert found["Trained on clean images"] == ["91.00 ± 1.41 %", "85.00 %"]
    assert found["On perturbed images"] == ["23.00 ± 4.24 %", "31.00 %"]
    return found


def test_other_classifiers_have_clean_and_perturbed_dots_and_the_papers_beside_them() -> None:
    record = compared("transfer", "classifier", "vgg16", "resnet8", dataset="cifar10")
    [axes] = figures.transfer_figure(record).axes
    found = check_compared(axes, figures.transfer_table(record), "vgg16", "resnet8")
    assert (found["Paper, clean"], found["Paper, perturbed"]) == (
        ["92.60 %", "-"],
        ["22.80 %", "-"],
    )
    # Below them those that only the paper has, the first of them Table 1's.
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[2:4] == ["original (paper's)", "vgg19 (paper's)"]
    diamonds = [marks(axes, "D", colour) for colour in (CLEAN, PERTURBED)]
    assert close(diamonds[0][:3], [(92.6, -0.11), (77.28, 1.89), (92.4, 2.89)])
    assert close(diamonds[1][:3], [(22.8, 0.11), (28.77, 2.11), (20.5, 3.11)])


def test_measures_have_clean_and_perturbed_dots_and_say_how_strong_they_are() -> None:
    names = ["gaussian noise", "adversarial training"]
    record = compared("defences", "defence", *names, epsilon=0.3, attack_steps=7)
    [axes] = figures.defences_figure(record).axes
    found = check_compared(axes, figures.defences_table(record), *names)
    assert "deviation 0.15" in str(found["Meaning"][0])
    assert "7 steps" in str(found["Meaning"][1])


HOW = ("accuracy", "batch_statistics")
SWITCHED = {
    "Clean, eval mode": ((90, 92, 85), ["91.00 ± 1.41 %", "85.00 %"]),
    "Clean, batch statistics": ((80, 86, 75), ["83.00 ± 4.24 %", "75.00 %"]),
    "Perturbed, eval mode": ((20, 28, 31), ["24.00 ± 5.66 %", "31.00 %"]),
    "Perturbed, batch statistics": ((40, 50, 63), ["45.00 ± 7.07 %", "63.00 %"]),
}


def test_switches_tell_eval_mode_from_batch_statistics_for_clean_and_for_perturbed() -> None:
    four = zip(*(np.divide(runs, 100) for runs, _ in SWITCHED.values()), strict=True)
    trials = [
        {"clean": dict(zip(HOW, own[:2], strict=True))}
        | {"perturbed": dict(zip(HOW, own[2:], strict=True)), "switch": name}
        for name, own in zip(("paper", "paper", "released"), four, strict=True)
    ]
    record = made("switches", trials, switches=["paper", "released"])
    axes: Any = figures.switches_figure(record).axes[0]
    shown = columns(figures.switches_table(record))
    assert shown["Switch"] == ["paper", "released"]
    for place, (title, (runs, told)) in enumerate(SWITCHED.items()):
        label, shift = title[0].lower() + title[1:], (-0.33, -0.11, 0.11, 0.33)[place]
        check_dots(axes, label, (CLEAN, PERTURBED)[place // 2], shift, runs)
        assert (named(axes, label).get_markerfacecolor() == "white") == (place % 2 == 1)
        assert shown[title] == told


def test_accuracy_stands_at_its_bound_with_its_deviation_its_runs_and_the_papers() -> None:
    runs = [(0.3, 22), (0.3, 24), (0.0, 90), (0.0, 94), (0.1, 71)]
    trials = [{"epsilon": epsilon, "accuracy": found / 100} for epsilon, found in runs]
    grey = torch.ones(2, 1, 3, 3, dtype=torch.uint8)
    arrays = {f"{k}.images": level * grey for k, level in ((0, 130), (2, 100), (4, 110))}
    figure = figures.epsilon_figure(made("epsilon", trials, arrays, dataset="mnist"))
    axes: Any = figure.axes[0]
    [bars] = axes.containers
    check_bars(bars, PERTURBED, [(0, 92, 8**0.5), (0.1, 71, 0), (0.3, 23, 2**0.5)])
    assert close(marks(axes, ".", "black"), runs)
    assert close(points(named(axes, "paper")), list(FIGURE_4.items()))
    below: list[Any] = figure.axes[1:]
    assert [one.get_title() for one in below[:3]] == ["0", "0.1", "0.3"]
    assert [one.images[0].get_array().max() for one in below] == [100, 110, 130] * 2
    [axes, *_] = figures.epsilon_figure(made("epsilon", trials, arrays)).axes
    assert not marks(axes, "D", COLOURS["paper"])


def test_noise_left_out_and_random_labels_are_told_apart_at_every_share() -> None:
    darker = "#661908"  # half as bright as PERTURBED
    about: dict[str, tuple[float | None, str, dict[float, tuple[int, int]]]] = {
        "noise, epsilon 0.3": (0.3, PERTURBED, {1.0: (20, 26), 0.5: (90, 92)}),
        "noise, epsilon 0.4": (0.4, darker, {1.0: (12, 16), 0.5: (80, 86)}),
        "left out": (None, COLOURS["after"], {0.5: (82, 84)}),
        "random labels": (None, COLOURS["reference"], {1.0: (9, 11), 0.5: (60, 68)}),
    }
    trials: list[Json] = [
        {"kind": name.split(",")[0], "epsilon": epsilon, "share": share, "accuracy": run / 100}
        for name, (epsilon, _, shares) in about.items()
        for share, both in shares.items()
        for run in both
    ]
    record = made("share", trials, dataset="mnist", epsilons=[0.3, 0.4])
    axes: Any = figures.share_figure(record).axes[0]
    for container, (name, own) in zip(axes.containers, about.items(), strict=True):
        epsilon, colour, shares = own
        assert container.get_label() == name
        means = [(100 * x, (a + b) / 2, (b - a) / 2**0.5) for x, (a, b) in shares.items()]
        check_bars(container, colour, sorted(means))
        if paper := FIGURE_5.get(epsilon or name):
            line = named(axes, f"paper, {name}")
            assert to_hex(line.get_color()) == colour
            assert close(points(line), [(100 * share, y) for share, y in paper.items()])
    assert not [line for line in axes.lines if line.get_label() == "paper, left out"]
    dots = [(100 * trial["share"], 100 * trial["accuracy"]) for trial in trials]
    assert close(marks(axes, ".", "black"), dots)


def test_where_all_images_are_left_out_nothing_is_drawn_of_it() -> None:
    kinds = {"noise": 0.3, "random labels": None}
    trials = [
        {"kind": kind, "epsilon": epsilon, "share": 1.0, "accuracy": 0.1}
        for kind, epsilon in kinds.items()
    ]
    axes: Any = figures.share_figure(made("share", trials, epsilons=[0.3])).axes[0]
    labels = [one.get_label() for one in axes.containers]
    assert labels == ["noise, epsilon 0.3", "random labels"]
    assert np.allclose([y for line in axes.lines for y in line.get_ydata()[:1]], 10)
