"""The Spectral Signatures experiments: what they refuse, and what their records hold."""

import math

import numpy as np
import pytest
import torch

from poisonkit import provenance
from poisonkit.data import load
from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.spectral_signatures.steps import is_captured
from poisonkit.statistics import wilson

REMOVAL = EXPERIMENTS["spectral_signatures/removal"]
SIGNATURE = EXPERIMENTS["spectral_signatures/signature"]
TINY = {"recipe.epochs": 2, "images_per_class": 80, "trials": 2}


# Requests that cannot be met ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tap": "group3.3"}, r"unknown layer 'group3\.3'; known: block1.*hidden.*linear"),
        ({"shares": (0.6,)}, r"must lie in \(0, 1/2\), not 0.6"),
        ({"shares": (0.0,)}, r"must lie in \(0, 1/2\), not 0.0"),
        ({"shares": (0.4,), "factor": 4.0}, r"128 images of label \d are to be removed, .* 80"),
        ({"images_per_class": 2, "shares": (0.4,)}, "label . hold 2 images; at least three"),
        ({"images_per_class": 5000}, "not the 0 .* 5000 asked for"),
        ({"pairs": (("4", "ten"),)}, "known: 0, 1, 2"),
        ({"pairs": (("4", "4"),)}, "source and target are both '4'"),
        ({"position": (16, 0)}, "lies outside images of 16 x 16"),
        ({"colour": (1, 2, 3)}, "has 3 values, the images have 1 channels"),
        ({"pairs": (("4", "9"), ("4", "9"))}, "pairs names something twice"),
        ({"recipe.crop_padding": 100_000}, "crop_padding"),
        ({"images_per_class": -5}, "cannot take -5 images"),
        ({"model": "vgg"}, "unknown model 'vgg'; known: small_cnn"),
        ({"dataset": "cifar100"}, "known: digits, mnist"),
        ({"removal": "percentile", "percentile": 100.0}, r"must lie in \(0, 100\)"),
        ({"trials": 0}, "no trials"),
        ({"shares": ()}, "no trials"),
    ],
)
def test_bad_input_is_refused_before_any_training_starts(options, told, store):
    config = REMOVAL.configure(profile="quick", **{**TINY, **options})
    before = load("digits").checksum
    with pytest.raises(PoisonkitError, match=told):
        run(REMOVAL, config, store=store, device="cpu")
    assert not list(store.cache.rglob("networks/*"))
    assert not list(store.cache.rglob("*.json"))
    assert load("digits").checksum == before


def test_figure_1_cannot_be_taken_at_a_layer_that_does_not_exist(store):
    config = SIGNATURE.configure(profile="quick", tap="group3.3", **TINY)
    with pytest.raises(PoisonkitError, match="known: block1"):
        run(SIGNATURE, config, store=store, device="cpu")
    assert not list(store.cache.rglob("networks/*"))


# Records ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_removal(tmp_path_factory):
    from poisonkit.store import Store

    config = REMOVAL.configure(profile="quick", **TINY)
    return run(REMOVAL, config, store=Store(frozen=None, cache=tmp_path_factory.mktemp("cache")))


def test_a_trials_numbers_follow_from_its_scores(tiny_removal):
    trials, arrays = tiny_removal.metrics["trials"], tiny_removal.arrays
    assert [trial["seed"] for trial in trials] == [0, 1]
    for index, trial in enumerate(trials):
        scores, poisoned = arrays[f"{index}.scores"], arrays[f"{index}.poisoned"]
        count = math.ceil(1.5 * trial["poisons"])
        assert trial["poisons"] == round(0.1 * 80) == int(poisoned.sum())
        assert len(scores) == 80 + trial["poisons"]
        removed = np.argsort(-scores.numpy(), kind="stable")[:count]
        assert trial["poisons_left"] == int(poisoned.sum()) - int(poisoned[removed].sum())
        assert trial["removed_from_target"] == count
        assert trial["removed"] == 10 * count
        assert trial["triggered_images"] == len(load("digits", split="test").indices_of(4))
        for moment in ("before", "after", "clean"):
            assert 0 < trial[f"natural_{moment}"] <= 1
            assert 0 <= trial[f"hits_{moment}"] <= trial["triggered_images"]


def test_a_row_pools_the_hits_of_its_runs_and_averages_their_accuracies(tiny_removal):
    trials = tiny_removal.metrics["trials"]
    (row,) = tiny_removal.metrics["rows"]
    total = sum(trial["triggered_images"] for trial in trials)
    assert (row["runs"], row["source"], row["target"], row["share"]) == (2, "4", "9", 0.1)
    for moment in ("before", "after", "clean"):
        hits = sum(trial[f"hits_{moment}"] for trial in trials)
        assert row[f"poisoned_{moment}"] == hits / total
        assert row[f"poisoned_{moment}_interval"] == pytest.approx(wilson(hits, total))
        first, second = (trial[f"natural_{moment}"] for trial in trials)
        assert row[f"natural_{moment}"] == pytest.approx((first + second) / 2)
        deviation = abs(first - second) / math.sqrt(2)
        assert row[f"natural_{moment}_deviation"] == pytest.approx(deviation)


def test_a_record_says_where_its_numbers_come_from(tiny_removal):
    found = tiny_removal.provenance
    assert found["torch"] == torch.__version__
    assert found["data_checksum"] == load("digits").first_per_class(80).checksum
    assert found["threads"] == torch.get_num_threads()
    for name in ("poisonkit", "commit", "device", "created", "seconds", "peak_memory_mib"):
        assert found[name]


def test_files_without_their_history_can_be_told_the_commit_they_are_of(monkeypatch):
    monkeypatch.setenv("POISONKIT_COMMIT", "0123abc")
    assert provenance.describe.__wrapped__()["commit"] == "0123abc"


def test_a_signature_record_holds_six_views_and_images_with_both_predictions(store):
    config = SIGNATURE.configure(profile="quick", **{**TINY, "trials": 1})
    record = run(SIGNATURE, config, store=store, device="cpu")
    (trial,), arrays = record.metrics["trials"], record.arrays
    bad = arrays["0.poisoned"]
    assert len(trial["auroc"]) == 6
    for view, found in trial["auroc"].items():
        values = arrays[f"0.{view}"]
        above = (values[bad][:, None] > values[~bad]).double().mean()
        ties = (values[bad][:, None] == values[~bad]).double().mean()
        assert found == pytest.approx(float(above + ties / 2))
    # The squared distances along the top singular vector sum to its singular value's square.
    top = arrays["0.representation.top"].double()
    found = trial["statistics"]["all"]["singular_values"]
    assert found[0] == pytest.approx(float(top.norm()), rel=1e-4)
    assert found == sorted(found, reverse=True)
    natural, triggered = arrays["0.natural_images"], arrays["0.triggered_images"]
    assert natural.shape == triggered.shape == (4, 1, 16, 16)
    changed = (natural != triggered).any(1).sum((1, 2))
    assert changed.max() <= 5  # an X
    assert record.metrics["runs"] == 1


def test_a_backdoor_counts_as_captured_where_the_paper_says_so():
    assert is_captured(898, 1000)
    assert is_captured(888, 1000)
    assert not is_captured(833, 1000)
    assert not is_captured(742, 1000)
    assert is_captured(36, 36)
