"""Victims that are fine-tuned end to end, by poisons in one layer or several (Figures 7 and 8)."""

import copy

import numpy as np
import pytest
import torch
from convex_polytope_laboratory import ConvexPolytopeLaboratory, answers, configure, poisoned

from poisonkit.attacks import polytope
from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.convex_polytope import end_to_end
from poisonkit.experiments.convex_polytope.data import begin
from poisonkit.experiments.convex_polytope.steps import victim
from poisonkit.training import fit


@pytest.fixture(scope="module")
def laboratory(caches) -> ConvexPolytopeLaboratory:
    return ConvexPolytopeLaboratory.below(caches)


def test_end_to_end_victims_change_every_layer_but_no_running_average(
    laboratory, store, monkeypatch
):
    seen = []

    def watched(network, images, *arguments, **options):
        before = {key: value.clone() for key, value in network.state_dict().items()}
        found = fit(network, images, *arguments, **options)
        seen.append((before, network.state_dict(), images))
        return found

    monkeypatch.setattr(end_to_end, "fit", watched)
    options = {"attacks": ("last layer",), "victims": ("preact_resnet8",)}
    config = configure("end_to_end", **options, **{"whole_network.epochs": 1})
    laboratory.record("end_to_end", **options, **{"whole_network.epochs": 1})
    data, cost = begin(config, laboratory.context)
    network = victim(config, data, "preact_resnet8", laboratory.context, cost)
    assert len(seen) == 1 + 2  # without poisons, and with those of each target
    checksums = [images.checksum for _, _, images in seen]
    assert checksums[0] == data.fine_tuning.checksum
    assert len(set(checksums)) == 3
    for before, after, images in seen:
        for key, value in network.state_dict().items():
            assert torch.equal(before[key], value), "each starts from the pre-trained network"
            statistic = any(word in key for word in ("running", "num_batches", "mean", "deviation"))
            assert torch.equal(after[key], value) is statistic, key
        changed = (images.x != data.fine_tuning.x).flatten(1).any(1).nonzero().flatten().tolist()
        assert changed == ([] if images.checksum == checksums[0] else list(data.rows))


@pytest.mark.parametrize(
    "options", [{"statistics": "batch"}, {"head": "fresh"}], ids=["batch", "fresh"]
)
def test_statistics_and_the_last_layer_may_be_other_ones(options, laboratory):
    """Fine-tuned once more, with what is asked for; the usual victims answer otherwise."""
    own = {"attacks": ("last layer",), "victims": ("preact_resnet8",)}
    found, usual = (laboratory.record("end_to_end", **own, **more) for more in (options, {}))
    config = configure("end_to_end", **own, **options)
    data, cost = begin(config, laboratory.context)
    network = copy.deepcopy(victim(config, data, "preact_resnet8", laboratory.context, cost))
    if "head" in options:
        layer = network.body.linear
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            layer.reset_parameters()
    how = options.get("statistics", "running")
    fit(network, data.fine_tuning, config.whole_network, seed=config.seed, statistics=how)
    entries = [record.metrics["trials"][0]["victims"][0] for record in (found, usual)]
    assert entries[0]["clean"] == answers(network, data.targets.x)
    right = np.array(answers(network, data.test.x)) == data.test.y.numpy()
    assert entries[0]["clean_accuracy"] == pytest.approx(right.mean())
    assert entries[0]["clean_accuracy"] != entries[1]["clean_accuracy"]


def test_the_victim_without_poisons_is_the_same_for_every_attack(laboratory):
    record, config = laboratory.record("end_to_end"), configure("end_to_end")
    data, cost = begin(config, laboratory.context)
    for name in config.victims:
        own = [e for t in record.metrics["trials"] for e in t["victims"] if e["victim"] == name]
        assert len(own) == 2
        assert own[0]["clean"] == own[1]["clean"]
        assert own[0]["clean_accuracy"] == own[1]["clean_accuracy"]
        network = copy.deepcopy(victim(config, data, name, laboratory.context, cost))
        fit(
            network,
            data.fine_tuning,
            config.whole_network,
            seed=config.seed,
            statistics="running",
        )
        assert own[0]["clean"] == answers(network, data.targets.x)
        right = np.array(answers(network, data.test.x)) == data.test.y.numpy()
        assert own[0]["clean_accuracy"] == pytest.approx(right.mean())


def test_each_target_is_asked_of_the_victim_that_had_its_own_poisons(laboratory):
    options = {"attacks": ("last layer",), "victims": ("small_cnn",)}
    record, config = (
        laboratory.record("end_to_end", **options),
        configure("end_to_end", **options),
    )
    data, cost = begin(config, laboratory.context)
    poisons = laboratory.poisons("end_to_end", **options)
    [[entry]] = [trial["victims"] for trial in record.metrics["trials"]]
    assert len(entry["accuracy"]) == 1  # the first target only, as `tested` says
    for number, images in enumerate(poisons.rounded):
        network = copy.deepcopy(victim(config, data, "small_cnn", laboratory.context, cost))
        own = poisoned(data, images)
        fit(network, own, config.whole_network, seed=config.seed, statistics="running")
        assert entry["predictions"][number] == answers(network, data.targets.x)[number]
        right = np.array(answers(network, images)) == 9
        assert entry["fitted"][number] == pytest.approx(right.mean())
        if number == 0:
            right = np.array(answers(network, data.test.x)) == data.test.y.numpy()
            assert entry["accuracy"] == pytest.approx([right.mean()])


def test_of_each_victims_answers_the_one_to_its_own_target_counts(laboratory, monkeypatch):
    """Victims that answer with their own number, and the target's, in the order of training."""
    trained = []

    def fine_tuned(config, data, network, images, tested, *_):
        trained.append(images.checksum)
        number = len(trained) - 1
        answers = [100 * number + target for target in range(len(data.targets))]
        return {"predictions": answers, "accuracy": number if tested else None, "fitted": 1.0}

    monkeypatch.setattr(end_to_end, "_fine_tuned", fine_tuned)
    options = {"targets": 5, "targets_at_once": 3, "tested": 4, "attacks": ("last layer",)}
    config = configure("end_to_end", **options, victims=("small_cnn",))
    experiment = EXPERIMENTS["convex_polytope/end_to_end"]
    for unit, targets in zip(experiment.units(config), ([0, 1, 2], [3, 4]), strict=True):
        trained.clear()
        numbers, _ = experiment.trial(config, unit, laboratory.context)
        [entry] = numbers["victims"]
        # Victim 0 has no poisons; each of the others has those of one target.
        assert len(trained) == len(set(trained)) == 1 + len(targets)
        assert entry["clean"] == targets
        assert entry["predictions"] == [100 * (k + 1) + target for k, target in enumerate(targets)]
        assert entry["clean_accuracy"] == 0
        assert entry["accuracy"] == [k + 1 for k, target in enumerate(targets) if target < 4]


def test_poisons_in_all_layers_are_crafted_with_all_of_them(laboratory, monkeypatch):
    given, made = [], []

    def watched(train, nets, *arguments, procedure, **options):
        given.append(([one.taps for one in nets], procedure))
        done = craft(train, nets, *arguments, procedure=procedure, **options)
        made.append(done.losses)
        return done

    craft = polytope.craft
    monkeypatch.setattr(polytope, "craft", watched)
    # Another substitute, so that nothing of it is in the store.
    attacks = ("last layer", "all stages", "two layers", "two layers, as released")
    options = {
        "attacks": attacks,
        "substitutes": ("resnet14",),
        "victims": ("small_cnn",),
        "procedure.iterations": 1,
        "whole_network.epochs": 1,
    }
    record = laboratory.record("end_to_end", **options)
    assert [row["attack"] for row in record.metrics["rows"]] == list(attacks)
    assert [taps for taps, _ in given] == [
        [("pool",)],
        [("group1", "group2", "pool")],
        [("group3.0", "pool")],
        [("group3.0", "pool")],
    ]
    assert [procedure.pooled for _, procedure in given] == ["polytope"] * 3 + ["released"]
    # This network's pooled layer is of maps of one pixel, and collides as released all the same.
    whole, released = (losses.double() for losses in made[-2:])
    assert not torch.allclose(whole, released, rtol=0.01)
