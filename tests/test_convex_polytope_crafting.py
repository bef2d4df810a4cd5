"""Crafted poisons: made once for all who ask for them, and watched on the way (Figure 3)."""

import numpy as np
import pytest
import torch
from convex_polytope_laboratory import (
    ConvexPolytopeLaboratory,
    configure,
    forbid_crafting,
    into_linear,
    names_of,
)
from torch import Tensor

from poisonkit.experiments.convex_polytope.data import begin
from poisonkit.experiments.convex_polytope.steps import victim


@pytest.fixture(scope="module")
def laboratory(caches) -> ConvexPolytopeLaboratory:
    return ConvexPolytopeLaboratory.below(caches)


# Crafted poisons ------------------------------------------------------------------------------


def test_poisons_are_crafted_once_for_all_experiments_that_ask_for_them(store, monkeypatch):
    laboratory = ConvexPolytopeLaboratory(store)
    whole = laboratory.record("transfer", objectives=("polytope",))
    count = laboratory.count("poisons")
    assert count >= 1
    forbid_crafting(monkeypatch)
    as_described = laboratory.record("switches", switches=("as described",))
    own = laboratory.record("limits", epsilons=(0.3,), counts=(5,))
    last = laboratory.record("end_to_end", attacks=("last layer",))
    overlap = laboratory.record("overlap", overlaps=(1.0,), pretraining_per_class=20)
    assert laboratory.count("poisons") == count
    [expected] = [trial["victims"] for trial in whole.metrics["trials"]]
    for record in (as_described, own, overlap):
        [trial] = record.metrics["trials"]
        for one, other in zip(trial["victims"], expected, strict=True):
            assert {key: one[key] for key in other} == other
    losses = {tuple(trial["loss"]) for trial in last.metrics["trials"]}
    assert losses == {tuple(whole.metrics["trials"][0]["loss"])}


def test_poisons_that_are_read_back_are_those_that_were_crafted(laboratory, monkeypatch):
    config = configure("transfer")
    data, _ = begin(config, laboratory.context)
    laboratory.poisons()
    forbid_crafting(monkeypatch)
    first, again = laboratory.poisons(), laboratory.poisons()
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.rounded, again.rounded)
    for poison in again.poisons:
        assert 0 < int(poison.verify(data.fine_tuning, targets=data.targets.x).max()) <= 76
    # Half a level by rounding, or none where that would have left the ball.
    assert (first.images * 255 - first.rounded).abs().max() <= 0.5 + 1e-3
    assert first.losses.shape == (3, 2)


def test_whatever_changes_the_crafting_is_another_set_of_poisons_and_nothing_else_is(store):
    laboratory = ConvexPolytopeLaboratory(store)
    laboratory.poisons()
    count = laboratory.count("poisons")
    changes: tuple[dict[str, object], ...] = (
        {"procedure.iterations": 2},
        {"procedure.epsilon": 0.2},
        {"procedure.dropout": False},
        {"procedure.objective": "bullseye"},
        {"seed": 1},
        {"poisons": 4},
        {"targets": 1},
        {"fine_tuning_per_class": 9},
        {"substitutes": ("small_cnn",)},
        {"dropouts": (0.3,)},
        {"pretraining.learning_rate": 2e-3},
        {"stream": True},
    )
    for number, options in enumerate(changes, start=count + 1):
        laboratory.poisons(**options)
        assert laboratory.count("poisons") == number, options
    for options in (
        {"victims": ("resnet8",)},
        {"fine_tuning.epochs": 9},
        {"objectives": ("polytope",)},
    ):
        laboratory.poisons(**options)
        assert laboratory.count("poisons") == count + len(changes), options


def test_each_block_has_the_targets_of_its_numbers(laboratory):
    config = configure("transfer", targets=3, targets_at_once=2)
    data, _ = begin(config, laboratory.context)
    first, second = (
        laboratory.poisons(first=number, targets=3, targets_at_once=2) for number in (0, 2)
    )
    assert names_of(first.targets) == names_of(data.targets)[:2]
    assert names_of(second.targets) == names_of(data.targets)[2:]
    assert len(second.images) == len(second.poisons) == 1


# Figure 3 -------------------------------------------------------------------------------------


def test_objectives_are_watched_at_the_same_steps_with_dropout_and_without(laboratory):
    options = {"procedure.iterations": 5, "watch_every": 2}
    record = laboratory.record("randomised", **options)
    config = configure("randomised", **options)
    data, cost = begin(config, laboratory.context)
    bases = data.fine_tuning.x[list(data.rows)]
    start: dict[str, Tensor] = {}
    for number, trial in enumerate(record.metrics["trials"]):
        watched = record.arrays[f"{number}.watched"]
        # Before steps 0, 2 and 4, and after the last; of two networks and two targets.
        assert watched.shape == (4, 2, 2)
        assert record.arrays[f"{number}.losses"].shape == (3, 2)
        first = start.setdefault(trial["objective"], watched[0])
        assert torch.equal(first, watched[0]), "nothing has been changed yet"
        assert not torch.equal(watched[0], watched[-1])
        for place, name in enumerate(config.victims):
            assert trial["last"][name] == pytest.approx(watched[-1, place].tolist())
            if trial["objective"] == "collision":
                network = victim(config, data, name, laboratory.context, cost)
                p, t = into_linear(network, bases), into_linear(network, data.targets.x)
                p, t = p.flatten(1).double(), t.flatten(1).double()
                expected = [float(((p - aim) ** 2).sum() / (aim @ aim)) for aim in t]
                assert first[place].tolist() == pytest.approx(expected, rel=1e-4)
    with_dropout, without = (
        record.arrays[
            f"{[(t['objective'], t['dropout']) for t in record.metrics['trials']].index(kind)}"
            ".losses"
        ]
        for kind in (("polytope", True), ("polytope", False))
    )
    assert not torch.equal(with_dropout, without)


def test_a_row_of_figure_3_pairs_the_same_targets_with_dropout_and_without(laboratory):
    metrics = laboratory.record("randomised", targets=3, targets_at_once=2).metrics
    assert len(metrics["rows"]) == 2 * 2
    for row in metrics["rows"]:
        ends: dict[bool, dict[int, float]] = {True: {}, False: {}}
        for trial in metrics["trials"]:
            if trial["objective"] == row["objective"]:
                for place, value in enumerate(trial["last"][row["victim"]]):
                    ends[trial["dropout"]][trial["first"] + place] = value
        assert sorted(ends[True]) == sorted(ends[False]) == [0, 1, 2]
        assert row["targets"] == 3
        assert row["lower"] == sum(ends[True][k] < ends[False][k] for k in range(3))
        assert row["with"] == pytest.approx(np.mean(list(ends[True].values())))
        assert row["without"] == pytest.approx(np.mean(list(ends[False].values())))
