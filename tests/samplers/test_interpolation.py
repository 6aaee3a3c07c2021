"""Interpolation between noises: ends, angles and norms."""

import math

import pytest
import torch

from samplers.editing import lerp, slerp


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


A, B = draw(0, 5, 4, 8, 8), 1.7 * draw(1, 5, 4, 8, 8)


def rows(x):
    return x.flatten(1).norm(dim=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("between", [lerp, slerp, lambda a, b, u: lerp(a, b, u, keep_variance=True)])
def test_ends_are_exact(between, dtype):
    a, b = A.to(dtype), B.to(dtype)
    assert torch.equal(between(a, b, 0.0), a) and torch.equal(between(a, b, 1.0), b)
    assert between(a, b, 0.3).dtype == dtype


@pytest.mark.parametrize("u", [0.1, 0.5, 0.77])
def test_constant_speed_along_the_great_circle(u):
    """The angle from a is u times the whole one, and the result lies in the plane of a and b."""
    made = slerp(A, B, u)

    def angle(x, y):
        return torch.acos((x * y).flatten(1).sum(1) / rows(x) / rows(y))

    assert torch.allclose(angle(A, made), u * angle(A, B), atol=1e-12)
    assert torch.allclose(angle(A, made) + angle(made, B), angle(A, B), atol=1e-12)
    assert torch.allclose(rows(made), (1 - u) * rows(A) + u * rows(B), rtol=1e-12)


def test_two_dimensions_by_hand():
    a, b = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 2.0]]).double()
    made = slerp(a, b, 1 / 3)
    expected = 4 / 3 * torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]).double()
    assert torch.allclose(made, expected, atol=1e-15)


def test_each_image_has_its_own_part():
    u = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    for between in (slerp, lerp):
        each = torch.cat([between(A[i : i + 1], B[i : i + 1], v) for i, v in enumerate(u.tolist())])
        assert torch.allclose(between(A, B, u), each, atol=1e-14)


def test_unit_noise_stays_unit_noise():
    """Variance 1 within four standard errors, where the straight line has (1 - u)^2 + u^2."""
    a, b = draw(2, 4, 50000), draw(3, 4, 50000)
    error = 4 * (2 / a.numel()) ** 0.5
    for made in (slerp(a, b, 0.4), lerp(a, b, 0.4, keep_variance=True)):
        assert abs(made.var().item() - 1) < error
    assert abs(lerp(a, b, 0.4).var().item() - 0.52) < error


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-7, 1e-4])
def test_nearly_parallel_images_are_interpolated_straight(gap):
    b = A + gap * draw(4, 5, 4, 8, 8)
    made = slerp(A, b, 0.25)
    assert (made - lerp(A, b, 0.25)).abs().max() < 1e-6
    assert torch.isfinite(made).all()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        slerp(A, B[:2], 0.5)


def test_an_image_of_zeros_has_no_direction():
    a, b = torch.zeros(2, 3, 2, 2, dtype=torch.float64), torch.ones(2, 3, 2, 2, dtype=torch.float64)
    b[1] = 0
    assert torch.equal(slerp(a, b, 0.25), 0.25 * b) and torch.equal(slerp(b, a, 0.25), 0.75 * b)
