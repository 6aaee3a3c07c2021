import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from gen.io.weights import CheckpointError, write_json
from gen.models.components import load_component, save_component
from gen.nn.autoencoder import Autoencoder, AutoencoderConfig
from gen.nn.registry import build

SMALL = AutoencoderConfig(
    channels=6, encoder_widths=(8, 12), encoder_blocks=(1, 1), decoder_widths=(12, 8), decoder_blocks=(1, 1), refine_width=4
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Autoencoder(SMALL).eval()


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_shapes_follow_the_factor(factor):
    network = Autoencoder(SMALL.model_copy(update={"factor": factor}))
    latents = network.encode(torch.rand(2, 3, 2 * factor, 3 * factor))
    assert latents.shape == (2, 6, 2, 3)
    assert network.decode(latents).shape == (2, 3, 2 * factor, 3 * factor)


def test_latents_are_bounded_and_near_the_plain_value_inside(network):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    plain = network.encoder(images) + network.encoder_skip(F.pixel_unshuffle(images, 8))
    torch.testing.assert_close(network.encode(images), 3 * torch.tanh(plain / 3))
    network.encoder[-1].weight.data *= 1e4
    latents = network.encode(images)
    assert latents.abs().max() <= 3 and latents.abs().max() > 2.9


@pytest.mark.parametrize(("channels", "square"), [(16, 4), (12, 4), (48, 2), (3, 8), (11, 8)])
def test_it_starts_as_averages_over_squares(channels, square):
    network = Autoencoder(SMALL.model_copy(update={"channels": channels}))
    with torch.no_grad():
        network.encoder[-1].weight.zero_()
        network.decoder[-1].weight.zero_()
        images = torch.rand(2, 3, 16, 24) * 0.2 - 0.1  # where tanh is nearly the identity
        reconstruction, latents = network(images)
    average = F.avg_pool2d(images, square)
    torch.testing.assert_close(
        reconstruction, average.repeat_interleave(square, 2).repeat_interleave(square, 3), atol=1e-4, rtol=0
    )
    assert torch.equal(latents[:, 3 * (8 // square) ** 2 :], torch.zeros_like(latents[:, 3 * (8 // square) ** 2 :]))


def test_the_default_start_is_close_to_the_averages():
    """Training starts from a small picture of the picture: a random start would have an error as large as the picture."""
    torch.manual_seed(0)
    images = F.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, (64, 64), mode="bilinear")
    with torch.no_grad():
        error = (build({"type": "autoencoder"})(images)[0] - images).square().mean()
    assert error < 0.1 * images.square().mean()


def test_only_latents_reach_the_decoder(network):
    images, latents = torch.rand(1, 3, 16, 16), torch.randn(1, 6, 2, 2)
    expected = network.decode(latents)
    network.encode(images)
    assert torch.equal(network.decode(latents), expected)


def test_forward_adds_the_noise_to_the_latents(network):
    images, noise = torch.rand(2, 3, 32, 32), torch.randn(2, 6, 4, 4)
    reconstruction, latents = network(images, noise)
    assert torch.equal(latents, network.encode(images))
    torch.testing.assert_close(reconstruction, network.decode(latents + noise))
    torch.testing.assert_close(network(images)[0], network.decode(latents))


def test_a_crop_far_from_borders_decodes_alike(network):
    """Fully convolutional: away from the borders, a part of the latents gives that part of the picture."""
    latents = torch.randn(1, 6, 24, 24)
    whole, part = network.decode(latents), network.decode(latents[:, :, 4:20, 4:20])
    inner = 8 * 6
    torch.testing.assert_close(whole[:, :, 32 + inner : -32 - inner, 32 + inner : -32 - inner],
                               part[:, :, inner:-inner, inner:-inner], atol=1e-5, rtol=1e-4)  # fmt: skip


def test_saved_and_loaded(network, tmp_path):
    save_component(network, tmp_path)
    loaded = load_component(tmp_path, "autoencoder")
    images = torch.rand(1, 3, 16, 16)
    assert loaded.config == network.config and torch.equal(loaded(images)[0], network(images)[0])


def test_wrong_shapes_are_named(network):
    with pytest.raises(ValueError, match=r"divisible by 8, not \(1, 3, 20, 16\)"):
        network.encode(torch.zeros(1, 3, 20, 16))
    with pytest.raises(ValueError, match=r"\(B, 6, h, w\), not \(1, 4, 2, 2\)"):
        network.decode(torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": 6}, "power of two"),
        ({"encoder_blocks": (1,)}, "must agree"),
        ({"factor": 2, "decoder_widths": (8, 8, 8), "decoder_blocks": (1, 1, 1)}, "more than a factor of 2"),
        ({"encoder_blocks": (1, -1)}, "between 0 and 64"),
        ({"depth": 3}, "(?i)extra"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        AutoencoderConfig(**{**SMALL.model_dump(), **change})


def test_default_sizes_are_those_of_the_default_model():
    network = build({"type": "autoencoder"})
    assert network.encode(torch.zeros(1, 3, 128, 128)).shape == (1, 16, 16, 16)
    assert sum(p.numel() for p in network.parameters()) < 3e6


def test_a_file_of_other_sizes_is_refused(network, tmp_path):
    save_component(network, tmp_path)
    write_json(tmp_path / "config.json", {"type": "autoencoder", **SMALL.model_dump(), "channels": 5})
    with pytest.raises(CheckpointError, match="does not fit Autoencoder"):
        load_component(tmp_path)
