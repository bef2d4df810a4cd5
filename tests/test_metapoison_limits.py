"""Beyond the paper: what rounding, the filter, other targets and switches make of the victims."""

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
from torch import Tensor

from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.metapoison.pairs import begin
from poisonkit.experiments.metapoison.steps import Poisons
from poisonkit.models import features


@pytest.fixture(scope="module")
def laboratory(caches) -> MetaPoisonLaboratory:
    return MetaPoisonLaboratory.below(caches)


def test_rounded_poisons_and_their_victims_are_those_of_figure_4(store):
    laboratory = MetaPoisonLaboratory(store)
    attacked = {
        (trial["pair"], trial["victim"]): trial
        for trial in laboratory.record("victims").metrics["trials"]
    }
    # The clean networks that are asked beside them are those of any other experiment.
    laboratory.record("training", changes=("as expected",), networks=())
    made = laboratory.count("poisons"), laboratory.count("networks")
    record = laboratory.record("limits", measures=("rounded",))
    assert (laboratory.count("poisons"), laboratory.count("networks")) == made
    assert len(record.metrics["trials"]) == 4
    for trial in record.metrics["trials"]:
        other = attacked[trial["pair"], trial["victim"]]
        own = {key: value for key, value in trial.items() if key not in ("measure", "clean")}
        assert {key: other[key] for key in own} == own


def test_victims_of_poisons_that_are_not_rounded_train_on_the_floats(laboratory):
    config, record = configure("limits"), laboratory.record("limits")
    trials = [t for t in record.metrics["trials"] if t["measure"] == "not rounded"]
    rounded = [t for t in record.metrics["trials"] if t["measure"] == "rounded"]
    assert len(trials) == 4
    for trial, other in zip(trials, rounded, strict=True):
        assert trial["wanted_probability"] != other["wanted_probability"]
        data, pair, poisons = laboratory.attack(config, trial["pair"])
        found = 0

        def exact(_: object, x: Tensor, y: Tensor, poisons: Poisons = poisons) -> Tensor:
            nonlocal found
            x = x.clone()
            for k, image in enumerate(x):
                for own, before in zip(poisons.last.images, poisons.images, strict=True):
                    if torch.equal((255 * image).round().to(torch.uint8), own):
                        x[k] = before
                        found += 1
            return x

        whole = with_poisons(data, pair.rows, poisons.last.images)
        own = victim(config, whole, trial["victim"], transform=exact)
        assert found == 8 * 4  # poisons and epochs
        is_of(trial, own, pair, data)


def removed_by_hand(points: np.ndarray) -> set[int]:
    """Which images of a class lie farthest along the top singular vector: 15 %."""
    centred = points - points.mean(0)
    _, _, vectors = np.linalg.svd(centred, full_matrices=False)
    scores = (centred @ vectors[0]) ** 2
    return set(np.flatnonzero(scores > np.percentile(scores, 85)).tolist())


def test_after_the_filter_a_victim_is_trained_on_what_it_left(laboratory):
    config, record = configure("limits"), laboratory.record("limits")
    trials = [t for t in record.metrics["trials"] if t["measure"] == "spectral filter"]
    assert len(trials) == 4
    for trial in trials:
        data, pair, poisons = laboratory.attack(config, trial["pair"])
        whole = with_poisons(data, pair.rows, poisons.last.images)
        points = features(victim(config, whole, trial["victim"]), whole.x, "hidden").double()
        keep = np.ones(120, dtype=bool)
        for label in range(10):
            rows = np.flatnonzero(whole.y.numpy() == label)
            keep[rows[list(removed_by_hand(points.numpy()[rows]))]] = False
        # Of twelve images of a class, two lie above the percentile.
        assert trial["kept"] == keep.sum() == 100
        assert trial["kept_poisons"] == keep[list(pair.rows)].sum()
        assert 6 <= trial["kept_poisons"] <= 8
        rest = whole.select(torch.from_numpy(keep))
        is_of(trial, victim(config, rest, trial["victim"]), pair, data)
    check_rows(record.metrics["rows"], record.metrics["trials"], "measure")
    [row] = [row for row in record.metrics["rows"] if row["measure"] == "spectral filter"]
    assert row["poisons"] == 4 * 8
    assert row["kept_poisons"] == sum(trial["kept_poisons"] for trial in trials)
    measured = {row["measure"] for row in record.metrics["rows"] if "kept_poisons" in row}
    assert measured == {"spectral filter", "random removal"}


def test_random_removal_takes_as_many_images_of_each_class_whichever(laboratory):
    config, record = configure("limits"), laboratory.record("limits")
    trials = [t for t in record.metrics["trials"] if t["measure"] == "random removal"]
    assert [trial["kept"] for trial in trials] == [100] * 4
    pairs = {}
    for trial in trials:
        pairs.setdefault(trial["pair"], []).append(trial["kept_poisons"])
        data, pair, poisons = laboratory.attack(config, trial["pair"])
        whole = with_poisons(data, pair.rows, poisons.last.images)
        points = torch.randn(120, 8, generator=torch.Generator().manual_seed(trial["victim"]))
        keep = np.ones(120, dtype=bool)
        for label in range(10):
            rows = np.flatnonzero(whole.y.numpy() == label)
            keep[rows[list(removed_by_hand(points.double().numpy()[rows]))]] = False
        assert trial["kept_poisons"] == keep[list(pair.rows)].sum()
        rest = whole.select(torch.from_numpy(keep))
        is_of(trial, victim(config, rest, trial["victim"]), pair, data)
    # Neither the network nor the poisons have a say.
    assert len({tuple(counts) for counts in pairs.values()}) == 1


def test_no_profile_looks_for_poisons_in_a_class_of_nothing_else():
    for profile, size in (("quick", 60), ("small", 500), ("paper", 5000)):
        assert EXPERIMENTS["metapoison/limits"].configure(profile=profile).poisons <= size / 2


def test_each_target_of_the_class_is_attacked_once_by_each_victim_and_asked_of_a_clean_network(
    laboratory,
):
    config, record = configure("targets"), laboratory.record("targets")
    trials = record.metrics["trials"]
    assert sorted((t["target"], t["victim"]) for t in trials) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    test = laboratory.context.load("digits", "test", image_size=8)
    nines = (test.y == 9).nonzero().flatten().tolist()
    for trial in trials:
        assert trial["targets"] == [nines[trial["target"]]]
        own = replace(config, target=trial["target"])
        data, pair, poisons = laboratory.attack(own)
        clean = chances(victim(config, data.train, trial["victim"]), test.x[trial["targets"]])[0]
        assert trial["clean"]["wanted_probability"] == pytest.approx([clean[3]], rel=1e-5)
        assert trial["clean"]["predictions"] == [str(clean.argmax())]
        whole = with_poisons(data, pair.rows, poisons.last.images)
        is_of(trial, victim(config, whole, trial["victim"]), pair, data)
    check_rows(record.metrics["rows"], trials, "target")
    counts(record.metrics["all"], trials)


def test_classes_that_are_not_given_are_drawn_once_for_all_targets(laboratory):
    config = replace(configure("targets", victims=1), poison_class=None, target_class=None, seed=5)
    pair = begin(config, 0, laboratory.context)[1]
    trials = laboratory.record_of("targets", config).metrics["trials"]
    classes = {(trial["poison_class"], trial["target_class"]) for trial in trials}
    assert classes == {(str(pair.poison_label), str(int(pair.targets.y[0])))} != {("3", "9")}
    assert len({trial["targets"][0] for trial in trials}) == 2


def test_every_switch_crafts_other_poisons(laboratory):
    attacked = laboratory.record("victims").metrics["trials"]
    record = laboratory.record("switches")
    trials = record.metrics["trials"]
    names = [trial["switch"] for trial in trials]
    assert names == list(configure("switches").switches)
    [other] = [t for t in attacked if (t["pair"], t["victim"]) == (0, 0)]
    assert {key: trials[names.index("paper")][key] for key in other} == other
    answers = {trial["wanted_probability"][0] for trial in trials}
    assert len(answers) == len(trials) > 4
    check_rows(record.metrics["rows"], trials, "switch")
