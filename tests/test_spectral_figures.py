"""The Spectral Signatures figures and tables show what their records say, each in its place."""

from typing import Any

import numpy as np
import pytest
import torch
from figure_readers import close, marks, named, points, summed_up
from matplotlib.colors import to_hex

from poisonkit.claims.spectral_signatures import VIEWS
from poisonkit.experiments.spectral_signatures.limits import FACTORS
from poisonkit.figures import spectral_signatures as figures
from poisonkit.plots import COLOURS
from poisonkit.statistics import wilson
from poisonkit.store import Json, Record


def made(name: str, trials: list[Json], arrays: Json | None = None, **config: Any) -> Record:
    return summed_up(f"spectral_signatures/{name}", trials, arrays, **config)


def lines(table: Any) -> list[list[object]]:
    return [list(row) for row in table.data.values]


def check_band(band: Any, expected: Any) -> None:
    """Hold a filled band against its (x, low, high)."""
    corners = band.get_paths()[0].vertices
    for x, low, high in expected:
        own = corners[np.isclose(corners[:, 0], x), 1]
        assert (own.min(), own.max()) == pytest.approx((low, high))


def check_histogram(axes: Any, label: str, values: list[float]) -> None:
    """Hold a histogram of shares against its values, no two of which lie in one bin."""
    [patch] = [one for one in axes.patches if one.get_label() == label]
    assert to_hex(patch.get_facecolor()) == COLOURS[label]
    heights, edges, _ = patch.get_data()
    [full] = np.nonzero(heights)
    assert np.allclose(heights[full], 1 / len(values))
    assert len(full) == len(values)
    for place, value in zip(full, sorted(values), strict=True):
        assert edges[place] - 1e-6 <= value <= edges[place + 1] + 1e-6


@pytest.fixture
def slid(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What sliders were given: frames and the place of the first one shown, and no picture."""
    found: list[Any] = []
    for module in ("limits", "threshold"):
        name = f"poisonkit.figures.spectral_signatures.{module}.slider"
        monkeypatch.setattr(name, lambda frames, label, start: found.append((frames, start)))
    return found


MOMENTS = {"before": "poisoned", "after": "after", "clean": "reference"}


def run(pair: str, share: float, total: int, left: int, *about: Any) -> Json:
    """One run: hits, and natural accuracies, before and after the filter and on clean data."""
    (source, target), (hits, natural, seed) = pair.split(), about
    trial = {"source": source, "target": target, "share": share, "poisons_left": left}
    for name, three in (("hits", hits), ("natural", natural)):
        trial |= {f"{name}_{moment}": v for moment, v in zip(MOMENTS, three, strict=True)}
    trial["trigger"] = {"pattern": "X", "position": [seed, 7], "colour": [9, 8, seed]}
    trial |= {"seed": seed, "captured": seed == 1}
    return {**trial, "poisons": round(5000 * share), "triggered_images": total}


def removal() -> Record:
    """A row that Table 2 has, of two runs, and one that it has not."""
    trials = [
        run("airplane bird", 0.05, 100, 50, (60, 12, 2), (0.91, 0.80, 0.96), 0),
        run("airplane bird", 0.05, 200, 20, (180, 30, 6), (0.95, 0.82, 0.97), 1),
        run("frog ship", 0.1, 60, 125, (30, 9, 3), (0.71, 0.66, 0.77), 1),
    ]
    return made("removal", trials, centred=True)


#: By moment: hits of 300 and of 60 images, rates and natural accuracies of all runs in percent,
#: and the paper's poisoned and natural accuracy.
SEEN: dict[str, Any] = {
    "before": ((240, 30), (60, 90, 50), (91, 95, 71), (74.2, 92.27)),
    "after": ((42, 9), (12, 15, 15), (80, 82, 66), (2.0, 92.64)),
    "clean": ((8, 3), (2, 3, 5), (96, 97, 77), (1.2, 92.67)),
}


def test_accuracies_stand_in_the_colour_of_their_moment_at_the_height_of_their_backdoor() -> None:
    poisoned, _, natural = figures.removal_figure(removal()).axes
    words = ("poisoned training set", "filtered and retrained", "clean training set")
    for place, (moment, role) in enumerate(MOMENTS.items()):
        colour, y = COLOURS[role], (-0.24, 0, 0.24)[place]
        assert named(poisoned, words[place]).get_color() == colour
        hits, rates, (low, high, single), told = SEEN[moment]
        pooled = [(100 * hits[0] / 300, y), (100 * hits[1] / 60, 1 + y)]
        assert close(marks(poisoned, "o", colour), pooled)
        ends = [*wilson(hits[0], 300), *wilson(hits[1], 60)]
        bars = [(100 * end, y + k // 2) for k, end in enumerate(ends)]
        assert close(marks(poisoned, "None", colour), bars)
        assert close(marks(poisoned, ".", colour), list(zip(rates, (y, y, 1 + y), strict=True)))
        assert close(marks(natural, ".", colour), [(low, y), (high, y), (single, 1 + y)])
        mean, spread = (low + high) / 2, (high - low) / 2**0.5
        assert close(marks(natural, "o", colour), [(mean, y), (single, 1 + y)])
        # Of a single run there is no deviation.
        assert close(marks(natural, "None", colour), [(mean - spread, y), (mean + spread, y)])
        assert close(marks(poisoned, "D", colour), [(told[0], y)])
        assert close(marks(natural, "D", colour), [(told[1], y)])
    names = [label.get_text() for label in poisoned.get_yticklabels()]
    assert names == ["airplane → bird, 5%", "frog → ship, 10%"]


def test_poisons_left_are_shares_of_those_put_in_from_the_lowest_run_to_the_highest() -> None:
    left, colour = figures.removal_figure(removal()).axes[1], COLOURS["poisoned"]
    assert close(marks(left, "o", colour), [(14, 0), (25, 1)])
    assert close(marks(left, ".", colour), [(20, 0), (8, 0), (25, 1)])
    assert close(marks(left, "None", colour), [(8, 0), (20, 0), (25, 1), (25, 1)])
    assert close(marks(left, "D", colour), [(22.8, 0)])  # 57 of 250


def rate(hits: int, total: int) -> str:
    low, high = wilson(hits, total)
    return f"{100 * hits / total:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def test_table_2_tells_before_from_after_and_puts_the_papers_numbers_in_the_same_columns() -> None:
    table: Any = figures.removal_table(removal())
    head = ["Natural 1", "Poisoned 1", "Poisons left", "Natural 2", "Poisoned 2", "Clean-trained"]
    assert list(table.data)[2:] == head
    ours, paper, other = lines(table)
    assert ours[:2] == ["airplane → bird, 5%", "ours, 2 runs, 1 captured"]
    assert ours[2:4] == ["93.00 ± 2.83 %", rate(240, 300)]
    assert ours[4:] == ["35.0 ± 21.2 of 250", "81.00 ± 1.41 %", rate(42, 300), rate(8, 300)]
    assert paper[1:5] == ["paper, 1 run", "92.27 %", "74.20 %", "57.0 of 250"]
    assert paper[5:] == ["92.64 %", "2.00 %", "1.20 %"]
    assert other[:4] == ["frog → ship, 10%", "ours, 1 run, 1 captured", "71.00 %", rate(30, 60)]
    assert other[4:] == ["125.0 of 500", "66.00 %", rate(9, 60), rate(3, 60)]


def test_table_3_has_the_means_of_the_papers_four_backdoors_and_no_clean_trained_rate() -> None:
    trial = run("pets automobile", 0.05, 10, 1, (9, 2, 1), (0.9, 0.8, 0.7), 1)
    _, paper = lines(figures.removal_table(made("removal", [trial])))
    assert paper[1:5] == ["paper, 4 backdoors", "94.08 %", "96.95 %", "2.8 of 250"]
    assert paper[5:] == ["94.27 %", "0.16 %", "-"]


def test_every_run_has_its_own_rates_and_trigger() -> None:
    first, second, _ = lines(figures.runs_table(removal()))
    assert first[1:4] == [0, "X at (0, 7), colour 9, 8, 0", "no"]
    assert first[4:] == ["60.0 %", "50 of 250", "12.0 %", "2.0 %"]
    assert second[1:4] == [1, "X at (1, 7), colour 9, 8, 1", "yes"]
    assert second[4:] == ["90.0 %", "20 of 250", "15.0 %", "3.0 %"]


def test_switches_count_the_clean_images_that_the_filter_costs() -> None:
    trials = removal().metrics["trials"]
    switches = (("layer", 300), ("layer", 350), ("known", 400))
    for trial, (switch, removed) in zip(trials, switches, strict=True):
        trial |= {"switch": switch, "removed": removed}
    first, second = lines(figures.switches_table(made("switches", trials, other_tap="hidden")))
    assert first[:3] == ["layer", "read another layer (hidden)", rate(240, 300)]
    # 300 - 250 + 50 and 350 - 250 + 20.
    assert first[3:] == ["35.0 ± 21.2 of 250", "110", "81.00 ± 1.41 %", rate(42, 300)]
    assert (second[0], second[4]) == ("known", "25")


#: By shape and share: how many poisons an eighth of epsilon removes, in both runs, by layer.
SLOPES: dict[tuple[str, float], dict[str, tuple[int, int]]] = {
    ("X", 0.05): {"hidden": (3, 5), "hidden, pooled": (1, 2)},
    ("X", 0.1): {"hidden": (6, 8), "hidden, pooled": (2, 3)},
    ("L", 0.05): {"hidden": (7, 8), "hidden, pooled": (4, 5)},
    ("L", 0.1): {"hidden": (9, 11), "hidden, pooled": (12, 16)},
}
#: Of 50 triggered images, in both runs; from 45 on it is captured.
ATTACKED = {("X", 0.05): (45, 47), ("X", 0.1): (30, 49), ("L", 0.05): (5, 9), ("L", 0.1): (20, 46)}


def left_of(slope: int, poisons: int) -> list[int]:
    return [max(0, poisons - step * slope) for step in range(len(FACTORS))]


def limits() -> Record:
    trials = []
    for (pattern, share), slopes in SLOPES.items():
        poisons = round(2000 * share)
        for number, hits in enumerate(ATTACKED[pattern, share]):
            trial: Json = {"pattern": pattern, "share": share, "source": "a", "target": "b"}
            trial |= {"hits_before": hits, "triggered_images": 50, "captured": hits >= 45}
            trial |= {"poisons": poisons, "label_images": 1000 + poisons}
            trial["layers"] = {
                name: {"auroc": 0.5, "left": left_of(both[number], poisons)}
                for name, both in slopes.items()
            }
            trials.append(trial)
    layers = [("hidden", "flatten"), ("hidden", "mean")]
    config: Json = {"patterns": ["X", "L"], "shares": [0.05, 0.1], "pairs": [("a", "b")]}
    return made("limits", trials, layers=layers, tap="hidden", pool="mean", **config)


def test_layers_stand_in_lines_and_shares_in_columns_after_the_papers_factor() -> None:
    first, second, _ = figures.layers_figure(limits()).axes
    expected = {first: [52, 58, 82, 85], second: [10, 40, 46, 16]}
    for axes, shares in expected.items():
        mesh: Any = axes.collections[0]
        assert np.allclose(mesh.get_array().ravel(), shares)
        assert [text.get_text() for text in axes.texts] == [str(share) for share in shares]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "10"]
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == ["hidden", "hidden, pooled"]
    assert first.get_title() == "X: 3 of 4 runs captured"
    assert second.get_title() == "L: 1 of 4 runs captured"


def check_removals(figure: Any, layer: str) -> None:
    for axes, pattern in zip(figure.axes, ("X", "L"), strict=True):
        assert axes.get_title() == pattern
        for share, label, band in zip((0.05, 0.1), ("5 %", "10 %"), axes.collections, strict=True):
            poisons = round(2000 * share)
            both = [left_of(slope, poisons) for slope in SLOPES[pattern, share][layer]]
            slow, fast = 100 * np.array(both) / poisons
            mean = list(zip(FACTORS, (slow + fast) / 2, strict=True))
            assert close(points(named(axes, label)), mean)
            check_band(band, list(zip(FACTORS, fast, slow, strict=True)))
        assert points(named(axes, "perfect")) == [(0, 100), (1, 0)]
        [paper] = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert points(paper) == [(1.5, 0), (1.5, 1)]


def test_removals_have_a_mean_and_a_band_for_each_share_of_the_layer_slid_to(slid: Any) -> None:
    figures.removals_slider(limits())
    [(frames, start)] = slid
    assert [caption for caption, _ in frames] == ["hidden", "hidden, pooled"]
    assert start == 1
    for layer, figure in frames:
        check_removals(figure, layer)


def test_attack_and_filter_have_a_mark_a_run_that_is_filled_where_it_was_captured() -> None:
    attack, defence = figures.limits_figure(limits()).axes
    for number, pattern in enumerate(("X", "L")):
        colour = named(defence, pattern).get_color()
        marker = ("X", "s")[number]
        hits = {5: ATTACKED[pattern, 0.05], 10: ATTACKED[pattern, 0.1]}
        rates = [(share, 2 * found) for share, both in hits.items() for found in both]
        assert close(marks(attack, marker, colour), rates)
        own = [line for line in attack.lines if line.get_marker() == marker]
        filled = [bool(line.get_markerfacecolor() == colour) for line in own]
        assert filled == [found >= 90 for _, found in rates]
        assert close(marks(attack, "None", colour), [(5, sum(hits[5])), (10, sum(hits[10]))])
    x, y = named(defence, "X").get_color(), named(defence, "L").get_color()
    # After 1.5 epsilon, in the layer of the record's own filter.
    assert close(marks(defence, "X", x), [(5, 88), (5, 76), (10, 88), (10, 82)])
    assert close(marks(defence, "s", y), [(5, 52), (5, 40), (10, 28), (10, 4)])
    assert close(points(named(defence, "X")), [(5, 82), (10, 85)])
    assert close(points(named(defence, "L")), [(5, 46), (10, 16)])
    assert close(points(named(defence, "removing at random")), [(5, 100 - 150 / 11), (10, 75)])


#: Overlaps and alignments of two draws, at squared gaps of 1 and 9.
DRAWN = {
    ("gaussian", 0.1): ([(0.30, 0.34), (0.02, 0.04)], [(0.20, 0.26), (0.91, 0.93)]),
    ("gaussian", 0.2): ([(0.40, 0.48), (0.10, 0.14)], [(0.30, 0.38), (0.95, 0.97)]),
    ("spiked", 0.1): ([(0.52, 0.58), (0.06, 0.10)], [(0.01, 0.03), (0.71, 0.79)]),
    ("spiked", 0.2): ([(0.60, 0.64), (0.16, 0.24)], [(0.05, 0.09), (0.81, 0.87)]),
}


def test_overlaps_stand_above_alignments_as_means_with_bands_of_their_deviation() -> None:
    trials = [
        {"distribution": name, "epsilon": epsilon}
        | {"overlaps": [both[draw] for both in overlaps]}
        | {"alignments": [both[draw] for both in alignments]}
        for (name, epsilon), (overlaps, alignments) in DRAWN.items()
        for draw in range(2)
    ]
    names, epsilons = ["gaussian", "spiked"], [0.1, 0.2]
    record = made("lemma", trials, distributions=names, epsilons=epsilons, gaps=[1.0, 9.0])
    record.metrics["bound"] = 5.0
    grid = np.array(figures.lemma_figure(record).axes, dtype=object).reshape(2, 2)
    assert [axes.get_title() for axes in grid[0]] == names
    for (name, epsilon), values in DRAWN.items():
        for axes, own, unit in zip(grid[:, names.index(name)], values, (epsilon, 1), strict=True):
            means = [sum(both) / 2 / unit for both in own]
            spreads = [(high - low) / 2**0.5 / unit for low, high in own]
            line = named(axes, f"epsilon = {epsilon:g}")
            assert close(points(line), [(1, means[0]), (9, means[1])])
            ends = [(x, m - d, m + d) for x, m, d in zip((1, 9), means, spreads, strict=True)]
            check_band(axes.collections[epsilons.index(epsilon)], ends)
            assert (5, 0) in marks(axes, "None", "black")  # the lemma's bound


def signature(captured: tuple[bool, ...]) -> Record:
    """Six views a run, whose AUROC and values tell them, and the runs, from each other."""
    trials, arrays = [], {}
    for number, found in enumerate(captured):
        trial: Json = {"source": "airplane", "target": "bird", "seed": number, "captured": found}
        trial["auroc"] = {v: 0.3 + 0.1 * k + 0.02 * number for k, v in enumerate(VIEWS)}
        clean = {"norm": 10.0, "singular_values": [100.0, 80.0, 60.0]}
        whole = {"norm": 12.5, "singular_values": [150.0 + 10 * number, 88.0, 63.0]}
        trial["statistics"] = {"clean": clean, "all": whole, "shift": 3.25}
        trials.append(trial)
        arrays[f"{number}.poisoned"] = torch.tensor([True, False, True, False])
        for k, view in enumerate(VIEWS):
            values = torch.tensor([7.0, 1.0, 9.0, 4.0])
            arrays[f"{number}.{view}"] = values + 20 * k + 200 * number
    return made("signature", trials, arrays)


@pytest.mark.parametrize(
    ("captured", "shown", "mean", "spread", "lowest"),
    # Of the second three none was captured, so all of them count.
    [((False, True, True), 1, 0.33, 0.0141, 0.32), ((False,) * 3, 0, 0.32, 0.02, 0.30)],
)
def test_figure_1_shows_a_captured_run_and_the_means_of_captured_runs_if_there_are_any(
    captured: Any, shown: int, mean: float, spread: float, lowest: float
) -> None:
    record = signature(captured)
    panels = figures.figure_1(record).axes
    rows = lines(figures.auroc_table(record))
    for k, (axes, view, row) in enumerate(zip(panels, VIEWS, rows, strict=True)):
        space, quantity = view.split(".")
        assert axes.get_title() == f"{space}: AUROC {mean + 0.1 * k:.2f} ± {spread:.2f}"
        word = {"norm": "norm", "random": "u", "top": "v"}[quantity]
        assert axes.get_xlabel().split()[-1] == word
        check_histogram(axes, "poisoned", [v + 20 * k + 200 * shown for v in (7, 9)])
        check_histogram(axes, "clean", [v + 20 * k + 200 * shown for v in (1, 4)])
        told = [f"{mean + 0.1 * k:.3f}", f"{spread:.3f}", f"{lowest + 0.1 * k:.3f}"]
        assert (row[0], row[2:]) == (space, told)


def test_table_1_tells_the_clean_part_from_the_whole_and_ends_with_the_papers_row() -> None:
    first, second, paper = lines(figures.spectrum_table(signature((False, True))))
    ours = ["10.0 → 12.5", "3.25", "100 → 150 (× 1.50)", "80 → 88 (× 1.10)", "60 → 63 (× 1.05)"]
    assert first == ["airplane → bird", "ours, seed 0, not captured", *ours]
    assert (second[1], second[4]) == ("ours, seed 1, captured", "100 → 160 (× 1.60)")
    assert paper[1:4] == ["paper, 1 run", "78.8 → 78.9", "6.19"]
    assert paper[4:6] == ["1194 → 1613 (× 1.35)", "1116 → 1207 (× 1.08)"]


SCORES = torch.tensor([1.0, 64, 9, 81, 16, 36])


@pytest.mark.parametrize("centred", [True, False])
def test_what_is_removed_lies_beyond_the_line_and_is_counted(centred: bool) -> None:
    poisoned = torch.tensor([False, True, True, False, False, False])
    [axes] = figures.threshold_figure(SCORES, poisoned, removed=3, centred=centred).axes
    assert axes.get_title() == "removed 3 of 6: poisoned 1 of 2, clean 2 of 4"
    power = 0.5 if centred else 1
    check_histogram(axes, "clean", [score**power for score in (1, 16, 36, 81)])
    check_histogram(axes, "poisoned", [score**power for score in (9, 64)])
    assert axes.get_xlabel().split()[2:4] == ["the", "mean" if centred else "origin"]
    # Between the third and the fourth, and from there to the end.
    threshold, end = (5, 9) if centred else (26, 81)
    [line] = axes.lines
    assert points(line) == [(threshold, 0), (threshold, 1)]
    shade: Any = axes.patches[-1]
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (threshold, end)


def test_the_slider_moves_the_threshold_of_the_captured_run_up_to_three_epsilon(slid: Any) -> None:
    record = removal()
    poisoned = torch.tensor([False, True, False, True, False, False])
    vars(record)["arrays"] = {"1.scores": SCORES, "1.poisoned": poisoned}
    figures.threshold_slider(record, steps=3)
    [(frames, start)] = slid
    captions = [caption for caption, _ in frames]
    assert captions == [f"{k:.2f} epsilon = {n} images" for k, n in ((0, 0), (1.5, 3), (3, 5))]
    titles = [figure.axes[0].get_title() for _, figure in frames]
    assert titles[1] == "removed 3 of 6: poisoned 2 of 2, clean 1 of 4"
    assert titles[2] == "removed 5 of 6: poisoned 2 of 2, clean 3 of 4"
    assert start == 1
