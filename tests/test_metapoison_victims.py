"""MetaPoison's victims: of each step, pair, budget, training, scenario (Figures 2 to 5, 6c)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from metapoison_laboratory import (
    MetaPoisonLaboratory,
    chances,
    check_rows,
    configure,
    counts,
    is_of,
    victim,
    with_poisons,
)

from poisonkit.experiments.metapoison.pairs import begin


@pytest.fixture(scope="module")
def laboratory(caches) -> MetaPoisonLaboratory:
    return MetaPoisonLaboratory.below(caches)


# Figures 2 and 3 ------------------------------------------------------------------------------


def test_a_victim_of_each_kept_step_is_trained_on_the_poisons_of_that_step(laboratory):
    config, record = configure("crafting"), laboratory.record("crafting")
    data, pair, poisons = laboratory.attack(config)
    assert len(poisons.course) == 3
    trials = record.metrics["trials"]
    kinds = {(t["crafted"], t["victim"], t["pair"]) for t in trials}
    assert kinds == {(step, number, 0) for step in (0, 2, 3) for number in (0, 1)}
    assert len(trials) == len(kinds)
    for trial in trials:
        assert trial["targets"] == list(pair.numbers)
        if trial["victim"] == 1:
            kept = poisons.course[(0, 2, 3).index(trial["crafted"])].images
            is_of(trial, victim(config, with_poisons(data, pair.rows, kept), 1), pair, data)
    check_rows(record.metrics["rows"], trials, "crafted")
    check_rows(record.metrics["by_pair"], trials, "crafted", "pair")


def test_the_record_of_the_crafting_shows_the_poisons_the_target_and_the_losses_once(laboratory):
    config, record = configure("crafting"), laboratory.record("crafting")
    data, pair, poisons = laboratory.attack(config)
    [shown] = [trial for trial in record.metrics["trials"] if "unaffected" in trial]
    number = record.metrics["trials"].index(shown)
    assert (shown["crafted"], shown["victim"]) == (3, 0)
    assert shown["unaffected"] == pytest.approx(poisons.unaffected.tolist())
    assert shown["unrolled"] == pytest.approx(poisons.unrolled.tolist())
    assert len(shown["unrolled"]) == 3
    bases = data.train.x[list(pair.rows)]
    arrays = {name.partition(".")[2]: value for name, value in record.arrays.items()}
    assert {name.partition(".")[0] for name in record.arrays} == {str(number)}
    assert torch.equal(arrays.pop("pictures.target"), pair.targets.x)
    assert torch.equal(arrays.pop("pictures.bases"), bases)
    assert len(arrays) == 3
    for place, poison in enumerate(poisons.course):
        assert torch.equal(arrays[f"pictures.poisons.{place}"], poison.images)
    moved = (poisons.last.images.short() - bases.short()).abs()
    assert shown["largest_change"] == int(moved.max())


# Figure 4 -------------------------------------------------------------------------------------


def test_clean_victims_are_asked_about_the_targets_of_all_pairs(laboratory):
    config, record = configure("victims"), laboratory.record("victims")
    clean = [trial for trial in record.metrics["trials"] if trial["pair"] is None]
    assert [trial["victim"] for trial in clean] == [0, 1]
    taken = np.zeros((2, 2))
    for trial in clean:
        data = begin(config, 0, laboratory.context)[0]
        own = victim(config, data.train, trial["victim"])
        for number in range(2):
            pair = begin(config, number, laboratory.context)[1]
            found = chances(own, pair.targets.x)
            loss = trial["course"][f"pair{number}_target_loss"]
            assert loss[-1] == pytest.approx(-np.log(found[0, pair.wanted]), rel=1e-5)
            assert len(loss) == 4
            taken[number, trial["victim"]] = found[0].argmax() == pair.wanted
            success = trial["course"][f"pair{number}_success"]
            assert success[-1] == taken[number, trial["victim"]]
        right = chances(own, data.test.x).argmax(1) == data.test.y.numpy()
        assert trial["course"]["test"][-1] == pytest.approx(right.mean())
    rows = record.metrics["rows"]
    assert [row["clean_rate"] for row in rows] == taken.mean(1).tolist()
    assert [row["clean_hits"] for row in rows] == taken.sum(1).tolist()
    whole = record.metrics["all"]
    assert (whole["clean_hits"], whole["clean_targets"]) == (taken.sum(), taken.size)
    assert whole["clean_rate"] == taken.mean()


def test_the_summary_of_the_victims_counts_those_of_poisons(laboratory):
    config, record = configure("victims"), laboratory.record("victims")
    metrics = record.metrics
    poisoned = [trial for trial in metrics["trials"] if trial["pair"] is not None]
    assert len(poisoned) == 4
    # Some are taken and some are not; else any count would do.
    assert 0 < metrics["all"]["hits"] < metrics["all"]["targets"]
    counts(metrics["all"], poisoned)
    check_rows(metrics["rows"], poisoned, "pair")
    clean = [t["course"]["test"][-1] for t in metrics["trials"] if t["pair"] is None]
    assert metrics["clean_accuracy"] == pytest.approx(np.mean(clean))
    for trial in poisoned:
        data, pair, poisons = laboratory.attack(config, trial["pair"])
        own = victim(config, with_poisons(data, pair.rows, poisons.last.images), trial["victim"])
        is_of(trial, own, pair, data)
        assert (trial["poisons"], trial["training_images"]) == (8, 120)


# Figure 5 -------------------------------------------------------------------------------------


def test_each_budget_is_that_many_poisons(laboratory):
    config, record = configure("budget"), laboratory.record("budget")
    trials = record.metrics["trials"]
    assert [(row["budget"], row["victims"]) for row in record.metrics["rows"]] == [(3, 4), (8, 4)]
    check_rows(record.metrics["rows"], trials, "budget")
    check_rows(record.metrics["by_pair"], trials, "budget", "pair")
    assert record.metrics["training_images"] == 120
    for trial in trials:
        assert trial["poisons"] == trial["budget"]
        own = replace(config, poisons=trial["budget"])
        data, pair, poisons = laboratory.attack(own, trial["pair"])
        whole = with_poisons(data, pair.rows, poisons.last.images)
        assert len((whole.x != data.train.x).flatten(1).any(1).nonzero()) == trial["budget"]
        if trial["victim"] == trial["pair"] == 0:
            is_of(trial, victim(config, whole, 0), pair, data)


def test_victims_that_are_trained_otherwise_meet_the_poisons_that_were_made_for_the_expected(
    store,
):
    laboratory = MetaPoisonLaboratory(store)
    expected = laboratory.record("training", changes=("as expected",), networks=())
    poisons, before = laboratory.count("poisons"), laboratory.networks()
    record = laboratory.record("training")
    assert laboratory.count("poisons") == poisons
    trials = record.metrics["trials"]
    assert trials[:2] == expected.metrics["trials"]
    check_rows(record.metrics["rows"], trials, "change")
    config = configure("training")
    data, pair, found = laboratory.attack(config)
    whole = with_poisons(data, pair.rows, found.last.images)
    for trial in trials:
        if trial["change"] in ("resnet8", "five_block_cnn") and trial["victim"] == 0:
            # A network's own width, whatever that of the surrogates.
            other = replace(config, model=trial["change"], width=None)
            is_of(trial, victim(other, whole, 0), pair, data)
            clean = chances(victim(other, data.train, 0), pair.targets.x)[:, pair.wanted]
            assert trial["clean"]["wanted_probability"] == pytest.approx(clean.tolist(), rel=1e-5)
    # One for each change and victim is trained on the clean images, one on the poisoned ones.
    new = [spec["data"] for key, spec in laboratory.networks().items() if key not in before]
    changed = 2 * (len(record.metrics["rows"]) - 1)
    assert {data.train.checksum, whole.checksum} == set(new)
    assert new.count(whole.checksum) == new.count(data.train.checksum) == changed


# Figure 6c ------------------------------------------------------------------------------------


def test_scenarios_are_one_target_a_third_party_and_several_targets(laboratory):
    attacked = {
        (trial["pair"], trial["victim"]): trial
        for trial in laboratory.record("victims").metrics["trials"]
    }
    config, record = configure("scenarios"), laboratory.record("scenarios")
    trials = record.metrics["trials"]
    assert len(trials) == 3 * 4
    check_rows(record.metrics["rows"], trials, "scenario")
    check_rows(record.metrics["by_pair"], trials, "scenario", "pair")
    assert [row["targets"] for row in record.metrics["rows"]] == [4, 4, 8]
    for trial in trials:
        assert (trial["poison_class"], trial["target_class"]) == ("3", "9")
        if trial["scenario"] == "one target":
            other = attacked[trial["pair"], trial["victim"]]
            assert {key: trial[key] for key in other} == other
        elif trial["scenario"] == "third party":
            assert len(trial["targets"]) == 1
            assert trial["wanted_class"] not in ("3", "9")
        else:
            assert len(set(trial["targets"])) == 2
            assert trial["wanted_class"] == "3"
            own = replace(config, targets=2)
            data, pair, poisons = laboratory.attack(own, trial["pair"])
            whole = with_poisons(data, pair.rows, poisons.last.images)
            is_of(trial, victim(config, whole, trial["victim"]), pair, data)
            assert trial["targets"] == list(pair.numbers)
