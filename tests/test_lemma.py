"""Lemma 3.1: its premises hold for what is drawn, its promise is kept, its limits are seen."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.networks import Context
from poisonkit.experiments.spectral_signatures.lemma import DISTRIBUTIONS, gaussian, overlap

LEMMA = EXPERIMENTS["spectral_signatures/lemma"]


@pytest.fixture
def trial(store):
    """One draw's overlaps and alignments, one of each for every gap."""

    def trial(distribution: str, epsilon: float, *gaps: float, seed=0, samples=5_000, dimensions=8):
        config = LEMMA.configure(
            profile="quick", gaps=gaps, samples=samples, dimensions=dimensions, epsilons=(epsilon,)
        )
        unit = {"distribution": distribution, "epsilon": epsilon, "seed": seed}
        numbers, _ = LEMMA.trial(config, unit, Context(store=store, device="cpu"))
        return numbers["overlaps"], numbers["alignments"]

    return trial


# Premises: mean 0, covariance at most I -----------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.02, 0.10, 0.20, 0.45])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_each_distribution_has_mean_0_and_unit_variance_at_most_in_every_direction(name, epsilon):
    count, dimensions = 200_000, 5
    generator = torch.Generator().manual_seed(1)
    points = DISTRIBUTIONS[name](count, dimensions, epsilon, generator).numpy()
    directions = np.random.default_rng(2).standard_normal((40, dimensions))
    directions = np.vstack([np.eye(dimensions), directions])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for along in (points @ directions.T).T:
        squares = along**2
        assert abs(along.mean()) < 5 * along.std() / math.sqrt(count)
        assert squares.mean() < 1 + 5 * squares.std() / math.sqrt(count)
    # And not less than the lemma allows: some direction has all of it.
    assert np.linalg.eigvalsh(np.cov(points.T)).max() == pytest.approx(1, abs=0.1)


def test_the_spiked_distributions_variance_lies_at_a_right_angle_to_the_gap():
    generator = torch.Generator().manual_seed(3)
    points = DISTRIBUTIONS["spiked"](100_000, 6, 0.1, generator).numpy()
    expected = np.diag([0.1, 1, 0.1, 0.1, 0.1, 0.1])
    assert np.allclose(np.cov(points.T), expected, atol=0.02)


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_heavy_tails_are_as_heavy_as_chebyshevs_inequality_allows(epsilon):
    """Its far-off points are more than epsilon, at a distance where variance 1 allows no more."""
    generator = torch.Generator().manual_seed(4)
    along = DISTRIBUTIONS["heavy tails"](100_000, 3, epsilon, generator)[:, 0]
    near, far = along.unique().tolist()
    share = float((along == far).double().mean())
    assert share == pytest.approx(1.2 * epsilon, abs=0.01)
    # One-sided: at most 1 / (1 + t^2) of a distribution of variance 1 reaches t.
    assert 1 / (1 + far**2) == pytest.approx(1.2 * epsilon)
    assert near < 0 < far


# Overlap ------------------------------------------------------------------------------------


def smallest_by_trying(clean: list[float], poisoned: list[float]) -> float:
    """Every threshold that could matter: at each value, between any two, and beyond them all."""
    values = sorted({*clean, *poisoned})
    thresholds = [values[0] - 1, values[-1] + 1, *values]
    thresholds += [(low + high) / 2 for low, high in pairwise(values)]
    return min(
        max(
            sum(value > t for value in clean) / len(clean),
            sum(value < t for value in poisoned) / len(poisoned),
        )
        for t in thresholds
    )


@pytest.mark.parametrize("levels", [2, 4, 1000], ids=lambda count: f"{count} levels")
@pytest.mark.parametrize("seed", range(40))
def test_overlap_is_the_smallest_over_all_thresholds_also_with_ties(levels, seed):
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, levels, rng.integers(1, 12)).astype(float)
    poisoned = rng.integers(0, levels, rng.integers(1, 12)).astype(float) + levels * (seed % 3) / 4
    expected = smallest_by_trying(clean.tolist(), poisoned.tolist())
    found = overlap(torch.from_numpy(clean), torch.from_numpy(poisoned))
    assert found == expected


@pytest.mark.parametrize(
    ("clean", "poisoned", "expected"),
    [
        ([0, 1, 2], [3, 4], 0),
        ([3, 3], [3, 3, 3], 0),  # neither above nor below the threshold 3
        ([3, 4], [1, 2], 1),
        ([0, 0, 0, 9], [1, 1], 0.25),
        ([0, 0], [-1, 1, 1, 1], 0.25),
        ([1, 2, 3, 4], [1, 2, 3, 4], 0.5),
    ],
)
def test_overlaps_that_can_be_seen_at_a_glance(clean, poisoned, expected):
    parts = (torch.tensor(part, dtype=torch.float64) for part in (clean, poisoned))
    assert overlap(*parts) == pytest.approx(expected)


def test_overlap_depends_on_the_order_of_the_values_only():
    generator = torch.Generator().manual_seed(6)
    clean = torch.rand(70, generator=generator, dtype=torch.float64)
    poisoned = torch.rand(30, generator=generator, dtype=torch.float64) + 0.5
    expected = overlap(clean, poisoned)
    assert 0 < expected < 0.5
    assert overlap(clean.exp(), poisoned.exp()) == expected
    assert overlap(clean.flip(0), poisoned[torch.randperm(30, generator=generator)]) == expected


# What the gap decides -----------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_huge_gap_leaves_no_overlap_and_is_the_top_direction(name, epsilon, trial):
    (found,), (alignment,) = trial(name, epsilon, 1e4)
    assert found == 0
    assert alignment == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_gaps_at_and_above_the_bound_are_always_separable(name, epsilon, trial):
    for seed in range(3):
        found, _ = trial(name, epsilon, 6.0, 9.0, 24.0, seed=seed)
        assert max(found) < epsilon
        assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_equal_distributions_without_a_gap_overlap_by_half(epsilon, trial):
    (found,), _ = trial("gaussian", epsilon, 1e-9)
    poisons = round(epsilon * 5_000)
    assert found == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / poisons))
    assert found > epsilon


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_a_stronger_direction_beside_the_gap_hides_it_until_the_gap_is_stronger(epsilon, trial):
    """Along the gap the mixture has variance 0.1 + gap (1 - epsilon), along the spike 1."""
    switch = 0.9 / (1 - epsilon)
    found, alignments = trial("spiked", epsilon, 0.5 * switch, 2 * switch)
    assert alignments[0] < 0.2
    assert alignments[1] > 0.95
    assert found[0] > 0.35  # the spike says nothing about who is poisoned
    assert found[1] < epsilon


def expected_overlap(gap: float, epsilon: float) -> float:
    """For normal D and W, whose distances from the common mean along the gap are folded normal."""
    distance = math.sqrt(gap / epsilon)
    clean = stats.foldnorm(epsilon * distance)
    poisoned = stats.foldnorm((1 - epsilon) * distance)
    threshold = optimize.brentq(lambda t: clean.sf(t) - poisoned.cdf(t), 0, 50)
    return float(clean.sf(threshold))


@pytest.mark.parametrize(("gap", "epsilon"), [(0.5, 0.1), (1.5, 0.2), (3.0, 0.45), (1.0, 0.05)])
def test_the_overlap_of_normal_distributions_is_what_their_formula_says(gap, epsilon, trial):
    samples = 40_000
    expected = expected_overlap(gap, epsilon)
    (found,), (alignment,) = trial("gaussian", epsilon, gap, samples=samples, dimensions=3)
    deviation = math.sqrt(expected * (1 - expected) / (epsilon * samples))
    assert alignment > 0.99
    assert found == pytest.approx(expected, abs=4 * deviation)


def test_heavy_tails_need_a_larger_gap_than_normal_ones(trial):
    gap, epsilon = 2.0, 0.05
    found = {
        name: [trial(name, epsilon, gap, seed=seed, samples=20_000)[0][0] for seed in range(5)]
        for name in ("gaussian", "heavy tails")
    }
    assert max(found["gaussian"]) < epsilon < np.mean(found["heavy tails"])


def test_draws_of_one_seed_have_nothing_in_common():
    """They are counted as independent, over distributions and epsilons as well as seeds."""
    drawn = set()

    def draw(count, dimensions, epsilon, generator):
        points = gaussian(count, dimensions, epsilon, generator)
        drawn.add(float(points[0, 0]))
        return points

    config = LEMMA.configure(profile="quick", epsilons=(0.05, 0.1), trials=3, dimensions=4)
    with pytest.MonkeyPatch.context() as patch:
        for name in DISTRIBUTIONS:
            patch.setitem(DISTRIBUTIONS, name, draw)
        for unit in LEMMA.units(config):
            LEMMA.trial(config, unit, Context(store=None, device="cpu"))
    assert len(drawn) == 2 * 3 * 2 * len(DISTRIBUTIONS)  # D and W of each


# The experiment -----------------------------------------------------------------------------


def test_a_row_counts_the_separable_draws_of_its_distribution_epsilon_and_gap(store):
    options = {"samples": 2_000, "dimensions": 4, "trials": 2, "epsilons": (0.05, 0.2)}
    config = LEMMA.configure(profile="quick", gaps=(0.01, 2.0, 6.0), **options)
    record = run(LEMMA, config, store=store, device="cpu")
    rows, trials = record.metrics["rows"], record.metrics["trials"]
    assert record.metrics["bound"] == 6
    assert len(rows) == 3 * 2 * 3
    assert len(trials) == 3 * 2 * 2
    for row in rows:
        place = (0.01, 2.0, 6.0).index(row["gap"])
        own = [
            found["overlaps"][place]
            for found in trials
            if (found["distribution"], found["epsilon"]) == (row["distribution"], row["epsilon"])
        ]
        assert row["runs"] == len(own) == 2
        assert row["separable"] == len([value for value in own if value < row["epsilon"]])
        assert row["overlap"][0] == pytest.approx(sum(own) / 2)
    assert {row["separable"] for row in rows if row["gap"] == 0.01} == {0}
    assert {row["separable"] for row in rows if row["gap"] == 6.0} == {2}


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_every_profile_draws_each_distribution_below_at_and_above_the_bound(profile):
    config = LEMMA.configure(profile=profile)
    assert min(config.gaps) < 6 < max(config.gaps)
    assert 6 in config.gaps
    units = LEMMA.units(config)
    assert {unit["distribution"] for unit in units} == set(DISTRIBUTIONS)
    assert len(units) == len(DISTRIBUTIONS) * len(config.epsilons) * config.trials


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epsilons": (0.1, 0.5)}, r"epsilon must lie in \(0, 1/2\), not 0.5"),
        ({"epsilons": (0.0,)}, r"epsilon must lie in \(0, 1/2\), not 0.0"),
        ({"epsilons": (-0.1,)}, r"epsilon must lie in \(0, 1/2\), not -0.1"),
        ({"epsilons": (0.05,), "samples": 300}, "300 samples are too few .* share of 0.05"),
        ({"distributions": ("cauchy",)}, "'cauchy'; known: gaussian, spiked, heavy tails"),
        ({"gaps": (1.0, 0.0)}, "all gaps positive"),
        ({"gaps": (-1.0,)}, "all gaps positive"),
        ({"gaps": ()}, "all gaps positive"),
        ({"dimensions": 2}, "at least 3 dimensions"),
        ({"epsilons": ()}, "no trials"),
        ({"trials": 0}, "no trials"),
    ],
)
def test_what_the_lemma_does_not_cover_is_refused_before_anything_is_drawn(options, told, store):
    config = LEMMA.configure(profile="quick", **options)
    with pytest.raises(PoisonkitError, match=told):
        run(LEMMA, config, store=store, device="cpu")
    assert not list(store.cache.rglob("*.json"))
