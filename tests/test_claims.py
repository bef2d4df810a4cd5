"""The Spectral Signatures rules on records made by hand, at their thresholds and off their data."""

from types import SimpleNamespace

import pytest

from poisonkit.claims import EXHIBITS
from poisonkit.claims.spectral_signatures import (
    judge_lemma,
    judge_poisons_left,
    judge_removal,
    judge_spectrum,
    singular_growth,
)
from poisonkit.claims.spectral_signatures_reported import TABLE_1, TABLE_2
from poisonkit.statistics import wilson

OURS = {exhibit.exhibit: exhibit for exhibit in EXHIBITS if exhibit.paper == "Spectral Signatures"}


def record(*trials, **metrics):
    """All of a record that a judge may look at."""
    return SimpleNamespace(metrics={"trials": list(trials), **metrics})


def removal(row=("airplane", "bird", 0.10), *, captured=True, **found):
    numbers = {
        "triggered_images": 1000,
        "hits_before": 990,
        "hits_after": 12,
        "hits_clean": 12,
        "poisons": 500,
        "poisons_left": 0,
    }
    keys = ("source", "target", "share")
    return dict(zip(keys, row, strict=True)) | numbers | {"captured": captured} | found


# The filter's effect ------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE_2, ids=str)
def test_a_row_needs_the_backdoor_captured_unless_the_papers_own_run_missed_it(row):
    exhibit = OURS[f"Table 2: {row[0]} to {row[1]}, {row[2]:.0%}"]
    missed = removal(row, captured=False, hits_before=500)
    outcome = exhibit.judge(record(missed))
    free = row in {("airplane", "bird", 0.05), ("automobile", "cat", 0.05)}
    assert outcome.verdict == ("reproduced" if free else "not")
    assert exhibit.rule.startswith("over all runs" if free else "over the runs that captured")
    assert exhibit.judge(record(removal(row))).verdict == "reproduced"
    unfiltered = removal(row, captured=False, hits_before=700, hits_after=700)
    assert exhibit.judge(record(unfiltered)).verdict == "not"


def test_where_the_papers_run_missed_the_backdoor_half_of_its_excess_must_be_there_to_remove():
    """The paper's rise from 1.2 to 74.2 % by 73.0 points, and from 0.1 to 83.3 % by 83.2."""
    for pair, least in ((("airplane", "bird"), 365), (("automobile", "cat"), 416)):
        exhibit = OURS[f"Table 2: {pair[0]} to {pair[1]}, 5%"]
        for before, verdict in ((12 + least, "reproduced"), (12 + least - 1, "not")):
            found = removal((*pair, 0.05), captured=False, hits_before=before)
            assert exhibit.judge(record(found)).verdict == verdict
        assert f"below {least / 10:.1f} points" in exhibit.rule


def test_the_interval_holds_those_of_all_runs():
    trials = (removal(hits_after=12), removal(hits_after=300))
    judged = judge_removal("airplane", "bird", 0.10)(record(*trials))
    assert judged.interval == (wilson(12, 1000)[0], wilson(300, 1000)[1])
    assert judged.measured == 0.156


@pytest.mark.parametrize(("excess", "n", "after"), [(None, 1, 12), (0.0, 2, 312)])
def test_runs_that_missed_the_backdoor_are_pooled_only_where_all_runs_count(excess, n, after):
    trials = (removal(hits_after=12), removal(captured=False, hits_before=400, hits_after=300))
    judged = judge_removal("airplane", "bird", 0.10, excess=excess)(record(*trials))
    assert judged.n == n
    assert judged.measured == after / (1000 * n)
    assert judged.verdict == ("reproduced" if excess is None else "not")


@pytest.mark.parametrize("exhibit", [name for name in OURS if name.startswith("Table 3:")])
def test_a_row_of_table_3_is_one_direction_at_one_share(exhibit):
    pair, share = exhibit.removeprefix("Table 3: ").split(", ")
    source, target = pair.split(" to ")
    row = (source, target, int(share.removesuffix("%")) / 100)
    assert OURS[exhibit].judge(record(removal(row))).verdict == "reproduced"
    other_way, other_share = (target, source, row[2]), (source, target, 0.15 - row[2])
    assert OURS[exhibit].judge(record(removal(other_way), removal(other_share))) is None


def test_table_5_is_judged_by_vgg_networks_only():
    resnet = removal(network="preact_resnet14", hits_after=900)
    vgg = removal(network="vgg11, width 16")
    judged = OURS["Table 5: VGG"].judge(record(resnet, vgg))
    assert (judged.n, judged.verdict, judged.measured) == (1, "reproduced", 0.012)
    assert OURS["Table 5: VGG"].judge(record(resnet)) is None
    assert OURS["Table 5: VGG"].judge(record(vgg | {"hits_after": 900})).verdict == "not"


@pytest.mark.parametrize(
    ("left", "verdict"),
    [(0, "reproduced"), (50, "reproduced"), (51, "partly"), (250, "partly"), (251, "not")],
)
def test_5_percent_of_the_poisons_may_be_left_and_25_percent_leave_the_claim_half_true(
    left, verdict
):
    trials = [removal(poisons_left=left // 2), removal(poisons_left=left - left // 2)]
    judged = judge_poisons_left(record(*trials))
    assert judged.verdict == verdict
    assert judged.measured == left / 1000
    assert judged.interval == ((left // 2) / 500, (left - left // 2) / 500)


def test_poisons_left_where_nothing_was_captured_neither_help_nor_harm():
    missed = removal(captured=False, poisons_left=500)
    judged = judge_poisons_left(record(removal(poisons_left=5), missed))
    assert (judged.verdict, judged.measured, judged.n) == ("reproduced", 0.01, 1)
    assert judge_poisons_left(record(removal(captured=False, poisons_left=0))).verdict == "not"


def test_small_runs_weigh_by_their_poisons():
    few = removal(poisons=250, poisons_left=25)
    judged = judge_poisons_left(record(few, removal(poisons_left=0)))
    assert judged.measured == 25 / 750
    assert judged.interval == (0, 0.1)


# The spectrum -------------------------------------------------------------------------------

PAIR = ("airplane", "bird")
#: Half of the rise from 1194.223 to 1613.486.
HALF = 1 + (1613.486 / 1194.223 - 1) / 2


def spectrum(*growth, captured=True, pair=PAIR):
    clean = [1194.0, 1100.0, 900.0]
    raised = [value * times for value, times in zip(clean, growth, strict=True)]
    values = {"clean": {"singular_values": clean}, "all": {"singular_values": raised}}
    return {"source": pair[0], "target": pair[1], "captured": captured, "statistics": values}


@pytest.mark.parametrize(
    ("growth", "verdict"),
    [
        ((1.35, 1.08, 1.17), "reproduced"),
        ((HALF + 1e-6, 1.0, 1.0), "reproduced"),
        ((HALF - 1e-6, 1.0, 1.0), "partly"),
        ((1.30, 1.24, 1.0), "reproduced"),
        ((1.30, 1.26, 1.0), "partly"),
        ((1.30, 1.0, 1.26), "partly"),
        ((1.30, 1.31, 1.0), "not"),
        ((1.30, 1.0, 1.31), "not"),
    ],
)
def test_table_1_needs_the_top_singular_value_to_rise_most_and_half_as_far_as_reported(
    growth, verdict
):
    judged = judge_spectrum(*PAIR)(record(spectrum(*growth)))
    assert judged.verdict == verdict
    assert judged.measured == pytest.approx(growth[0])
    assert singular_growth(spectrum(*growth)) == pytest.approx(growth)


def test_the_papers_own_spectra_pass_their_rule():
    for pair, (_, _, _, clean, poisoned) in TABLE_1.items():
        values = {"clean": {"singular_values": clean}, "all": {"singular_values": poisoned}}
        trial = spectrum(1, 1, 1, pair=pair) | {"statistics": values}
        judged = OURS[f"Table 1: {pair[0]} to {pair[1]}"].judge(record(trial))
        assert judged.verdict == "reproduced"


def test_a_spectrum_is_the_mean_over_the_captured_runs_of_its_pair():
    other = spectrum(9, 1, 1, pair=("automobile", "cat"))
    missed = spectrum(1.0, 1.0, 1.0, captured=False)
    runs = [spectrum(1.2, 1.0, 1.1), spectrum(1.4, 1.1, 1.0), missed, other]
    judged = judge_spectrum(*PAIR)(record(*runs))
    assert (judged.n, judged.verdict) == (2, "reproduced")
    assert (judged.measured, *judged.interval) == pytest.approx((1.3, 1.2, 1.4))
    assert judge_spectrum(*PAIR)(record(spectrum(1.4, 1, 1, captured=False))).verdict == "not"
    assert judge_spectrum(*PAIR)(record(other)) is None


# Lemma 3.1 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separable", "verdict"),
    [((100, 100), "reproduced"), ((100, 99), "partly"), ((90, 100), "partly"), ((89, 100), "not")],
)
def test_the_lemma_must_hold_in_every_draw_at_or_above_its_bound(separable, verdict):
    about = {"distribution": "gaussian", "epsilon": 0.1, "runs": 100}
    rows = [
        {**about, "gap": gap, "separable": count}
        for gap, count in zip((6.0, 9.0), separable, strict=True)
    ]
    below = {**about, "gap": 4.0, "separable": 0}
    judged = judge_lemma(record(rows=[below, *rows], bound=6.0))
    assert judged.verdict == verdict
    assert judged.measured == sum(separable) / 200
    # The same hundred draws, moved to two gaps.
    assert judged.n == 100
    assert judged.interval == wilson(sum(separable) // 2, 100)
    other = [{**row, "distribution": "heavy tails"} for row in rows]
    assert judge_lemma(record(rows=[*rows, *other], bound=6.0)).n == 200


def test_draws_below_the_bound_only_say_nothing_about_the_lemma():
    below = {"gap": 5.99, "separable": 100, "runs": 100}
    assert judge_lemma(record(rows=[below], bound=6.0)) is None
