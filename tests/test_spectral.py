"""Algorithm 1 against full decompositions in numpy, its invariances, and where it must fail."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from poisonkit.defenses.spectral import (
    RELEASED_PERCENTILE,
    REMOVAL_FACTOR,
    outlier_scores,
    spectral_filter,
    top_singular_vectors,
)
from poisonkit.errors import PoisonkitError


def random_features(rows: int, columns: int, *, seed: int = 0, spikes: int = 4) -> Tensor:
    """Non-negative features with a few strong directions, a falling spectrum and a mean."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.arange(1, columns + 1) ** -0.5
    strengths = torch.tensor([4.0 / 2**k for k in range(spikes)])
    directions = torch.linalg.qr(torch.randn(columns, spikes, generator=generator)).Q
    x += torch.randn(rows, spikes, generator=generator) * strengths @ directions.T
    return x + 1


def by_full_svd(features: Tensor, *, centred: bool = True) -> np.ndarray:
    matrix = features.double().numpy()
    deviations = matrix - matrix.mean(0)
    top = np.linalg.svd(deviations, full_matrices=False)[2][0]
    return (deviations @ top) ** 2 if centred else np.abs(matrix @ top)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() < 1e-3 * expected.max())


# Scores -------------------------------------------------------------------------------------

SHAPES = [(300, 60), (60, 300), (200, 200), (500, 1), (3, 50), (50, 3), (3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_equal_those_of_a_full_decomposition(shape, centred, dtype):
    for seed in range(3):
        features = random_features(*shape, seed=seed, spikes=min(4, shape[1])).to(dtype)
        expected = by_full_svd(features, centred=centred)
        found = outlier_scores(features, centred=centred).numpy()
        assert np.abs(found - expected).max() < 1e-4 * expected.max()


@pytest.mark.parametrize("shape", [(300, 60), (60, 300)])
def test_the_large_scores_are_right_to_a_ten_thousandth_of_each_of_them(shape):
    features = random_features(*shape)
    expected = by_full_svd(features)
    large = expected > np.median(expected)
    found = outlier_scores(features).numpy()
    assert np.abs(found / expected - 1)[large].max() < 1e-4


@pytest.mark.parametrize("shape", [(300, 60), (60, 300), (40, 40), (6, 5)])
@pytest.mark.parametrize("count", [1, 3])
def test_singular_values_and_vectors_are_numpys_largest_in_order(shape, count):
    features = random_features(*shape)
    centred = features - features.mean(0)
    _, values, vectors = np.linalg.svd(centred.double().numpy(), full_matrices=False)
    found_values, found = top_singular_vectors(centred, count=count)
    assert found.shape == (count, shape[1])
    assert found_values.numpy() == pytest.approx(values[:count], rel=1e-4)
    cosines = np.abs((found.double().numpy() * vectors[:count]).sum(1))
    assert cosines == pytest.approx(np.ones(count), abs=1e-5)


def test_scores_are_the_same_each_time_and_do_not_touch_the_features():
    features = random_features(200, 50)
    before = features.clone()
    generator = torch.get_rng_state()
    assert torch.equal(outlier_scores(features), outlier_scores(features))
    assert torch.equal(features, before)
    assert torch.equal(torch.get_rng_state(), generator)


# Invariances --------------------------------------------------------------------------------


def test_scores_follow_the_images_and_ignore_rotation_shift_and_scale_as_the_formula_does():
    features = random_features(200, 50)
    generator = torch.Generator().manual_seed(1)
    scores = outlier_scores(features)
    order = torch.randperm(200, generator=generator)
    assert close(outlier_scores(features[order]), scores[order])
    rotation = torch.linalg.qr(torch.randn(50, 50, generator=generator)).Q
    assert close(outlier_scores(features @ rotation), scores)
    shift = 3 * torch.randn(50, generator=generator)
    assert close(outlier_scores(features + shift), scores)
    assert close(outlier_scores(features * 7), scores * 49)
    # The released code's score is not free of the shift, but is of rotations.
    uncentred = outlier_scores(features, centred=False)
    assert close(outlier_scores(features @ rotation, centred=False), uncentred)
    assert not close(outlier_scores(features + shift, centred=False), uncentred)


def test_the_uncentred_score_can_rank_the_poisoned_images_last():
    """The mean points along v, and the poisons lie on its near side."""
    generator = torch.Generator().manual_seed(0)
    features = 0.1 * torch.randn(110, 20, generator=generator)
    features[:, 0] += 5
    features[100:, 0] -= 4.5
    bad = set(range(100, 110))
    assert set(outlier_scores(features).topk(10).indices.tolist()) == bad
    uncentred = outlier_scores(features, centred=False)
    assert set((-uncentred).topk(10).indices.tolist()) == bad


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16])
def test_features_of_any_kind_of_number_are_scored_in_float32(dtype):
    features = (10 * random_features(100, 20)).clamp(0, 100).to(dtype)
    labels = torch.arange(100) % 2
    found = spectral_filter(features, labels, suspected=5)
    expected = spectral_filter(features.float(), labels, suspected=5)
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.keep, expected.keep)


# Removal ------------------------------------------------------------------------------------


def test_rounding_of_a_product_removes_no_image_more():
    """1.1 times 100 is 110.00000000000001."""
    features, labels = random_features(300, 20), torch.zeros(300, dtype=torch.int64)
    for factor, count in ((1.1, 110), (1.105, 111), (1.3, 130)):
        found = spectral_filter(features, labels, suspected=100, factor=factor)
        assert found.removed_per_label == {0: count}


@pytest.mark.parametrize("suspected", [1, 2, 3, 10, 11])
def test_every_label_loses_its_highest_scores_one_and_a_half_times_as_many_as_suspected(suspected):
    features, labels = random_features(200, 30), torch.arange(200) % 4
    found = spectral_filter(features, labels, suspected=suspected)
    wide = spectral_filter(features.double(), labels, suspected=suspected)
    assert torch.equal(wide.keep, found.keep)
    count = math.ceil(REMOVAL_FACTOR * suspected)
    assert REMOVAL_FACTOR == 1.5
    assert found.removed_per_label == dict.fromkeys(range(4), count)
    for label in range(4):
        rows = np.flatnonzero(labels.numpy() == label)
        expected = by_full_svd(features[rows])
        assert np.allclose(found.scores[rows], expected, atol=1e-4 * expected.max())
        removed = rows[np.argsort(-expected)[:count]]
        assert set(rows[~found.keep[rows].numpy()]) == set(removed)


def test_with_epsilon_known_exactly_as_many_are_removed():
    features, labels = random_features(60, 30), torch.zeros(60, dtype=torch.int64)
    assert int((~spectral_filter(features, labels, suspected=7, factor=1.0).keep).sum()) == 7


@pytest.mark.parametrize(
    ("count", "percentile", "removed"),
    [(5500, 85, 825), (5250, 85, 788), (100, 50, 50), (7, 90, 1)],
)
def test_the_percentile_removes_what_lies_strictly_above_it(count, percentile, removed):
    features, labels = random_features(count, 5), torch.zeros(count, dtype=torch.int64)
    found = spectral_filter(features, labels, percentile=percentile, centred=False)
    scores = by_full_svd(features, centred=False)
    above = scores > np.percentile(scores, percentile)
    assert above.sum() == removed == found.removed_per_label[0]
    assert np.array_equal(~found.keep.numpy(), above)
    assert RELEASED_PERCENTILE == 85


def test_images_that_tie_with_the_percentile_are_kept():
    features = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 1, 1, 1])[:, None].repeat(1, 3)
    found = spectral_filter(features, torch.zeros(10, dtype=torch.int64), percentile=85)
    assert found.keep.all()


def test_only_the_labels_asked_for_are_examined():
    features, labels = random_features(90, 20), torch.arange(90) % 3
    features[labels == 2] = math.nan  # never looked at
    found = spectral_filter(features, labels, suspected=2, only_labels=[1])
    assert found.removed_per_label == {1: 3}
    assert found.keep[labels != 1].all()
    assert torch.equal(found.scores.isnan(), labels != 1)


# Requests that cannot be met ----------------------------------------------------------------


def test_features_may_come_from_numpy_or_with_a_graph():
    features, labels = random_features(60, 20), torch.arange(60) % 2
    expected = spectral_filter(features, labels, suspected=4)
    learned = features.clone().requires_grad_()
    for one, other in ((features.numpy(), labels.numpy()), (learned, labels.int().numpy())):
        found = spectral_filter(one, other, suspected=4)
        assert torch.equal(found.keep, expected.keep)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(outlier_scores(one), outlier_scores(features))


def spoilt(row: int, value: float):
    return lambda x, y: (x.index_fill(0, torch.tensor([row]), value), y)


def as_it_is(x, y):
    return x, y


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        (lambda x, y: (x[:2], y[:2] * 0), {"suspected": 1}, "0 hold 2 images; at least three"),
        (lambda x, y: (x * 0 + 3, y), {"suspected": 1}, "label 0 are the same for all 30 images"),
        (spoilt(31, math.nan), {"suspected": 1}, r"label 1 are not finite \(first in row 15\)"),
        (spoilt(4, math.inf), {"suspected": 1}, r"label 0 are not finite \(first in row 2\)"),
        (as_it_is, {"suspected": 20}, r"30 images of label 0 are to be removed, .* has 30"),
        (as_it_is, {"suspected": 2, "only_labels": [5]}, r"no image has label 5; .*\[0, 1\]"),
        (as_it_is, {}, "either the number of suspected poisons or a percentile"),
        (as_it_is, {"suspected": 2, "percentile": 85}, "either the number"),
        (as_it_is, {"suspected": 0}, "suspected must be at least 1"),
        (as_it_is, {"suspected": 2, "factor": 0.0}, "factor positive"),
        (as_it_is, {"percentile": 100}, r"must lie in \(0, 100\), not 100"),
        (as_it_is, {"suspected": math.nan}, "suspected must be at least 1"),
        (as_it_is, {"suspected": 2, "factor": math.inf}, "factor positive"),
        (as_it_is, {"percentile": math.nan}, r"must lie in \(0, 100\), not nan"),
        (lambda x, y: (x[:-1], y), {"suspected": 2}, r"\[59, 20\] do not fit labels of .*\[60\]"),
        (lambda x, y: (x[:, 0], y), {"suspected": 2}, r"\[60\] do not fit labels of .*\[60\]"),
        (lambda x, y: (x, y[:, None]), {"suspected": 2}, r"do not fit labels of shape \[60, 1\]"),
    ],
)
def test_impossible_requests_are_refused_and_leave_the_data_untouched(change, options, told):
    features, labels = change(random_features(60, 20), torch.arange(60) % 2)
    before = features.clone(), labels.clone()
    with pytest.raises(PoisonkitError, match=told):
        spectral_filter(features, labels, **options)
    assert torch.equal(features.nan_to_num(), before[0].nan_to_num())
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        (spoilt(59, math.nan), {"suspected": 1}, "label 1 are not finite"),
        (lambda x, y: (x, y.index_fill(0, torch.tensor([59]), 7)), {"percentile": 85}, "7 hold 1"),
        (as_it_is, {"suspected": 2, "only_labels": [0, 5]}, "no image has label 5"),
    ],
)
def test_all_labels_are_checked_before_any_is_decomposed(change, options, told, monkeypatch):
    monkeypatch.delattr("poisonkit.defenses.spectral.top_singular_vectors")
    features, labels = change(random_features(60, 20), torch.arange(60) % 2)
    with pytest.raises(PoisonkitError, match=told):
        spectral_filter(features, labels, **options)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("shape", [(60, 20), (3, 2)])
def test_a_matrix_of_zeros_or_without_finite_values_has_no_top_direction(shape, value):
    with pytest.raises(PoisonkitError, match="not finite, or all zeros"):
        top_singular_vectors(torch.full(shape, value))


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_on_the_cpu():
    features = random_features(500, 300)
    assert close(outlier_scores(features.cuda()).cpu(), outlier_scores(features))
