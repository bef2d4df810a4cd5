"""Table 1's numbers against full decompositions in numpy, and what must leave them unchanged."""

import math

import numpy as np
import pytest
import torch

from poisonkit.experiments.spectral_signatures.signature import statistics


def label_with_poisons(clean=120, bad=15, columns=30, *, gap=3.0, seed=0):
    """Features with a falling spectrum and a mean; the poisoned ones, scattered, lie elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(clean + bad, columns, generator=generator) + 2
    features *= torch.arange(1, columns + 1) ** -0.3
    poisoned = torch.zeros(clean + bad, dtype=torch.bool)
    poisoned[torch.randperm(clean + bad, generator=generator)[:bad]] = True
    direction = torch.randn(columns, generator=generator)
    features[poisoned] += gap * direction / direction.norm()
    return features, poisoned


def by_full_svd(features: np.ndarray) -> tuple[float, list[float]]:
    """The length of the mean row, and the three largest singular values of the centred matrix."""
    mean = features.mean(0)
    values = np.linalg.svd(features - mean, compute_uv=False)
    return float(np.linalg.norm(mean)), values[:3].tolist()


SHAPES = [(120, 15, 30), (40, 4, 300), (200, 1, 5), (9, 3, 4), (300, 140, 20)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_norms_and_singular_values_are_those_of_a_full_decomposition(shape, seed):
    features, poisoned = label_with_poisons(*shape, seed=seed)
    found = statistics(features, poisoned)
    exact, mask = features.double().numpy(), poisoned.numpy()
    for name, part in (("clean", exact[~mask]), ("all", exact)):
        norm, values = by_full_svd(part)
        assert found[name]["norm"] == pytest.approx(norm, rel=1e-5)
        assert found[name]["singular_values"] == pytest.approx(values, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gap", [0.0, 0.5, 20.0])
def test_the_mean_shifts_by_the_poisoned_share_of_the_distance_between_the_parts(shape, gap):
    features, poisoned = label_with_poisons(*shape, gap=gap)
    exact, mask = features.double().numpy(), poisoned.numpy()
    distance = np.linalg.norm(exact[mask].mean(0) - exact[~mask].mean(0))
    expected = mask.mean() * distance
    assert statistics(features, poisoned)["shift"] == pytest.approx(expected, rel=1e-4)


def test_moving_all_features_alike_changes_the_norms_only():
    features, poisoned = label_with_poisons()
    offset = torch.full((30,), 5.0)
    before, after = statistics(features, poisoned), statistics(features + offset, poisoned)
    assert after["shift"] == pytest.approx(before["shift"], rel=1e-4)
    for name in ("clean", "all"):
        expected = before[name]["singular_values"]
        assert after[name]["singular_values"] == pytest.approx(expected, rel=1e-4)
        assert after[name]["norm"] > before[name]["norm"] + 20


def test_rotating_the_features_changes_nothing_and_scaling_them_scales_everything():
    features, poisoned = label_with_poisons()
    generator = torch.Generator().manual_seed(5)
    turn = torch.linalg.qr(torch.randn(30, 30, generator=generator)).Q
    before = statistics(features, poisoned)
    for changed, times in ((features @ turn, 1), (features * 4, 4)):
        after = statistics(changed, poisoned)
        assert after["shift"] == pytest.approx(times * before["shift"], rel=1e-4)
        for name in ("clean", "all"):
            assert after[name]["norm"] == pytest.approx(times * before[name]["norm"], rel=1e-4)
            expected = [times * value for value in before[name]["singular_values"]]
            assert after[name]["singular_values"] == pytest.approx(expected, rel=1e-4)


def test_poisoned_images_at_the_clean_mean_shift_nothing_and_add_no_spread():
    features, poisoned = label_with_poisons()
    features[poisoned] = features[~poisoned].mean(0)
    found = statistics(features, poisoned)
    assert found["shift"] == pytest.approx(0, abs=1e-5)
    expected = found["clean"]["singular_values"]
    assert found["all"]["singular_values"] == pytest.approx(expected, rel=1e-4)


def test_far_poisoned_images_raise_the_largest_singular_value_by_their_distance():
    """k points at distance g of n clean ones add g^2 k n / (n + k) along the gap."""
    clean, bad, gap = 200, 20, 1000.0
    features, poisoned = label_with_poisons(clean, bad, gap=gap)
    found = statistics(features, poisoned)
    expected = gap * math.sqrt(bad * clean / (bad + clean))
    assert found["all"]["singular_values"][0] == pytest.approx(expected, rel=1e-2)
    # The gap is one direction: the next values are bounded by the spread within the parts.
    parts = torch.cat([part - part.mean(0) for part in (features[~poisoned], features[poisoned])])
    within = np.linalg.svd(parts.double().numpy(), compute_uv=False)
    for place in (1, 2):
        assert within[place] * 0.999 < found["all"]["singular_values"][place]
        assert found["all"]["singular_values"][place] < within[place - 1] * 1.001
