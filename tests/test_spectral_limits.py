"""What Lemma 3.1 promises about planted poisons, and what nobody can promise."""

import math

import pytest
import torch

from poisonkit.defenses.spectral import outlier_scores, spectral_filter


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
