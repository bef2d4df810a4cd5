"""What Lemma 3.1 promises, what nobody can promise, and how far the arithmetic carries."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from poisonkit.defenses.spectral import outlier_scores, spectral_filter
from poisonkit.errors import PoisonkitError


def planted(clean: int, bad: int, gap: float, *, columns: int = 40, seed: int = 0):
    """Clean points N(0, 1), bad points N(gap u, 1) for a random unit vector u."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(clean + bad, columns, generator=generator)
    direction = torch.randn(columns, generator=generator)
    x[clean:] += gap * direction / direction.norm()
    return x, torch.arange(clean + bad) >= clean


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_a_mean_gap_as_large_as_lemma_3_1_asks_separates_the_poisons(share, seed):
    """For unit variances, gap^2 >= 6 / eps leaves eps of either part on the wrong side."""
    clean, bad = 2000, round(2000 * share / (1 - share))
    features, poisoned = planted(clean, bad, gap=math.sqrt(6 / share), seed=seed)
    scores = outlier_scores(features)
    thresholds = scores.sort().values
    spared = torch.tensor([float((scores[poisoned] <= t).double().mean()) for t in thresholds])
    lost = torch.tensor([float((scores[~poisoned] > t).double().mean()) for t in thresholds])
    assert ((spared <= share) & (lost <= share)).any()


@pytest.mark.parametrize("seed", range(3))
def test_without_a_gap_no_threshold_separates_anything(seed):
    features, poisoned = planted(2000, 200, gap=0.0, seed=seed)
    labels = torch.zeros(2200, dtype=torch.int64)
    keep = spectral_filter(features, labels, suspected=200).keep
    # Of 300 removals a random choice would hit 27; the 4 deviations around that:
    caught = int((poisoned & ~keep).sum())
    assert abs(caught - 300 / 11) < 4 * math.sqrt(300 / 11 * 10 / 11)


def test_one_and_a_half_epsilon_removals_catch_planted_poisons_of_one_label_only():
    features, poisoned = planted(500, 50, gap=math.sqrt(6 / 0.09))
    clean, _ = planted(550, 0, gap=0.0, seed=1)
    labels = torch.arange(1100) // 550
    found = spectral_filter(torch.cat([features, clean]), labels, suspected=50)
    assert not (found.keep[:550] & poisoned).any()
    assert found.removed_per_label == {0: 75, 1: 75}


# Arithmetic ---------------------------------------------------------------------------------


def decaying(rows: int, columns: int, *, seed: int = 0) -> Tensor:
    """Features of mean zero with a falling spectrum, most of it within the first columns."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) / torch.arange(1, columns + 1).sqrt()


def in_float64(features: Tensor, *, centred: bool) -> np.ndarray:
    matrix = features.double().numpy()
    deviations = matrix - matrix.mean(0)
    top = np.linalg.svd(deviations, full_matrices=False)[2][0]
    return (deviations @ top) ** 2 if centred else np.abs(matrix @ top)


@pytest.mark.parametrize("shape", [(400, 100), (100, 400)])
@pytest.mark.parametrize("mean", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("centred", [True, False])
def test_a_mean_far_larger_than_the_spread_costs_no_accuracy(shape, mean, centred):
    means = mean * (1 + torch.rand(shape[1], generator=torch.Generator().manual_seed(1)))
    features = decaying(*shape) + means
    expected = in_float64(features, centred=centred)
    found = outlier_scores(features, centred=centred).numpy()
    assert np.abs(found - expected).max() < 1e-5 * expected.max()


@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e-3, 1e6, 1e15])
@pytest.mark.parametrize("shape", [(400, 100), (100, 400), (3, 2)])
def test_scores_are_as_accurate_whatever_unit_the_features_are_in(shape, scale):
    features = scale * (decaying(*shape) + 1)
    expected = in_float64(features, centred=True)
    found = outlier_scores(features).numpy()
    assert np.abs(found - expected).max() < 1e-5 * expected.max()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_scores_beyond_float32_are_refused_and_computed_in_float64(scale):
    features = scale * decaying(50, 20)
    with pytest.raises(PoisonkitError, match=r"too large or too small for .*float32"):
        outlier_scores(features)
    expected = in_float64(features, centred=True)
    assert outlier_scores(features.double()).numpy() == pytest.approx(expected, rel=1e-6)


def with_a_gap(gap: float, *, seed: int) -> Tensor:
    """Features whose largest singular value exceeds the second by the given share."""
    wide = decaying(400, 100, seed=seed).double()
    left, values, right = torch.linalg.svd(wide - wide.mean(0), full_matrices=False)
    values[0] = (1 + gap) * values[1]
    return 1 + left * values @ right


@pytest.mark.parametrize("seed", range(3))
def test_two_directions_almost_as_strong_are_told_apart_as_the_documentation_says(seed):
    for gap, dtype in ((0.003, torch.float32), (1e-6, torch.float64)):
        features = with_a_gap(gap, seed=seed).to(dtype)
        expected = in_float64(features, centred=True)
        found = outlier_scores(features).numpy()
        assert np.abs(found - expected).max() < 1e-4 * expected.max()
