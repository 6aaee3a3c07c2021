"""Panoramas against diffusers' pipeline on the same small Stable Diffusion: equal where it is right, and where it is not."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.panorama import diffusers_panorama, ours, seam_statistic, steps_of, theirs

WINDOW, STRIDE, STEPS = 16, 8, 3


@pytest.fixture(scope="module")
def both(bridged):
    pipeline, generator = bridged("stable_diffusion")
    return diffusers_panorama(pipeline, WINDOW, STRIDE), generator


def noise(width: int) -> torch.Tensor:
    return torch.randn(1, 4, WINDOW, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("circular", [False, True])
def test_the_same_latents_where_the_stride_divides_the_width(both, circular):
    panorama, generator = both
    expected = theirs(panorama, noise(40), STEPS, 4.0, circular)
    got = ours(generator, noise(40), WINDOW, STRIDE, STEPS, 4.0, circular, rows=3)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert (ours(generator, noise(40), WINDOW, STRIDE, STEPS, 4.0, not circular) - got).abs().max() > 1e-2


def test_diffusers_leaves_the_rest_of_another_width_out(both):
    """4 columns more than strides reach: zeros there, and noise that was never denoised does not come back."""
    panorama, generator = both
    expected = theirs(panorama, noise(44), STEPS, 4.0)
    got = ours(generator, noise(44), WINDOW, STRIDE, STEPS, 4.0)
    assert not expected[..., 40:].any()
    assert got[..., 40:].std() > 0.1
    # the window more reaches columns from 28 on; in each further step windows that touch what differs carry it 12, then 8 on
    torch.testing.assert_close(got[..., :8], expected[..., :8], rtol=0, atol=1e-4)


def test_the_seam_statistic_sees_a_seam():
    images = torch.rand(400, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    ratio, error = seam_statistic(steps_of(images), (32, 64), 8)
    assert abs(ratio - 1) < 4 * error < 0.05
    smooth = torch.linspace(0, 1, 96).expand(2, 3, 64, 96).clone()
    assert abs(seam_statistic(steps_of(smooth), (32, 64), 8)[0] - 1) < 1e-3
    smooth[..., 32:64] += 0.1
    assert seam_statistic(steps_of(smooth), (32, 64), 8)[0] > 5
