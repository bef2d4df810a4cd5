"""The MetaPoison experiments: what their records hold, and what they refuse."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from poisonkit.attacks import metapoison, polytope
from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.metapoison import mechanism, switches, variations
from poisonkit.experiments.metapoison.mechanism import distances_by_layer, pull, weight_path
from poisonkit.experiments.metapoison.pairs import Data, Pair, begin
from poisonkit.experiments.metapoison.steps import Poisons, crafted
from poisonkit.experiments.networks import Context
from poisonkit.experiments.settings import as_json
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create, features
from poisonkit.statistics import wilson
from poisonkit.store import Json, Record, Store
from poisonkit.training import fit

#: As quick as can be, and with changes so large that some targets are taken.
TINY: dict[str, object] = {
    "images_per_class": 12,
    "poison_class": "3",
    "target_class": "9",
    "poisons": 8,
    "pairs": 2,
    "width": 2,
    "procedure.epsilon": 1.0,
    "procedure.steps": 3,
    "procedure.surrogates": 2,
    "procedure.batch_size": 40,
    "kept_every": 2,
    "victims": 2,
    "recipe.batch_size": 60,
    "recipe.epochs": 4,
    "tested_per_class": 5,
}
OWN: dict[str, dict[str, object]] = {
    "crafting": {"pairs": 1, "target": 4},
    "victims": {},
    "budget": {"budgets": (3, 8)},
    "training": {"pairs": 1},
    "scenarios": {},
    "mechanism": {"pairs": 1, "victims": 1, "arrows": 3, "collided": 4, "iterations": 30},
    "limits": {},
    "targets": {"pairs": 1, "victims": 2, "tried": 2},
    "switches": {"pairs": 1, "victims": 1},
}


def configure(name: str, **options: object) -> Any:
    given = {**TINY, **OWN[name], **options}
    return EXPERIMENTS[f"metapoison/{name}"].configure(profile="quick", **given)


@dataclass(frozen=True)
class Laboratory:
    """One store for all the tests here: what two experiments share is made once."""

    store: Store

    @property
    def context(self) -> Context:
        return Context(store=self.store, device="cpu")

    def record(self, name: str, **options: object) -> Record:
        return self.record_of(name, configure(name, **options))

    def record_of(self, name: str, config: Any) -> Record:
        return run(EXPERIMENTS[f"metapoison/{name}"], config, store=self.store, device="cpu")

    def count(self, kind: str) -> int:
        return len(list(self.store.cache.glob(f"{kind}/*.json")))

    def networks(self) -> dict[str, Json]:
        """What each trained network in the store was trained with."""
        return {
            path.stem: json.loads(path.read_text())["spec"]
            for path in self.store.cache.glob("networks/*.json")
        }

    def attack(self, config: Any, number: int = 0) -> tuple[Data, Pair, Poisons]:
        data, pair, cost = begin(config, number, self.context)
        return data, pair, crafted(config, data, pair, self.context, cost)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory) -> Laboratory:
    return Laboratory(Store(frozen=None, cache=tmp_path_factory.mktemp("cache")))


@pytest.fixture
def nothing_made(no_training, monkeypatch) -> None:
    """Make every training and every crafting a failure of the test."""

    def make(*_: object, **__: object) -> None:
        raise AssertionError("something was trained or crafted")

    monkeypatch.setattr(mechanism, "fit", make)
    monkeypatch.setattr(metapoison, "craft", make)
    monkeypatch.setattr(polytope, "craft", make)


def with_poisons(data: Data, rows: Sequence[int], images: Tensor) -> ImageSet:
    x = data.train.x.clone()
    for row, image in zip(rows, images, strict=True):
        x[row] = image
    return replace(data.train, x=x)


def victim(config: Any, images: ImageSet, number: int, **options: Any) -> Classifier:
    """Train a network without the experiments."""
    seed = config.seed + 5000 + number
    widths = {} if config.width is None else {"width": config.width}
    network = create(config.model, like=images, seed=seed, **widths)
    fit(network, images, config.recipe, seed=seed, **options)
    return network.eval()


def chances(network: Classifier, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        logits = network.eval()(x.float() / 255).double().numpy()
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def is_of(trial: Json, network: Classifier, pair: Pair, data: Data) -> None:
    """Compare a trial's outcome with what a network answers."""
    found = chances(network, pair.targets.x)
    assert trial["wanted_probability"] == pytest.approx(found[:, pair.wanted].tolist(), rel=1e-5)
    assert trial["predictions"] == [data.train.class_names[k] for k in found.argmax(1)]
    right = chances(network, data.test.x).argmax(1) == data.test.y.numpy()
    assert trial["course"]["test"][-1] == pytest.approx(right.mean())


def counts(row: Json, trials: Sequence[Json]) -> None:
    """Count once more what a row says about its trials."""
    answers = [
        answer == trial["wanted_class"] for trial in trials for answer in trial["predictions"]
    ]
    low, high = wilson(sum(answers), len(answers))
    assert (row["hits"], row["targets"]) == (sum(answers), len(answers))
    assert (row["rate"], row["low"], row["high"]) == (np.mean(answers), low, high)
    shares = [trial["course"]["in_batch_success"][-1] for trial in trials for _ in trial["targets"]]
    assert row["in_batch"]["hits"] == pytest.approx(sum(shares))
    assert row["in_batch"]["rate"] == pytest.approx(np.mean(shares))
    accuracies = [trial["course"]["test"][-1] for trial in trials]
    assert row["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    if len(trials) > 1:
        assert row["accuracy"]["deviation"] == pytest.approx(np.std(accuracies, ddof=1))
    assert row["victims"] == len(trials)
    anyway = [
        answer == trial["wanted_class"]
        for trial in trials
        if "clean" in trial
        for answer in trial["clean"]["predictions"]
    ]
    if anyway:
        assert (row["clean_hits"], row["clean_targets"]) == (sum(anyway), len(anyway))
        assert row["clean_rate"] == np.mean(anyway)


def check_rows(rows: Sequence[Json], trials: Sequence[Json], *keys: str) -> None:
    kinds = list(dict.fromkeys(tuple(trial[key] for key in keys) for trial in trials))
    assert [tuple(row[key] for key in keys) for row in rows] == kinds
    for row, kind in zip(rows, kinds, strict=True):
        counts(row, [t for t in trials if tuple(t[key] for key in keys) == kind])


CHAPTER = [name for name in EXPERIMENTS if name.startswith("metapoison/")]


def test_every_experiment_of_the_chapter_is_looked_at_here():
    assert [f"metapoison/{name}" for name in OWN] == CHAPTER


# Profiles and variants ------------------------------------------------------------------------


def stand_in_for_cifar10(per_class: int) -> ImageSet:
    generator = torch.Generator().manual_seed(per_class)
    count = 10 * per_class
    x = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    return ImageSet(x=x, y=torch.arange(count) % 10, class_names=tuple(names), name="stand-in")


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_every_profile_and_variant_can_be_run_on_its_data(
    name, variant, profile, store, nothing_made, monkeypatch
):
    """Its classes, networks and colours exist; real CIFAR-10 is not needed to see that."""
    experiment = EXPERIMENTS[f"metapoison/{name}"]
    config = experiment.configure(profile=profile, variant=variant)
    if config.dataset == "cifar10":
        few = {"images_per_class": 3, "poisons": 3, "budgets": (1, 3), "tested_per_class": 2}
        config = replace(config, **{key: few[key] for key in few if hasattr(config, key)})
        sets = {"train": stand_in_for_cifar10(3), "test": stand_in_for_cifar10(4)}
        monkeypatch.setattr(Context, "load", lambda self, name, split, **_: sets[split])
    units = experiment.units(config)
    assert len({json.dumps(unit, sort_keys=True) for unit in units}) == len(units) > 0
    kinds: dict[object, Json] = {}
    for unit in units:
        kind = {key: value for key, value in unit.items() if key not in ("pair", "victim", "step")}
        kinds.setdefault(None if "target" in kind else str(kind), unit)
    for unit in kinds.values():
        experiment.check(config, unit, Context(store=store, device="cpu"))
        if name in ("switches", "scenarios", "training", "budget"):
            colour = config.procedure.colour or "colours" in unit.get("switch", "")
            assert config.dataset == "cifar10" or not colour


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
    laboratory,
):
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


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_each_change_of_the_training_is_what_its_name_says(profile):
    experiment = EXPERIMENTS["metapoison/training"]
    changes = ("batches and rate doubled", "no momentum", "momentum", "regularised")
    config = experiment.configure(profile=profile, changes=("as expected", *changes))
    plain = as_json(config)
    found = {}
    for unit in experiment.units(config):
        own = as_json(variations._trained_otherwise(config, unit))
        changed = {key: value for key, value in own.items() if value != plain[key]}
        if "recipe" in changed:
            changed["recipe"] = {
                key: value for key, value in own["recipe"].items() if value != plain["recipe"][key]
            }
        found[unit["change"]] = changed
    assert found.pop("as expected") == found.pop("momentum") == {}
    doubled = {"batch_size": 2 * plain["recipe"]["batch_size"], "learning_rate": 0.2}
    assert found.pop("batches and rate doubled") == {"recipe": doubled}
    assert found.pop("no momentum") == {"recipe": {"momentum": 0.0}}
    regular = {"weight_decay": 2e-4, "crop_padding": 4, "flip": True}
    if profile == "quick":
        regular = {"weight_decay": 2e-4, "crop_padding": 1}
    assert found.pop("regularised") == {"recipe": regular}
    assert set(found) == set(config.networks)
    for name, changed in found.items():
        assert changed["model"] == name != config.model
        assert changed.get("surrogate") in (None, config.model)
        assert set(changed) <= {"model", "surrogate", "width"}


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


# Figure 6a and b ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked_into(laboratory) -> tuple[Any, Json, dict[str, Tensor], Data, Pair, ImageSet]:
    config, record = configure("mechanism"), laboratory.record("mechanism")
    data, pair, poisons = laboratory.attack(config)
    [trial] = record.metrics["trials"]
    arrays = {name.removeprefix("0."): value for name, value in record.arrays.items()}
    whole = with_poisons(data, pair.rows, poisons.last.images)
    assert record.metrics["explained"] == [sum(trial["explained"])]
    return config, trial, arrays, data, pair, whole


def test_both_paths_start_at_the_same_weights_and_keep_their_distances_in_the_plane(
    looked_into, laboratory
):
    config, trial, arrays, data, _, whole = looked_into
    clean, poisoned = (
        weight_path(config, images, 0, laboratory.context) for images in (data.train, whole)
    )
    assert torch.equal(arrays["path.clean"][0], arrays["path.poisoned"][0])
    assert torch.equal(clean[0], poisoned[0])
    assert len(arrays["path.clean"]) == len(arrays["path.poisoned"]) == 5
    points = torch.cat([clean, poisoned]).double().numpy()
    left, values, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    assert trial["explained"] == pytest.approx((values**2 / (values**2).sum())[:2].tolist())
    seen = left[:, :2] * values[:2]
    found = torch.cat([arrays["path.clean"], arrays["path.poisoned"]]).numpy()
    for one, other in ((seen, found), (seen[:5], arrays["path.clean"].numpy())):
        gaps = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (one, other)]
        assert gaps[1] == pytest.approx(gaps[0], rel=1e-4, abs=1e-5)


def test_arrows_stand_on_the_clean_path_and_are_the_pull_in_the_plane(looked_into, laboratory):
    config, _, arrays, data, _, whole = looked_into
    path = weight_path(config, data.train, 0, laboratory.context)
    rows = [0, 2, 4]  # three of five places, the first and the last among them
    assert torch.equal(arrays["arrows.at"], arrays["path.clean"][rows])
    network = create("small_cnn", like=data.train, seed=1, width=2)
    pulls = [pull(network, path[row], data.train, whole).double() for row in rows]
    other = weight_path(config, whole, 0, laboratory.context)
    points = torch.cat([path, other]).double().numpy()
    _, _, axes = np.linalg.svd(points - points.mean(0), full_matrices=False)
    for row, arrow, own in zip(rows, arrays["arrows.to"], pulls, strict=True):
        expected = axes[:2] @ own.numpy()
        assert np.abs(arrow.numpy()) == pytest.approx(np.abs(expected), rel=1e-3, abs=1e-5)
        # In the same direction: it has the same component along a step of the path.
        step = points[4] - points[0]
        along = (arrays["path.clean"][4] - arrays["path.clean"][0]).numpy()
        inside = axes[:2].T @ (axes[:2] @ step)
        assert arrow.numpy() @ along == pytest.approx(own.numpy() @ inside, rel=1e-3, abs=1e-4), row


def test_the_way_from_the_clean_path_is_measured_in_all_weights(looked_into, laboratory):
    """Beside it that of random changes: the poisons as they were before the first step."""
    config, trial, arrays, data, pair, whole = looked_into
    poisons = laboratory.attack(config)[2]
    noise = with_poisons(data, pair.rows, poisons.course[0].images)
    assert not torch.equal(noise.x, whole.x)
    clean, poisoned, changed = (
        weight_path(config, images, 0, laboratory.context).double().numpy()
        for images in (data.train, whole, noise)
    )
    unit = np.linalg.norm(clean[-1] - clean[0])
    for name, path in (("poisoned", poisoned), ("noise", changed)):
        expected = [np.linalg.norm(a - b) / unit for a, b in zip(path, clean, strict=True)]
        assert trial["apart"][name] == pytest.approx(expected)
        assert trial["apart"][name][0] == 0 < trial["apart"][name][-1]
    assert set(trial["apart"]) == {"poisoned", "noise"}
    assert len(arrays["path.noise"]) == len(arrays["path.clean"])


def test_a_look_at_weights_and_features_says_what_became_of_the_target(looked_into):
    config, trial, _, data, pair, whole = looked_into
    is_of(trial, victim(config, whole, 0), pair, data)
    clean = chances(victim(config, data.train, 0), pair.targets.x)
    assert trial["clean"]["predictions"] == [str(clean[0].argmax())]


def test_distances_are_of_bases_poisons_and_collided_images_in_the_two_networks(looked_into):
    config, trial, _, data, pair, whole = looked_into
    networks = {"clean": victim(config, data.train, 0), "victim": victim(config, whole, 0)}
    images = {"bases": data.train.x[list(pair.rows)], "poisons": whole.x[list(pair.rows)]}
    assert trial["layers"] == ["block1", "block2", "block3", "hidden"]
    for name, network in networks.items():
        for kind, x in images.items():
            expected = distances_by_layer(network, x, pair.targets)
            assert trial["distances"][f"{kind} in {name}"] == pytest.approx(expected, rel=1e-4)
    assert set(trial["distances"]) == {
        *(f"{kind} in {name}" for kind in images for name in networks),
        "collided in clean",
    }
    # What collides does so in the last representation.
    first = images["bases"][:4]
    before = distances_by_layer(networks["clean"], first, pair.targets)[-1]
    assert trial["distances"]["collided in clean"][-1] < 0.9 * before


# Beyond the paper -----------------------------------------------------------------------------


def test_rounded_poisons_and_their_victims_are_those_of_figure_4(laboratory):
    attacked = {
        (trial["pair"], trial["victim"]): trial
        for trial in laboratory.record("victims").metrics["trials"]
    }
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


# Switches -------------------------------------------------------------------------------------


def test_each_switch_changes_the_crafting_as_it_says_and_nothing_else():
    experiment = EXPERIMENTS["metapoison/switches"]
    config = experiment.configure(switches=tuple(switches.SWITCHES))
    plain = as_json(config)
    found = {}
    for unit in experiment.units(config):
        own = as_json(switches._switched(config, unit))
        found[unit["switch"]] = {
            key: value
            for key, value in own["procedure"].items()
            if value != plain["procedure"][key]
        }
        assert {**own, "procedure": plain["procedure"]} == plain
    assert found == {
        "paper": {},
        "margin loss": {"objective": "margin"},
        "loss of all unrolled steps": {"losses": "all"},
        "smaller change, and of colours": {
            "epsilon": 8 / 255,
            "colour": 0.04,
            "smoothness": 8.0,
        },
        "surrogates trained on poisons": {"trajectory": "poisoned"},
        "surrogates trained on clean images": {},  # the paper's
        "one unrolled step": {"unroll": 1},
        "two unrolled steps": {},  # the paper's
        "sign of the gradient": {"optimizer": "sign"},
    }


@pytest.mark.parametrize(("profile", "colours"), [("quick", 1), ("small", 3)])
def test_off_the_papers_scale_no_switch_is_what_the_profile_does_anyway(profile, colours):
    experiment = EXPERIMENTS["metapoison/switches"]
    config = experiment.configure(profile=profile)
    procedures = {}
    for unit in experiment.units(config):
        procedure = as_json(switches._switched(config, unit))["procedure"]
        if procedure["unroll"] == 1:
            procedure["losses"] = "last"  # it is all there is
        procedures[unit["switch"]] = json.dumps(procedure)
    assert procedures["paper"] == json.dumps(as_json(config)["procedure"])
    assert len(set(procedures.values())) == len(procedures) >= 5
    assert ("smaller change, and of colours" in procedures) == (colours == 3)


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


# Records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_a_record_made_again_from_what_is_in_the_cache_is_the_same(name, laboratory, request):
    first = laboratory.record(name)
    arrays = first.arrays
    trials = [
        path
        for path in laboratory.store.cache.glob("trials/*.json")
        if json.loads(path.read_text())["spec"]["experiment"] == first.experiment
    ]
    assert trials
    if name != "mechanism":  # its paths are made anew
        request.getfixturevalue("nothing_made")
    for gone in ([], trials):
        for path in (first.path, *gone):
            path.unlink()
        again = laboratory.record(name)
        assert again.digest == first.digest
        assert again.metrics == first.metrics
        assert again.arrays.keys() == arrays.keys()
        assert all(torch.equal(again.arrays[key], value) for key, value in arrays.items())
    request.getfixturevalue("nothing_made")
    assert laboratory.record(name) == again
    data = begin(configure(name), 0, laboratory.context)[0]
    assert first.provenance["data_checksum"] == data.train.checksum


@pytest.mark.parametrize(
    ("name", "options"),
    [("crafting", {"victims": 1}), ("mechanism", {}), ("limits", {"pairs": 1, "victims": 1})],
)
def test_a_record_made_anew_is_the_same(name, options, laboratory, store):
    first = laboratory.record(name, **options)
    config = configure(name, **options)
    again = run(EXPERIMENTS[f"metapoison/{name}"], config, store=store, device="cpu")
    assert again.path != first.path
    assert again.digest == first.digest


# Requests that cannot be met ------------------------------------------------------------------

ALL = tuple(OWN)
WITHOUT_A_NUMBER_OF_THEIR_OWN = tuple(name for name in OWN if name not in ("budget",))
ONE_TARGET = tuple(name for name in OWN if name not in ("targets", "scenarios"))
REFUSED: list[tuple[tuple[str, ...], dict[str, object], str]] = [
    (ALL, {"target_class": "3"}, "poisons and targets are both of class '3'"),
    (("victims", "targets"), {"poison_class": "cat"}, "unknown class .*'cat'; known: 0, 1"),
    (("victims", "mechanism"), {"target_class": "cat"}, "unknown class .*'cat'; known: 0, 1"),
    (("victims", "limits"), {"wanted_class": "cat"}, "unknown class .*'cat'; known: 0, 1"),
    (
        WITHOUT_A_NUMBER_OF_THEIR_OWN,
        {"poisons": 13},
        "13 poisons are asked for, but class '3' has 12 training images",
    ),
    (("budget",), {"budgets": (3, 13)}, "13 poisons are asked for, but class '3' has 12"),
    (("crafting", "limits"), {"poisons": 0}, "poisons must be at least 1, not 0"),
    (("budget",), {"budgets": (3, 0)}, "poisons must be at least 1, not 0"),
    (("budget",), {"budgets": ()}, "no trials"),
    (("budget",), {"budgets": (3, 3)}, "budgets names something twice"),
    (ALL, {"wanted_class": "9"}, "target 0 is of class '9', the label that it is to be given"),
    (ONE_TARGET, {"target": 36}, "target 36 is not one of the 36 test images of class '9'"),
    (
        ("crafting", "mechanism"),
        {"target": -1},
        "target -1 is not one of the 36 test images of class '9'",
    ),
    (("scenarios",), {"target": 1}, "with one target chosen, targets must be 1, not 2"),
    (("victims", "limits"), {"targets": 2, "target": 1}, "targets must be 1, not 2"),
    (("victims", "mechanism"), {"targets": 37}, "37 targets .* class '9' has 36 test images"),
    (("scenarios",), {"several": 37}, "37 targets .* class '9' has 36 test images"),
    (("scenarios",), {"several": 1}, "several must be at least 2, not 1"),
    (("victims", "switches"), {"targets": 0}, "targets must be at least 1, not 0"),
    (("targets",), {"tried": 37}, "target 36 is not one of the 36 test images"),
    (("targets",), {"tried": 0}, "tried must be at least 1"),
    (("targets",), {"pairs": 2}, "pairs 1"),
    (("victims",), {"pairs": 0}, "pairs must be at least 1, not 0"),
    (("crafting", "limits", "mechanism", "training"), {"pairs": 0}, "no trials"),
    (("crafting", "limits", "victims", "budget"), {"victims": 0}, "no trials"),
    (("mechanism",), {"victims": -1}, "no trials"),
    (
        ("crafting", "victims", "mechanism"),
        {"kept_every": 0},
        "kept_every must be at least 1, not 0",
    ),
    (("budget", "targets"), {"tested_per_class": 0}, "tested_per_class must be at least 1, not 0"),
    (("victims",), {"tested_per_class": 36}, "has 35 images, not the 0 . 36 asked for"),
    (("victims",), {"images_per_class": 500}, "not the 0 . 500 asked for"),
    (
        ("victims", "limits", "mechanism"),
        {"model": "lenet"},
        "unknown model 'lenet'; known: .*small_cnn",
    ),
    (
        ("victims", "training", "switches"),
        {"surrogate": "lenet"},
        "unknown model 'lenet'; known: .*small_cnn",
    ),
    (ALL, {"model": "compact_cnn"}, r"compact_cnn cannot take images of \(8, 8\) pixels"),
    (
        ("crafting", "scenarios", "targets"),
        {"surrogate": "compact_cnn"},
        r"compact_cnn cannot take images of \(8, 8\) pixels",
    ),
    (
        ("training",),
        {"networks": ("resnet8", "compact_cnn")},
        r"compact_cnn cannot take images of \(8, 8\) pixels",
    ),
    (("crafting", "training", "limits"), {"width": 0}, "at least 1 channel wide, not 0"),
    (ALL, {"procedure.colour": 0.04}, "recolouring needs 3 channels, not .*1"),
    (
        ("switches",),
        {"switches": ("paper", "smaller change, and of colours")},
        "recolouring needs 3 channels, not .*1",
    ),
    (("switches",), {"switches": ("paper", "slow")}, "unknown switch 'slow'; known: paper, margin"),
    (("switches",), {"switches": ("paper", "paper")}, "switches names something twice"),
    (("training",), {"changes": ("tired",)}, "unknown change 'tired'; known: as expected, batches"),
    (("training",), {"changes": ("momentum",) * 2}, "changes names something twice"),
    (("training",), {"networks": ("resnet8",) * 2}, "networks names something twice"),
    (("training",), {"networks": ("lenet",)}, "unknown model 'lenet'"),
    (("training",), {"changes": ("resnet8",)}, "changes_and_networks names something twice"),
    (("limits",), {"measures": ("blurred",)}, "unknown measure 'blurred'; known: rounded, not"),
    (("limits",), {"measures": ("rounded",) * 2}, "measures names something twice"),
    (("limits",), {"recipe.crop_padding": 1}, "not rounded go without crops and flips"),
    (("limits",), {"recipe.flip": True}, "not rounded go without crops and flips"),
    (("victims", "mechanism"), {"recipe.crop_padding": 8}, "crop_padding of 8 pixels is too much"),
    (("training",), {"padding": 8}, "crop_padding of 8 pixels is too much"),
    (("mechanism",), {"arrows": 0}, "arrows, collided and iterations must be at least 1"),
    (("mechanism",), {"collided": 0}, "arrows, collided and iterations must be at least 1"),
    (("mechanism",), {"iterations": 0}, "arrows, collided and iterations must be at least 1"),
    (("victims", "targets"), {"dataset": "digit"}, "known: digits, mnist"),
]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        pytest.param(name, options, told, id=f"{name}-{options}")
        for names, options, told in REFUSED
        for name in names
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_cannot_be_done_is_refused_before_anything_is_trained_or_crafted(
    name, options, told, store, nothing_made, untouched
):
    # A target of the class's own would hide what else is wrong.
    own = {"target": None} if name == "crafting" and "target" not in options else {}

    def attempt():
        config = configure(name, **own, **options)
        run(EXPERIMENTS[f"metapoison/{name}"], config, store=store, device="cpu")

    with pytest.raises(PoisonkitError, match=f"(?s){told}"):
        attempt()
    assert not list(store.cache.rglob("*.json"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"procedure.epsilon": 0.0}, "epsilon must lie in"),
        ({"procedure.steps": 0}, "steps must be at least 1"),
        ({"procedure.objective": "hinge"}, "one of cross-entropy, margin|known: cross-entropy"),
        ({"recipe.epochs": 0}, "epochs must be at least 1"),
        ({"standardise": "words"}, "one of data, none, bytes"),
    ],
)
def test_what_no_configuration_can_be_is_refused_with_what_it_can(options, told):
    with pytest.raises(PoisonkitError, match=told):
        configure("victims", **options)
