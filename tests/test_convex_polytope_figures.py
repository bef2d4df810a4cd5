"""The Convex Polytope figures and tables show what their records say, and nothing else."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from poisonkit.experiments.convex_polytope.proposition import Line, Scene
from poisonkit.experiments.convex_polytope.switches import SWITCHES
from poisonkit.figures.convex_polytope import (
    accuracy_figure,
    distance_figure,
    likeness_table,
    limits_figure,
    limits_table,
    plane_figure,
    poisons_figure,
    poisons_slider,
    proposition_figure,
    proposition_table,
    randomised_figure,
    randomised_table,
    success_figure,
    success_table,
    switches_figure,
    switches_table,
)
from poisonkit.plots import COLOURS
from poisonkit.statistics import wilson

VICTIMS = ("resnet50", "resnet18", "small_cnn")
#: In percent, as the authors told them; the third victim is none of theirs.
PAPER = {"resnet50": 72, "resnet18": 52}


def made(experiment, rows=(), *, trials=(), arrays=None, **config):
    """All of a record that a figure may look at."""
    return SimpleNamespace(
        experiment=f"convex_polytope/{experiment}",
        metrics={"rows": list(rows), "trials": list(trials)},
        arrays=arrays or {},
        config=config,
    )


def rate(hits, targets):
    low, high = wilson(hits, targets)
    return {"hits": hits, "targets": targets, "rate": hits / targets, "low": low, "high": high}


def row(hits, targets=20, *, clean=0.1, **about):
    accuracies = {"accuracy": 0.9, "accuracy_deviation": 0.01, "clean_accuracy": 0.92}
    return {**accuracies, **about, **rate(hits, targets), "clean": clean}


def transfer(dataset="cifar10", experiment="transfer", victims=VICTIMS):
    generator = np.random.default_rng(3)
    rows = [
        row(
            int(generator.integers(1, 20)),
            objective=objective,
            victim=victim,
            clean=place / 20,
            unrounded=place / 10,
            accuracy=generator.uniform(0.6, 0.9),
        )
        for objective in ("collision", "polytope", "bullseye")
        for place, victim in enumerate(victims)
    ]
    for place, victim in enumerate(victims):
        for entry in rows:
            if entry["victim"] == victim:
                entry["clean_accuracy"] = 0.7 + 0.05 * place
    return made(experiment, rows, dataset=dataset, substitutes=["resnet50", "small_cnn"])


def overlap(shares=(0.0, 0.5, 1.0)):
    rows = [
        row(5 + place, overlap=share, victim=victim, unrounded=0.0)
        for share in shares
        for place, victim in enumerate(VICTIMS)
    ]
    return made("overlap", rows, dataset="cifar10", substitutes=["resnet50"])


def end_to_end():
    rows = [
        row(hits, attack=attack, victim=victim)
        for attack, hits in (("last layer", 1), ("all stages", 15))
        for victim in VICTIMS
    ]
    return made("end_to_end", rows, dataset="cifar10", substitutes=["resnet50"])


def legend(figure):
    [found] = figure.legends
    return [text.get_text() for text in found.get_texts()]


def marks(axes, marker):
    """The points drawn with a marker: (x, y, colour)."""
    return [
        (float(x), float(y), line.get_color())
        for line in axes.lines
        if line.get_marker() == marker
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def bars(axes):
    """The intervals: (from, to, height)."""
    return [
        (*sorted(map(float, line.get_xdata())), float(line.get_ydata()[0]))
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_marker() == "None"
        if line.get_ydata()[0] == line.get_ydata()[1]
    ]


def cells(styler) -> pd.DataFrame:
    return styler.data


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


# Rates of success: Figures 5, 6 and 7 ---------------------------------------------------------


@pytest.mark.parametrize("make", [transfer, overlap, end_to_end])
def test_every_rate_has_one_mark_and_its_interval_at_the_height_of_its_victim(make):
    record = make()
    axes = success_figure(record).axes[0]
    rows = record.metrics["rows"]
    points, intervals = marks(axes, "o"), bars(axes)
    assert len(points) == len(intervals) == len(rows)
    for entry in rows:
        place = VICTIMS.index(entry["victim"])
        near = [
            (low, high)
            for low, high, y in intervals
            for x, height, _ in points
            if height == y and abs(y - place) < 0.5 and x == pytest.approx(100 * entry["rate"])
        ]
        expected = (100 * entry["low"], 100 * entry["high"])
        assert any(found == pytest.approx(expected) for found in near)
    # No two marks lie on each other, and every way to craft has a colour of its own.
    assert len({y for _, y, _ in points}) == len(rows)
    assert len({colour for *_, colour in points}) == len(rows) // len(VICTIMS)


def test_names_of_victims_say_which_the_attacker_does_not_know_and_axes_name_their_unit():
    axes = success_figure(transfer()).axes[0]
    assert labels(axes) == ["resnet50", "resnet18 (unknown)", "small_cnn"]
    assert axes.get_xlabel() == "targets taken for the poisons' class (%)"
    low, high = axes.get_xlim()
    assert low <= 0 < 100 <= high


def test_the_rate_without_poisons_is_marked_once_for_each_victim():
    for record in (transfer(), overlap()):
        found = marks(success_figure(record).axes[0], "|")
        clean = {r["victim"]: r["clean"] for r in record.metrics["rows"]}
        assert [x for x, *_ in found] == pytest.approx([100 * clean[name] for name in VICTIMS])
        assert [y for _, y, _ in found] == [0, 1, 2]


def test_the_papers_rates_stand_beside_convex_polytopes_marks_and_nowhere_else():
    figure = success_figure(transfer())
    axes = figure.axes[0]
    found = marks(axes, "D")
    assert [x for x, *_ in found] == [72, 52]
    polytope = {
        (round(y), x): y for x, y, colour in marks(axes, "o") if colour == COLOURS["poisoned"]
    }
    heights = {place: y for (place, _), y in polytope.items()}
    assert [y for _, y, _ in found] == [heights[0], heights[1]]
    assert any("authors" in text for text in legend(figure))


@pytest.mark.parametrize(
    "record",
    [
        transfer(dataset="digits"),
        transfer(experiment="limits"),
        transfer(victims=("resnet8", "small_cnn")),
        overlap(),
        end_to_end(),
    ],
    ids=["digits", "another experiment", "other victims", "overlap", "end to end"],
)
def test_there_are_no_marks_of_the_paper_where_it_has_no_number(record):
    figure = success_figure(record)
    assert not marks(figure.axes[0], "D")
    assert not any("told by its authors" in text for text in legend(figure))


def test_what_the_papers_text_says_of_rates_is_a_line_on_its_data():
    for record, height, words in (
        (transfer(), 50, "paper: Feature Collision stays below"),
        (end_to_end(), 60, "paper: several layers, known networks, above"),
    ):
        figure = success_figure(record)
        [line] = [one for one in figure.axes[0].lines if one.get_label() == words]
        assert set(line.get_xdata()) == {height}
        assert words in legend(figure)
    for record in (transfer(dataset="digits"), overlap()):
        assert not any(text.startswith("paper: ") for text in legend(success_figure(record)))


def test_legends_name_what_was_varied():
    assert {"Feature Collision", "Convex Polytope", "Bullseye Polytope"} <= {
        *legend(success_figure(transfer()))
    }
    assert {"0 % in common", "50 % in common", "100 % in common"} <= {
        *legend(success_figure(overlap()))
    }
    assert {"last layer", "all stages"} <= {*legend(success_figure(end_to_end()))}


def test_more_ways_than_the_book_has_colours_are_all_drawn():
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    for figure in (success_figure, accuracy_figure):
        found = figure(overlap(shares))
        assert {f"{100 * share:.0f} % in common" for share in shares} <= {*legend(found)}
    drawn = marks(success_figure(overlap(shares)).axes[0], "o")
    assert len({colour for *_, colour in drawn}) == len(shares)


def test_the_table_of_successes_has_a_line_for_each_victim_and_one_for_all():
    record = transfer()
    table = cells(success_table(record)).set_index("Victim")
    assert list(table.index) == [*VICTIMS, "all"]
    words = {"collision": "Feature Collision", "polytope": "Convex Polytope"}
    for objective, name in words.items():
        own = [r for r in record.metrics["rows"] if r["objective"] == objective]
        for entry in own:
            low, high = (round(100 * entry[key]) for key in ("low", "high"))
            text = table.loc[entry["victim"], name]
            share = f"{entry['hits']} of 20: {100 * entry['rate']:.0f} % [{low}, {high}]"
            assert text.startswith(share)
            before = round(20 * entry["unrounded"])
            told = re.search(r"\((\d+) before rounding\)", text)
            assert (int(told[1]) if told else entry["hits"]) == before
        hits = sum(entry["hits"] for entry in own)
        assert table.loc["all", name].startswith(f"{hits} of 60: ")
    assert list(table["Clean"]) == ["0 %", "5 %", "10 %", "5 %"]
    assert list(table["Paper"]) == ["72 %", "52 %", "-", "-"]
    assert "Fitted" not in table


def test_the_table_says_how_many_poisons_victims_fitted():
    record = transfer()
    for number, entry in enumerate(record.metrics["rows"]):
        entry["fitted"] = 1 - 0.1 * (VICTIMS.index(entry["victim"]) + number % 2)
    own = {name: [] for name in VICTIMS}
    for entry in record.metrics["rows"]:
        own[entry["victim"]].append(100 * entry["fitted"])
    table = cells(success_table(record)).set_index("Victim")["Fitted"]
    # One for each attack, in the order of their columns.
    for name in VICTIMS:
        assert table[name] == ", ".join(f"{one:.0f}" for one in own[name]) + " %"
    means = np.mean(list(own.values()), axis=0)
    assert table["all"] == ", ".join(f"{one:.0f}" for one in means) + " %"


@pytest.mark.parametrize("record", [transfer(dataset="digits"), overlap(), end_to_end()])
def test_tables_have_no_column_of_the_paper_where_it_has_no_number(record):
    table = cells(success_table(record))
    assert len(table) == len({r["victim"] for r in record.metrics["rows"]}) + 1
    assert not any("Paper" in column for column in table.columns)


# Accuracies: Figure 8 -------------------------------------------------------------------------


def test_accuracies_have_their_deviation_and_the_one_without_poisons_beside_them():
    record = transfer()
    record.metrics["rows"][0]["accuracy_deviation"] = None  # of a single target
    axes = accuracy_figure(record).axes[0]
    rows = record.metrics["rows"]
    points = marks(axes, "o")
    assert sorted(x for x, *_ in points) == pytest.approx(
        sorted(100 * entry["accuracy"] for entry in rows)
    )
    for x, y, _ in points:
        [entry] = [r for r in rows if 100 * r["accuracy"] == pytest.approx(x)]
        assert VICTIMS[round(y)] == entry["victim"]
    spans = [np.ptp(segment[:, 0]) for part in axes.collections for segment in part.get_segments()]
    expected = [200 * (entry["accuracy_deviation"] or 0) for entry in rows]
    assert sorted(spans) == pytest.approx(sorted(expected), abs=1e-9)
    clean = [(x, y) for x, y, _ in marks(axes, "|")]
    assert clean == [pytest.approx(pair) for pair in ((70, 0), (75, 1), (80, 2))]
    assert axes.get_xlabel() == "accuracy on test images (%)"
    assert labels(axes) == list(VICTIMS)


# Distances: Figure 1 --------------------------------------------------------------------------


def pairs(count=50):
    """Two objectives; the farther the poisons, the rarer the success."""
    trials = []
    for objective, scale in (("collision", 1.0), ("polytope", 4.0)):
        squared = scale * (1 + np.arange(count)) ** 2.0
        predictions = [7 if k < count // 2 else 1 for k in range(count)]
        half = count // 2
        # In two victims, the far ones first: figures put them in order.
        victims = [
            {
                "predictions": predictions[part],
                "to_poison": squared[part].tolist(),
                "to_polytope": (squared[part] / 4).tolist(),
            }
            for part in (slice(half, None), slice(None, half))
        ]
        trials.append({"objective": objective, "victims": victims, "poison_label": 7})
    return made("transfer", trials=trials)


def test_distances_are_drawn_by_fifths_of_all_pairs_from_near_to_far():
    figure = distance_figure(pairs())
    single, polytope = figure.axes
    for axes, factor in ((single, 1.0), (polytope, 0.5)):
        assert axes.get_ylabel() == "taken for the poisons' class (%)"
        assert "lengths of the target's features" in axes.get_xlabel()
        for line, scale in zip(axes.lines, (1.0, 2.0), strict=True):
            medians = [scale * factor * (10 * k + 5.5) for k in range(5)]
            assert list(line.get_xdata()) == pytest.approx(medians)
            # 25 of 50 succeed, the nearest.
            assert list(line.get_ydata()) == pytest.approx([100, 100, 50, 0, 0])
        bands = [part.get_paths()[0].vertices[:, 1] for part in axes.collections]
        assert len(bands) == 2
        for band in bands:
            assert band.max() == pytest.approx(100)
            assert any(band == pytest.approx(100 * wilson(5, 10)[0]) for band in band)
    assert "poisons, on average" in single.get_xlabel()
    assert "polytope" in polytope.get_xlabel()
    assert legend(figure) == ["Feature Collision", "Convex Polytope"]


def test_fewer_than_five_pairs_have_no_fifths():
    assert not distance_figure(pairs(count=4)).axes[0].lines


# Pictures: Figures 4 and 9 --------------------------------------------------------------------


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(1)
    bases = torch.randint(60, 190, (5, 1, 6, 6), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 256, (2, 1, 6, 6), generator=generator, dtype=torch.uint8)
    trials, arrays = [], {}
    for number, objective in enumerate(("collision", "polytope")):
        change = torch.randint(-51, 52, (2, 5, 1, 6, 6), generator=generator)
        change[..., 0, 0], change[..., 0, 1], change[..., 0, 2] = 51, -51, 0
        arrays[f"{number}.poisons"] = (bases + change).to(torch.uint8)
        arrays[f"{number}.bases"], arrays[f"{number}.targets"] = bases, targets
        about = {"objective": objective, "first": 0, "poison_label": 1}
        trials.append({**about, "class_names": ["cat", "ship"], "likeness": [0.1, 0.3]})
    # A second block of targets, which has no place among the first one's.
    trials.append({**trials[0], "first": 2})
    config = {"procedure": {"epsilon": 0.2}, "target_class": "frog"}
    return made("transfer", trials=trials, arrays=arrays, **config)


def shown(axes):
    return [np.asarray(image.get_array()) for image in axes.images]


@pytest.mark.parametrize("number", [0, 1])
def test_poisons_stand_below_their_bases_and_their_changes_below_them(pictures, number):
    figure = poisons_figure(pictures, number)
    grid = np.array(figure.axes).reshape(5, 6)
    arrays = pictures.arrays
    [target] = shown(grid[0, 0])
    assert np.array_equal(target, arrays["0.targets"][number, 0].numpy())
    assert "frog" in grid[0, 0].get_title()
    for place in range(5):
        [base] = shown(grid[0, 1 + place])
        assert np.array_equal(base, arrays["0.bases"][place, 0].numpy())
        assert "ship" in grid[0, 1 + place].get_title()
        for trial in range(2):
            [poison] = shown(grid[1 + 2 * trial, 1 + place])
            assert np.array_equal(poison, arrays[f"{trial}.poisons"][number, place, 0].numpy())
            [change] = shown(grid[2 + 2 * trial, 1 + place])
            # White and black are the bound, grey is none.
            assert change[0, 0] == 255
            assert change[0, 1] == 0
            assert abs(int(change[0, 2]) - 127.5) <= 0.5
            difference = poison.astype(float) - base
            assert np.abs((change / 127.5 - 1) * 51 - difference).max() <= 0.5
    words = [text.get_text() for axes in grid[1:, 0] for text in axes.texts]
    assert words[0].startswith("Feature\nCollision")
    assert words[2].startswith("Convex\nPolytope")


def test_the_slider_has_a_picture_of_each_target(pictures):
    html = poisons_slider(pictures).html
    assert re.findall(r'alt="([^"]+)"', html) == ["target 1", "target 2"]
    assert len(set(re.findall(r'src="([^"]+)"', html))) == 2


def test_likeness_is_a_mean_over_all_blocks_and_its_spread():
    trials = [
        {"objective": name, "likeness": values, "mean_change": change}
        for name, values, change in (
            ("collision", [0.5, 0.7], 20.0),
            ("polytope", [0.1], 10.0),
            ("collision", [0.9], 30.0),
        )
    ]
    table = cells(likeness_table(made("transfer", trials=trials)))
    assert list(table["Poisons by"]) == ["Feature Collision", "Convex Polytope"]
    cosine = table["Cosine of change and target's picture"]
    assert list(cosine) == ["0.70 ± 0.20", "0.10 ± 0.00"]
    assert list(table["Mean change of a value"]) == ["25.0 of 255", "10.0 of 255"]


# Proposition 1 --------------------------------------------------------------------------------


def proposition():
    rows = []
    for dimensions in (8, 32):
        for placement in ("polytope", "collision"):
            for distance, fitted, captured in ((0.0, 40, 40), (4.0, 30, 12), (8.0, 0, 0)):
                low, high = wilson(captured, fitted) if fitted else (0.0, 1.0)
                nearest = distance + (3.0 if placement == "polytope" else 0.1)
                rows.append(
                    {
                        "dimensions": dimensions,
                        "placement": placement,
                        "distance": distance,
                        "fitted": fitted,
                        "captured": captured,
                        "nearest": nearest,
                        "low": low,
                        "high": high,
                    }
                )
    record = made("proposition", rows, dimensions=[8, 32])
    record.config["trials"] = 40
    return record


def test_captured_targets_are_drawn_by_both_distances_where_anything_is_fitted():
    figure = proposition_figure(proposition())
    nearest, polytope = figure.axes
    assert nearest.get_xlabel() == "distance to the nearest poison"
    assert polytope.get_xlabel() == "distance to the polytope"
    for axes in (nearest, polytope):
        assert axes.get_ylabel() == "targets captured (%)"
        assert len(axes.lines) == 4
        for line in axes.lines:
            # Of those at distance 8 none was fitted: there is no rate.
            assert list(line.get_ydata()) == pytest.approx([100, 40])
    assert all(list(line.get_xdata()) == [0, 4] for line in polytope.lines)
    assert sorted(float(line.get_xdata()[0]) for line in nearest.lines) == [0.1, 0.1, 3, 3]
    for line in nearest.lines:
        name = "Feature Collision" if line.get_xdata()[0] < 1 else "Convex Polytope"
        assert line.get_label().startswith(f"{name}, ")
    assert len(legend(figure)) == 4
    assert all(re.search(r", (8|32) dimensions$", text) for text in legend(figure))


def test_the_table_of_the_proposition_has_the_surrounded_targets_only():
    table = cells(proposition_table(proposition()))
    assert len(table) == 4
    assert list(table["Draws"]) == list(table["Target captured"]) == [40] * 4
    assert sorted(table["Dimensions"]) == [8, 8, 32, 32]


def test_a_scene_in_the_plane_shows_every_point_and_the_line_between_the_classes():
    own, other = np.array([[4.0, 0], [5, 1], [4, -1]]), np.array([[-4.0, 0], [-5, 1]])
    poisons, target = np.array([[-3.0, 3], [-3, -3]]), np.array([-3.0, 0.0])
    scene = Scene(own, other, poisons, target)
    lines = {"polytope": Line(np.array([2.0, 0.0]), 7.0), "collision": Line(np.ones(2), -1.0)}
    figure = plane_figure({"polytope": scene, "collision": scene}, lines)
    assert len(figure.axes) == 2
    for axes, line in zip(figure.axes, lines.values(), strict=True):
        assert sorted((x, y) for x, y, _ in marks(axes, ".")) == sorted(
            map(tuple, np.concatenate([own, other]).tolist())
        )
        assert [(x, y) for x, y, _ in marks(axes, "o")] == [(-3, 3), (-3, -3)]
        assert [(x, y) for x, y, _ in marks(axes, "*")] == [(-3, 0)]
        [contour] = axes.collections
        points = np.concatenate([path.vertices for path in contour.get_paths()])
        assert len(points) > 2
        assert np.abs(points @ line.weight + line.bias).max() < 1e-6
        assert axes.get_xlabel() == "first feature"
    # x > -3.5 takes the target, x + y > 1 does not.
    first, second = (axes.get_title() for axes in figure.axes)
    assert first.startswith("Convex Polytope: nearest poison at 3.0")
    assert "taken for the poisons' class" in first
    assert "taken for its own class" in second


# Figure 3 -------------------------------------------------------------------------------------


def randomised(every=10, iterations=25):
    """Three looks and one at the end; the substitutes' loss at the same steps, without the end."""
    generator = torch.Generator().manual_seed(2)
    trials, arrays, rows = [], {}, []
    for objective in ("collision", "polytope"):
        for dropout in (True, False):
            arrays[f"{len(trials)}.watched"] = torch.rand(4, 2, 9, generator=generator) + 0.1
            arrays[f"{len(trials)}.losses"] = torch.rand(3, 9, generator=generator) + 0.1
            trials.append({"objective": objective, "dropout": dropout})
        for victim in ("resnet18", "densenet121"):
            means = {"with": 0.25, "without": 0.5, "lower": 7, "targets": 9}
            rows.append({"objective": objective, "victim": victim, **means})
    config = {
        "objectives": ["collision", "polytope"],
        "victims": ["resnet18", "densenet121"],
        "watch_every": every,
        "procedure": {"iterations": iterations},
    }
    return made("randomised", rows, trials=trials, arrays=arrays, **config)


def test_the_objective_is_followed_in_substitutes_and_in_each_unseen_network():
    record = randomised()
    figure = randomised_figure(record)
    grid = np.array(figure.axes).reshape(2, 3)
    for line in range(2):
        for column in range(3):
            axes = grid[line, column]
            on, off = axes.lines
            for number, drawn in ((2 * line, on), (2 * line + 1, off)):
                if column:
                    curve = record.arrays[f"{number}.watched"][:, column - 1]
                    steps = [0, 10, 20, 25]
                else:
                    curve, steps = record.arrays[f"{number}.losses"], [0, 10, 20]
                assert list(drawn.get_xdata()) == steps
                medians = np.median(curve.numpy(), axis=1)
                assert np.allclose(drawn.get_ydata(), medians)
            assert axes.get_yscale() == "log"
            assert axes.get_xlabel() == "iteration"
            # The middle half of the targets.
            band = axes.collections[0].get_paths()[0].vertices[:, 1]
            shown_curve = record.arrays[f"{2 * line}.losses"]
            if column == 0:
                low, high = np.sort(shown_curve.numpy(), axis=1)[:, [2, 6]].T
                assert band.min() == pytest.approx(low.min())
                assert band.max() == pytest.approx(high.max())
        assert grid[line, 0].get_ylabel() == "objective"
    titles = [axes.get_title() for axes in grid[:, 1]]
    assert titles == ["Feature Collision: resnet18", "Convex Polytope: resnet18"]
    assert legend(figure) == ["dropout on while crafting", "dropout off while crafting"]


def test_the_table_of_figure_3_has_the_last_objectives():
    table = cells(randomised_table(randomised()))
    assert len(table) == 4
    numbers = ["0.250", "0.500", "7 of 9 targets"]
    assert list(table.iloc[0]) == ["Feature Collision", "resnet18", *numbers]


# Beyond the paper -----------------------------------------------------------------------------


def limits():
    """The bound varied with 5 poisons, and their number with a bound of 51."""
    rows = []
    for epsilon, count, hits, after in (
        (0.4, 5, 16, 4),
        (0.2, 2, 3, 1),
        (0.1, 5, 4, 2),
        (0.2, 5, 9, 3),
        (0.2, 8, 12, 10),
    ):
        rows.append(
            {
                "epsilon": epsilon,
                "poisons": count,
                **rate(hits, 20),
                "filtered": rate(after, 20),
                "left": 1 / count,
                "auroc": 0.75,
                "removed": 3 * count // 2,
            }
        )
    about = {"poison_label": 7, "victims": [{"clean": [7, 1, 2]}, {"clean": [1, 1, 7]}]}
    trials = [{**about, "epsilon": row["epsilon"], "poisons": row["poisons"]} for row in rows]
    # Of another number of poisons: whose clean victims do not count here.
    trials.append({**about, "epsilon": 0.2, "poisons": 3, "victims": [{"clean": [7, 7, 7]}]})
    options = {"poisons": 5, "procedure": {"epsilon": 0.2}, "fine_tuning_per_class": 20}
    return made("limits", rows, trials=trials, **options)


def test_each_panel_of_the_limits_varies_one_of_both_in_its_order():
    figure = limits_figure(limits())
    bound, number, bound_left, number_left = figure.axes
    assert bound_left.get_xlabel() == "bound of the change (of 255)"
    assert number_left.get_xlabel() == "number of poisons"
    expected = {
        bound: ([25.5, 51, 102], [20, 45, 80], [10, 15, 20]),
        number: ([2, 5, 8], [15, 45, 60], [5, 15, 50]),
        bound_left: ([25.5, 51, 102], [20, 20, 20], [65, 65, 65]),
        number_left: ([2, 5, 8], [50, 20, 12.5], [85, 65, 40]),
    }
    for axes, (x, *curves) in expected.items():
        if axes in (bound, number):
            assert axes.get_ylabel() == "targets taken for\nthe poisons' class (%)"
            curves.append([100 / 3] * 3)  # two of six, of clean victims
        else:
            assert axes.get_ylabel() == "poisons left (%)"
        for line, curve in zip(axes.lines, curves, strict=True):
            assert list(line.get_xdata()) == pytest.approx(x)
            assert list(line.get_ydata()) == pytest.approx(curve)
    for axes, x in ((bound, [25.5, 51, 102]), (number, [2, 5, 8])):
        band = axes.collections[0].get_paths()[0].vertices
        low, high = wilson(9, 20)
        middle = band[np.isclose(band[:, 0], x[1]), 1]
        assert (middle.min(), middle.max()) == pytest.approx((100 * low, 100 * high))
    assert legend(figure) == [
        "as they are",
        "after the filter",
        "without poisons",
        "left by the filter",
        "left by random removal",
    ]


def test_the_table_of_the_limits_has_every_row():
    table = cells(limits_table(limits()))
    assert len(table) == 5
    counts = ["16 of 20", "2 of 6", "4 of 20"]
    assert list(table.iloc[0]) == ["102.0 of 255", 5, *counts, "20 %", "65 %", "0.75", 7]


def switched():
    rows = [
        {
            "switch": name,
            **rate(hits, 40),
            "unrounded": rate(hits + more, 40),
            "to_polytope": 0.5,
            "loss": 0.01,
        }
        for name, hits, more in (
            ("as described", 20, 0),
            ("no dropout", 10, 2),
            ("steps in pixels", 30, 0),
        )
    ]
    both = [
        {"victim": "resnet50", "predictions": [7, 1], "clean": [7, 1]},
        {"victim": "small_cnn", "predictions": [1, 1], "clean": [1, 1]},
    ]
    trials = [{"poison_label": 7, "victims": both, "switch": row["switch"]} for row in rows]
    trials[1]["victims"] = both[1:]
    # A second block of targets.
    trials.append({**trials[2], "victims": [{**both[0], "predictions": [7, 7]}, both[1]]})
    return made("switches", rows, trials=trials)


def test_switches_have_a_mark_each_and_a_line_at_the_first():
    figure = switches_figure(switched())
    axes = figure.axes[0]
    assert [(x, y) for x, y, _ in marks(axes, "o")] == [(50, 0), (25, 1), (75, 2)]
    for (low, high, y), hits in zip(bars(axes), (20, 10, 30), strict=True):
        assert (low / 100, high / 100) == pytest.approx(wilson(hits, 40))
        assert y == (20, 10, 30).index(hits)
    [line] = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert set(line.get_xdata()) == {50}
    assert [(x, y) for x, y, _ in marks(axes, "|")] == [(25, 0), (0, 1), (25, 2)]
    singles = [(x, round(y)) for x, y, _ in marks(axes, ".")]
    assert singles == [(50, 0), (0, 0), (0, 1), (75, 2), (0, 2)]
    assert labels(axes) == ["as described", "no dropout", "steps in pixels"]
    assert axes.get_xlabel() == "targets taken for the poisons' class (%)"
    words = ["all victims, 95 % interval", "one victim", "all victims, without poisons"]
    assert legend(figure) == [*words, "as described"]


def test_the_table_of_switches_tells_what_rounding_changed():
    table = cells(switches_table(switched()))
    assert list(table["Switch"]) == ["as described", "no dropout", "steps in pixels"]
    successes = list(table["Successes"])
    assert successes[0].startswith("20 of 40: 50 % [")
    assert "rounding" not in successes[0]
    assert successes[1].endswith("(12 before rounding)")
    assert list(table["Last loss, substitutes"]) == ["0.0100"] * 3


def test_the_table_says_what_each_switch_means():
    record = switched()
    [first, *_] = record.metrics["rows"]
    record.metrics["rows"] = [{**first, "switch": name} for name in SWITCHES]
    record.metrics["trials"] = [{**record.metrics["trials"][0], "switch": n} for n in SWITCHES]
    meanings = list(cells(switches_table(record))["Meaning"])
    assert len(set(meanings)) == len(SWITCHES)
    assert all(meanings)
