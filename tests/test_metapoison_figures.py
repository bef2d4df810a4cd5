"""The MetaPoison figures and tables show what their records say, and nothing else."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from poisonkit.experiments.metapoison.switches import SWITCHES
from poisonkit.figures.metapoison import (
    budget_figure,
    curves_figure,
    distances_figure,
    losses_figure,
    paths_figure,
    poisons_figure,
    poisons_slider,
    rates_figure,
    rates_table,
    steps_figure,
    targets_figure,
    victims_table,
)
from poisonkit.plots import COLOURS
from poisonkit.statistics import wilson

STEPS = [0, 4, 8, 10]
PAIRS = [
    {
        "pair": pair,
        "target_class": target,
        "poison_class": wanted,
        "wanted_class": wanted,
        "targets": [number],
        "poisons": 50 + pair,
    }
    for pair, (target, wanted, number) in enumerate([("frog", "ship", 11), ("cat", "dog", 22)])
]
CALLED = ["frog (no. 11) as ship", "cat (no. 22) as dog"]


def made(rows=(), *, trials=(), arrays=None, config=None, **metrics):
    """All of a record that a figure may look at."""
    return SimpleNamespace(
        metrics={"rows": list(rows), "trials": list(trials), **metrics},
        arrays=arrays or {},
        config={"dataset": "digits", **(config or {})},
    )


def rate(hits, targets):
    low, high = wilson(hits, targets)
    return {"hits": hits, "targets": targets, "rate": hits / targets, "low": low, "high": high}


def row(hits, within, targets=20, *, mean=0.9, deviation=0.01, **about):
    accuracy = {"mean": mean, "deviation": deviation}
    success = {**rate(hits, targets), "in_batch": rate(within, targets)}
    return {**about, **success, "accuracy": accuracy, "victims": targets}


def shown(axes):
    [image] = axes.images
    return np.asarray(image.get_array())


def legend(figure):
    """What all legends say, of the figure and of its axes."""
    found = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return [text.get_text() for one in found for text in one.get_texts()]


def curve(axes, label):
    """The values of the only line of a label."""
    [found] = [line for line in axes.lines if line.get_label() == label]
    return list(found.get_xdata()), list(found.get_ydata())


def check_bars(container, x, y, ends):
    """Hold what an errorbar shows against its points and the ends of its bars."""
    line, _, [bars] = container.lines
    assert list(line.get_xdata()) == pytest.approx(x, abs=0.4)
    assert list(line.get_ydata()) == pytest.approx(y)
    drawn = [segment[:, 1] for segment in bars.get_segments()]
    assert np.allclose(drawn, ends)


def check_rates(container, x, rows):
    ends = [(100 * row["low"], 100 * row["high"]) for row in rows]
    check_bars(container, x, [100 * row["rate"] for row in rows], ends)


def points(axes, marker, fill=None):
    return [
        (float(x), float(y))
        for line in axes.lines
        if line.get_marker() == marker and fill in (None, line.get_markerfacecolor())
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


# Figures 2 and 3 ------------------------------------------------------------------------------


@pytest.fixture
def crafting():
    """Two pairs with two victims a step; arrays belong to the trial that has the curves."""
    generator = np.random.default_rng(5)
    torch_generator = torch.Generator().manual_seed(5)
    trials, arrays = [], {}
    for step in STEPS:
        for victim in range(2):
            # The second pair first: it is not that of the pictures.
            for pair in (1, 0):
                about = {"crafted": step, "victim": victim, "largest_change": 20}
                course = {"target_loss": generator.uniform(0, 9, 3).tolist()}
                clean = {"wanted_probability": [math.exp(-3 - pair)]}
                trial = {**PAIRS[pair], **about, "course": course, "clean": clean}
                if step == STEPS[-1] and victim == 0:
                    trial["unaffected"] = generator.uniform(5, 9, 10).tolist()
                    trial["unrolled"] = generator.uniform(1, 5, 10).tolist()
                    number = len(trials)
                    arrays |= pictures(number, torch_generator)
                trials.append(trial)
    rows = [
        row(0, 1, crafted=0, mean=0.9, deviation=0.02),
        row(5, 0, crafted=4, mean=0.8, deviation=0.1),
        row(18, 9, crafted=8, mean=0.85, deviation=None),
        row(20, 12, crafted=10, mean=0.7, deviation=0.03, clean_rate=0.15),
    ]
    config = {"procedure": {"objective": "cross-entropy"}}
    return made(rows, trials=trials, arrays=arrays, config=config)


def pictures(number, generator):
    def draw(low, high, *shape):
        return torch.randint(low, high, (*shape, 1, 5, 5), generator=generator, dtype=torch.int16)

    bases = draw(40, 200, 8)
    found = {"target": draw(0, 256, 1), "bases": bases}
    for kept in range(len(STEPS)):
        change = draw(-20, 21, 8)
        change[..., 0, 0], change[..., 0, 1], change[..., 0, 2] = 20, -20, 0
        found[f"poisons.{kept}"] = bases + change
    return {f"{number}.pictures.{name}": x.to(torch.uint8) for name, x in found.items()}


@pytest.mark.parametrize("kept", [None, 1])
def test_poisons_stand_below_their_bases_and_their_changes_below_them(crafting, kept):
    grid = np.array(poisons_figure(crafting, kept).axes).reshape(3, 7)  # six of eight are shown
    [number] = [k for k, t in enumerate(crafting.metrics["trials"]) if "unrolled" in t][1:]
    arrays = {
        name: crafting.arrays[f"{number}.pictures.{name}"][:, 0].numpy()
        for name in ("target", "bases", f"poisons.{3 if kept is None else kept}")
    }
    target, bases, poisons = arrays.values()
    assert np.array_equal(shown(grid[0, 0]), target[0])
    assert grid[0, 0].get_title() == "target: frog"
    for place in range(6):
        assert np.array_equal(shown(grid[0, 1 + place]), bases[place])
        assert grid[0, 1 + place].get_title() == "base: ship"
        assert np.array_equal(shown(grid[1, 1 + place]), poisons[place])
        change = shown(grid[2, 1 + place])
        # White and black are the largest change, grey is none.
        assert (change[0, 0], change[0, 1]) == (255, 0)
        difference = poisons[place].astype(float) - bases[place]
        assert np.abs((change / 127.5 - 1) * 20 - difference).max() <= 0.1


def test_the_slider_has_a_picture_of_each_kept_step_and_starts_at_the_first(crafting):
    html = poisons_slider(crafting).html
    captions = re.findall(r'alt="([^"]+)"', html)
    assert captions == [f"after {step} steps" for step in STEPS]
    assert len(set(re.findall(r'src="([^"]+)"', html))) == len(STEPS)
    [seen] = [tag for tag in re.findall(r"<img[^>]*>", html) if not tag.endswith(" hidden>")]
    assert captions[0] in seen


def test_losses_are_means_over_pairs_in_surrogates_and_over_victims_by_step(crafting):
    figure = losses_figure(crafting)
    [axes] = figure.axes
    trials = crafting.metrics["trials"]
    for name, label in (
        ("unaffected", "surrogates as they are"),
        ("unrolled", "surrogates after the unrolled steps"),
    ):
        x, y = curve(axes, label)
        one, other = (trial[name] for trial in trials if name in trial)
        assert x == list(range(10))
        assert y == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)])
    assert curve(axes, "victims of clean images")[1] == pytest.approx([3.5, 3.5])
    own = np.array(
        [[t["course"]["target_loss"][2] for t in trials if t["crafted"] == step] for step in STEPS]
    )
    assert own.shape == (4, 4)
    ends = np.stack([own.min(1), own.max(1)], axis=1)
    check_bars(axes.containers[0], STEPS, own.mean(1), ends)
    assert axes.get_xlabel() == "crafting step"
    assert axes.get_ylabel() == "target's loss, cross-entropy"
    assert "victims, last epoch: mean, lowest and highest" in legend(figure)


def test_the_axis_of_losses_says_where_surrogates_have_a_margin(crafting):
    crafting.config["procedure"]["objective"] = "margin"
    assert losses_figure(crafting).axes[0].get_ylabel().endswith("(surrogates: margin)")


def test_success_by_step_has_its_intervals_and_accuracy_its_deviations(crafting):
    figure = steps_figure(crafting)
    left, right = figure.axes
    rows = crafting.metrics["rows"]
    own, within = left.containers
    check_rates(own, STEPS, rows)
    check_rates(within, STEPS, [entry["in_batch"] for entry in rows])
    told = ["target in eval mode", "target in a training batch", "victims of clean images"]
    assert sorted(legend(figure)) == sorted(told)
    assert curve(left, told[2])[1] == pytest.approx([100 * rows[-1]["clean_rate"]] * 2)
    assert left.get_ylabel() == "targets given\nthe wanted label (%),\n95 % intervals"
    spreads = [(88, 92), (70, 90), (85, 85), (67, 73)]  # of a single victim there is none
    check_bars(right.containers[0], STEPS, [90, 80, 85, 70], spreads)
    assert right.get_ylabel() == "accuracy on test images (%),\nmean ± standard deviation"
    assert left.get_xlabel() == right.get_xlabel() == "crafting step"


# Figure 4 -------------------------------------------------------------------------------------


def victims():
    """Two pairs with three victims each, two victims on clean images, four epochs."""
    generator = np.random.default_rng(7)

    def course(*prefixes):
        names = [f"{prefix}{name}" for prefix in prefixes for name in ("target_loss", "success")]
        return {name: generator.uniform(0, 1, 4).tolist() for name in (*names, "test")}

    trials = [{**PAIRS[pair], "course": course("")} for _ in range(3) for pair in range(2)]
    trials += [{"pair": None, "course": course("pair0_", "pair1_")} for _ in range(2)]
    rows = [
        row(17, 9, pair=0, mean=0.812, clean_rate=0.25),
        row(6, 3, pair=1, mean=0.834, clean_rate=0.0),
    ]
    return made(rows, trials=trials, all=row(23, 12, 40, mean=0.823), clean_accuracy=0.851)


def test_each_pair_has_a_full_line_and_beside_it_what_clean_victims_make_of_its_target():
    record = victims()
    figure = curves_figure(record)
    trials = record.metrics["trials"]
    for axes, name, factor in zip(
        figure.axes, ("target_loss", "success", "test"), (1, 100, 100), strict=True
    ):
        lines = [line for line in axes.lines if len(line.get_xdata())]
        full = [line for line in lines if line.get_linestyle() == "-"]
        dashed = [line for line in lines if line.get_linestyle() == "--"]
        assert [line.get_label() for line in full] == CALLED
        # The accuracy of clean victims is that of no pair.
        keys = ["test"] if name == "test" else [f"pair{pair}_{name}" for pair in range(2)]
        drawn = [(line, pair, name) for pair, line in enumerate(full)]
        drawn += [(line, None, key) for line, key in zip(dashed, keys, strict=True)]
        for line, kind, read in drawn:
            own = [trial["course"][read] for trial in trials if trial["pair"] == kind]
            assert list(line.get_xdata()) == [1, 2, 3, 4]
            assert list(line.get_ydata()) == pytest.approx(factor * np.mean(own, axis=0))
        colours = ["black"] if name == "test" else [line.get_color() for line in full]
        assert [line.get_color() for line in dashed] == colours
        # Bands hold every victim of their pair and reach the outermost ones.
        for pair, band in enumerate(axes.collections):
            own = [factor * np.array(t["course"][name]) for t in trials if t["pair"] == pair]
            corners = band.get_paths()[0].vertices
            for epoch in range(4):
                found = corners[corners[:, 0] == epoch + 1, 1]
                assert found.min() == pytest.approx(min(values[epoch] for values in own))
                assert found.max() == pytest.approx(max(values[epoch] for values in own))
        assert len(axes.collections) == (0 if name == "success" else 2)
        assert full[0].get_color() != full[1].get_color()
        assert axes.get_xlabel() == "epoch"
    assert [axes.get_ylabel().endswith("(%)") for axes in figure.axes] == [False, True, True]
    assert sorted(legend(figure)) == sorted([*CALLED, "clean images"])


def test_on_its_data_figures_have_what_the_paper_says():
    on_paper_data = {"dataset": "cifar10", "images_per_class": 500}
    record = victims()
    record.config |= on_paper_data
    figure = curves_figure(record)
    assert curve(figure.axes[1], "paper: nearly all")[1] == [100, 100]
    assert "paper: nearly all" in legend(figure)

    rows = [row(7, 1, budget=200, clean_rate=0.05), row(9, 1, budget=500, clean_rate=0.05)]
    record = made(rows, by_pair=[], trials=PAIRS, config=on_paper_data)
    left, _ = budget_figure(record).axes
    # Of 5,000 training images.
    assert curve(left, "paper: above, with 3 to 10 %") == ([150, 500], [50, 50])
    record.config["images_per_class"] = None
    left, _ = budget_figure(record).axes
    assert curve(left, "paper: above, with 3 to 10 %")[0] == [1500, 5000]

    record = mechanism()
    assert "95 % in two components" in paths_figure(record).axes[0].get_title()
    record.config["dataset"] = "cifar10"
    assert "95 % in two components (paper: 96)" in paths_figure(record).axes[0].get_title()


def test_the_table_of_victims_has_a_line_for_each_pair_and_one_for_all():
    table = victims_table(victims()).data
    assert list(table["Target, wanted"]) == [*CALLED, "all"]
    assert list(table["Poisons"]) == ["50 of class ship", "51 of class dog", ""]
    successes = ["17 of 20: 85 % [64, 95]", "6 of 20: 30 % [15, 52]", "23 of 40: 57 % [42, 71]"]
    assert list(table["Success"]) == successes
    within = ["9 of 20: 45 % [26, 66]", "3 of 20: 15 % [5, 36]", "12 of 40: 30 % [18, 45]"]
    assert list(table["In a training batch"]) == within
    assert list(table["Clean victims"]) == ["25 %", "0 %", ""]
    accuracies = ["81.2 ± 1.0 %", "83.4 ± 1.0 %", "82.3 ± 1.0 % (clean: 85.1 %)"]
    assert list(table["Accuracy"]) == accuracies


# Figures 5b and 6c, switches and limits -------------------------------------------------------


def changed(key, kinds):
    rows = [row(4 * k + 3, 19 - 4 * k, **{key: kind}) for k, kind in enumerate(kinds)]
    # Pairs in another order than the rows.
    singles = [
        row(2 * k + pair, 0, 10, pair=pair, **{key: kind})
        for k, kind in reversed(list(enumerate(kinds)))
        for pair in range(2)
    ]
    trials = [
        {key: kind, "wanted_probability": [0.1 * k, 0.1 * k + 0.2]} for k, kind in enumerate(kinds)
    ]
    return made(rows, by_pair=singles, trials=trials)


CHANGES = {
    "change": ["as expected", "no momentum", "vgg11"],
    "scenario": ["one target", "third party", "several targets"],
    "switch": ["paper", "margin loss"],
    "measure": ["rounded", "not rounded", "spectral filter"],
    "budget": [30, 60],
}


@pytest.mark.parametrize("key", CHANGES)
def test_every_change_has_two_rates_with_intervals_and_a_dot_for_each_pair(key):
    kinds = CHANGES[key]
    record = changed(key, kinds)
    figure = rates_figure(record)
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(kind) for kind in kinds]
    assert axes.get_xlabel() == "targets given the wanted label (%)"
    intervals = [
        (*map(float, line.get_xdata()), float(line.get_ydata()[0]))
        for line in axes.lines
        if line.get_marker() == "None"
    ]
    assert len(intervals) == 2 * len(kinds)
    for way, fill in (("eval", COLOURS["poisoned"]), ("batch", "white")):
        found = points(axes, "o", fill)
        assert len(found) == len(kinds)
        for place, ((x, y), entry) in enumerate(zip(found, record.metrics["rows"], strict=True)):
            own = entry if way == "eval" else entry["in_batch"]
            assert x == pytest.approx(100 * own["rate"])
            assert abs(y - place) < 0.5
            [bar] = [ends for *ends, height in intervals if height == y]
            assert bar == pytest.approx([100 * own["low"], 100 * own["high"]])
    dots = [(x, round(y)) for x, y in points(axes, ".")]
    expected = [(10 * (2 * k + pair), k) for k in range(len(kinds)) for pair in range(2)]
    assert sorted(dots) == [pytest.approx(pair) for pair in sorted(expected)]
    assert legend(figure) == ["eval mode", "in a training batch", "one pair, eval mode"]


def test_what_clean_victims_do_anyway_stands_beside_each_change():
    record = changed("switch", CHANGES["switch"])
    for entry, share in zip(record.metrics["rows"], (0.25, 0.0), strict=True):
        entry["clean_rate"] = share
    figure = rates_figure(record)
    assert points(figure.axes[0], "|") == [(25, 0), (0, 1)]
    assert legend(figure)[-1] == "victims of clean images, eval mode"
    assert list(rates_table(record).data["Clean victims"]) == ["25 %", "0 %"]


def test_the_table_of_changes_has_their_numbers():
    record = changed("switch", CHANGES["switch"])
    record.metrics["rows"][1]["accuracy"]["deviation"] = None
    table = rates_table(record).data
    assert list(table["Switch"]) == CHANGES["switch"]
    assert list(table["Success"]) == ["3 of 20: 15 % [5, 36]", "7 of 20: 35 % [18, 57]"]
    assert list(table["Wanted label's probability"]) == ["10 % (0 to 20)", "20 % (10 to 30)"]
    within = ["19 of 20: 95 % [76, 99]", "15 of 20: 75 % [53, 89]"]
    assert list(table["In a training batch"]) == within
    assert list(table["Accuracy"]) == ["90.0 ± 1.0 %", "90.0 %"]
    assert list(table["Victims"]) == ["20", "20"]
    assert "Poisons left" not in table


def test_the_table_says_what_each_switch_means_and_of_nothing_else():
    tables = [rates_table(changed("switch", [name])).data for name in SWITCHES]
    meanings = [table["Meaning"].item() for table in tables]
    assert len(set(meanings)) == len(SWITCHES)
    assert all(meanings)
    assert "Meaning" not in rates_table(changed("change", CHANGES["change"])).data


def test_limits_have_no_dots_of_pairs_and_only_a_filter_leaves_poisons():
    record = changed("measure", CHANGES["measure"])
    del record.metrics["by_pair"]
    figure = rates_figure(record)
    assert not points(figure.axes[0], ".")
    assert legend(figure) == ["eval mode", "in a training batch"]
    record.metrics["rows"][2] |= {"kept_poisons": 37, "poisons": 120}
    assert list(rates_table(record).data["Poisons left"]) == ["-", "-", "37 of 120"]


# Figure 5a ------------------------------------------------------------------------------------


def test_budgets_have_a_line_for_each_pair_and_one_for_all():
    rows = [row(0, 1, budget=15, deviation=0.02), row(7, 1, budget=30, mean=0.8, deviation=None)]
    for entry in rows:
        entry["clean_rate"] = 0.05
    singles = [
        row(hits, 0, 10, budget=budget, pair=pair)
        for budget, both in ((15, (0, 0)), (30, (1, 6)))
        for pair, hits in enumerate(both)
    ]
    left, right = budget_figure(made(rows, by_pair=singles, trials=PAIRS[::-1])).axes
    assert curve(left, CALLED[0]) == ([15, 30], [0, 10])
    assert curve(left, CALLED[1]) == ([15, 30], [0, 60])
    check_rates(left.containers[0], [15, 30], rows)
    assert curve(left, "clean victims")[1] == [5, 5]
    assert left.containers[0].get_label() == "all pairs"
    assert left.get_ylabel() == "targets given\nthe wanted label (%),\n95 % intervals"
    check_bars(right.containers[0], [15, 30], [90, 80], [(88, 92), (80, 80)])
    assert right.get_ylabel() == "accuracy on test images (%),\nmean ± standard deviation"
    assert left.get_xlabel() == right.get_xlabel() == "poisons"


# Beyond the paper: every target ---------------------------------------------------------------


def test_every_target_has_a_dot_by_what_clean_networks_and_victims_think_of_it():
    values = [(1e-5, 0.9, 1.0), (0.3, 0.8, 1.0), (1e-3, 0.02, 0.0)]
    trials = [
        {
            "target_class": "bird",
            "wanted_class": "dog",
            "clean": {"wanted_probability": [clean]},
            "wanted_probability": [poisoned],
            # It is the last epoch that counts.
            "course": {"success": [1 - success, success]},
        }
        for clean, poisoned, success in values
    ]
    figure = targets_figure(made(trials=trials))
    [axes] = figure.axes
    assert curve(axes, "given the wanted label (2)") == ([1e-5, 0.3], [0.9, 0.8])
    assert curve(axes, "not given it (1)") == ([1e-3], [0.02])
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_title() == "bird that is to be called dog"
    probability = "probability of the wanted label (0 to 1),"
    assert axes.get_xlabel() == f"{probability} network trained on clean images"
    assert axes.get_ylabel() == f"{probability}\nnetwork trained on poisons"
    # Dots on the dashed line are targets of which poisons change nothing.
    [line] = [line for line in axes.lines if line.get_linestyle() == "--"]
    figure.draw_without_rendering()
    ends = line.get_transform().transform(line.get_path().vertices)
    x, y = axes.transData.inverted().transform(ends).T
    assert x == pytest.approx(y)
    assert x[0] < x[1]


# Figure 6 -------------------------------------------------------------------------------------


def mechanism():
    generator = torch.Generator().manual_seed(9)
    arrays, trials = {}, []
    kinds = [f"{kind} in clean" for kind in ("bases", "poisons", "collided")]
    kinds += ["bases in victim", "poisons in victim"]
    # Pair 0's second victim is the first that the attack succeeds with; pair 1 has none.
    about = ((0, False, [0.5, 0.1]), (1, False, [0.6, 0.2]), (0, True, [0.71, 0.24]))
    for number, (pair, taken, explained) in enumerate(about):
        paths = {name: torch.randn(6, 2, generator=generator) for name in TRAINED}
        for path in paths.values():
            path[0] = paths["clean"][0]
        arrays |= {f"{number}.path.{name}": path for name, path in paths.items()}
        arrays[f"{number}.arrows.at"] = paths["clean"][::2]
        arrays[f"{number}.arrows.to"] = 1e-3 * torch.randn(3, 2, generator=generator)
        away = {name: torch.rand(6, generator=generator).tolist() for name in ("poisoned", "signs")}
        trials.append(
            {
                **PAIRS[pair],
                "predictions": [PAIRS[pair]["wanted_class"] if taken else "frog"],
                "clean": {"predictions": ["frog"]},
                "explained": explained,
                "apart": away,
                "layers": ["stage1", "stage2", "pool"],
                "distances": {kind: torch.rand(3, generator=generator).tolist() for kind in kinds},
            }
        )
    return made(trials=trials, arrays=arrays)


TRAINED = {
    "clean": "clean images",
    "poisoned": "poisons",
    "signs": "the same changes with random signs",
}


@pytest.mark.parametrize(("pair", "number"), [(0, 2), (1, 1)])
def test_paths_start_together_and_have_a_dot_for_each_epoch(pair, number):
    record = mechanism()
    axes = paths_figure(record).axes[pair]
    for name, images in TRAINED.items():
        path = record.arrays[f"{number}.path.{name}"].numpy()
        assert np.allclose(curve(axes, f"trained on {images}"), path.T)
    start = record.arrays[f"{number}.path.clean"][0].tolist()
    assert curve(axes, "start") == ([start[0]], [start[1]])
    ends = [record.arrays[f"{number}.path.{name}"][-1].tolist() for name in TRAINED]
    assert np.allclose(points(axes, "o"), ends)
    first, second = [(71, 24), (60, 20)][pair]
    assert f"({first} % of the variance)" in axes.get_xlabel()
    assert f"({second} %)" in axes.get_ylabel()
    title, _ = axes.get_title().split("\n")
    assert title.endswith([": success", ": no success"][pair])


def test_below_are_the_ways_of_all_victims_from_the_clean_path():
    record = mechanism()
    for pair, axes in enumerate(paths_figure(record).axes[2:]):
        own = [trial for trial in record.metrics["trials"] if trial["pair"] == pair]
        drawn = sorted(list(line.get_ydata()) for line in axes.lines)
        assert drawn == sorted(way for trial in own for way in trial["apart"].values())


def test_arrows_stand_on_the_clean_path_and_show_directions_only():
    record = mechanism()
    record.arrays["2.arrows.to"][0] *= 100
    [arrows] = [part for part in paths_figure(record).axes[0].collections if hasattr(part, "U")]
    assert np.allclose(arrows.get_offsets(), record.arrays["2.path.clean"][::2])
    drawn, pulls = np.stack([arrows.U, arrows.V], 1), record.arrays["2.arrows.to"].numpy()
    lengths = np.linalg.norm(drawn, axis=1)
    assert np.allclose(lengths, lengths[0])
    directions = pulls / np.linalg.norm(pulls, axis=1, keepdims=True)
    assert np.allclose(drawn / lengths[:, None], directions, atol=1e-6)


def test_distances_by_layer_are_means_over_victims_between_the_lowest_and_the_highest():
    record = mechanism()
    trials = record.metrics["trials"]
    trials[1]["predictions"] = [trials[1]["wanted_class"]]
    missed = trials.pop(0)
    trials.append(missed)
    figure = distances_figure(record)
    [axes] = figure.axes
    names = {
        "Feature Collision's poisons, network it was made with": "collided in clean",
        "images before crafting, clean network": "bases in clean",
        "MetaPoison's poisons, clean network": "poisons in clean",
        "images before crafting, victim": "bases in victim",
        "MetaPoison's poisons, victim": "poisons in victim",
    }
    assert sorted(legend(figure)) == sorted(names)
    assert "2 of 3" in axes.get_title()
    taken = trials[:2]
    bands = [part.get_paths()[0].vertices for part in axes.collections]
    assert len(bands) == len(names)
    for (label, kind), band in zip(names.items(), bands, strict=True):
        both = np.array([trial["distances"][kind] for trial in taken])
        assert curve(axes, label) == ([0, 1, 2], pytest.approx(both.mean(0)))
        for layer in range(3):
            own = band[band[:, 0] == layer, 1]
            expected = (both[:, layer].min(), both[:, layer].max())
            assert (own.min(), own.max()) == pytest.approx(expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["stage1", "stage2", "pool"]
    assert "relative to its norm" in axes.get_ylabel()
    del trials[1]
    assert not distances_figure(record).axes[0].collections
    # What a clean network says anyway is not the poisons' doing.
    trials[0]["clean"]["predictions"] = trials[0]["predictions"]
    [axes] = distances_figure(record).axes
    assert "none" in axes.get_title()
    assert len(axes.collections) == len(names)
