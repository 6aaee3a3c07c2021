"""Autoencoders of bridged models, whole and in tiles, and previews."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gen.models.bridge.vae import BridgedAutoencoder
from gen.models.tiling import tiled
from gen.pipeline import preview
from tests.gen import pipelines


@pytest.fixture(scope="module")
def vae():
    return pipelines.vae(4, scaling_factor=0.5, shift_factor=0.25)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(*shape: int) -> torch.Tensor:
    return F.interpolate(normal(shape[0], shape[1], 3, 3), shape[2:], mode="bicubic")


@torch.no_grad()
def test_scale_and_shift_are_the_configs(vae):
    ours, images, latents = BridgedAutoencoder(vae), normal(2, 3, 16, 24), normal(2, 4, 8, 12)
    assert ours.factor == 2 and ours.channels == 4
    mean = vae.encode(images).latent_dist.mean
    torch.testing.assert_close(ours.encode(images), (mean - 0.25) * 0.5, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode(latents), vae.decode(latents / 0.5 + 0.25).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_means_and_deviations_per_channel():
    """SDXL's finetunes: z = latents std / scale + mean (diffusers' pipeline)."""
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
    vae = pipelines.vae(4, scaling_factor=0.5, latents_mean=mean, latents_std=std)
    ours, latents = BridgedAutoencoder(vae), normal(1, 4, 8, 8)
    z = latents * torch.tensor(std).view(1, 4, 1, 1) / 0.5 + torch.tensor(mean).view(1, 4, 1, 1)
    torch.testing.assert_close(ours.decode(latents), vae.decode(z).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen", "wan"])
def test_an_autoencoder_of_videos_codes_one_frame(monkeypatch, kind):
    """Qwen-Image's and Krea 2's: z = latents std + mean, one frame (diffusers' pipeline)."""
    if kind == "wan":
        from diffusers import AutoencoderKLWan

        mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
        sizes = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [True]}
        vae = pipelines.seeded(AutoencoderKLWan, **sizes, latents_mean=mean, latents_std=std, scale_factor_spatial=2)
    else:
        vae = pipelines.qwen_vae()
        mean, std = vae.config.latents_mean, vae.config.latents_std
    ours, images, latents = BridgedAutoencoder(vae), normal(2, 3, 16, 24).clamp(-1, 1), normal(2, 4, 8, 12)
    assert ours.factor == 2 and ours.channels == 4
    volumes = []
    original = torch.nn.Conv3d._conv_forward
    monkeypatch.setattr(torch.nn.Conv3d, "_conv_forward", lambda *args: volumes.append(1) or original(*args))
    found = ours.encode(images), ours.decode(latents)
    assert not volumes  # one frame needs no convolution over time
    for module in vae.modules():
        vars(module).pop("forward", None)  # diffusers' own from here on
    mean, std = (torch.tensor(value).view(1, 4, 1, 1, 1) for value in (mean, std))
    coded = (vae.encode(images[:, :, None]).latent_dist.mode() - mean) / std
    torch.testing.assert_close(found[0], coded[:, :, 0], atol=1e-5, rtol=1e-5)
    shown = vae.decode(latents[:, :, None] * std + mean).sample[:, :, 0]
    torch.testing.assert_close(found[1], shown, atol=1e-5, rtol=1e-5)
    assert volumes


@torch.no_grad()
def test_a_batch_norm_sees_latents_in_patches():
    """FLUX.2's way, by its pipeline's own functions."""
    from diffusers import Flux2Pipeline

    vae = pipelines.flux2_vae()
    ours, images, latents = BridgedAutoencoder(vae), normal(2, 3, 16, 24), normal(2, 16, 4, 6)
    assert ours.factor == 4 and ours.channels == 16
    mean, deviation = vae.bn.running_mean.view(1, -1, 1, 1), (vae.bn.running_var + 1e-4).sqrt().view(1, -1, 1, 1)
    coded = (Flux2Pipeline._patchify_latents(vae.encode(images).latent_dist.mode()) - mean) / deviation
    torch.testing.assert_close(ours.encode(images), coded, atol=1e-5, rtol=1e-5)
    shown = vae.decode(Flux2Pipeline._unpatchify_latents(latents * deviation + mean)).sample
    torch.testing.assert_close(ours.decode(latents), shown, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input_channels": 4}, "reads pictures of 4 channels, not 3"),
        ({"latents_std": [1.0, 0.0, 1.0, 1.0]}, "latent scale is not finite"),
        ({"latents_mean": [0.0], "latents_std": [1.0, 1.0, 1.0]}, "not one number per channel"),
    ],
)
def test_autoencoders_of_videos_that_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        BridgedAutoencoder(pipelines.qwen_vae(**config))


@torch.no_grad()
def test_several_pictures_are_decoded_a_few_at_a_time(vae):
    latents, calls = normal(5, 4, 8, 8), []
    ours = BridgedAutoencoder(vae, whole=2 * 16 * 16)
    decode = ours._decode
    ours._decode = lambda part: calls.append(len(part)) or decode(part)
    torch.testing.assert_close(ours.decode(latents), BridgedAutoencoder(vae).decode(latents), atol=1e-5, rtol=1e-5)
    assert calls == [2, 2, 1]


@pytest.mark.parametrize(("tile", "overlap"), [(8, 2), (8, 0), (10, 6), (16, 4)])
@pytest.mark.parametrize("shape", [(16, 24), (17, 9), (30, 8)])
def test_tiles_of_a_code_without_neighbours_are_exact(shape, tile, overlap):
    x = normal(2, 3, *shape).double()
    torch.testing.assert_close(tiled(x, lambda v: 2 * v + 1, tile, overlap), 2 * x + 1)
    up = tiled(x, lambda v: F.interpolate(v, scale_factor=2), tile, overlap, grow=2)
    torch.testing.assert_close(up, F.interpolate(x, scale_factor=2))
    if not (tile % 2 or overlap % 2 or shape[0] % 2 or shape[1] % 2):
        down = tiled(x, lambda v: F.avg_pool2d(v, 2), tile, overlap, shrink=2)
        torch.testing.assert_close(down, F.avg_pool2d(x, 2))


def test_no_tile_is_larger_than_asked_and_all_overlap():
    seen = []
    tiled(normal(1, 1, 50, 33), lambda v: seen.append(tuple(v.shape[2:])) or v, 16, 4)
    assert set(seen) == {(16, 16)} and len(seen) == 4 * 3
    with pytest.raises(ValueError, match="overlap of 8"):
        tiled(normal(1, 1, 50, 33), lambda v: v, 8, 8)


@torch.no_grad()
def test_tiles_fade_linearly_into_one_another():
    """Two tiles that decode to 0 and 1: the seam is a straight ramp over the overlap."""
    values = iter([0.0, 1.0])
    out = tiled(torch.zeros(1, 1, 8, 12), lambda v: torch.full_like(v, next(values)), 8, 4)
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([0, 0, 0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1, 1, 1]))


@torch.no_grad()
def test_a_smooth_latent_in_tiles_is_close_to_the_whole(vae):
    """Waves, of which every tile sees about the same: what differs is the zeros beyond a tile's edge."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    waves = ((1, 0), (0, 1), (1, 1), (1, -1))
    latents = torch.stack([torch.sin(2 * torch.pi * (y * a + x * b) / 16) for a, b in waves])[None]
    whole = BridgedAutoencoder(vae).decode(latents)
    ours = BridgedAutoencoder(vae, whole=60 * 60, tile=64, overlap=32)
    found = ours.decode(latents)
    assert found.shape == whole.shape
    assert 0 < (found - whole).abs().mean() < 0.1 * whole.std()
    hard = BridgedAutoencoder(vae, whole=60 * 60, tile=64, overlap=0).decode(latents)
    assert (found - whole).abs().mean() < (hard - whole).abs().mean()
    picture = whole.clamp(-1, 1)
    code, code_tiled = BridgedAutoencoder(vae).encode(picture), ours.encode(picture)
    assert code.shape == code_tiled.shape and (code - code_tiled).abs().mean() < 0.1 * code.std()


def test_wrong_shapes_are_refused(vae):
    ours = BridgedAutoencoder(vae)
    with pytest.raises(ValueError, match="divisible by 2"):
        ours.encode(torch.zeros(1, 3, 15, 16))
    with pytest.raises(ValueError, match=r"latents \(B, 4, h, w\)"):
        ours.decode(torch.zeros(1, 3, 8, 8))


class Linear:
    """An autoencoder whose latents are a linear map of the average colour of a square."""

    factor = 4

    def __init__(self):
        self.matrix = normal(6, 3, seed=4)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.einsum("cr,brhw->bchw", self.matrix, F.avg_pool2d(images, self.factor)) + 0.5


def test_a_linear_autoencoder_is_inverted():
    linear = Linear()
    factors = preview.fit(linear, torch.device("cpu"))
    picture = smooth(1, 3, 32, 48).clamp(-1, 1)
    small = preview.to_rgb(linear.encode(picture), factors)
    torch.testing.assert_close(small, F.avg_pool2d(picture, 4) / 2 + 0.5, atol=1e-3, rtol=0)


def test_callbacks_can_show_a_small_picture(bridged):
    _, generator = bridged("stable_diffusion")
    shown = []

    def callback(generator, step, t, kwargs):
        shown.extend(generator.preview(kwargs["denoised"]))

    generator("a cat", height=32, width=48, num_inference_steps=3, callback_on_step_end=callback,
              callback_on_step_end_tensor_inputs=("denoised",), progress=False)  # fmt: skip
    assert [picture.size for picture in shown] == [(24, 16)] * 3


def test_a_model_of_pixels_is_its_own_preview(pixel_model):
    from gen.generator import Generator

    generator = Generator.from_pretrained(pixel_model, device="cpu", dtype="float32")
    image = generator.preview(torch.tensor([[[-1.0]], [[0.0]], [[1.0]]])[None].expand(1, 3, 4, 4))[0]
    assert image.size == (4, 4) and image.getpixel((0, 0)) == (0, 128, 255)
