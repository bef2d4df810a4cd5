"""Beyond the paper: a filter, other bounds and numbers of poisons, switches of the crafting."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from convex_polytope_laboratory import (
    ConvexPolytopeLaboratory,
    configure,
    frozen_victim,
    into_linear,
    poisoned,
)
from torch import Tensor

from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.convex_polytope import limits, switches
from poisonkit.experiments.convex_polytope.data import Data, begin
from poisonkit.experiments.convex_polytope.steps import victim
from poisonkit.experiments.convex_polytope.victims import FrozenVictim
from poisonkit.experiments.settings import as_json
from poisonkit.models import Classifier


@pytest.fixture(scope="module")
def laboratory(caches) -> ConvexPolytopeLaboratory:
    return ConvexPolytopeLaboratory.below(caches)


@pytest.fixture
def frozen(store) -> tuple[FrozenVictim, Any, Data, Classifier, Tensor]:
    return frozen_victim(store)


def removed_by_hand(points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Who of one class lies farthest along the top singular vector, and all scores."""
    centred = points - points.mean(0)
    score = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2
    return np.argsort(-score)[:count], score


@pytest.mark.parametrize("count", [2, 5])
def test_the_filter_is_told_the_number_of_poisons_and_takes_half_as_many_again(count, laboratory):
    options = {"epsilons": (0.3,), "counts": (2, 5)}
    record, config = laboratory.record("limits", **options), configure("limits", **options)
    [trial] = [t for t in record.metrics["trials"] if (t["epsilon"], t["poisons"]) == (0.3, count)]
    data, cost = begin(replace(config, poisons=count), laboratory.context)
    poisons = laboratory.poisons("limits", **options, poisons=count)
    for entry in trial["victims"]:
        network = victim(config, data, entry["victim"], laboratory.context, cost)
        assert entry["removed"] == math.ceil(1.5 * count)
        for number, images in enumerate(poisons.rounded):
            whole = poisoned(data, images)
            points = into_linear(network, whole.x).flatten(1).double().numpy()
            kept = np.ones(len(whole), dtype=bool)
            for label in range(10):
                rows = np.flatnonzero(whole.y.numpy() == label)
                out, score = removed_by_hand(points[rows], entry["removed"])
                kept[rows[out]] = False
                if label == 9:
                    bad = np.isin(rows, data.rows)
                    pairs = [(a, b) for a in score[bad] for b in score[~bad]]
                    above = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
                    assert entry["auroc"][number] == pytest.approx(above, abs=1e-6)
            assert entry["left"][number] == kept[list(data.rows)].sum()


def test_without_the_poisons_the_victims_answer_does_not_depend_on_them(frozen, monkeypatch):
    """Where the filter finds every poison, any others would have done no more."""
    _, config, data, network, images = frozen
    longer = replace(config, fine_tuning=replace(config.fine_tuning, epochs=60))
    seen = FrozenVictim(longer, data, network, "hidden")
    found = []
    # The targets' own pictures, as poisons, would take every target along.
    copies = data.targets.x[:, None].expand_as(images)
    taken = seen.predict(*seen.fine_tune(copies), data.targets)
    assert taken == [data.poison_label] * 3
    for given in (images, copies):
        with monkeypatch.context() as patched:
            patched.setattr(limits, "spectral_filter", finds_all(data))
            found.append(limits._filtered(seen, given, data, data.targets))
    assert found[0]["left"] == found[1]["left"] == [0, 0, 0]
    assert found[0]["filtered"] == found[1]["filtered"] != taken
    assert found[0]["auroc"] == [1.0] * 3


def finds_all(data: Data) -> Callable[..., Any]:
    def filtered(points, labels, *, suspected):
        assert suspected == len(data.rows)
        bad = torch.zeros(len(labels), dtype=torch.bool)
        bad[list(data.rows)] = True
        real = spectral_filter(points, labels, suspected=suspected)
        return replace(real, keep=~bad, scores=bad.float())

    spectral_filter = limits.spectral_filter
    return filtered


def test_a_row_of_the_limits_counts_all_victims_before_and_after_the_filter(laboratory):
    metrics = laboratory.record("limits").metrics
    assert len(metrics["rows"]) == 3  # (0.1, 5), (0.3, 5), (0.3, 2)
    for row in metrics["rows"]:
        [trial] = [
            t
            for t in metrics["trials"]
            if (t["epsilon"], t["poisons"]) == (row["epsilon"], row["poisons"])
        ]
        entries = trial["victims"]
        assert row["targets"] == row["filtered"]["targets"] == 2 * len(entries)
        assert row["hits"] == sum(entry["predictions"].count(9) for entry in entries)
        assert row["filtered"]["hits"] == sum(entry["filtered"].count(9) for entry in entries)
        left = [value for entry in entries for value in entry["left"]]
        assert row["left"] == pytest.approx(np.mean(left) / row["poisons"])
        assert row["auroc"] == pytest.approx(np.mean([e["auroc"] for e in entries]))


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_each_switch_changes_the_crafting_in_a_way_of_its_own(profile):
    experiment = EXPERIMENTS["convex_polytope/switches"]
    config = experiment.configure(profile=profile, switches=tuple(switches.SWITCHES))
    found = {
        unit["switch"]: switches._resolved(config, unit)
        for unit in experiment.units(config)
        if unit["first"] == 0
    }
    assert found.pop("as described") == config
    procedures = {name: as_json(own)["procedure"] for name, own in found.items()}
    plain = as_json(config)["procedure"]
    changed = {
        name: {key: value for key, value in own.items() if value != plain[key]}
        for name, own in procedures.items()
    }
    quarter = plain["iterations"] // 4
    assert changed == {
        "target's dropout drawn anew": {"target_mask": "every"},
        "no dropout for the target": {"target_mask": "without"},
        "no dropout": {"dropout": False},
        "steps in pixels": {"unit": "pixels"},
        "steps in pixels, a fifth": {"unit": "pixels", "learning_rate": 0.04 / 5},
        "a quarter of the steps": {"iterations": quarter},
    }
    for own in found.values():
        assert replace(own, procedure=config.procedure) == config


def test_a_quarter_of_the_steps_of_the_paper_are_a_thousand_and_never_none():
    experiment = EXPERIMENTS["convex_polytope/switches"]
    unit = {"switch": "a quarter of the steps", "first": 0}
    assert switches._resolved(experiment.configure(), unit).procedure.iterations == 1000
    few = experiment.configure(**{"procedure.iterations": 3})
    assert switches._resolved(few, unit).procedure.iterations == 1


def test_a_row_of_a_switch_counts_all_victims_and_targets(laboratory):
    names = ("as described", "steps in pixels", "a quarter of the steps", "no dropout")
    metrics = laboratory.record("switches", switches=names).metrics
    assert [row["switch"] for row in metrics["rows"]] == list(names)
    for row, trial in zip(metrics["rows"], metrics["trials"], strict=True):
        assert trial["switch"] == row["switch"]
        entries = trial["victims"]
        assert row["targets"] == 2 * len(entries) == 4
        assert row["hits"] == sum(entry["predictions"].count(9) for entry in entries)
        assert row["unrounded"]["hits"] == sum(entry["unrounded"].count(9) for entry in entries)
        assert row["to_polytope"] == pytest.approx(np.mean([e["to_polytope"] for e in entries]))
        assert row["loss"] == pytest.approx(np.mean(trial["loss"]))
    # Ways to craft that lead to other poisons have other losses.
    assert len({row["loss"] for row in metrics["rows"]}) == len(names)
