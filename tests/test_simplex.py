"""The nearest point of a polytope, against exact solutions and its own optimality conditions."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from poisonkit.errors import PoisonkitError
from poisonkit.simplex import convex_coefficients, duality_gap, project_on_simplex


def problems(count, vertices, dimensions, *, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    centre = torch.randn(count, 1, dimensions, **options)
    around = spread * torch.randn(count, vertices, dimensions, **options)
    return centre + around, torch.randn(count, dimensions, **options)


def value(vertices, target, c):
    return 0.5 * float(((target - c @ vertices) ** 2).sum())


def exact(vertices, target):
    """The least value, found by trying every face: least squares with sum 1 on each support."""
    best, found = np.inf, None
    a, b = vertices.numpy(), target.numpy()
    for size in range(1, len(a) + 1):
        for support in combinations(range(len(a)), size):
            face = a[list(support)]
            # Lagrange conditions of the equality-constrained problem.
            system = np.zeros((size + 1, size + 1))
            system[:size, :size] = face @ face.T
            system[:size, size] = system[size, :size] = 1
            solved = np.linalg.lstsq(system, np.append(face @ b, 1), rcond=None)[0][:size]
            if solved.min() < -1e-12:
                continue
            c = np.zeros(len(a))
            c[list(support)] = solved
            reached = 0.5 * float(((b - c @ a) ** 2).sum())
            if reached < best:
                best, found = reached, c
    return best, torch.from_numpy(found)


@pytest.mark.parametrize(("vertices", "dimensions"), [(2, 3), (5, 40), (5, 3), (8, 4)])
def test_the_value_is_the_least_over_all_faces(vertices, dimensions):
    a, b = problems(20, vertices, dimensions, seed=vertices)
    found = convex_coefficients(a, b, tolerance=1e-12)
    for number in range(len(a)):
        best, _ = exact(a[number], b[number])
        assert value(a[number], b[number], found[number]) == pytest.approx(best, rel=1e-7)


def test_it_agrees_with_a_general_purpose_solver():
    a, b = problems(5, 5, 30, seed=7)
    found = convex_coefficients(a, b, tolerance=1e-12)
    for vertices, target, c in zip(a.numpy(), b.numpy(), found.numpy(), strict=True):
        other = minimize(
            lambda w, v=vertices, t=target: 0.5 * ((t - w @ v) ** 2).sum(),
            np.full(5, 0.2),
            jac=lambda w, v=vertices, t=target: v @ (w @ v - t),
            bounds=[(0, 1)] * 5,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-12},
        )
        assert np.allclose(c, other.x, atol=1e-4)


def test_coefficients_lie_on_the_simplex_and_no_vertex_leads_further_down():
    a, b = problems(50, 6, 20, seed=3)
    c = convex_coefficients(a, b, tolerance=1e-10)
    assert c.min() >= 0
    assert torch.allclose(c.sum(-1), torch.ones(50, dtype=torch.float64))
    gap = duality_gap(a @ a.mT, (a @ b[..., None]).squeeze(-1), c)
    assert (gap <= 0.5e-10 * (b * b).sum(-1)).all()


def test_the_duality_gap_bounds_what_is_left_to_gain():
    a, b = problems(20, 5, 10, seed=4)
    generator = torch.Generator().manual_seed(5)
    c = project_on_simplex(torch.randn(20, 5, generator=generator, dtype=torch.float64))
    gaps = duality_gap(a @ a.mT, (a @ b[..., None]).squeeze(-1), c)
    for number, gap in enumerate(gaps):
        best, _ = exact(a[number], b[number])
        assert value(a[number], b[number], c[number]) - best <= float(gap) + 1e-12


def test_a_target_inside_the_polytope_is_reached_and_a_vertex_is_found():
    a, _ = problems(10, 5, 12, seed=1)
    weights = torch.rand(10, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights /= weights.sum(-1, keepdim=True)
    inside = (weights[:, None] @ a).squeeze(1)
    found = convex_coefficients(a, inside, tolerance=1e-14)
    assert torch.allclose(found, weights, atol=1e-5)
    at_vertex = convex_coefficients(a, a[:, 3], tolerance=1e-14)
    assert torch.allclose(at_vertex[:, 3], torch.ones(10, dtype=torch.float64), atol=1e-5)


def test_a_single_vertex_and_equal_vertices_are_no_special_case():
    a, b = problems(4, 1, 6)
    assert torch.equal(convex_coefficients(a, b), torch.ones(4, 1, dtype=torch.float64))
    same = a.expand(4, 3, 6)
    assert torch.allclose(convex_coefficients(same, b).sum(-1), torch.ones(4).double())


def test_problems_solved_together_are_those_solved_one_by_one():
    a, b = problems(12, 5, 25, seed=9)
    together = convex_coefficients(a.view(3, 4, 5, 25), b.view(3, 4, 25), tolerance=1e-13)
    for number, c in enumerate(together.view(12, 5)):
        alone = convex_coefficients(a[number], b[number], tolerance=1e-13)
        assert torch.allclose(c, alone, atol=1e-5)


def test_features_of_very_different_size_are_solved_together():
    a, b = problems(3, 5, 25, seed=9)
    scale = torch.tensor([1e-4, 1.0, 1e4], dtype=torch.float64)
    scaled = convex_coefficients(a * scale[:, None, None], b * scale[:, None], tolerance=1e-12)
    assert torch.allclose(scaled, convex_coefficients(a, b, tolerance=1e-12), atol=1e-4)


def test_a_warm_start_at_the_solution_stays_there():
    a, b = problems(6, 5, 25, seed=2)
    solved = convex_coefficients(a, b, tolerance=1e-13)
    again = convex_coefficients(a, b, start=solved, tolerance=1e-6, most_steps=1)
    assert torch.allclose(again, solved, atol=1e-6)


def test_nearly_equal_vertices_in_float32_keep_their_accuracy():
    a, b = problems(10, 5, 200, seed=6, spread=1e-2)
    found = convex_coefficients(a.float(), b.float(), tolerance=1e-12).double()
    assert found.dtype == torch.float64
    for number in range(len(a)):
        best, _ = exact(a[number], b[number])
        assert value(a[number], b[number], found[number]) == pytest.approx(best, rel=1e-5)


def test_the_projection_is_the_nearest_point_of_the_simplex():
    generator = torch.Generator().manual_seed(0)
    points = 3 * torch.randn(200, 6, generator=generator, dtype=torch.float64)
    found = project_on_simplex(points)
    assert found.min() >= 0
    assert torch.allclose(found.sum(-1), torch.ones(200, dtype=torch.float64))
    assert torch.allclose(project_on_simplex(found), found)
    # No other point of the simplex is nearer: the angle to each vertex is not acute.
    towards = torch.eye(6, dtype=torch.float64)[None] - found[:, None]
    assert ((points - found)[:, None] * towards).sum(-1).max() < 1e-9


def test_entries_beside_which_1_is_lost_are_projected_all_the_same():
    found = project_on_simplex(torch.tensor([[1e18, 0.0, -1e18], [3e17, 3e17, 0.0]]))
    assert (found >= 0).all()
    assert torch.isfinite(found).all()
    tiny = convex_coefficients(torch.full((2, 3), 1e-18), torch.ones(3))
    assert torch.isfinite(tiny).all()


def test_what_does_not_fit_is_refused():
    a, b = problems(4, 5, 6)
    with pytest.raises(PoisonkitError, match=r"\[4, 5, 6\] and targets of shape \[4, 5\]"):
        convex_coefficients(a, b[:, :5])
    with pytest.raises(PoisonkitError, match="NaN or infinite"):
        convex_coefficients(a * torch.nan, b)
