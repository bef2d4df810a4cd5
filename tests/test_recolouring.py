"""A recolouring moves every colour by the same bounded amount wherever it is in the image."""

import pytest
import torch

from poisonkit.attacks.colour import Recolouring, to_rgb, to_yuv
from poisonkit.errors import PoisonkitError


def images(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 6, 5, generator=generator)


def randomly_offset(count=3, bound=0.04, points=10, seed=1):
    recolouring = Recolouring(count, bound=bound, points=points)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        drawn = torch.rand(recolouring.offsets.shape, generator=generator)
        recolouring.offsets.copy_(bound * (2 * drawn - 1))
    return recolouring


def test_yuv_and_back_is_the_image():
    x = images()
    assert torch.allclose(to_rgb(to_yuv(x)), x, atol=1e-6)
    grey = torch.full((1, 3, 1, 1), 0.3)
    assert torch.allclose(to_yuv(grey).flatten(), torch.tensor([0.3, 0.0, 0.0]), atol=1e-5)


def test_without_offsets_nothing_changes():
    x = images()
    assert torch.allclose(Recolouring(3, bound=0.04)(x), x, atol=1e-6)


def test_an_offset_that_is_everywhere_the_same_moves_every_colour_by_it():
    x = images() * 0.4 + 0.3  # so that no colour reaches the end of its range
    recolouring = Recolouring(3, bound=0.04)
    moved = torch.tensor([0.04, -0.02, 0.01])
    with torch.no_grad():
        recolouring.offsets.copy_(moved.view(1, 3, 1, 1, 1).expand_as(recolouring.offsets))
        change = to_yuv(recolouring(x)) - to_yuv(x)
    assert torch.allclose(change, moved.view(1, 3, 1, 1).expand_as(change), atol=1e-5)


def test_between_the_points_of_the_grid_it_is_interpolated():
    """By a trilinear interpolation that is written out here."""
    recolouring = randomly_offset(count=1, points=4).double()
    x = images(1).double() * 0.4 + 0.3
    yuv = to_yuv(x)[0].flatten(1)
    low = torch.tensor([0.0, -0.436, -0.615]).double()
    high = torch.tensor([1.0, 0.436, 0.615]).double()
    offsets = recolouring.offsets.detach()[0]
    expected = torch.zeros_like(yuv)
    for number in range(yuv.shape[1]):
        place = 3 * (yuv[:, number] - low) / (high - low)
        corner, share = place.floor().long(), place - place.floor()
        for bits in range(8):
            step = torch.tensor([bits >> 2 & 1, bits >> 1 & 1, bits & 1])
            weight = torch.where(step == 1, share, 1 - share).prod()
            y, u, v = (corner + step).clamp(max=3).tolist()
            expected[:, number] += weight * offsets[:, y, u, v]
    with torch.no_grad():
        change = to_yuv(recolouring(x))[0].flatten(1) - yuv
    # The matrix that turns colours back is the inverse of one with five digits.
    assert torch.allclose(change, expected, atol=1e-6)


def test_the_same_colour_becomes_the_same_colour_everywhere():
    x = images(2)
    x[:, :, 0, 0] = x[:, :, 4, 3]
    found = randomly_offset(count=2)(x)
    assert torch.equal(found[:, :, 0, 0], found[:, :, 4, 3])
    assert not torch.equal(found[0, :, 1, 1], x[0, :, 1, 1])


def test_each_image_has_a_function_of_its_own():
    x = images(1).repeat(2, 1, 1, 1)
    found = randomly_offset(count=2)(x)
    assert not torch.equal(found[0], found[1])


def test_it_stays_within_the_range_of_colours_and_the_projection_within_the_bound():
    recolouring = randomly_offset(bound=0.5)
    found = recolouring(images()).detach()
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    recolouring.bound = 0.1
    recolouring.project()
    assert float(recolouring.offsets.detach().abs().max()) == pytest.approx(0.1)


def test_roughness_is_that_of_neighbours_in_the_grid():
    recolouring = Recolouring(2, bound=1.0, points=3)
    ramp = torch.arange(3.0)
    with torch.no_grad():
        recolouring.offsets[0] = ramp.view(1, 3, 1, 1)  # along Y only, by 1 a step
    # The slopes are 1 by a third of the range.
    assert recolouring.roughness().tolist() == pytest.approx([9 / 3, 0])


def test_the_gradient_reaches_the_offsets():
    recolouring = randomly_offset(count=1, points=3).double()
    x = images(1).double() * 0.4 + 0.3
    weights = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (slope,) = torch.autograd.grad((recolouring(x) * weights).sum(), recolouring.offsets)
    generator = torch.Generator().manual_seed(4)
    direction = torch.randn(slope.shape, generator=generator, dtype=torch.float64)
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            recolouring.offsets += sign * 1e-6 * direction
            values.append(float((recolouring(x) * weights).sum()))
            recolouring.offsets -= sign * 1e-6 * direction
    rise = (values[0] - values[1]) / 2e-6
    assert float((slope * direction).sum()) == pytest.approx(rise, rel=1e-5)


def test_what_has_no_colours_is_refused():
    with pytest.raises(PoisonkitError, match="recolouring needs 3 channels, not 1"):
        Recolouring(1, bound=0.04)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(PoisonkitError, match="bound in"):
        Recolouring(1, bound=0.0)
