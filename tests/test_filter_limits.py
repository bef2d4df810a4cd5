"""Poisons left after any removal, at every layer: against direct counts and the filter itself."""

import math

import numpy as np
import pytest
import torch

from poisonkit.defenses.spectral import spectral_filter
from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.spectral_signatures.limits import FACTORS, layer_name, poisons_left

LIMITS = EXPERIMENTS["spectral_signatures/limits"]
REMOVAL = EXPERIMENTS["spectral_signatures/removal"]
TINY = {"trials": 1, "recipe.epochs": 1, "images_per_class": 60, "shares": (0.10,)}


def scored(clean: int, bad: int, *, gap: float = 1.0, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(clean + bad, generator=generator)
    poisoned = torch.zeros(clean + bad, dtype=torch.bool)
    poisoned[torch.randperm(clean + bad, generator=generator)[:bad]] = True
    scores[poisoned] += gap
    return scores, poisoned


# Counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("clean", "bad"), [(60, 7), (40, 10), (50, 1), (33, 29)])
@pytest.mark.parametrize("gap", [-2.0, 0.0, 0.4])
def test_poisons_left_are_those_not_among_the_highest_scores(clean, bad, gap):
    scores, poisoned = scored(clean, bad, gap=gap)
    ranked = sorted(zip(scores.tolist(), poisoned.tolist(), strict=True), reverse=True)
    expected = []
    for factor in FACTORS:
        removed = min(math.ceil(factor * bad), clean + bad - 1)
        expected.append(sum(is_bad for _, is_bad in ranked[removed:]))
    assert poisons_left(scores, poisoned) == expected


def test_removing_nothing_leaves_all_and_removing_more_never_leaves_more():
    for seed in range(10):
        scores, poisoned = scored(80, 9, gap=0.3, seed=seed)
        found = poisons_left(scores, poisoned)
        assert FACTORS[0] == 0
        assert found[0] == 9
        assert found == sorted(found, reverse=True)
        assert found[-1] < 9


@pytest.mark.parametrize("bad", range(1, 12))
def test_perfect_scores_lose_a_poison_with_every_removal_until_none_is_left(bad):
    scores, poisoned = scored(60, bad, gap=2.0)
    found = dict(zip(FACTORS, poisons_left(scores, poisoned), strict=True))
    for factor, left in found.items():
        assert left == max(0, bad - math.ceil(factor * bad))
    assert found[1.0] == 0
    assert found[0.875] == math.floor(bad / 8)


def test_inverted_scores_keep_every_poison_while_clean_images_are_left_to_remove():
    scores, poisoned = scored(60, 10, gap=-2.0)
    assert poisons_left(scores, poisoned) == [10] * len(FACTORS)


@pytest.mark.parametrize("factor", [0.125, 0.5, 1.0, 1.5, 3.25])
def test_the_count_is_that_of_the_filter_also_with_ties(factor):
    generator = torch.Generator().manual_seed(3)
    # One feature: the score is its squared deviation, and many of them are equal.
    features = torch.randint(0, 5, (90, 1), generator=generator).float()
    poisoned = torch.arange(90) % 9 == 0
    labels = torch.zeros(90, dtype=torch.int64)
    result = spectral_filter(features, labels, suspected=10, factor=factor)
    found = poisons_left(result.scores, poisoned)[FACTORS.index(factor)]
    assert found == int((poisoned & result.keep).sum())


def test_factors_go_in_eighths_of_epsilon_from_nothing_to_four_times_it():
    assert np.allclose(FACTORS, np.linspace(0, 4, 33))
    assert REMOVAL.configure().factor in FACTORS


# Records ------------------------------------------------------------------------------------


def test_at_the_same_layer_the_experiment_leaves_what_the_removal_leaves(store):
    """Both train the same network; the factor 1.5 is Table 2's."""
    limits = LIMITS.configure(
        profile="quick", patterns=("X",), layers=(("block3", "flatten"), ("hidden", "mean")), **TINY
    )
    removal = REMOVAL.configure(profile="quick", tap="block3", **TINY)
    found = run(LIMITS, limits, store=store, device="cpu")
    expected = run(REMOVAL, removal, store=store, device="cpu").metrics["trials"][0]
    (trial,) = found.metrics["trials"]
    layers = trial["layers"]
    assert list(layers) == ["block3", "hidden, pooled"]
    assert layers["block3"]["left"][FACTORS.index(1.5)] == expected["poisons_left"]
    for name in ("poisons", "hits_before", "captured", "natural_before", "triggered_images"):
        assert trial[name] == expected[name]
    (row,) = found.metrics["rows"]
    assert row["layers"]["block3"]["left"][0] == expected["poisons_left"]
    assert row["poisoned_before"] == expected["hits_before"] / expected["triggered_images"]
    assert found.metrics["factors"] == list(FACTORS)
    # The scores are kept for the configured layer, so that a reader can count for himself.
    scores, poisoned = found.arrays["0.scores"], found.arrays["0.poisoned"]
    assert poisons_left(scores, poisoned) == layers["block3"]["left"]
    assert trial["label_images"] == len(scores) == 60 + trial["poisons"]


def test_every_shape_and_share_of_the_trigger_is_a_row(store):
    options = {**TINY, "shares": (0.05, 0.10), "patterns": ("L", "pixel")}
    config = LIMITS.configure(profile="quick", layers=(("hidden", "flatten"),), **options)
    record = run(LIMITS, config, store=store, device="cpu")
    rows = [(row["pattern"], row["share"], row["poisons"]) for row in record.metrics["rows"]]
    assert rows == [("L", 0.05, 3), ("L", 0.10, 6), ("pixel", 0.05, 3), ("pixel", 0.10, 6)]
    assert [t["trigger"]["pattern"] for t in record.metrics["trials"]] == ["L", "L"] + ["pixel"] * 2
    assert "0.scores" not in record.arrays  # the configured layer, block3, was not read


def test_a_row_holds_what_is_left_at_the_papers_factor_and_the_mean_over_its_runs():
    options = {"patterns": ("X",), "shares": (0.05, 0.10)}
    config = LIMITS.configure(profile="quick", **options)
    left = {0: list(range(40, 7, -1)), 1: list(range(60, 27, -1))}
    trials = [
        {
            **unit,
            "poisons": 100,
            "triggered_images": 50,
            "hits_before": 30 + 20 * unit["seed"],
            "captured": unit["seed"] == 1,
            "layers": {"block3": {"auroc": 0.7 + 0.2 * unit["seed"], "left": left[unit["seed"]]}},
        }
        for unit in LIMITS.units(config)
    ]
    rows = LIMITS.summarise(config, trials)["rows"]
    assert [row["share"] for row in rows] == [0.05, 0.10]
    for row in rows:
        assert (row["runs"], row["captured"], row["poisoned_before"]) == (2, 1, 0.8)
        at = 12  # eighths: 1.5 epsilon
        mean, deviation = row["layers"]["block3"]["left"]
        assert mean == (left[0][at] + left[1][at]) / 2 == 38
        assert deviation == pytest.approx(20 / math.sqrt(2))
        assert row["layers"]["block3"]["auroc"][0] == pytest.approx(0.8)


def test_pooled_representations_have_a_name_of_their_own():
    names = [layer_name(tap, pool) for tap, pool in LIMITS.configure().layers]
    assert len(set(names)) == len(names) == 8
    assert {"group3.3", "group3.3, pooled"} <= set(names)


# What it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layers": (("block9", "flatten"),)}, r"layer 'block9'; known: block1.*hidden.*linear"),
        (
            {"layers": (("block1", "flatten"), ("hidden", "mean"), ("group3.3", "mean"))},
            r"layer 'group3\.3'; known: block1.*hidden.*linear",
        ),
        ({"layers": (("block1", "max"),)}, "pooling 'max'; known: flatten, mean"),
        ({"layers": ()}, "must name at least one each"),
        ({"patterns": ()}, "must name at least one each"),
        ({"patterns": ("Y",)}, "trigger pattern 'Y'; known: pixel, X, L"),
    ],
)
def test_layers_and_shapes_that_do_not_exist_are_refused_before_any_training(
    options, told, store, no_training, untouched
):
    config = LIMITS.configure(profile="quick", **{**TINY, **options})
    with pytest.raises(PoisonkitError, match=told):
        run(LIMITS, config, store=store, device="cpu")
    assert not list(store.cache.rglob("*.json"))
