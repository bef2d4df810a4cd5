"""Judges read the records that experiments write; the scorecard picks one and shows it."""

from poisonkit.claims import EXHIBITS, Exhibit
from poisonkit.claims.base import Outcome
from poisonkit.claims.spectral_signatures import (
    judge_lemma,
    judge_poisons_left,
    judge_removal,
    judge_separation,
)
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.settings import as_json
from poisonkit.scorecard import Judgement, judge

OURS = {exhibit.exhibit: exhibit for exhibit in EXHIBITS if exhibit.paper == "Spectral Signatures"}


# Records as experiments write them ----------------------------------------------------------


def test_judges_read_what_the_experiments_write(store):
    tiny = {"trials": 1, "recipe.epochs": 1, "images_per_class": 40}
    lemma = {"samples": 2000, "dimensions": 4, "trials": 1, "epsilons": (0.2,)}
    judges = {
        "removal": (judge_poisons_left, judge_removal("4", "9", 0.10)),
        "subpopulations": (judge_removal("1", "4 or 7", 0.10), judge_removal("4 or 7", "1", 0.10)),
        "architectures": (judge_removal(network="vgg"),),
        "lemma": (judge_lemma,),
        "signature": (judge_separation,),
    }
    for name, chosen in judges.items():
        experiment = EXPERIMENTS[f"spectral_signatures/{name}"]
        config = experiment.configure(profile="quick", **(lemma if name == "lemma" else tiny))
        found = run(experiment, config, store=store, device="cpu")
        for judged in [judge_it(found) for judge_it in chosen]:
            assert judged.n >= 1
            assert judged.interval[0] <= judged.measured <= judged.interval[1]


def trial_of(row):
    """Numbers of a trial of Table 2 that reproduces its row."""
    hits = {"hits_before": 990, "hits_after": 12, "hits_clean": 12, "triggered_images": 1000}
    poisons = {"poisons": 500, "poisons_left": 0, "captured": True}
    return dict(zip(("source", "target", "share"), row, strict=True)) | hits | poisons


def test_a_paper_record_that_does_not_cover_an_exhibit_leaves_it_to_the_small_one(store):
    experiment = EXPERIMENTS["spectral_signatures/removal"]
    rows = {"paper": ("truck", "bird", 0.10), "small": ("airplane", "bird", 0.10)}
    for profile, row in rows.items():
        store.save(
            experiment=experiment.name,
            version=experiment.version,
            config=as_json(experiment.configure(profile=profile)),
            metrics={"trials": [trial_of(row), trial_of(("cat", "horse", 0.05))]},
            arrays={},
            provenance={},
        )
    for exhibit, profile in (
        ("Table 2: truck to bird, 10%", "paper"),
        ("Table 2: airplane to bird, 10%", "small"),
        ("Table 2: cat to horse, 5%", "paper"),
    ):
        assert judge(OURS[exhibit], store).record.profile == profile
    assert judge(OURS["Table 2: ship to frog, 5%"], store).verdict == "not attempted"


# What the scorecard shows -------------------------------------------------------------------


def shown(unit: str, reported: float | None, outcome: Outcome | None) -> tuple[str, str]:
    exhibit = Exhibit(paper="p", exhibit="e", claim="c", unit=unit, reported=reported)
    judgement = Judgement(exhibit_of=exhibit, outcome=outcome, record=None)
    return judgement.show_reported(), judgement.show_measured()


def test_numbers_have_three_decimals_rates_are_percentages_and_differences_of_them_points():
    outcome = Outcome(measured=0.98765, interval=(0.9, 1.25), n=3, verdict="partly")
    assert shown("number", 1.35107, outcome) == ("1.351", "0.988 [0.900, 1.250]")
    assert shown("rate", 0.898, outcome) == ("89.8 %", "98.8 % [90.0, 125.0]")
    assert shown("points", 0.6, outcome) == ("60 points", "98.8 points [90.0, 125.0]")
    assert shown("rate", None, None) == ("-", "-")


def test_only_ratios_and_areas_are_shown_as_numbers():
    numbers = {name for name, exhibit in OURS.items() if exhibit.unit == "number"}
    assert numbers == {"Figure 1", "Table 1: airplane to bird", "Table 1: automobile to cat"}
