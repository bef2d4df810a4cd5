"""The MetaPoison rules on records made by hand, at their thresholds."""

import math
import re
from types import SimpleNamespace

import pytest

from poisonkit.claims import EXHIBITS
from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.metapoison.victims import row_of

OURS = {exhibit.exhibit: exhibit for exhibit in EXHIBITS if exhibit.paper == "MetaPoison"}


def record(*rows, trials=(), objective="cross-entropy", **metrics):
    """All of a record that a judge may look at."""
    return SimpleNamespace(
        metrics={"rows": list(rows), "trials": list(trials), **metrics},
        config={"procedure": {"objective": objective}},
    )


def interval(hits, total):
    """Wilson's 95 % interval, by its formula."""
    z, share = 1.959963985, hits / total
    centre = share + z * z / (2 * total)
    width = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    return (centre - width) / (1 + z * z / total), (centre + width) / (1 + z * z / total)


def rates(hits, targets):
    low, high = interval(hits, targets)
    return {"hits": hits, "targets": targets, "rate": hits / targets, "low": low, "high": high}


def row(hits, targets=40, *, accuracy=0.9, clean=0, **about):
    """Success in eval mode counts; within a training batch it is the contrary here."""
    return {
        **about,
        "clean_hits": clean,
        "clean_targets": targets,
        "clean_rate": clean / targets,
        **rates(hits, targets),
        "in_batch": rates(targets - hits, targets),
        "accuracy": {"mean": accuracy, "deviation": 0.01},
        "victims": targets,
    }


def verdict(name, found):
    outcome = OURS[name].judge(found)
    return outcome and outcome.verdict


# Exhibits -------------------------------------------------------------------------------------


def test_every_exhibit_of_the_paper_has_a_rule_and_an_experiment():
    for name in ("3a", "3b", "4", "5a", "5b", "6a", "6b", "6c"):
        assert any(re.match(rf"Figure {name}\b", exhibit) for exhibit in OURS), name
    for exhibit in OURS.values():
        assert exhibit.experiment in EXPERIMENTS
        assert exhibit.experiment.startswith("metapoison/")
        assert exhibit.judge is not None
        assert exhibit.claim
        assert exhibit.rule
        assert exhibit.quantity


def test_the_papers_numbers_are_those_of_its_abstract_and_its_third_section():
    told = {name: exhibit.reported for name, exhibit in OURS.items() if exhibit.reported}
    assert told == {"Figure 4": 1, "Figure 5a": 0.5, "Figure 6a": 0.96}


def test_rows_made_by_hand_are_like_those_that_experiments_make():
    course = {"success": [0, 1], "in_batch_success": [0, 0], "test": [0.5, 0.9]}
    trial = {"targets": [3], "course": course}
    asked = {"wanted_class": "dog", "clean": {"predictions": ["cat"]}}
    assert row_of([trial | asked]).keys() == row(1).keys()
    found = row_of([trial]).keys()
    assert found == row(1).keys() - {"clean_hits", "clean_targets", "clean_rate"}


# Figure 3 -------------------------------------------------------------------------------------


def crafting(begun, ended, *, before=3.0, after=2.0, objective="cross-entropy", clean=(90.0, 90.0)):
    """Two victims of the first, of a middle and of the last step; the curves have a third of two.

    Their first four values are the other way round than the means of the last two.
    """
    trials = [
        # Of each victim the last epoch counts.
        {
            "crafted": step,
            "pair": 0,
            "victim": victim,
            "course": {"target_loss": [99.0, loss]},
            "clean": {"wanted_probability": [math.exp(-clean[victim])]},
        }
        for step, losses in ((0, begun), (3, (50.0, 50.0)), (6, ended))
        for victim, loss in enumerate(losses)
    ]
    trials[4]["unaffected"] = [0.1] * 4 + [before - 0.5, before + 0.5]
    trials[4]["unrolled"] = [9.0] * 4 + [after + 1.0, after - 1.0]
    return record(trials=trials, objective=objective)


def test_unrolled_steps_must_lower_the_loss_a_little_and_training_half_of_it():
    found = OURS["Figure 3a"].judge(crafting((4.0, 6.0), (1.0, 2.0)))
    assert (found.verdict, found.measured, found.n) == ("reproduced", 1.5, 2)
    assert found.interval == (1.0, 2.0)
    assert verdict("Figure 3a", crafting((4.0, 6.0), (2.4, 2.58), after=2.5)) == "reproduced"
    assert verdict("Figure 3a", crafting((4.0, 6.0), (2.4, 2.62), after=2.5)) == "not"


def test_poisons_that_only_undo_what_random_changes_do_reproduce_nothing():
    """The loss falls from 15 to the 7 that victims of clean images have anyway."""
    for ended, wanted in {7.0: "not", 3.6: "not", 3.4: "reproduced"}.items():
        found = crafting((14.0, 16.0), (ended, ended), before=9.0, after=8.0, clean=(6.0, 8.0))
        assert verdict("Figure 3a", found) == wanted


def test_half_of_the_loss_alone_reproduces_figure_3a_partly():
    name, begun = "Figure 3a", (4.0, 6.0)
    assert verdict(name, crafting(begun, (1.0, 2.0), after=1.51)) == "reproduced"
    assert verdict(name, crafting(begun, (1.0, 2.0), after=1.49)) == "partly"
    assert verdict(name, crafting(begun, (1.0, 2.0), after=2.99)) == "reproduced"
    assert verdict(name, crafting(begun, (1.0, 2.0), after=3.01)) == "partly"
    # A margin is no cross-entropy: losses of surrogates and of victims cannot be compared.
    assert verdict(name, crafting(begun, (1.0, 2.0), objective="margin")) == "partly"
    assert verdict(name, crafting(begun, (2.0, 3.1))) == "not"


def test_surrogates_of_every_pair_count_in_figure_3a():
    found = crafting((4.0, 6.0), (1.0, 2.0), before=3.0, after=2.0)
    second = dict(found.metrics["trials"][4], pair=1, unaffected=[1.0] * 6, unrolled=[2.5] * 6)
    second["course"] = {"target_loss": [99.0, 0.3]}
    found.metrics["trials"].append(second)
    assert verdict("Figure 3a", found) == "partly"  # 2.0 before and 2.25 after
    second["unrolled"] = [1.5] * 6
    outcome = OURS["Figure 3a"].judge(found)
    assert (outcome.verdict, outcome.n) == ("reproduced", 3)
    assert outcome.measured == pytest.approx(1.1)


def steps(first, last, *, fall=0.0, targets=40, clean=0):
    middle = row(targets, targets, accuracy=0.1)
    ended = row(last, targets, accuracy=0.9 - fall, clean=clean)
    return record(row(first, targets), middle, ended)


def test_crafting_must_bring_half_of_the_victims_and_more_than_before():
    found = OURS["Figure 3b"].judge(steps(0, 30))
    assert (found.verdict, found.measured, found.n) == ("reproduced", 0.75, 40)
    assert found.interval == pytest.approx(interval(30, 40))
    # Half of them and one more than before is a part; 19 of 40 end at 62.5 %, 31 begin at 62.5 %.
    assert verdict("Figure 3b", steps(19, 20)) == "partly"
    assert verdict("Figure 3b", steps(19, 30)) == "partly"
    assert verdict("Figure 3b", steps(18, 31)) == "reproduced"
    assert verdict("Figure 3b", steps(20, 20)) == "not"
    assert verdict("Figure 3b", steps(30, 25)) == "not"
    # Below a half the intervals must be apart: none of 40 ends at 8.8 %, and of 40 victims
    # 7 begin at 8.7 %, 8 at 10.5 %.
    assert verdict("Figure 3b", steps(0, 19)) == "partly"
    assert verdict("Figure 3b", steps(0, 8)) == "partly"
    assert verdict("Figure 3b", steps(0, 7)) == "not"
    assert verdict("Figure 3b", steps(0, 4, targets=4)) == "reproduced"
    # Three of four, and none of four clean victims: once in fourteen times that is chance.
    assert verdict("Figure 3b", steps(0, 3, targets=4)) == "not"


def test_crafting_that_reaches_what_clean_victims_do_has_done_nothing():
    assert verdict("Figure 3b", steps(0, 40, clean=35)) == "reproduced"
    assert verdict("Figure 3b", steps(0, 40, clean=36)) == "not"


def test_crafting_may_cost_two_points_of_accuracy():
    assert verdict("Figure 3b", steps(0, 30, fall=0.0199)) == "reproduced"
    assert verdict("Figure 3b", steps(0, 30, fall=0.0201)) == "partly"
    assert verdict("Figure 3b", steps(0, 30, fall=-0.1)) == "reproduced"


# Figure 4 -------------------------------------------------------------------------------------


def pairs(hits, *, clean=0, fall=0.0):
    whole = row(hits, 40, accuracy=0.9 - fall, clean=clean)
    return record(row(20, 20, accuracy=0.3), all=whole, clean_accuracy=0.9)


def test_nearly_all_victims_are_nine_tenths_and_a_half_is_a_part():
    found = OURS["Figure 4"].judge(pairs(37))
    assert (found.verdict, found.measured, found.n) == ("reproduced", 0.925, 40)
    assert found.interval == pytest.approx(interval(37, 40))
    expected = {36: "reproduced", 35: "partly", 20: "partly", 19: "not", 0: "not"}
    assert {hits: verdict("Figure 4", pairs(hits)) for hits in expected} == expected


def test_poisons_may_cost_two_points_beside_clean_victims():
    assert verdict("Figure 4", pairs(36, fall=0.0199)) == "reproduced"
    assert verdict("Figure 4", pairs(36, fall=0.0201)) == "partly"
    assert verdict("Figure 4", pairs(19, fall=-0.1)) == "not"


def test_labels_that_clean_victims_give_as_often_are_no_success():
    # Chance finds 36 of 40 beside 29 in 4.2 % of all cases, beside 30 in 7.0 %; 20 beside 12
    # in 5.5 %, beside 11 in 3.2 %.
    assert verdict("Figure 4", pairs(36, clean=29)) == "reproduced"
    assert verdict("Figure 4", pairs(36, clean=30)) == "not"
    assert verdict("Figure 4", pairs(20, clean=11)) == "partly"
    assert verdict("Figure 4", pairs(20, clean=12)) == "not"


# Figure 5 -------------------------------------------------------------------------------------


def budgets(hits, *, images=1000, by_pair=(20, 20), clean=0):
    """Each pair has as many successes, out of 20, with every budget."""
    rows = [row(count, budget=budget, clean=clean) for budget, count in hits.items()]
    singles = [
        row(count, 20, budget=budget, pair=pair)
        for budget in hits
        for pair, count in enumerate(by_pair)
    ]
    return record(*rows, by_pair=singles, training_images=images)


def test_the_smallest_budget_from_three_percent_on_is_judged():
    name = "Figure 5a"
    found = OURS[name].judge(budgets({100: 40, 50: 30, 29: 0, 30: 22}))
    assert (found.verdict, found.measured, found.n) == ("reproduced", 0.55, 40)
    assert found.interval == pytest.approx(interval(22, 40))
    assert OURS[name].judge(budgets({29: 40, 99: 10, 100: 0})).measured == 0.25
    # Nothing is left where all budgets are smaller or are a tenth already.
    assert verdict(name, budgets({29: 40, 100: 40})) is None
    assert verdict(name, budgets({50: 40})) is None
    # 30 is less than 3 % of more images.
    assert verdict(name, budgets({30: 40, 60: 40}, images=1001)) == "reproduced"
    assert OURS[name].judge(budgets({30: 40, 60: 4}, images=1001)).measured == 0.1


def test_few_poisons_need_half_of_the_victims_or_half_of_the_largest_budget():
    expected = {20: "reproduced", 19: "partly", 15: "partly", 14: "not"}
    for hits, wanted in expected.items():
        found = budgets({10: 40, 40: hits, 80: 0, 200: 30})
        assert verdict("Figure 5a", found) == wanted, hits
    assert verdict("Figure 5a", budgets({40: 0, 200: 0})) == "not"


def test_a_budget_must_do_more_than_clean_images():
    for clean, wanted in {11: "reproduced", 12: "not"}.items():
        assert verdict("Figure 5a", budgets({40: 20, 200: 30}, clean=clean)) == wanted


def test_one_pair_alone_reproduces_a_budget_partly():
    """Five of 20 are more than none (2.4 % by chance), four are not (5.3 %)."""
    for second, wanted in {5: "reproduced", 4: "partly"}.items():
        found = budgets({40: 25, 200: 30}, by_pair=(20, second))
        assert verdict("Figure 5a", found) == wanted


#: The three changes, after what is expected.
CHANGES = ("as expected", "batches and rate doubled", "no momentum", "regularised")


def trained(expected, doubled, plain, regularised, *, clean=(0, 0), by_pair=None):
    """Over all 40 victims; and of each change its pairs, 20 each, by default one half each."""
    hits = dict(zip(CHANGES, (expected, doubled, plain, regularised), strict=True))
    singles = by_pair or {name: (count // 2, count - count // 2) for name, count in hits.items()}
    anyway = dict(zip(CHANGES, clean, strict=False))
    rows = [row(count, change=name, clean=anyway.get(name, 0)) for name, count in hits.items()]
    return record(
        *rows,
        row(0, change="vgg11"),  # another network is none of the three changes
        by_pair=[
            row(count, 20, change=name, pair=pair)
            for name, counts in singles.items()
            for pair, count in enumerate(counts)
        ],
    )


def test_every_change_of_training_must_leave_half_of_the_success():
    name = "Figure 5b"
    found = OURS[name].judge(trained(30, 20, 16, 40))
    assert (found.verdict, found.measured, found.n) == ("reproduced", 16 / 40, 40)
    assert found.interval == pytest.approx(interval(16, 40))
    for weak in ((14, 30, 30), (30, 14, 30), (30, 30, 14), (14, 14, 16)):
        assert verdict(name, trained(30, *weak)) == "partly"
    assert verdict(name, trained(30, 14, 14, 14)) == "not"
    assert verdict(name, trained(20, 10, 10, 10)) == "reproduced"
    assert verdict(name, trained(19, 40, 40, 40)) == "not"


def test_victims_of_clean_images_trained_in_the_same_way_do_not_count_as_success():
    assert verdict("Figure 5b", trained(20, 20, 20, 20, clean=(11, 11))) == "reproduced"
    assert verdict("Figure 5b", trained(20, 20, 20, 20, clean=(12, 0))) == "not"
    assert verdict("Figure 5b", trained(20, 20, 20, 20, clean=(0, 12))) == "partly"


def test_each_of_two_pairs_must_survive_every_change():
    def found(first, second, changed=(20, 10)):
        singles = {"as expected": (first, second), **dict.fromkeys(CHANGES[1:], changed)}
        return trained(30, 30, 30, 30, by_pair=singles)

    assert verdict("Figure 5b", found(20, 20)) == "reproduced"
    assert verdict("Figure 5b", found(20, 20, changed=(20, 9))) == "not"
    # The second pair's attack fails from the beginning: four of 20.
    assert verdict("Figure 5b", found(20, 4, changed=(20, 0))) == "partly"
    assert verdict("Figure 5b", found(4, 4)) == "not"


def test_figure_5b_needs_the_expected_training_and_all_three_changes():
    for place in range(4):
        found = trained(30, 30, 30, 30)
        del found.metrics["rows"][place]
        assert verdict("Figure 5b", found) is None


# Figure 6 -------------------------------------------------------------------------------------


#: What a victim and its clean twin say of the target: only the first is a success.
TAKEN, MISSED, ANYWAY = ("wanted", "own"), ("own", "own"), ("wanted", "wanted")


def asked(said, **about):
    victim, clean = said
    return {
        "predictions": [victim],
        "wanted_class": "wanted",
        "clean": {"predictions": [clean]},
        **about,
    }


def paths(explained, *runs):
    """Runs by what was said, and by how far poisons and random signs lead from the path."""
    trials = [
        asked(said, apart={"poisoned": [0.0, 2 * poisoned], "signs": [0.0, 2 * signs]})
        for said, poisoned, signs in runs or ((TAKEN, 0.6, 0.5),)
    ]
    return record(explained=explained, trials=trials)


def test_two_components_must_explain_nine_tenths_of_the_variance():
    found = OURS["Figure 6a"].judge(paths([0.98, 0.84]))
    assert (found.verdict, found.interval, found.n) == ("reproduced", (0.84, 0.98), 2)
    assert found.measured == pytest.approx(0.91)
    assert verdict("Figure 6a", paths([0.96, 0.83])) == "partly"
    assert verdict("Figure 6a", paths([0.70, 0.81])) == "partly"
    assert verdict("Figure 6a", paths([0.70, 0.79])) == "not"


def test_the_path_must_be_left_by_poisons_that_work_farther_than_by_random_changes():
    name, high = "Figure 6a", [0.96]
    assert verdict(name, paths(high, (TAKEN, 0.6, 0.5), (MISSED, 0.4, 0.5))) == "reproduced"
    assert verdict(name, paths(high, (TAKEN, 0.6, 0.5), (TAKEN, 0.4, 0.5))) == "partly"
    for said in (MISSED, ANYWAY):
        assert verdict(name, paths(high, (said, 0.6, 0.5))) == "not"


def features(*apart, said=TAKEN, in_clean=1.0):
    """Distances in the last layer: of poisons, bases and collisions; others in the first."""
    return record(
        trials=[
            asked(
                said,
                distances={
                    "poisons in victim": [0.1, poisons],
                    "bases in victim": [0.9, bases],
                    "collided in clean": [0.5, 3 * collided],
                    "poisons in clean": [0.0, 3 * in_clean],
                    "bases in clean": [9.0, 3.0],
                },
            )
            for poisons, bases, collided in apart
        ]
    )


def test_poisons_must_stay_half_as_far_as_their_bases_and_farther_than_collisions():
    """In victims, in units of the bases' distance there; collisions in clean networks'."""
    found = OURS["Figure 6b"].judge(features((0.6, 1.0, 0.1), (1.6, 2.0, 0.2)))
    assert (found.verdict, found.n) == ("reproduced", 2)
    assert found.measured == pytest.approx(0.7)
    assert found.interval == pytest.approx((0.6, 0.8))
    assert verdict("Figure 6b", features((0.2, 1.0, 0.1), (1.62, 2.0, 0.2))) == "reproduced"
    assert verdict("Figure 6b", features((0.2, 1.0, 0.1), (1.58, 2.0, 0.2))) == "partly"
    # One pair as near as a collision is enough to refute it.
    assert verdict("Figure 6b", features((0.6, 1.0, 0.59), (1.6, 2.0, 0.2))) == "reproduced"
    assert verdict("Figure 6b", features((0.6, 1.0, 0.6), (1.6, 2.0, 0.2))) == "not"
    assert verdict("Figure 6b", features((0.6, 1.0, 0.2), in_clean=0.21)) == "reproduced"
    assert verdict("Figure 6b", features((0.6, 1.0, 0.2), in_clean=0.19)) == "not"


def test_only_victims_that_the_attack_succeeds_with_say_how_far_its_poisons_are():
    for said in (MISSED, ANYWAY):
        assert verdict("Figure 6b", features((0.9, 1.0, 0.1), said=said)) == "not"
    found = features((0.9, 1.0, 0.1))
    found.metrics["trials"] += features((0.01, 1.0, 0.1), said=MISSED).metrics["trials"]
    assert OURS["Figure 6b"].judge(found).measured == pytest.approx(0.9)
    assert verdict("Figure 6b", found) == "reproduced"


def scenarios(usual, third=0, several=0, *, clean=(0, 0)):
    """Trials by how many of 40 give the first target the wanted label, anyway or on poisons."""
    hits = {"one target": usual, "third party": third, "several targets": several}
    anyway = {"one target": clean[0], "third party": clean[1], "several targets": clean[0]}

    def answers(right, several):
        # The other targets, which no other attack has, are always given the label.
        return {"predictions": ["wanted" if right else "own", *several * ["wanted"]]}

    trials = [
        {
            "scenario": name,
            "wanted_class": "wanted",
            **answers(number < count, others),
            "clean": answers(number < anyway[name], others),
        }
        for name, count in hits.items()
        for others in [2 * (name == "several targets")]
        for number in range(40)
    ]
    return record(trials=trials)


def test_a_third_party_needs_four_fifths_of_the_usual_rate():
    name = "Figure 6c: third party"
    found = OURS[name].judge(scenarios(30, third=24))
    assert (found.verdict, found.measured, found.n) == ("reproduced", 0.6, 40)
    assert found.interval == pytest.approx(interval(24, 40))
    assert verdict(name, scenarios(30, third=23)) == "partly"
    assert verdict(name, scenarios(30, third=15)) == "partly"
    assert verdict(name, scenarios(30, third=14)) == "not"
    # Chance finds 24 of 40 beside 15 in 3.6 % of all cases, beside 16 in 5.9 %.
    assert verdict(name, scenarios(30, third=24, clean=(0, 15))) == "reproduced"
    assert verdict(name, scenarios(30, third=24, clean=(0, 16))) == "not"


def test_several_targets_need_some_successes_and_fewer_than_usual():
    name = "Figure 6c: several targets"
    # Chance finds 30 of 40 beside 22 in 5.0 % of all cases (rounded up), beside 23 in 7.7 %.
    found = OURS[name].judge(scenarios(30, several=21))
    assert (found.verdict, found.measured, found.n) == ("reproduced", 21 / 40, 40)
    assert verdict(name, scenarios(30, several=23)) == "partly"
    assert verdict(name, scenarios(30, several=29)) == "partly"
    assert verdict(name, scenarios(30, several=30)) == "not"
    # A tenth less is not a fifth, however sure.
    assert verdict(name, scenarios(40, several=32)) == "reproduced"
    assert verdict(name, scenarios(40, several=33)) == "partly"
    # 5 of 40 are more than none (2.7 %), 4 are not (5.8 %).
    assert verdict(name, scenarios(30, several=5)) == "reproduced"
    assert verdict(name, scenarios(30, several=4)) == "not"


@pytest.mark.parametrize("name", ["third party", "several targets"])
def test_scenarios_mean_nothing_where_the_usual_attack_fails(name):
    for usual in (0, 19):
        assert verdict(f"Figure 6c: {name}", scenarios(usual, third=19, several=11)) == "not"
    assert verdict(f"Figure 6c: {name}", scenarios(20, third=20, several=11)) == "reproduced"
    found = scenarios(20, third=20, several=11, clean=(15, 0))
    assert verdict(f"Figure 6c: {name}", found) == "not"


# What rules look at ---------------------------------------------------------------------------


def test_rules_that_speak_of_percentages_name_those_that_their_thresholds_are():
    """What the words say is what the tests above have found."""
    said = {
        "Figure 3a": ["last third", "at most half", "of clean images"],
        "Figure 3b": ["at least half", "at most 2 points", "intervals are apart"],
        "Figure 4": ["at least 90 %", "at most 2 points", "at least 50 %", "5 %"],
        "Figure 5a": ["at least 50 %", "at least half of the rate with the largest"],
        "Figure 5b": ["each of the three changes at least half", "at least two pairs"],
        "Figure 6a": ["at least 90 %", "at least 75 %"],
        "Figure 6b": ["in every run", "on average at least a half"],
        "Figure 6c: third party": ["at least 80 %", "at least 50 %", "less than half"],
        "Figure 6c: several targets": ["at most 80 %", "less often", "less than half"],
    }
    assert said.keys() == OURS.keys()
    for name, words in said.items():
        for text in words:
            assert text in OURS[name].rule, (name, text)
    assert "of 3 % and more, but less than 10 %" in OURS["Figure 5a"].quantity
