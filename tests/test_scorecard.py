"""Every exhibit is judged by the rule that stands beside the paper's number, and by no other."""

import json
from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest

from poisonkit.claims import EXHIBITS
from poisonkit.claims.spectral_signatures import judge_backdoor, judge_removal, judge_separation
from poisonkit.claims.spectral_signatures_reported import TABLE_2
from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.settings import as_json
from poisonkit.figures.common import verdicts
from poisonkit.scorecard import as_rows, judge_all, records_of
from poisonkit.statistics import wilson
from poisonkit.store import Json, Record, Store

TABLE = "Table 2: airplane to bird, 10%"


def record(trials: list[Json]) -> Record:
    return Record(
        experiment="any",
        version=1,
        config={"profile": "small"},
        metrics={"trials": trials},
        provenance={},
        digest="",
        path=Path("none.json"),
    )


def removal(*, before: int, after: int, clean: int, captured: bool = True) -> Json:
    return {
        "source": "airplane",
        "target": "bird",
        "share": 0.10,
        "triggered_images": 1000,
        "poisons": 500,
        "poisons_left": 0,
        "hits_before": before,
        "hits_after": after,
        "hits_clean": clean,
        "captured": captured,
    }


judge_row = judge_removal("airplane", "bird", 0.10)


@pytest.mark.parametrize(
    ("after", "verdict"), [(22, "reproduced"), (23, "partly"), (209, "partly"), (210, "not")]
)
def test_a_row_of_table_2_is_reproduced_within_one_point_of_the_clean_rate(
    after: int, verdict: str
) -> None:
    # Clean rate 1.2 %, before 99.8 %: 80 % of the excess is 78.88 points, leaving 20.92 %.
    outcome = judge_row(record([removal(before=998, after=after, clean=12)]))
    assert outcome is not None
    assert outcome.verdict == verdict
    assert outcome.measured == pytest.approx(after / 1000)
    assert outcome.interval == pytest.approx(wilson(after, 1000))


def test_runs_that_did_not_capture_the_backdoor_neither_help_nor_harm() -> None:
    captured = removal(before=990, after=12, clean=12)
    missed = removal(before=300, after=290, clean=12, captured=False)
    outcome = judge_row(record([captured, missed]))
    assert outcome is not None
    assert (outcome.verdict, outcome.n) == ("reproduced", 1)


def test_without_any_captured_run_the_row_is_not_reproduced() -> None:
    outcome = judge_row(record([removal(before=300, after=12, clean=12, captured=False)]))
    assert outcome is not None
    assert outcome.verdict == "not"


def test_a_record_without_the_row_says_nothing_about_it() -> None:
    other = judge_removal("truck", "bird", 0.10)
    assert other(record([removal(before=998, after=12, clean=12)])) is None


def seen(top: float, *, best_other: float = 0.6, captured: bool = True) -> Json:
    values = {
        f"{space}.{quantity}": 0.5
        for space in ("pixels", "representation")
        for quantity in ("norm", "random", "top")
    }
    values |= {"representation.norm": best_other, "representation.top": top}
    return {"auroc": values, "captured": captured}


@pytest.mark.parametrize(
    ("top", "other", "verdict"),
    [
        (0.99, 0.60, "reproduced"),
        (0.99, 0.97, "partly"),
        (0.90, 0.60, "partly"),
        (0.97, 0.98, "not"),
    ],
)
def test_figure_1_needs_a_separation_that_no_other_view_has(
    top: float, other: float, verdict: str
) -> None:
    outcome = judge_separation(record([seen(top, best_other=other)]))
    assert outcome is not None
    assert outcome.verdict == verdict


def test_figure_1_without_a_captured_run_is_not_reproduced() -> None:
    outcome = judge_separation(record([seen(0.99, captured=False)]))
    assert outcome is not None
    assert outcome.verdict == "not"


def triggered(hits: int, pattern: str) -> Json:
    return {
        "source": "airplane",
        "hits_before": hits,
        "triggered_images": 1000,
        "trigger": {"pattern": pattern},
    }


def test_figure_2_is_about_single_pixels_and_says_nothing_of_larger_triggers() -> None:
    assert judge_backdoor(record([triggered(998, "X")])) is None


def test_a_norm_that_separates_downwards_counts_against_figure_1() -> None:
    outcome = judge_separation(record([seen(0.97, best_other=0.01)]))
    assert outcome is not None
    assert outcome.verdict == "not"


@pytest.mark.parametrize("clean", range(0, 990, 7))
def test_one_point_is_one_point_whatever_the_clean_rate(clean: int) -> None:
    within = judge_row(record([removal(before=1000, after=clean + 10, clean=clean)]))
    beyond = judge_row(record([removal(before=1000, after=clean + 11, clean=clean)]))
    assert within is not None
    assert beyond is not None
    assert within.verdict == "reproduced"
    assert beyond.verdict != "reproduced"


@pytest.mark.parametrize(("hits", "verdict"), [(898, "reproduced"), (700, "partly"), (400, "not")])
def test_figure_2_is_judged_by_the_poisoned_accuracy(hits: int, verdict: str) -> None:
    outcome = judge_backdoor(record([triggered(hits, "pixel")]))
    assert outcome is not None
    assert outcome.verdict == verdict


def test_every_exhibit_has_a_claim_and_every_judged_one_a_rule_and_an_experiment() -> None:
    assert len({(exhibit.paper, exhibit.exhibit) for exhibit in EXHIBITS}) == len(EXHIBITS)
    for exhibit in EXHIBITS:
        assert exhibit.claim
        assert (exhibit.judge is None) == (exhibit.experiment is None) == (not exhibit.rule)
        assert exhibit.experiment is None or exhibit.experiment in EXPERIMENTS


def test_reported_rates_are_those_of_table_2() -> None:
    rows = {
        exhibit.exhibit.removeprefix("Table 2: "): exhibit.reported
        for exhibit in EXHIBITS
        if exhibit.paper == "Spectral Signatures" and exhibit.exhibit.startswith("Table 2: ")
    }
    left = rows.pop("poisons left")
    assert len(rows) == len(TABLE_2) == 16
    for (source, target, share), numbers in TABLE_2.items():
        assert rows[f"{source} to {target}, {share:.0%}"] == pytest.approx(numbers[4] / 100)
    # Without the two rows that did not capture the backdoor: 28 of 6 x 250 + 8 x 500.
    assert left == pytest.approx(28 / 5500, abs=1e-4)


@pytest.fixture
def save(store: Store) -> Callable[..., Record]:
    def save(profile: str, **options: object) -> Record:
        experiment = EXPERIMENTS["spectral_signatures/removal"]
        config = as_json(experiment.configure(profile=profile, **options))
        return store.save(
            experiment=experiment.name,
            version=experiment.version,
            config=config,
            metrics={"trials": [removal(before=998, after=12, clean=12)]},
            arrays={},
            provenance={},
        )

    return save


def verdict_of(exhibit: str, store: Store) -> Json:
    rows = as_rows(judge_all(store))
    return next(row for row in rows if row["exhibit"] == exhibit)


def test_without_records_nothing_is_attempted(store: Store) -> None:
    assert {row["verdict"] for row in as_rows(judge_all(store))} == {"not attempted"}


def test_the_unchanged_small_profile_is_judged(store: Store, save: Callable[..., Record]) -> None:
    made = save("small")
    row = verdict_of(TABLE, store)
    assert (row["verdict"], row["profile"], row["n"]) == ("reproduced", "small", 1)
    assert row["record"] == made.path.name
    assert row["reported"] == 0.015


def test_a_page_shows_the_verdicts_on_its_own_exhibits_with_their_rules(
    store: Store, save: Callable[..., Record]
) -> None:
    experiment = save("small").experiment
    shown = verdicts(experiment, store=store).html
    assert TABLE in shown
    for exhibit in EXHIBITS:
        own = exhibit.experiment == experiment
        assert (f">{exhibit.exhibit}</td>" in shown) == own
        assert not own or escape(exhibit.rule) in shown
    assert "no record to judge" in verdicts("metapoison/crafting", store=store).html


def test_a_page_with_several_records_has_one_table_and_says_what_is_not_attempted(
    store: Store, save: Callable[..., Record]
) -> None:
    experiments = (save("small").experiment, "deep_confuse/share", "deep_confuse/network_share")
    shown = verdicts(*experiments, store=store).html
    assert shown.count("<table") == 1
    missing = [one for one in EXHIBITS if one.experiment in experiments[1:]]
    assert len(missing) == 2
    assert len({one.rule for one in missing}) == shown.count(escape(missing[0].rule)) == 1
    for exhibit in missing:
        row = shown[shown.index(f">{exhibit.exhibit}</td>") :]
        assert "not attempted" in row[: row.index("</tr>")]


def test_digits_and_changed_settings_are_not_judged(
    store: Store, save: Callable[..., Record]
) -> None:
    save("quick")
    save("small", seed=7)
    assert verdict_of(TABLE, store)["verdict"] == "not attempted"


def test_an_edited_record_is_refused(store: Store, save: Callable[..., Record]) -> None:
    path = save("small").path
    path.write_text(path.read_text().replace('"hits_after": 12', '"hits_after": 0'))
    with pytest.raises(PoisonkitError, match="do not match the record's digest"):
        judge_all(store)


def test_a_record_under_another_name_is_refused(store: Store, save: Callable[..., Record]) -> None:
    small, quick = save("small").path, save("quick").path
    quick.replace(small)
    with pytest.raises(PoisonkitError, match="not the record that its name says"):
        judge_all(store)


def test_rows_are_json_with_the_documented_names(store: Store) -> None:
    wanted = {
        "paper",
        "exhibit",
        "profile",
        "quantity",
        "reported",
        "measured",
        "interval",
        "n",
        "verdict",
        "record",
    }
    for row in as_rows(judge_all(store)):
        assert set(json.loads(json.dumps(row))) == wanted


def test_a_record_on_images_that_no_name_determines_is_found_without_them(store: Store) -> None:
    name = "deep_confuse/imagenet2"
    config = as_json(EXPERIMENTS[name].configure(profile="small"))
    assert records_of(name, store) == []
    saved = store.save(
        experiment=name,
        version=EXPERIMENTS[name].version,
        config={**config, "train_checksum": "a", "test_checksum": "b"},
        metrics={"trials": []},
        arrays={},
        provenance={},
        freeze=True,
    )
    assert records_of(name, store) == [saved]
    assert records_of("deep_confuse/mnist", store) == []
