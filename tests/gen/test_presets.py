"""Published sizes against published counts, and our arithmetic against torch's own counters."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gen.cli import app as cli
from gen.nn.backbones import fused
from gen.nn.backbones.cost import cost, preset_cost
from gen.nn.backbones.presets import PRESETS, build_preset, preset
from gen.nn.registry import build
from samplers.denoiser import Condition, Context
from tests.gen import published

# name -> (millions of parameters, billions of multiply-adds), as the papers and their repositories state them
PUBLISHED = {
    "uvit-s-2-cifar10": (44.26, None),
    "uvit-s-4-celeba": (44.29, None),
    "uvit-m-4-imagenet64": (130.94, None),
    "uvit-l-4-imagenet64": (286.83, None),
    "uvit-l-2-imagenet256": (286.76, None),
    "uvit-h-2-imagenet256": (500.83, 133.2),
    "uvit-l-4-imagenet512": (287, None),
    "uvit-h-4-imagenet512": (501, None),
    "uvit-s-2-mscoco": (44.69, None),
    "uvit-s-deep-2-mscoco": (58.35, None),
    "uvit-h2048-d42": (2300, None),
    "dit-s-2": (32.96, 6.06),
    "dit-s-4": (33, 1.41),
    "dit-s-8": (33, 0.36),
    "dit-b-2": (130.51, 23.01),
    "dit-b-4": (130, 5.56),
    "dit-b-8": (131, 1.42),
    "dit-l-2": (458.10, 80.71),
    "dit-l-4": (458, 19.70),
    "dit-l-8": (459, 5.01),
    "dit-xl-2": (675.13, 118.64),
    "dit-xl-4": (675, 29.05),
    "dit-xl-8": (676, 7.39),
    "dit-xl-2-512": (None, 524.60),
    "pixart-alpha-256": (610.86, None),
    "pixart-alpha-512": (610.86, None),
    "pixart-alpha-1024": (611.35, None),
    "dimr-xl-2r": (505, 160),
    "dimr-g-2r": (1056, 331),
}
# (width, depth) -> billions
SCALED = {
    (1024, 28): 0.40,
    (1024, 42): 0.59,
    (1536, 42): 1.32,
    (2048, 28): 1.58,
    (2048, 42): 2.34,
    (2048, 56): 3.11,
    (2048, 80): 4.42,
    (2560, 42): 3.66,
    (2560, 56): 4.85,
    (3072, 42): 5.27,
    (3072, 60): 7.48,
}
TINY = {"size": 8, "patch": 2, "channels": 3, "dim": 24, "depth": 5, "heads": 2}
TEXT = {"text_tokens": 5, "text_dim": 6}
STAGES = [
    {"kind": "transformer", "dim": 12, "hidden": 20, "depth": 3, "heads": 2, "patch": 2, "pool": 2},
    {"kind": "convnext", "dim": 8, "hidden": 10, "depth": 4, "kernel": 3, "patch": 1},
]
SHAPES = {
    "U-ViT": {"type": "uvit", "num_classes": 4, "time_mlp": True, "skip_scaling": "learned"},
    "U-ViT, text": {"type": "uvit", **TEXT, "text_norm": True, "qkv_bias": True, "refine_channels": 4, "final_conv": False},
    "U-ViT, more out": {"type": "uvit", "out_channels": 5, "skip_scaling": "learned_each", "mlp_ratio": 2.5},
    "DiT": {"type": "dit", "num_classes": 4, "learned_variance": True, "qkv_bias": False},
    "DiT, text": {"type": "dit", **TEXT, "pooled_text": True, "size_conditions": True, "mlp_ratio": 3.0},
    "PixArt": {"type": "dit", **TEXT, "modulation": "adaln_single", "size_conditions": True},
    "MMDiT": {"type": "mmdit", **TEXT, "pooled_text": True, "dual_blocks": 2, "num_classes": 3},
    "FLUX": {"type": "flux", **TEXT, "single_depth": 2, "axes": [4, 4, 4], "scalars": ["guidance"]},
    "Qwen-Image": {"type": "qwen_image", **TEXT, "axes": [4, 4, 4]},
    "Z-Image": {"type": "z_image", **TEXT, "axes": [4, 4, 4]},
    "MMDiT of 3": {"type": "mmdit", **TEXT, "padded_text": False, "qk_norm": "none", "scalars": ["guidance"]},
}
# name -> (diffusers' class, its config as published)
SD3 = {"sample_size": 128, "in_channels": 16, "caption_projection_dim": 1536, "num_layers": 24, "num_attention_heads": 24}
DIFFUSERS = {
    "sd3-medium": ("SD3Transformer2DModel", {**SD3, "pos_embed_max_size": 192}),
    "sd3.5-medium": (
        "SD3Transformer2DModel",
        {**SD3, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
    ),
    "sd3.5-large": (
        "SD3Transformer2DModel",
        {
            **SD3,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
        },
    ),
    "flux.1-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux.1-schnell": ("FluxTransformer2DModel", {}),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "z-image": ("ZImageTransformer2DModel", {}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    with torch.device("meta"):
        net = build_preset(name)
    millions, multiply_adds = PUBLISHED[name]
    if millions is not None:
        # learned null texts are ours (PixArt's are a buffer); DiT's fixed positions are a parameter there
        count = sum(p.numel() for key, p in net.named_parameters() if key not in ("null_text", "null_tokens"))
        count += net.pos_embed.numel() if name.startswith("dit") else 0
        assert round(count / 1e6, -2 if millions == 2300 else len(str(millions).partition(".")[2])) == millions
    if multiply_adds is not None:
        assert preset_cost(name).flops / 2e9 == pytest.approx(multiply_adds, rel=2e-3, abs=5e-3)
    if name == "uvit-h-2-imagenet256":
        assert len(net.state_dict()) == 355
    if name.endswith("mscoco"):
        assert net.pos_embed.shape == (1, 334, 512)


@pytest.mark.parametrize("name", [name for name in PRESETS if re.fullmatch(r"uvit-h\d+-d\d+", name)])
def test_scaled_text_to_image_sizes(name):
    """0.4 to 7.5 billion: the published layout, written out in `published`, at the width and depth that the name says."""
    dim, depth = map(int, re.findall(r"\d+", name))
    shapes = published.uvit(dim=dim, depth=depth, text=True, clip=1024)
    with torch.device("meta"):
        net = build_preset(name)
    assert sum(p.numel() for key, p in net.named_parameters() if key != "null_tokens") == published.count(shapes)
    assert round(published.count(shapes) / 1e9, 2) == SCALED[dim, depth]


def test_every_published_size_is_there():
    """What the papers list, by the names that `fewstep models` prints."""
    uvit = ("s-2-mscoco", "s-deep-2-mscoco", "m-4-imagenet64", "l-2-imagenet256", "h-2-imagenet256")
    expected = {f"uvit-{size}" for size in uvit} | {f"pixart-alpha-{size}" for size in (256, 512, 1024)}
    expected |= {f"dit-{size}-{patch}" for size in ("s", "b", "l", "xl") for patch in (2, 4, 8)}
    assert expected <= {name for name, (millions, _) in PUBLISHED.items() if millions is not None}
    scaled = {f"uvit-h{dim}-d{depth}" for dim, depth in SCALED}
    assert PUBLISHED.keys() | scaled | DIFFUSERS.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", DIFFUSERS)
def test_sizes_are_those_of_diffusers_networks(name):
    """Every number but those of no text, which are ours."""
    import diffusers

    kind, config = DIFFUSERS[name]
    with torch.device("meta"):
        theirs, net = getattr(diffusers, kind)(**config), build_preset(name)
    own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    count = sum(p.numel() for key, p in own.items() if not key.startswith("null_"))
    assert count == sum(p.numel() for p in theirs.state_dict().values())


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_of_the_network(name):
    with torch.device("meta"):
        net = build_preset(name)
    assert preset_cost(name).parameters == sum(p.numel() for p in net.parameters())


@pytest.fixture
def measured(monkeypatch):
    """torch's count of the second evaluation in a run (the first one reads the text). It knows no fused kernel of the CPU."""
    monkeypatch.setattr(fused, "_serves", lambda *_: False)
    return count_operations


def count_operations(net) -> int:
    config, net.attention_backend = net.config, "math"
    x, time = torch.zeros(1, config.channels, config.size, config.size), torch.zeros(1)
    tokens = torch.zeros(1, config.text_tokens, config.text_dim) if config.text_dim else None
    extra = {"size": torch.zeros(1, 2), "aspect": torch.ones(1, 1)} if getattr(config, "size_conditions", False) else {}
    extra |= {"guidance": torch.ones(1)} if "guidance" in getattr(config, "scalars", ()) else {}
    condition, context = Condition(tokens=tokens, extra=extra), Context()
    with torch.no_grad():
        net(x, time, condition, context)
        with FlopCounterMode(display=False) as counter:
            net(x, time, condition, context)
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES)
def test_operations_are_what_torch_counts(shape, measured):
    net = build(TINY | SHAPES[shape]).eval()
    found = cost(net.config)
    assert found.flops == measured(net) > 0
    assert found.parameters == sum(p.numel() for p in net.parameters())


def test_operations_of_many_resolutions_are_what_torch_counts(measured):
    net = build({"type": "dimr", "size": 8, "channels": 3, "num_classes": 4, "stages": STAGES}).eval()
    found = cost(net.config)
    assert found.flops == measured(net) > 0
    assert found.parameters == sum(p.numel() for p in net.parameters())


def test_names_and_changes():
    assert preset("dit-b-2", size=64)["size"] == 64 and PRESETS["dit-b-2"]["size"] == 32
    with pytest.raises(ValueError, match=r"Unknown model size 'dit-b2'. Did you mean 'dit-b-2'\?"):
        preset("dit-b2")
    with torch.device("meta"):
        net = build_preset("dit-s-8", learned_variance=False)
    assert net.config.learned_variance is False and net.config.patch == 8


def test_the_command_lists_every_size(capsys):
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(PRESETS) + 1]] == list(PRESETS)
    [row] = [line for line in lines if line.startswith("dit-xl-2 ")]
    assert row.split()[1:] == ["4x32x32", "labels", "674.8", "M", "237.24"]
