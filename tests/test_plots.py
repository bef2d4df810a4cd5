"""Figures show what the record says; the slider works with nothing but a browser."""

import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.settings import as_json
from poisonkit.figures import common, deep_confuse, spectral_signatures
from poisonkit.plots import legend_below, panels, slider, two_histograms
from poisonkit.store import Record, Store


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    folder = tmp_path_factory.mktemp("store")
    store = Store(frozen=None, cache=folder)
    options = {"trials": 2, "recipe.epochs": 2, "tap": "hidden"}
    chosen = (EXPERIMENTS[f"spectral_signatures/{name}"] for name in ("signature", "removal"))
    return {
        experiment.name: run(
            experiment, experiment.configure(profile="quick", **options), store=store
        )
        for experiment in chosen
    }


def test_histograms_of_each_part_sum_to_one() -> None:
    figure, axes = panels(1, 1, size=(3, 2))
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    two_histograms(axes[0, 0], values, torch.arange(200) < 30, label="value")
    heights = [sum(part.get_data().values) for part in axes[0, 0].patches]
    assert heights == pytest.approx([1, 1])
    assert figure.axes[0].get_xlabel() == "value"


def test_figure_1_has_six_views_with_names_and_the_recorded_auroc(
    records: dict[str, Record],
) -> None:
    record = records["spectral_signatures/signature"]
    figure = spectral_signatures.figure_1(record)
    assert len(figure.axes) == 6
    for axis in figure.axes:
        assert axis.get_xlabel()
        assert axis.get_ylabel() == "share of images"
    mean = record.metrics["all"]["representation.top"]["mean"]
    assert f"AUROC {mean:.2f}" in figure.axes[-1].get_title()


def test_a_legend_below_holds_what_all_axes_label_and_may_be_told_other_words() -> None:
    figure, [axes] = panels(1, 2, size=(3, 2))
    for part, label in zip(axes, ("first", "second"), strict=True):
        part.plot([0, 1], label=label)
    legend_below(figure, *axes)
    legend_below(figure, axes[0], labels=["other"])
    shown = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    assert shown == [["first", "second"], ["other"]]


def test_numbers_have_their_spread_beside_them_where_there_is_one() -> None:
    assert common.percent(0.12345, 0.0206) == "12.35 ± 2.06 %"
    assert common.percent(0.12345, None, digits=1) == "12.3 %"
    assert common.with_deviation(8.26, 0.5, digits=1) == "8.3 ± 0.5"
    assert common.with_interval(0.5, 0.254, 0.751, digits=1) == "50.0 % [25.4, 75.1]"
    row = {"hits": 3, "targets": 4, "rate": 0.75, "low": 0.301, "high": 0.954}
    assert common.counted(row) == "3 of 4: 75 % [30, 95]"


def test_figure_3_says_how_many_images_have_the_class_of_their_neighbours() -> None:
    heaps = torch.tensor([0.0, 100.0]).repeat_interleave(12)
    points = torch.stack([heaps, torch.linspace(0, 1, 24)], 1)
    labels = torch.arange(24) // 12
    arrays = {"train": points, "train_labels": labels, "test": points[:12]}
    # One of twelve is among those of the other class.
    arrays["test_labels"] = torch.tensor([1] + 11 * [0])
    record = SimpleNamespace(
        arrays={f"0.components.{name}": array for name, array in arrays.items()},
        metrics={"trials": [{"class_names": ["a", "b"]}]},
    )

    def second_lines() -> list[list[str]]:
        figure = deep_confuse.components_figure(record)
        return [axis.get_title().split("\n")[1:] for axis in figure.axes]

    ending = "have their 10 neighbours' class"
    assert second_lines() == [[f"100.0 % {ending}"], [f"91.7 % {ending}"]]
    # Fewer images have no ten neighbours.
    for name in ("test", "test_labels"):
        record.arrays[f"0.components.{name}"] = arrays[name][:10]
    assert second_lines() == [[f"100.0 % {ending}"], []]


def test_figure_2_names_both_predictions(records: dict[str, Record]) -> None:
    figure = spectral_signatures.figure_2(records["spectral_signatures/signature"])
    titles = [axis.get_title() for axis in figure.axes]
    assert all(re.search(r"^(natural|triggered)\nseen as \d$", title) for title in titles)


def test_the_threshold_counts_what_it_cuts_off() -> None:
    scores = torch.tensor([1.0, 9.0, 4.0, 16.0, 0.0, 25.0])
    poisoned = torch.tensor([False, True, False, False, False, True])
    figure = spectral_signatures.threshold_figure(scores, poisoned, removed=3)
    assert figure.axes[0].get_title() == "removed 3 of 6: poisoned 2 of 2, clean 1 of 4"
    marked = figure.axes[0].lines[0].get_xdata()[0]
    assert 2 < marked < 3  # between the square roots of 4 and 9


def test_the_pattern_slider_shows_no_trigger_and_the_three_shapes(
    records: dict[str, Record],
) -> None:
    html = spectral_signatures.pattern_slider(records["spectral_signatures/signature"]).html
    assert re.findall(r'alt="([^"]+)"', html) == ["no trigger", "pixel", "X", "L"]
    assert len(set(re.findall(r'src="([^"]+)"', html))) == 4


@pytest.mark.parametrize("removed", [0, 5])
def test_the_threshold_may_remove_nothing_or_nearly_all(removed: int) -> None:
    scores = torch.arange(6).float()
    figure = spectral_signatures.threshold_figure(scores, scores > 3, removed=removed)
    assert f"removed {removed} of 6" in figure.axes[0].get_title()


def test_the_slider_has_one_picture_a_step_and_shows_one_of_them() -> None:
    frames = [(f"step {k}", panels(1, 1, size=(1, 1))[0]) for k in range(4)]
    html = slider(frames, label="steps", start=2).html
    pictures = re.findall(r"<img[^>]*>", html)
    assert len(pictures) == 4
    assert [" hidden" not in picture for picture in pictures] == [False, False, True, False]
    assert 'max="3"' in html
    assert "http" not in html


def test_two_sliders_on_a_page_do_not_share_a_name() -> None:
    def one() -> str:
        return slider([("a", panels(1, 1, size=(1, 1))[0])], label="x").html

    first, second = (re.findall(r'id="([^"]+)"', html) for html in (one(), one()))
    assert len(first) == len(second) == 1
    assert first != second


CHECKOUT = Path(__file__).resolve().parent.parent
TABLES: dict[str, Callable[[Record], object]] = {
    "spectral_signatures/signature": spectral_signatures.auroc_table,
    "spectral_signatures/removal": spectral_signatures.removal_table,
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_html_that_needs_no_network(name: str, records: dict[str, Record]) -> None:
    for table in (TABLES[name](records[name]), common.origin([records[name]])):
        html = table._repr_html_()  # type: ignore[attr-defined]
        assert "<table" in html
        assert "http" not in html


def test_two_records_of_one_profile_are_both_told_the_origin_of(records: dict[str, Record]) -> None:
    both = [records[name] for name in TABLES]
    assert both[0].profile == both[1].profile
    html = common.origin(both)._repr_html_()
    assert html.count("<table") == 2
    assert all(record.path.name in html for record in both)
    other = replace(both[1], config={**both[1].config, "profile": "paper"})
    assert common.origin([both[0], other]).html.count("<table") == 1


def test_of_several_experiments_only_what_runs_live_is_not_repeated(tmp_path: Path) -> None:
    store = Store(frozen=CHECKOUT / "results", cache=tmp_path)
    names = {"default": "deep_confuse/share", "code": "deep_confuse/network_share"}

    def keys(live: str, shown: str) -> list[str]:
        return [key for key, _ in common.frozen_of_each(names, live=live, shown=shown, store=store)]

    assert keys("default", "quick") == ["default", "code"]
    assert keys("default", "small") == ["code"]
    assert keys("code", "small") == ["default"]


def test_the_removal_table_puts_the_papers_row_below_ours(records: dict[str, Record]) -> None:
    record = records["spectral_signatures/removal"]
    assert "paper, 1 run" not in spectral_signatures.removal_table(record).to_html()
    row = {**record.metrics["rows"][0], "source": "airplane", "target": "bird"}
    as_in_paper = Record(
        experiment=record.experiment,
        version=record.version,
        config=record.config,
        metrics={**record.metrics, "rows": [row]},
        provenance=record.provenance,
        digest=record.digest,
        path=record.path,
    )
    html = spectral_signatures.removal_table(as_in_paper).to_html()
    assert "paper, 1 run" in html
    assert "89.80 %" in html


def test_poisons_left_come_with_their_deviation_over_the_runs(records: dict[str, Record]) -> None:
    record = records["spectral_signatures/removal"]
    left = [trial["poisons_left"] for trial in record.metrics["trials"]]
    assert len(left) > 1
    mean, deviation = statistics.mean(left), statistics.stdev(left)
    html = spectral_signatures.removal_table(record).to_html()
    assert f"{mean:.1f} ± {deviation:.1f} of {record.metrics['rows'][0]['poisons']}" in html


def test_the_label_map_is_shown_class_by_class_beside_noise_without_a_map() -> None:
    rows = [
        {"kind": kind, "confusion": [[at + label / 100 + other / 1000 for other in range(10)]
                                     for label in range(10)]}
        for kind, at in (("clean", 0.1), ("any wrong label", 0.3), ("label map", 0.5))
    ]  # fmt: skip
    config = {"label_map": [*range(1, 10), 0], "dataset": "mnist"}
    record = SimpleNamespace(metrics={"rows": rows}, config=config, experiment="x", profile="small")
    table = deep_confuse.map_by_class_table(record).data
    assert list(table["Wanted"]) == [*range(1, 10), 0]
    # Class 3 is to be called 4: 0.5 + 0.03 + 0.004.
    assert list(table.iloc[3])[2:] == ["13 %", "33 %", "53 %", "72 %"]
    config["label_map"] = [9, *range(9)]
    table = deep_confuse.map_by_class_table(record).data
    assert list(table.iloc[3])[1:] == [2, "13 %", "33 %", "53 %"]


def test_every_run_is_shown_with_its_trigger(records: dict[str, Record]) -> None:
    record = records["spectral_signatures/removal"]
    html = spectral_signatures.runs_table(record).to_html()
    assert html.count("X at (13, 2), colour 255") == len(record.metrics["trials"])


def test_the_table_of_scale_names_just_what_differs_from_the_paper(
    records: dict[str, Record],
) -> None:
    html = common.scale(records["spectral_signatures/removal"]).to_html()
    for differs in ("dataset", "digits", "cifar10", "recipe.epochs", "4 → 9"):
        assert differs in html
    for same in ("centred", "recipe.momentum", "profile"):
        assert f">{same}<" not in html


def test_bounds_that_are_no_round_numbers_are_shown_with_four_digits() -> None:
    experiment = EXPERIMENTS["metapoison/victims"]
    config = as_json(experiment.configure(profile="small", **{"procedure.epsilon": 8 / 255}))
    record = SimpleNamespace(experiment=experiment.name, profile="small", config=config)
    table = common.scale(record).data.set_index("Parameter")
    assert list(table.loc["procedure.epsilon"]) == ["0.03137", "0.06275"]


def test_an_option_that_a_record_does_not_name_is_shown_where_it_differs() -> None:
    experiment = EXPERIMENTS["metapoison/victims"]
    for options, shown in ({}, []), ({"procedure.update": "batch"}, [["batch", "epoch"]]):
        config = as_json(experiment.configure(profile="small", **options))
        record = SimpleNamespace(experiment=experiment.name, profile="small", config=config)
        table = common.scale(record).data.set_index("Parameter")
        assert [list(row) for row in table.filter(["procedure.update"], axis=0).values] == shown


def test_the_removal_figure_names_axes_and_units(records: dict[str, Record]) -> None:
    figure = spectral_signatures.removal_figure(records["spectral_signatures/removal"])
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == [
        "poisoned accuracy (%)",
        "poisons left (% of epsilon)",
        "natural accuracy (%)",
    ]
