"""Intervals and spreads against their closed formulas."""

import math
import random

import pytest
import torch

from poisonkit.statistics import auroc, mean_and_deviation, wilson

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


def by_formula(hits: int, total: int, z: float = Z) -> tuple[float, float]:
    rate = hits / total
    centre = (rate + z**2 / (2 * total)) / (1 + z**2 / total)
    spread = math.sqrt(rate * (1 - rate) / total + z**2 / (4 * total**2)) * z / (1 + z**2 / total)
    return centre - spread, centre + spread


@pytest.mark.parametrize(("hits", "total"), [(1, 1), (3, 7), (50, 100), (898, 1000), (1, 10_000)])
def test_the_wilson_interval_is_that_of_its_closed_formula(hits, total):
    assert wilson(hits, total) == pytest.approx(by_formula(hits, total), abs=1e-12)
    # 2.5758: the 99.5 % point.
    assert wilson(hits, total, confidence=0.99) == pytest.approx(
        by_formula(hits, total, 2.5758293035489), abs=1e-9
    )


@pytest.mark.parametrize("total", [1, 5, 1000])
def test_rates_of_none_and_all_keep_an_interval_within_0_and_1(total):
    low, high = wilson(0, total)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(Z**2 / (total + Z**2))
    assert wilson(total, total) == pytest.approx((1 - high, 1), abs=1e-12)


def test_the_interval_covers_the_true_rate_about_as_often_as_it_says():
    rng = random.Random(0)
    for rate in (0.05, 0.5, 0.9):
        intervals = [wilson(sum(rng.random() < rate for _ in range(60)), 60) for _ in range(600)]
        covered = sum(low <= rate <= high for low, high in intervals) / 600
        assert 0.91 < covered < 0.99


def test_the_deviation_is_that_of_a_sample_and_unknown_for_one_value():
    assert mean_and_deviation([2.0, 4.0, 9.0]) == pytest.approx((5.0, math.sqrt((9 + 1 + 16) / 2)))
    assert mean_and_deviation([3.5]) == (3.5, None)
    assert mean_and_deviation([3.5, 3.5]) == (3.5, 0.0)


def test_the_auroc_is_the_share_of_pairs_that_the_scores_put_right():
    generator = torch.Generator().manual_seed(1)
    marked = torch.rand(80, generator=generator) < 0.3
    # Few values, so that some pairs are equal; those count half.
    scores = torch.randint(0, 12, (80,), generator=generator) + 3 * marked
    pairs = scores[marked][:, None] - scores[~marked][None]
    by_count = (pairs > 0).double().mean() + (pairs == 0).double().mean() / 2
    assert auroc(marked, scores) == pytest.approx(float(by_count), abs=1e-12)
    assert auroc(marked, -scores) == pytest.approx(1 - float(by_count), abs=1e-12)
