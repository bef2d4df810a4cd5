"""Whose trace the filter finds: the attack, and each half of it by itself."""

import json
import math

import numpy as np
import pytest
import torch

from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.spectral_signatures.trace import KINDS
from poisonkit.figures import spectral_signatures as figures
from poisonkit.figures.common import frozen_records

TRACE = EXPERIMENTS["spectral_signatures/trace"]
LIMITS = EXPERIMENTS["spectral_signatures/limits"]
TINY = {"trials": 1, "recipe.epochs": 1, "images_per_class": 60}


def poisoned_by(kind, store, **options):
    from poisonkit.experiments.networks import Context

    config = TRACE.configure(profile="quick", kinds=(kind,), **{**TINY, **options})
    (unit,) = TRACE.units(config)
    return TRACE.check(config, unit, Context(store=store, device="cpu"))[0]


# Training sets ------------------------------------------------------------------------------


def test_the_wrong_label_alone_is_the_attack_without_its_trigger(store):
    attack, half = (poisoned_by(kind, store) for kind in KINDS[:2])
    assert torch.equal(half.train.x, half.clean.x)
    assert torch.equal(half.train.y, attack.train.y)
    assert torch.equal(half.mask, attack.mask)
    assert (half.clean.y[half.mask] == 4).all()
    assert (half.train.y[half.mask] == 9).all()
    assert int(half.mask.sum()) == half.count == 6


def test_the_trigger_alone_is_on_the_targets_own_images_under_their_own_label(store):
    half = poisoned_by("trigger", store)
    assert torch.equal(half.train.y, half.clean.y)
    assert (half.train.y[half.mask] == half.target).all()
    assert int(half.mask.sum()) == half.count == 6
    assert torch.equal(half.train.x[~half.mask], half.clean.x[~half.mask])
    assert torch.equal(half.train.x[half.mask], half.trigger.stamp(half.clean.x[half.mask]))
    assert (half.train.x[half.mask] != half.clean.x[half.mask]).flatten(1).any(1).all()
    other = poisoned_by("trigger", store, seed=1)
    assert not torch.equal(other.mask, half.mask)


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_marked_images_take_a_place_and_added_ones_come_last(kind, store):
    found = poisoned_by(kind, store)
    assert len(found.train) == len(found.clean) == 600
    added = poisoned_by(kind, store, placement="added")
    assert len(added.train) == 606
    assert added.mask.nonzero().flatten().tolist() == list(range(600, 606))
    # The same images, wherever they are put.
    assert torch.equal(added.train.x[added.mask], found.train.x[found.mask])
    assert (added.train.y[added.mask] == 9).all()


# Records ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    from poisonkit.store import Store

    config = TRACE.configure(profile="quick", **{**TINY, "recipe.epochs": 4})
    return run(TRACE, config, store=Store(frozen=None, cache=tmp_path_factory.mktemp("cache")))


def test_a_trials_numbers_follow_from_its_scores(record):
    trials = record.metrics["trials"]
    assert [trial["kind"] for trial in trials] == list(KINDS)
    for number, trial in enumerate(trials):
        scores = record.arrays[f"{number}.scores"].double().numpy()
        marked = record.arrays[f"{number}.poisoned"].numpy()
        assert marked.sum() == trial["poisons"] == 6
        assert len(scores) == trial["label_images"] == (60 if trial["kind"] == "trigger" else 66)
        above = scores[marked][:, None] - scores[~marked][None, :]
        assert trial["auroc"] == pytest.approx(((above > 0) + 0.5 * (above == 0)).mean())
        removed = np.argsort(-scores, kind="stable")[: math.ceil(1.5 * 6)]
        assert trial["left"] == 6 - marked[removed].sum()
        assert 0 <= trial["fitted"] <= 6
        assert 0 <= trial["source_hits"] <= trial["source_test_images"]


def test_marked_images_that_are_like_the_others_of_their_label_do_not_raise_its_spread(record):
    """Table 1's factor: a tenth of another class raises the top singular value, a stamp less."""
    rise = {trial["kind"]: trial["rise"] for trial in record.metrics["trials"]}
    assert rise["trigger"] < min(rise["wrong label"], rise["trigger and wrong label"])


def test_the_attack_is_the_one_whose_limits_are_measured(store):
    given = {**TINY, "shares": (0.10,)}
    config = TRACE.configure(profile="quick", kinds=KINDS[:1], **given)
    (trial,) = run(TRACE, config, store=store, device="cpu").metrics["trials"]
    config = LIMITS.configure(
        profile="quick",
        placement="replaced",
        patterns=("X",),
        layers=(("block3", "flatten"),),
        **given,
    )
    (expected,) = run(LIMITS, config, store=store, device="cpu").metrics["trials"]
    assert trial["auroc"] == expected["layers"]["block3"]["auroc"]
    assert trial["left"] == expected["layers"]["block3"]["left"][12]  # eighths: 1.5 epsilon
    for name in ("poisons", "hits_before", "natural_before", "trigger", "captured"):
        assert trial[name] == expected[name]
    # One network for both.
    assert len(list(store.cache.glob("networks/*.json"))) == 1


def test_a_row_is_the_mean_over_the_runs_of_a_kind_and_pair():
    config = TRACE.configure(profile="quick", trials=2, kinds=KINDS[1:])
    trials = [
        {
            **unit,
            "poisons": 20,
            "triggered_images": 50,
            "hits_before": 10 + 30 * unit["seed"],
            "captured": False,
            "fitted": 5 + 10 * unit["seed"],
            "auroc": 0.6 + 0.2 * unit["seed"],
            "left": 4 * unit["seed"],
            "rise": 1.5,
            "natural_before": 0.9,
        }
        for unit in TRACE.units(config)
    ]
    rows = TRACE.summarise(config, trials)["rows"]
    assert [row["kind"] for row in rows] == list(KINDS[1:])
    for row in rows:
        assert (row["source"], row["target"], row["share"]) == ("4", "9", 0.1)
        assert (row["runs"], row["captured"], row["poisoned_before"]) == (2, 0, 0.5)
        assert row["auroc"] == pytest.approx((0.7, 0.2 / math.sqrt(2)))
        assert row["left"] == pytest.approx((2, 4 / math.sqrt(2)))
        assert row["fitted"][0] == 0.5
        assert row["rise"] == (1.5, 0.0)


# Figures ------------------------------------------------------------------------------------


def test_every_run_has_a_mark_in_each_panel_open_if_it_captured_nothing(record):
    figure = figures.trace_figure(record)
    trials = record.metrics["trials"]
    panels = figure.axes
    values = [
        [trial["auroc"] for trial in trials],
        [100 * trial["left"] / 6 for trial in trials],
        [100 * trial["fitted"] / 6 for trial in trials],
    ]
    for axis, expected in zip(panels, values, strict=True):
        marks = [line for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata())]
        assert [float(mark.get_ydata()[0]) for mark in marks] == pytest.approx(expected)
        faces = [mark.get_markerfacecolor() != "white" for mark in marks]
        assert faces == [trial["captured"] for trial in trials]


def test_histograms_are_of_all_images_of_the_label_and_titled_with_their_run(record):
    figure = figures.trace_scores_figure(record)
    for axis, trial in zip(figure.axes, record.metrics["trials"], strict=True):
        assert axis.get_title().endswith(f"{trial['kind']}: AUROC {trial['auroc']:.2f}")
        for patch in axis.patches:
            assert sum(patch.get_data().values) == pytest.approx(1)
    text = figures.trace_table(record).to_html()
    for row in record.metrics["rows"]:
        assert f"{row['auroc'][0]:.3f}" in text


def test_the_frozen_rows_follow_from_the_frozen_trials():
    records = frozen_records("spectral_signatures/trace")
    assert records
    for record in records:
        trials = record.metrics["trials"]
        rows = TRACE.summarise(TRACE.configure(profile="small"), trials)["rows"]
        assert json.loads(json.dumps(rows)) == record.metrics["rows"]


def test_shares_of_one_pair_are_told_apart_in_the_figures(store):
    config = TRACE.configure(profile="quick", **{**TINY, "shares": (0.05, 0.10)})
    record = run(TRACE, config, store=store, device="cpu")
    figure = figures.trace_scores_figure(record)
    titles = [axis.get_title().split("\n")[0] for axis in figure.axes]
    assert [title for title in titles if title] == ["4 → 9, 5%", "4 → 9, 10%"]
    (legend,) = figures.trace_figure(record).legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["4 → 9, 5%", "4 → 9, 10%", "not captured"]


# What it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kinds": ("label",)}, "kind 'label'; known: trigger and wrong label, wrong label"),
        ({"kinds": ("trigger", "trigger")}, "kinds names something twice"),
        ({"kinds": ()}, "no trials"),
        ({"shares": (0.5,)}, r"must lie in \(0, 1/2\)"),
        ({"tap": "group3.3"}, "known: block1"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_training(
    options, told, store, no_training, untouched
):
    config = TRACE.configure(profile="quick", **{**TINY, **options})
    with pytest.raises(PoisonkitError, match=told):
        run(TRACE, config, store=store, device="cpu")
    assert not list(store.cache.rglob("*.json"))
