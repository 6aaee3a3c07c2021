"""No bit depends on the batch on several threads either, which divide a batch's work by its size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gen.models.bridge.vae import BridgedAutoencoder
from gen.nn.batch_invariance import batch_invariance
from tests.gen import pipelines
from tests.gen.conftest import randomise, tiny_autoencoder

THREADS = 2


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def flux2_vae():
    from diffusers import AutoencoderKLFlux2

    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return pipelines.seeded(AutoencoderKLFlux2, **sizes, **blocks, patch_size=(2, 2))


AUTOENCODERS = {
    "ours": lambda: randomise(tiny_autoencoder(), 3),
    "kl": lambda: BridgedAutoencoder(pipelines.vae(4)),
    "channels last": lambda: BridgedAutoencoder(pipelines.vae(4).to(memory_format=torch.channels_last)),
    "video": lambda: BridgedAutoencoder(pipelines.qwen_vae()),
    "flux2": lambda: BridgedAutoencoder(flux2_vae().to(memory_format=torch.channels_last)),
}


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_every_autoencoder(name):
    autoencoder = AUTOENCODERS[name]()
    f, generator = autoencoder.factor, torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 16 * f, 24 * f, generator=generator) * 2 - 1
    latents = torch.randn(3, autoencoder.channels, 16, 24, generator=generator)
    with batch_invariance(True):
        for code, x in ((autoencoder.encode, images), (autoencoder.decode, latents)):
            together = code(x)
            assert torch.equal(together, torch.cat([code(row.clone()) for row in x.split(1)]))
            assert together.std() > 0.01


def test_a_group_norm_whose_channels_lie_last():
    """The kernel adds in another order for another number of rows; what comes out is a group norm all the same."""
    x = torch.randn(3, 16, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    with batch_invariance(True):
        together = F.group_norm(x, 4)
        assert torch.equal(together, torch.cat([F.group_norm(row, 4) for row in x.split(1)]))
    groups = x.contiguous().double().view(3, 4, -1)
    exact = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(together, exact.view_as(x).float(), atol=1e-5, rtol=1e-5)
    assert together.is_contiguous(memory_format=torch.channels_last)
