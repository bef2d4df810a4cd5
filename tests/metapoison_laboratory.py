"""What the tests of the MetaPoison experiments share: tiny settings, victims, counts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from laboratory import Laboratory, Options
from torch import Tensor

from poisonkit.attacks import metapoison, polytope
from poisonkit.experiments.metapoison import mechanism
from poisonkit.experiments.metapoison.pairs import Data, Pair, begin
from poisonkit.experiments.metapoison.steps import Poisons, crafted
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create
from poisonkit.statistics import wilson
from poisonkit.store import Json
from poisonkit.training import fit

#: As quick as can be, and with changes so large that some targets are taken.
TINY: Options = {
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
OWN: dict[str, Options] = {
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


class MetaPoisonLaboratory(Laboratory):
    chapter = "metapoison"
    tiny = TINY
    own = OWN

    def networks(self) -> dict[str, Json]:
        """What each trained network in the store was trained with."""
        return {
            path.stem: json.loads(path.read_text())["spec"]
            for path in self.store.cache.glob("networks/*.json")
        }

    def attack(self, config: Any, number: int = 0) -> tuple[Data, Pair, Poisons]:
        data, pair, cost = begin(config, number, self.context)
        return data, pair, crafted(config, data, pair, self.context, cost)


configure = MetaPoisonLaboratory.configure


def forbid_making(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every crafting, and training of a network by its steps, a failure of the test."""

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
