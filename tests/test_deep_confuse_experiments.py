"""The Deep Confuse experiments: their trials, and what their records hold."""

import itertools
import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from deep_confuse_laboratory import ATTACKS, OWN, DeepConfuseLaboratory, configure, forbid_learning

from poisonkit.data import load
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.deep_confuse.first_steps import steps_looked_at
from poisonkit.experiments.deep_confuse.switches import SWITCHES
from poisonkit.experiments.deep_confuse.transfer import _attacked
from poisonkit.experiments.settings import as_json
from poisonkit.figures.deep_confuse import switches_table


@pytest.fixture(scope="module")
def laboratory(caches) -> DeepConfuseLaboratory:
    return DeepConfuseLaboratory.below(caches)


@pytest.fixture
def nothing_learned(no_training, monkeypatch) -> None:
    """Make every training of a network or of a generator a failure of the test."""
    forbid_learning(monkeypatch)


def is_summary(found: dict, values: list[float]) -> bool:
    deviation = pytest.approx(statistics.stdev(values)) if len(values) > 1 else None
    return found["mean"] == pytest.approx(statistics.fmean(values)) and (
        found["deviation"] == deviation
    )


# Trials ---------------------------------------------------------------------------------------


def test_every_deep_confuse_experiment_is_looked_at_here():
    names = {name for name in EXPERIMENTS if name.startswith("deep_confuse/")}
    assert names == {f"deep_confuse/{name}" for name in OWN}


@pytest.mark.parametrize("name", OWN)
def test_there_is_a_trial_for_each_classifier_of_each_generator(name):
    config = configure(name, generators=3, repeats=2)
    units = list(EXPERIMENTS[f"deep_confuse/{name}"].units(config))
    assert len({tuple(sorted(unit.items(), key=str)) for unit in units}) == len(units)
    groups: dict[tuple[object, ...], list[dict]] = {}
    for unit in units:
        about = {key: value for key, value in unit.items() if key not in ("generator", "seed")}
        groups.setdefault(tuple(about.items()), []).append(unit)
    for about, group in groups.items():
        # Without a generator there is nothing to repeat for each.
        plain = dict(about).get("epsilon") == 0.0 or dict(about).get("kind") == "clean"
        # And without anything drawn, nothing to repeat for each classifier.
        fixed = dict(about).get("classifier") == "support vector machine"
        assert len(group) == (2 if plain else 3 if fixed else 6), about
        assert len({unit["seed"] for unit in group}) == len(group)
        assert len({unit["generator"] for unit in group}) == (1 if plain else 3)


# Records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attacks_accuracies_are_means_over_its_trials(name, laboratory):
    record = laboratory.record(name)
    trials = record.metrics["trials"]
    assert [(trial["generator"], trial["seed"]) for trial in trials] == [(0, 0), (0, 1)]
    found = record.metrics["accuracy"]
    assert len(found) == 11
    for path, summary in found.items():
        kind, what = path.split(".")
        assert is_summary(summary, [trial[kind][what] for trial in trials]), path
    for trial in trials:
        for kind in ("clean", "perturbed"):
            assert len(trial[kind]["train"]) == len(trial[kind]["test"]) == 3
            assert trial[kind]["test"][-1] == trial[kind]["accuracy"]
        assert 0 < trial["largest_change"] <= 0.3 * 255
        assert len(trial["learning"]["loss"]) == 2
        assert [check["trial"] for check in trial["learning"]["checks"]] == [1, 2]
        assert trial["clean"]["accuracy"] != trial["perturbed"]["accuracy"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("epsilon", ("epsilon",)),
        ("share", ("kind", "epsilon", "share")),
        ("network_share", ("kind", "epsilon", "share")),
    ],
)
def test_a_row_of_a_strength_is_the_mean_of_its_own_trials(name, keys, laboratory):
    metrics = laboratory.record(name).metrics
    for row in metrics["rows"]:
        own = [t for t in metrics["trials"] if all(t[key] == row[key] for key in keys)]
        assert row["runs"] == len(own) == 2
        assert is_summary(row, [trial["accuracy"] for trial in own])
    seen = {tuple(trial[key] for key in keys) for trial in metrics["trials"]}
    assert len(metrics["rows"]) == len(seen)


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("mnist", "network"),
        ("epsilon", "network_epsilon"),
        ("share", "network_share"),
        ("transfer", "network_transfer"),
        ("label_map", "network_label_map"),
    ],
)
def test_the_attack_on_the_released_network_differs_in_the_network_alone(profile, name, own):
    """At `small` it has some of the bounds and shares, those that the verdicts need."""
    text, code = (
        as_json(EXPERIMENTS[f"deep_confuse/{one}"].configure(profile=profile))
        for one in (name, own)
    )
    changed: dict[str, object] = {"model": "released_two_layer_cnn"}
    if name == "transfer":
        changed["resized"] = "attacked"
    if profile == "small":
        for points in code.keys() & {"epsilons", "shares"}:
            assert set(code[points]) < set(text[points])
            changed[points] = code[points]
    assert code == {**text, **changed}


def test_a_small_and_a_large_network_are_the_released_one_where_that_is_attacked():
    """Half and twice its channels, as in the authors' code; of the text's network otherwise."""
    for name, model in (
        ("transfer", "two_layer_cnn_bn_average_logits"),
        ("network_transfer", "released_two_layer_cnn"),
    ):
        config = EXPERIMENTS[f"deep_confuse/{name}"].configure(profile="small")
        for classifier, width in (("small", 10), ("original", None), ("large", 40)):
            own = _attacked(config, {"classifier": classifier})
            assert (own.model, own.width) == (model, width)
            assert own.recipe == config.recipe


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("transfer", "classifier"),
        ("transfer_cifar10", "classifier"),
        ("transfer_imagenet2", "classifier"),
        ("network_transfer", "classifier"),
        ("defences", "defence"),
    ],
)
def test_a_row_of_a_victim_is_the_mean_of_its_own_trials(name, key, laboratory):
    metrics = laboratory.record(name).metrics
    config = configure(name)
    assert [row[key] for row in metrics["rows"]] == list(getattr(config, f"{key}s"))
    for row in metrics["rows"]:
        own = [trial for trial in metrics["trials"] if trial[key] == row[key]]
        once = row[key] == "support vector machine"  # nothing in it is drawn
        assert row["runs"] == len(own) == (1 if once else 2)
        for kind in ("clean", "perturbed"):
            summary = {"mean": row[kind], "deviation": row[f"{kind}_deviation"]}
            assert is_summary(summary, [trial[kind] for trial in own])


@pytest.mark.parametrize("looks", [1, 3, 12])
@pytest.mark.parametrize("total", [1, 9, 10, 5628])
def test_a_training_is_looked_at_as_often_in_every_tenfold_of_steps(looks, total):
    steps = steps_looked_at(total, looks)
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-1] == total
    for low in (10, 100, 1000):
        if total > 10 * low:
            assert len([step for step in steps if low <= step < 10 * low]) == looks
    if total > 10:
        ratios = [b / a for a, b in itertools.pairwise(steps[:-1]) if a >= 100]
        assert ratios == pytest.approx([10 ** (1 / looks)] * len(ratios), rel=0.01)


def test_a_first_steps_record_ends_in_the_networks_of_table_1(laboratory):
    attacked = laboratory.record("mnist").metrics["trials"]
    metrics = laboratory.record("first_steps").metrics
    trials = metrics["trials"]
    assert [trial["way"] for trial in trials] == ["as in Table 1"] * 2 + [
        "gradient descent",
        "gradient descent",
        "with momentum",
        "with momentum",
    ]
    for trial in trials:
        # 300 images in batches of 64, three epochs; the last of them ends at 15.
        assert trial["steps"] == [1, 2, 5, 10, 15]
        assert trial["tested"] == {"clean": len(load("digits", split="test")), "perturbed": 50}
    for trial, table in zip(trials[:2], attacked, strict=True):
        clean = dict(zip(trial["steps"], trial["clean"], strict=True))
        assert [clean[5], clean[10], clean[15]] == table["perturbed"]["test"]
    assert len({tuple(trial["clean"]) for trial in trials}) == 6


def test_the_lowest_accuracy_is_looked_for_once_the_noise_is_learned():
    """Not among networks that know nothing yet, which are at the level of guessing."""
    config = configure("first_steps", ways=("with momentum",))
    about = {"way": "with momentum", "steps": [1, 2, 4, 8, 16], "steps_in_epoch": 4}
    runs = [
        {**about, "clean": [0.0, 0.2, 0.1, 0.3, 0.4], "perturbed": [0.1, 0.3, 0.6, 0.9, 1.0]},
        {**about, "clean": [0.0, 0.2, 0.3, 0.0, 0.6], "perturbed": [0.1, 0.5, 0.8, 0.9, 1.0]},
    ]
    [row] = EXPERIMENTS["deep_confuse/first_steps"].summarise(config, runs)["rows"]
    for name, step, clean, perturbed in (
        ("lowest", 8, (0.3, 0.0), (0.9, 0.9)),
        ("first_epoch", 4, (0.1, 0.3), (0.6, 0.8)),
        ("last", 16, (0.4, 0.6), (1.0, 1.0)),
    ):
        assert row[name]["step"] == step
        assert is_summary(row[name]["clean"], [*clean])
        assert is_summary(row[name]["perturbed"], [*perturbed])


def test_the_table_says_of_every_switch_what_it_changes(laboratory):
    record = laboratory.record("switches")
    row = record.metrics["rows"][0]
    rows = [{**row, "switch": name} for name in SWITCHES]
    table = switches_table(replace(record, metrics={**record.metrics, "rows": rows})).data
    assert [*table["Switch"]] == [*SWITCHES]
    assert table["Meaning"].nunique() == len(SWITCHES)
    assert "-" not in {*table["Meaning"]}


def test_a_row_of_a_switch_is_the_mean_of_its_own_trials(laboratory):
    metrics = laboratory.record("switches").metrics
    assert [row["switch"] for row in metrics["rows"]] == list(OWN["switches"]["switches"])
    for row in metrics["rows"]:
        own = [trial for trial in metrics["trials"] if trial["switch"] == row["switch"]]
        assert row["runs"] == len(own) == 2
        for kind in ("clean", "perturbed"):
            for how in ("accuracy", "batch_statistics"):
                assert is_summary(row[f"{kind}.{how}"], [trial[kind][how] for trial in own])


def test_a_label_map_records_rates_are_read_off_its_confusion_matrices(laboratory):
    record, config = laboratory.record("label_map"), configure("label_map")
    test = load("digits", split="test")
    for trial in record.metrics["trials"]:
        counts = np.array(trial["confusion"])
        assert counts.sum(1).tolist() == test.y.bincount().tolist()
        assert trial["accuracy"] == pytest.approx(counts.trace() / len(test))
        hits = sum(counts[label, wanted] for label, wanted in enumerate(config.label_map))
        assert trial["hit_rate"] == pytest.approx(hits / len(test))
    assert [row["kind"] for row in record.metrics["rows"]] == [
        "clean",
        "any wrong label",
        "label map",
    ]
    for row in record.metrics["rows"]:
        own = [t for t in record.metrics["trials"] if t["kind"] == row["kind"]]
        for name in ("accuracy", "hit_rate"):
            summary = {"mean": row[name], "deviation": row[f"{name}_deviation"]}
            assert is_summary(summary, [trial[name] for trial in own])
        shares = np.mean([np.array(t["confusion"]) for t in own], axis=0)
        assert np.allclose(row["confusion"], shares / shares.sum(1, keepdims=True))
        assert np.allclose(np.sum(row["confusion"], axis=1), 1)


def test_only_the_label_specific_generator_depends_on_the_label_map(laboratory):
    laboratory.record("label_map")
    generators, networks = laboratory.count("generators"), laboratory.count("networks")
    laboratory.record("label_map", label_map=(1, 0, 3, 2, 5, 4, 7, 6, 9, 8), repeats=1)
    assert laboratory.count("generators") == generators + 1
    assert laboratory.count("networks") == networks + 1


@pytest.mark.parametrize("name", OWN)
def test_a_record_made_again_from_what_is_in_the_cache_is_the_same(name, laboratory, request):
    first = laboratory.record(name)
    request.getfixturevalue("nothing_learned")
    arrays = first.arrays
    trials = [
        path
        for path in laboratory.store.cache.glob("trials/*.json")
        if json.loads(path.read_text())["spec"]["experiment"] == first.experiment
    ]
    # Of the finished trials, and then of the networks and generators alone.
    for gone in ([], trials):
        for path in (first.path, *gone):
            path.unlink()
        again = laboratory.record(name)
        assert again.digest == first.digest
        assert again.metrics == first.metrics
        assert all(torch.equal(again.arrays[key], value) for key, value in arrays.items())
        assert again.provenance["data_checksum"] == load("digits").first_per_class(30).checksum


def test_a_record_made_anew_is_the_same(laboratory, store):
    first = laboratory.record("mnist")
    config = configure("mnist")
    again = run(EXPERIMENTS["deep_confuse/mnist"], config, store=store, device="cpu")
    assert again.path != first.path
    assert again.digest == first.digest
