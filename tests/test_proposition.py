"""Proposition 1: what is drawn is what was asked for, and whoever is surrounded is captured."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.convex_polytope.proposition import (
    PLACEMENTS,
    Line,
    PropositionConfig,
    Scene,
    captured,
    draw,
    in_the_plane,
    widest,
)
from poisonkit.experiments.networks import Context
from poisonkit.simplex import convex_coefficients
from poisonkit.statistics import wilson

PROPOSITION = EXPERIMENTS["convex_polytope/proposition"]


def to_polytope(scene: Scene) -> float:
    """The distance of the target from the nearest convex combination of the poisons."""
    vertices, target = torch.from_numpy(scene.poisons), torch.from_numpy(scene.target)
    c = convex_coefficients(vertices[None], target[None], tolerance=1e-14)[0]
    assert c.min() >= 0
    assert float(c.sum()) == pytest.approx(1)
    return float((c @ vertices - target).norm())


def in_hull(points: np.ndarray, target: np.ndarray) -> bool:
    """Whether a linear program finds convex weights that give the target exactly."""
    rows = np.vstack([points.T, np.ones(len(points))])
    return linprog(np.zeros(len(points)), A_eq=rows, b_eq=[*target, 1]).success


# What is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("dimensions", "poisons"), [(2, 2), (5, 5), (8, 5), (128, 5), (40, 12)])
@pytest.mark.parametrize("distance", [0.0, 0.5, 3.0, 16.0])
def test_the_polytope_is_as_far_from_the_target_as_asked_for(
    placement, dimensions, poisons, distance
):
    config = PropositionConfig(poisons=poisons)
    for seed in range(5):
        scene = draw(config, placement, dimensions, distance, seed)
        assert to_polytope(scene) == pytest.approx(distance, abs=1e-3)
        # Which is also how far their mean is, so that both placements can be compared.
        mean = scene.poisons.mean(0)
        assert np.linalg.norm(mean - scene.target) == pytest.approx(distance, abs=1e-9)


@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_poisons_have_the_spread_of_their_placement(spread):
    config = PropositionConfig(spread=spread, narrow=0.1)
    for placement, expected in (("polytope", spread), ("collision", 0.1)):
        for distance in (0.0, 5.0):
            poisons = draw(config, placement, 16, distance, 3).poisons
            apart = np.linalg.norm(poisons - poisons.mean(0), axis=1)
            assert apart.mean() == pytest.approx(expected)


def test_scenes_of_a_seed_differ_in_distance_and_placement_only():
    config = PropositionConfig()
    scenes = {
        (placement, distance): draw(config, placement, 8, distance, 4)
        for placement in PLACEMENTS
        for distance in (0.0, 6.0)
    }
    first, *others = scenes.values()
    for other in others:
        for part in ("own", "other", "target"):
            assert np.array_equal(getattr(first, part), getattr(other, part))
    # The same polytope in two sizes, moved the same way.
    for distance in (0.0, 6.0):
        wide, narrow = (scenes[p, distance].poisons for p in ("polytope", "collision"))
        assert np.allclose(
            (wide - wide.mean(0)) / config.spread, (narrow - narrow.mean(0)) / config.narrow
        )
        assert np.allclose(wide.mean(0), narrow.mean(0))
    again, another = draw(config, "polytope", 8, 6.0, 4), draw(config, "polytope", 8, 6.0, 5)
    assert np.array_equal(again.poisons, scenes["polytope", 6.0].poisons)
    assert not np.allclose(another.target, again.target)


def test_the_classes_are_normal_around_means_that_are_the_gap_apart():
    config = PropositionConfig(points=20_000, gap=6.0)
    scene = draw(config, "polytope", 5, 0.0, 1)
    between = scene.own.mean(0) - scene.other.mean(0)
    assert np.allclose(between, [6, 0, 0, 0, 0], atol=0.06)
    for points in (scene.own, scene.other):
        assert np.allclose(np.cov(points.T), np.eye(5), atol=0.05)
    targets = np.stack(
        [draw(PropositionConfig(), "polytope", 5, 0.0, s).target for s in range(400)]
    )
    assert np.allclose(targets.mean(0), [-3, 0, 0, 0, 0], atol=5 / 20)


# The widest classifier ------------------------------------------------------------------------


def hard_margin(scene: Scene) -> np.ndarray:
    """The least weights (and bias) that give every point its side, at a margin of 1."""
    x = np.concatenate([scene.own, scene.poisons, scene.other])
    signs = np.repeat([1.0, -1.0], [len(scene.own) + len(scene.poisons), len(scene.other)])
    rows = signs[:, None] * np.column_stack([x, np.ones(len(x))])
    # Begin where a linear program finds room.
    room = linprog(np.zeros(rows.shape[1]), A_ub=-rows, b_ub=-np.ones(len(x)), bounds=(None, None))
    assert room.success, "the scene is not separable"
    found = minimize(
        lambda v: 0.5 * float(v[:-1] @ v[:-1]),
        room.x,
        jac=lambda v: np.append(v[:-1], 0.0),
        constraints={"type": "ineq", "fun": lambda v: rows @ v - 1, "jac": lambda v: rows},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.success
    return found.x


@pytest.mark.parametrize("dimensions", [2, 4, 12])
@pytest.mark.parametrize("seed", range(3))
def test_the_classifier_has_the_widest_margin_of_all_that_fit(dimensions, seed):
    config = PropositionConfig(points=15, poisons=2, gap=16.0, spread=1.0)
    scene = draw(config, "polytope", dimensions, 0.5, seed)
    # Poisons beside the target's class are in the way; here they are among their own.
    scene = Scene(scene.own, scene.other, scene.own[:2] + 0.5, scene.target)
    expected = hard_margin(scene)
    line = widest(scene)
    found = np.append(line.weight, line.bias)
    assert np.allclose(found, expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())
    margins = [
        sign * (points @ line.weight + line.bias)
        for points, sign in ((scene.own, 1), (scene.poisons, 1), (scene.other, -1))
    ]
    assert min(part.min() for part in margins) == pytest.approx(1, abs=1e-2)


def test_two_points_are_cut_in_the_middle():
    own, other = np.array([[4.0, 1.0]]), np.array([[-2.0, 1.0]])
    line = widest(Scene(own, other, own, np.zeros(2)))
    assert np.allclose(line.weight / np.linalg.norm(line.weight), [1, 0], atol=1e-6)
    assert -line.bias / line.weight[0] == pytest.approx(1)
    assert line.takes(np.array([[1.01, 99.0], [0.99, -99.0]])).tolist() == [True, False]


def test_poisons_that_cannot_be_fitted_are_told_apart_from_targets_that_are_not_captured():
    """Poisons in the middle of the other class, with points of it on all sides of them."""
    square = 5 * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    own = np.array([[50.0, 0.0], [51.0, 1.0]])
    scene = Scene(own, square, np.array([[0.1, 0.0], [-0.1, 0.0]]), np.zeros(2))
    fitted, _ = captured(scene)
    assert not fitted
    # The target on the poisons' side of a wide gap is captured without any polytope.
    near = Scene(own, square, own + 1, np.array([40.0, 0.0]))
    assert captured(near) == (True, True)
    assert captured(Scene(own, square, own + 1, np.array([-40.0, 0.0]))) == (True, False)


# Proposition 1 --------------------------------------------------------------------------------


def random_classifiers(scene: Scene, count: int, seed: int) -> list[Line]:
    """Linear classifiers of any direction, each with a bias that fits all poisons."""
    generator = np.random.default_rng(seed)
    found = []
    for weight in generator.normal(size=(count, len(scene.target))):
        lowest = float((scene.poisons @ weight).min())
        # From one that only just takes the poisons to one that takes nearly everything.
        slack = 10.0 ** generator.uniform(-9, 1)
        found.append(Line(weight, slack - lowest))
    return found


@pytest.mark.parametrize("dimensions", [5, 8, 64])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_classifier_that_fits_the_poisons_captures_a_target_in_their_polytope(
    dimensions, placement
):
    for seed in range(4):
        scene = draw(PropositionConfig(), placement, dimensions, 0.0, seed)
        assert in_hull(scene.poisons, scene.target)
        for line in random_classifiers(scene, 400, seed):
            assert line.takes(scene.poisons).all()
            assert line.takes(scene.target[None])[0]


def test_any_point_of_the_polytope_is_captured_and_not_only_its_middle():
    generator = np.random.default_rng(2)
    scene = draw(PropositionConfig(), "polytope", 8, 3.0, 0)
    inside = generator.dirichlet(np.full(5, 0.5), size=50) @ scene.poisons
    assert all(in_hull(scene.poisons, point) for point in inside[:5])
    for line in random_classifiers(scene, 200, 7):
        assert line.takes(inside).all()


@pytest.mark.parametrize("distance", [0.01, 1.0, 8.0])
def test_outside_the_polytope_some_classifier_fits_the_poisons_and_not_the_target(distance):
    """The other direction: the one that looks from the target to the nearest point."""
    for seed in range(5):
        scene = draw(PropositionConfig(), "polytope", 8, distance, seed)
        assert not in_hull(scene.poisons, scene.target)
        away = scene.poisons.mean(0) - scene.target
        middle = scene.target + away / 2
        line = Line(away, -float(away @ middle))
        assert line.takes(scene.poisons).all()
        assert not line.takes(scene.target[None])[0]
        some = random_classifiers(scene, 400, seed)
        assert all(line.takes(scene.poisons).all() for line in some)
        if distance == 8:
            assert not all(line.takes(scene.target[None])[0] for line in some)


def test_the_widest_classifier_captures_a_surrounded_target_wherever_it_fits():
    fitted = 0
    for placement in PLACEMENTS:
        for dimensions in (8, 128):
            for seed in range(6):
                scene = draw(PropositionConfig(), placement, dimensions, 0.0, seed)
                fits, hit = captured(scene)
                fitted += fits
                assert hit or not fits
    assert fitted > 10


def test_far_poisons_that_surround_capture_what_near_ones_beside_it_do_not():
    """Figure 1: what counts is the distance of the polytope."""
    config = PropositionConfig()
    near = far = 0
    for seed in range(12):
        surround = draw(config, "polytope", 128, 0.0, seed)
        beside = draw(config, "collision", 128, 12.0, seed)
        fits, hit = captured(surround)
        far += fits and hit
        fits, hit = captured(beside)
        near += fits and hit
    assert far == 12
    assert near < far
    apart = np.linalg.norm(surround.poisons - surround.target, axis=1).min()
    assert apart > 10 * config.narrow


# Scenes in the plane --------------------------------------------------------------------------


def to_segment(scene: Scene) -> float:
    """The distance of the target from the segment between two poisons."""
    a, b = scene.poisons
    share = np.clip((scene.target - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return float(np.linalg.norm(a + share * (b - a) - scene.target))


@pytest.mark.parametrize("asked", [(0.0, 1.5), (1.5, 0.0), (0.0, 0.0), (3.0, 3.0)])
@pytest.mark.parametrize("seed", [0, 9])
def test_scenes_in_the_plane_have_fitted_poisons_at_the_distances_asked_for(asked, seed):
    distances = dict(zip(PLACEMENTS, asked, strict=True))
    scenes = in_the_plane(distances, seed=seed)
    assert list(scenes) == list(PLACEMENTS)
    for placement, scene in scenes.items():
        assert scene.poisons.shape == (2, 2)
        fitted, hit = captured(scene)
        assert fitted
        assert hit or distances[placement] > 0
        assert to_segment(scene) == pytest.approx(distances[placement], abs=1e-9)
    wide, narrow = scenes["polytope"], scenes["collision"]
    assert np.array_equal(wide.own, narrow.own)
    assert np.linalg.norm(np.subtract(*wide.poisons)) > np.linalg.norm(np.subtract(*narrow.poisons))


def test_scenes_in_the_plane_are_those_of_the_first_draw_that_can_be_fitted():
    """Of the draws in between none can be, so the same scene is found from each of them."""
    distances = {"polytope": 1.0, "collision": 1.0}
    found = [in_the_plane(distances, seed=seed)["polytope"].target[0] for seed in range(12)]
    again = [in_the_plane(distances, seed=seed)["polytope"].target[0] for seed in range(12)]
    assert found == again
    # Once passed, a draw does not come back.
    assert len(set(found)) == 1 + sum(a != b for a, b in pairwise(found))
    assert len(set(found)) > 1


# The experiment -------------------------------------------------------------------------------


def test_a_row_counts_the_draws_of_its_dimension_placement_and_distance(store):
    options = {"trials": 4, "dimensions": (6, 20), "distances": (0.0, 8.0), "points": 12}
    config = PROPOSITION.configure(profile="quick", seed=3, **options)
    record = run(PROPOSITION, config, store=store, device="cpu")
    rows = record.metrics["rows"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        place = ("polytope", "collision").index(row["placement"])
        scenes = [
            draw(
                config,
                row["placement"],
                row["dimensions"],
                row["distance"],
                (seed, row["dimensions"], place),
            )
            for seed in range(3, 7)
        ]
        found = [captured(scene) for scene in scenes]
        assert row["fitted"] == sum(fits for fits, _ in found)
        assert row["captured"] == sum(fits and hit for fits, hit in found)
        if row["fitted"]:
            assert (row["low"], row["high"]) == wilson(row["captured"], row["fitted"])
        nearest = [np.linalg.norm(s.poisons - s.target, axis=1).min() for s in scenes]
        assert row["nearest"] == pytest.approx(np.mean(nearest))
        if row["distance"] == 0:
            assert row["captured"] == row["fitted"]


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_every_profile_draws_both_placements_inside_and_beside_the_target(profile):
    config = PROPOSITION.configure(profile=profile)
    units = PROPOSITION.units(config)
    assert len(units) == len(PLACEMENTS) * len(config.dimensions)
    assert {unit["placement"] for unit in units} == set(PLACEMENTS)
    assert 0.0 in config.distances
    assert max(config.distances) > config.gap
    assert config.poisons == 5
    # Collisions are near the target even where their polytope is not around it.
    assert config.narrow < config.spread / 10


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"placements": ("cube",)}, "one of polytope, collision"),
        ({"placements": ("polytope", "polytope")}, "placements names something twice"),
        ({"placements": ()}, "no trials"),
        ({"dimensions": (8, 8)}, "dimensions names something twice"),
        ({"dimensions": (4,)}, "5 poisons and a direction beside them"),
        ({"dimensions": ()}, "need as many dimensions"),
        ({"distances": (0.0, 0.0)}, "distances names something twice"),
        ({"distances": (1.0, -1.0)}, "distances must not be negative"),
        ({"distances": ()}, "distances must not be negative"),
        ({"poisons": 1}, "at least 2 poisons"),
        ({"points": 1}, "2 points of each class"),
        ({"spread": 0.0}, "spreads must be positive"),
        ({"narrow": -0.1}, "spreads must be positive"),
        ({"trials": 0}, "at least 1 draw of each scene, not 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_drawn(options, told, store):
    def attempt():
        config = PROPOSITION.configure(profile="quick", **options)
        run(PROPOSITION, config, store=store, device="cpu")

    with pytest.raises(PoisonkitError, match=told):
        attempt()
    assert not list(store.cache.rglob("*.json"))


def test_draws_are_the_same_wherever_a_trial_runs(store):
    config = PROPOSITION.configure(profile="quick", trials=2, distances=(4.0,))
    unit = {"dimensions": 8, "placement": "polytope"}
    context = Context(store=store, device="cpu")
    torch.manual_seed(4)
    first, _ = PROPOSITION.trial(config, unit, context)
    torch.manual_seed(5)
    second, _ = PROPOSITION.trial(config, unit, context)
    assert first["rows"] == second["rows"]
    other, _ = PROPOSITION.trial(replace(config, seed=1000), unit, context)
    assert other["rows"][0]["nearest"] != first["rows"][0]["nearest"]
