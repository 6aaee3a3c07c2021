"""Transparent pictures: what a call with alpha is, in Python, in files and in recipes; and opacity at sizes beyond training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gen import Generator, read_recipe
from gen.calls.call import Call
from gen.calls.command import as_arguments
from gen.io.alpha import premultiply, upon
from gen.io.errors import RecipeError
from gen.models.components import component_digest, save_component
from gen.models.transparency import OpenedTransparency, guided, open_transparency
from gen.nn.registry import build
from tests.gen.conftest import randomise

CALL: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "progress": False}
SIZES = {"widths": [8, 8], "blocks": [1, 1], "latent_channels": 4, "factor": 4, "refine_width": 4, "size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny network of random weights, its opacities spread over [0, 1]."""
    network = randomise(build({"type": "transparency", **SIZES}), 6)
    path = tmp_path_factory.mktemp("networks") / "transparency"
    save_component(network, path)
    return path


def by_hand(tiny: Generator, folder, latents: Tensor, pictures: Tensor) -> Tensor:
    """Opacity and colours times it: what the network says, and what is left of the picture."""
    network: Any = open_transparency(tiny, folder).network
    alpha, behind = (x.clamp(0, 1) for x in network(pictures, latents))
    alpha = ((alpha - 0.1) / 0.75).clamp(0, 1)  # nearly clear is clear, and nearly opaque opaque
    return torch.cat([torch.minimum((pictures - (1 - alpha) * behind).clamp_min(0), alpha), alpha], 1)


def test_a_call_has_the_opacity_of_its_own_picture(tiny, folder):
    own = {**CALL, "num_images_per_prompt": 2}
    latents = tiny("a cat", output_type="latent", **own).images
    plain = tiny("a cat", output_type="pt", **own).images
    found = tiny("a cat", output_type="pt", transparent=True, transparency=folder, **own).images
    assert found.shape == (2, 4, 32, 32) and found.min() >= 0 and found.max() <= 1
    with torch.no_grad():
        wanted = by_hand(tiny, folder, latents / tiny.config.latent_scale, plain)
    assert torch.allclose(premultiply(found), wanted, atol=1e-5)
    assert 0.05 < float(found[:, 3:].mean()) < 0.95
    blind = OpenedTransparency(open_transparency(tiny, folder).network, "").separate(plain)[0]
    assert not torch.allclose(blind, wanted, atol=1e-2)  # the latents are read


def test_files_have_alpha_and_replay(tiny, folder, tmp_path):
    made = tiny("a cat", transparent=True, transparency=folder, **CALL)
    assert made.images[0].mode == "RGBA"
    assert made.recipes[0].transparent.network == component_digest(folder)
    for name in ("cat.png", "cat.webp"):
        path = made.save(tmp_path / name, quality=None if name.endswith("png") else 100)[0]
        again = tiny.replay(read_recipe(path), progress=False, transparency=folder).images[0]
        assert np.array_equal(np.asarray(again), np.asarray(made.images[0]))
        with Image.open(path) as opened:
            assert opened.mode == "RGBA"
            alpha, seen = np.asarray(opened.getchannel("A")), np.asarray(made.images[0])
            assert np.array_equal(alpha, seen[..., 3])
            assert np.array_equal(np.asarray(opened)[alpha > 0], seen[alpha > 0])
    with pytest.raises(RecipeError, match="no alpha"):
        made.save(tmp_path / "cat.jpg")
    assert not (tmp_path / "cat.jpg").exists()


def test_what_is_refused(tiny, folder, tmp_path):
    with pytest.raises(ValueError, match="transparent=True"):
        tiny("a cat", transparency=folder, **CALL)
    with pytest.raises(ValueError, match=r"transparency is '.*none', which is no folder here"):
        tiny("a cat", transparent=True, transparency=tmp_path / "none", **CALL)
    with pytest.raises(ValueError, match="give True"):
        tiny("a cat", transparent="yes", **CALL)
    plain = tiny("a cat", transparent=False, **CALL)
    assert plain.images[0].mode == "RGB" and plain.recipes[0].transparent is None
    with pytest.raises(ValueError, match="made without alpha"):
        tiny.replay(plain.recipes[0], progress=False, transparency=folder)
    made = tiny("a cat", transparent=True, transparency=folder, **CALL).recipes[0]
    other = tmp_path / "other"
    save_component(randomise(build({"type": "transparency", **SIZES}), 7), other)
    with pytest.raises(ValueError, match="sha256 differs"):
        tiny.replay(made, progress=False, transparency=other)


def test_with_a_second_pass_and_another_size_the_finished_picture_has_alpha(tiny, folder):
    given = {"transparent": True, "transparency": folder, **CALL}
    large = tiny("a cat", hires=2, **given)
    assert large.images[0].size == (64, 64) and large.images[0].mode == "RGBA"
    assert large.recipes[0].hires is not None and large.recipes[0].transparent is not None
    again = tiny.replay(large.recipes[0], progress=False, transparency=folder)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(large.images[0]))


def test_a_picture_with_a_mask_stays_where_it_is_kept(tiny, folder):
    """The opacity is that of the finished picture, with what the mask keeps."""
    image, mask = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 32, 32)
    mask[..., :16] = 1
    given = {"image": image, "mask": mask, "output_type": "pt", **CALL}
    plain = tiny("a cat", **given).images
    found = tiny("a cat", transparent=True, transparency=folder, **given).images
    behind = open_transparency(tiny, folder).separate(plain)[1]
    assert torch.equal(plain[0, :, :, 16:], image[:, :, 16:])
    assert found.shape == (1, 4, 32, 32) and not torch.equal(behind, plain)


def test_calls_say_it_as_data_and_as_a_command():
    call = Call({"prompt": "a cat", "transparent": True, "transparency": "net"})
    assert as_arguments(call)[1:4] == ["a cat", "--transparent", "--transparency=net"]
    assert "--transparent" not in as_arguments(Call({"prompt": "a cat", "transparent": False}))


# ---- sizes beyond training ----


class Threshold(torch.nn.Module):
    """Opaque where the picture is bright."""

    def __init__(self, size: int):
        super().__init__()
        self.config = type("Config", (), {"size": size})
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def separate(self, pictures: Tensor, latents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (pictures[:, :1] > 0.5).float(), torch.zeros_like(pictures)


def test_large_pictures_are_seen_small_and_edges_are_their_own():
    """A bright disc upon black: the opacity found at a quarter of the size has the edge of the full size."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    disc = ((y - 60) ** 2 + (x - 70) ** 2 < 40**2).float().expand(1, 3, -1, -1) * torch.tensor([0.9, 0.8, 0.7]).view(1, 3, 1, 1)
    layer, _ = OpenedTransparency(Threshold(32), "").separate(disc)
    truth = (disc[:, :1] > 0.5).float()
    assert (layer[:, 3:] - truth).abs().mean() < 0.004
    far = ((y - 60) ** 2 + (x - 70) ** 2).sqrt()
    assert torch.equal(layer[0, 3][far < 20], torch.ones_like(layer[0, 3][far < 20]))
    assert not layer[0, 3][far > 60].any()
    enlarged = torch.nn.functional.interpolate(truth[..., ::4, ::4], scale_factor=4, mode="bilinear")
    assert (layer[:, 3:] - truth).abs().mean() < 0.3 * (enlarged - truth).abs().mean()


def test_the_guided_filter_is_least_squares():
    """Against its equations window by window: a ridge regression of the values on the colours in each, the mean of the
    regressions whose windows hold a pixel, and that applied to the picture."""
    generator = torch.Generator().manual_seed(0)
    picture, values = torch.rand(1, 3, 7, 6, generator=generator), torch.rand(1, 1, 7, 6, generator=generator)
    reach = 2
    colours = np.pad(picture[0].double().numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    wanted = np.pad(values[0].double().numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    fits = np.zeros((4, 7, 6))
    for y in range(7):
        for x in range(6):
            rows = colours[:, y : y + 5, x : x + 5].reshape(3, -1)
            level = wanted[:, y : y + 5, x : x + 5].reshape(-1)
            centred = rows - rows.mean(1, keepdims=True)
            slope = np.linalg.solve(centred @ centred.T / 25 + 1e-4 * np.eye(3), centred @ (level - level.mean()) / 25)
            fits[:, y, x] = [*slope, level.mean() - slope @ rows.mean(1)]
    around = np.pad(fits, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    mean = np.stack([[around[:, y : y + 5, x : x + 5].mean((1, 2)) for x in range(6)] for y in range(7)]).transpose(2, 0, 1)
    by_hand = ((mean[:3] * picture[0].double().numpy()).sum(0) + mean[3]).clip(0, 1)
    assert np.abs(guided(picture, picture, values)[0, 0].numpy() - by_hand).max() < 1e-6


def test_what_is_flat_stays_flat_at_any_size():
    small = torch.rand(1, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    large = torch.rand(1, 3, 30, 25, generator=torch.Generator().manual_seed(2))
    assert (guided(large, small, torch.ones(1, 1, 12, 10)) - 1).abs().max() < 1e-6
    assert guided(large, small, torch.zeros(1, 1, 12, 10)).abs().max() < 1e-6


# ---- the shipped network ----


@pytest.mark.parametrize("behind", [(1.0, 1.0, 1.0), (0.3, 0.5, 0.9)])
def test_the_shipped_network_finds_a_disc(tiny, behind):
    """Most of it is opaque and next to nothing around it is; upon what is behind, the layer is the picture; upon black there is
    little left of the background's colour."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    far = ((y - 64) ** 2 + (x - 60) ** 2).sqrt()
    truth = (40.5 - far).clamp(0, 1)[None, None]
    thing, ground = (torch.tensor(one).view(1, 3, 1, 1) for one in ((0.9, 0.2, 0.1), behind))
    picture = truth * thing + (1 - truth) * ground
    layer, found = open_transparency(tiny).separate(picture)
    assert layer[0, 3][far < 36].mean() > 0.9 and layer[0, 3][far > 48].mean() < 0.03
    assert (upon(layer, found) - picture).abs().max() < 1e-5
    assert (layer[:, :3] - truth * thing).abs().mean() < 8 / 255
