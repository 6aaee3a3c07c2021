"""The authors' own formats: every published size by names, shapes and counts; meaning; round trips."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.models.formats import FORMATS, detect, read_checkpoint, write_checkpoint
from gen.models.formats.read import own_tensors, slots_of
from gen.models.formats.table import expand
from gen.nn.backbones.dit import DiT, DiTConfig
from gen.nn.backbones.uvit import UViT, UViTConfig
from gen.nn.registry import build
from samplers.denoiser import Condition
from tests.gen import published
from tests.gen.test_uvit import equations, layer_norm  # noqa: F401 (used by the equations)

# dim, depth, heads, then what the file is for; millions of parameters as published
UVIT = {
    "cifar10 S/2": ({"size": 32, "channels": 3}, 8, 44.26),
    "celeba S/4": ({"size": 64, "patch": 4, "channels": 3}, 8, 44.29),
    "imagenet64 M/4": ({"dim": 768, "depth": 16, "size": 64, "patch": 4, "channels": 3, "rows": 1000}, 12, 130.94),
    "imagenet64 L/4": ({"dim": 1024, "depth": 20, "size": 64, "patch": 4, "channels": 3, "rows": 1000}, 16, 286.83),
    "imagenet256 L/2": ({"dim": 1024, "depth": 20, "rows": 1001}, 16, 286.76),
    "imagenet256 H/2": ({"dim": 1152, "depth": 28, "rows": 1001, "conv": False}, 16, 500.83),
    "imagenet512 L/4": ({"dim": 1024, "depth": 20, "rows": 1001, "size": 64, "patch": 4}, 16, None),
    "imagenet512 H/4": ({"dim": 1152, "depth": 28, "rows": 1001, "size": 64, "patch": 4, "conv": False}, 16, None),
    "mscoco S": ({"text": True}, 8, 44.69),
    "mscoco S-Deep": ({"depth": 16, "text": True}, 8, 58.35),
}
DIT = {
    "S/2": ({"dim": 384, "depth": 12}, 6, 32.96),
    "B/2": ({"dim": 768, "depth": 12}, 12, 130.51),
    "L/2": ({"dim": 1024, "depth": 24}, 16, 458.10),
    "XL/2": ({}, 16, 675.13),
    "XL/2 512": ({"size": 64}, 16, None),
}
PIXART = {"256": ({}, 1.0, 610.86), "512": ({"size": 64}, 1.0, 610.86), "1024": ({"size": 128}, 2.0, None)}
TINY_UVIT = {"dim": 16, "depth": 4, "size": 4, "channels": 3}
TINY_TEXT = TINY_UVIT | {"text": True, "tokens": 4, "clip": 6, "time_mlp": True}
TINY_DIT = {"dim": 24, "depth": 3, "size": 6, "channels": 3, "rows": 6}
TINY_PIXART = {"dim": 24, "depth": 3, "size": 6, "channels": 3, "tokens": 4, "text_dim": 6}


def check_sizes(name: str, shapes: published.Shapes, expected: dict) -> torch.nn.Module:
    """The names are this format's, the config is as expected, and names and shapes are the network's, one for one."""
    assert detect(shapes) == name
    kind = FORMATS[name]
    config = kind.infer(shapes, {})
    assert config == config | expected
    with torch.device("meta"):
        network = build(config)
    slots, own = slots_of(kind, network), own_tensors(network)
    assert slots.keys() == shapes.keys()
    for theirs, (slot,) in slots.items():
        assert slot.parts == 1 and tuple(own[slot.name].shape) == shapes[theirs], theirs
    assert own.keys() - {slot.name for (slot,) in slots.values()} == set(kind.absent) & own.keys()
    return network


@pytest.mark.parametrize("file", UVIT)
def test_published_uvit_sizes(file):
    sizes, heads, millions = UVIT[file]
    shapes = published.uvit(**sizes)
    if millions:
        assert round(published.count(shapes) / 1e6, 2) == millions
    rows = sizes.get("rows", 0)
    expected = {"heads": heads, "dim": sizes.get("dim", 512), "size": sizes.get("size", 32), "depth": sizes.get("depth", 12)}
    expected |= {"num_classes": 1000, "null_label": rows == 1001} if rows else {}
    expected |= {"text_tokens": 77, "text_dim": 768} if sizes.get("text") else {}
    network = check_sizes("uvit", shapes, expected)
    if "H/2" in file:
        assert len(shapes) == 355
    if sizes.get("text"):
        assert network.pos_embed.shape == (1, 334, 512)


@pytest.mark.parametrize("file", DIT)
def test_published_dit_sizes(file):
    sizes, heads, millions = DIT[file]
    shapes = published.dit(**sizes)
    if millions:
        assert round(published.count(shapes) / 1e6, 2) == millions
    check_sizes("dit", shapes, {"heads": heads, "num_classes": 1000, "size": sizes.get("size", 32), "learned_variance": True})


@pytest.mark.parametrize("file", PIXART)
def test_published_pixart_sizes(file):
    sizes, scale, millions = PIXART[file]
    shapes = published.pixart(**sizes)
    if millions:  # without the two buffers
        assert round((published.count(shapes) - 120 * 4096 - shapes["pos_embed"][1] * 1152) / 1e6, 2) == millions
    expected = {"heads": 16, "position_scale": scale, "size": sizes.get("size", 32), "text_tokens": 120, "text_dim": 4096}
    check_sizes("pixart", shapes, expected)


@pytest.mark.parametrize("name", ["pixart", "diffusers-pixart"])
def test_size_conditions_have_their_place(name):
    """1024 pixels: two more MLPs, 256 -> dim / 3 -> dim / 3."""
    own = {f"{part}.{i}.{leaf}" for part in ("size_embed", "aspect_embed") for i in (0, 2) for leaf in ("weight", "bias")}
    table = expand(FORMATS[name].table, 28)
    assert own <= {slot.name for slots in table.values() for slot in slots}
    if name == "pixart":
        shapes = published.pixart(size=128, conditions=True)
        weights = published.count(shapes) - 120 * 4096 - 64 * 64 * 1152
        assert round(weights / 1e6, 2) == 611.35
        assert shapes.keys() == table.keys()
        assert FORMATS[name].infer(shapes, {})["size_conditions"] is True
        if "size_conditions" in DiTConfig.model_fields:
            check_sizes(name, shapes, {"size_conditions": True})
        assert [table[f"{x}_embedder.mlp.0.bias"][0].name for x in ("csize", "ar")] == [
            "size_embed.0.bias",
            "aspect_embed.0.bias",
        ]
    else:
        assert table["adaln_single.emb.resolution_embedder.linear_2.bias"][0].name == "size_embed.2.bias"
        assert table["adaln_single.emb.aspect_ratio_embedder.linear_1.weight"][0].name == "aspect_embed.0.weight"


def save(folder, shapes, **options):
    path = folder / "file.safetensors"
    save_file(published.tensors(shapes, **options), path)
    return path


@pytest.mark.parametrize("variant", ["unconditional", "classes", "no null row", "text"])
@torch.no_grad()
def test_uvit_means_what_its_authors_mean(tmp_path, variant):
    """Against the equations, which know the weights by their place in the paper's figure."""
    sizes = {"unconditional": TINY_UVIT, "text": TINY_TEXT}.get(variant, TINY_UVIT | {"rows": 6, "conv": False})
    path, told = save(tmp_path, published.uvit(**sizes)), {"null_label": False} if variant == "no null row" else {}
    features = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    if variant == "text":
        told |= {"text_tokens": 4, "null_text": features}
    network = read_checkpoint(path, heads=2, **told)
    renamed = {"patch_embed.proj.": "patch_embed.", "label_emb.": "label_embed.", "context_embed.": "text_embed."}
    renamed |= {"decoder_pred.": "head.", "final_layer.": "final_conv."}
    weights = {}
    for name, value in load_file(path).items():
        for theirs, ours in renamed.items():
            name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
        weights[name] = value.double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, 4, 4, generator=generator)
    time, label = torch.tensor([0.5, 3.0, 9.0]), torch.tensor([2, 0, 4]) if "rows" in sizes else None
    tokens = mask = None
    if variant == "text":
        tokens, mask = torch.randn(3, 4, 6, generator=generator), torch.tensor([[1] * 4, [1] * 4, [0] * 4]).bool()
        weights["null_tokens"] = features.double() @ weights["text_embed.weight"].T + weights["text_embed.bias"]
    exact = Condition(label, None if tokens is None else tokens.double(), mask)
    expected = equations(weights, network.config, x.double(), time.double(), exact)
    result = network(x, time, Condition(label, tokens, mask))
    assert expected.std() > 0.1
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=5e-5)
    if variant == "no null row":
        assert network.config.num_classes == 6 and network(x, time, Condition(torch.tensor([5, 5, 5]))).isfinite().all()
        for condition in (Condition(), Condition(torch.tensor([-1, 0, 0]))):
            with pytest.raises(ValueError, match="no row for images without a label"):
                network(x, time, condition)


FILES = {
    "uvit": (published.uvit(**TINY_UVIT), None, {"heads": 2}),
    "uvit classes": (published.uvit(**TINY_UVIT | {"rows": 6}), None, {"heads": 2}),
    "uvit text": (published.uvit(**TINY_TEXT), None, {"heads": 2, "text_tokens": 4, "null_text": torch.ones(4, 6)}),
    "dit": (published.dit(**TINY_DIT), published.sincos(6, 2, 24), {"heads": 2}),
    "pixart": (published.pixart(**TINY_PIXART), published.sincos(6, 2, 24), {"heads": 2}),
    "pixart at half scale": (published.pixart(**TINY_PIXART), published.sincos(6, 2, 24, 0.5), {"heads": 2}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.filterwarnings("ignore:The format uvit has no place")
def test_writing_what_was_read_is_the_same_file(tmp_path, file, dtype):
    shapes, positions, told = FILES[file]
    path, name = save(tmp_path, shapes, dtype=dtype, positions=positions), file.partition(" ")[0]
    network = read_checkpoint(path, dtype=None, **told)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    again = write_checkpoint(network, tmp_path / "again.safetensors", name)
    before, after = load_file(path), load_file(again)
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]), key


def test_dtypes_of_the_network(tmp_path):
    path = save(tmp_path, published.dit(**TINY_DIT), dtype=torch.bfloat16, positions=published.sincos(6, 2, 24))
    stored = load_file(path)["blocks.1.mlp.fc1.weight"]
    for dtype in (torch.float32, torch.float16, None):
        network = read_checkpoint(path, heads=2, dtype=dtype)
        assert {value.dtype for value in own_tensors(network).values()} == {dtype or torch.bfloat16}
        assert torch.equal(network.blocks[1].mlp.fc1.weight, stored.to(dtype or torch.bfloat16))
    # positions are not rounded to the file's half precision where the network is wider
    exact = published.sincos(6, 2, 24)
    torch.testing.assert_close(read_checkpoint(path, heads=2).pos_embed, exact, rtol=0, atol=1e-6)


def test_the_scale_of_positions_is_read_from_them(tmp_path):
    for scale in (0.5, 1.0, 2.0):
        path = save(tmp_path, published.pixart(**TINY_PIXART), positions=published.sincos(6, 2, 24, scale))
        assert read_checkpoint(path, heads=2).config.position_scale == scale
    path = save(tmp_path, published.pixart(**TINY_PIXART), positions=published.sincos(6, 2, 24, 0.7))
    with pytest.raises(ValueError, match=r"pos_embed.* at none of the scales 0.5, 1.0, 2.0, 4.0"):
        read_checkpoint(path, heads=2)
    assert read_checkpoint(path, heads=2, position_scale=0.7).config.position_scale == 0.7
    with pytest.raises(ValueError, match="other positions than"):
        read_checkpoint(path, heads=2, position_scale=1.0)


def test_pixart_without_positions_needs_its_size(tmp_path):
    shapes = published.pixart(**TINY_PIXART)
    del shapes["pos_embed"]
    path = save(tmp_path, shapes)
    with pytest.raises(ValueError, match="give size"):
        read_checkpoint(path, heads=2)
    network = read_checkpoint(path, heads=2, size=6)
    again = load_file(write_checkpoint(network, tmp_path / "again.safetensors", "pixart"))
    assert again.keys() - load_file(path).keys() == {"pos_embed"}
    torch.testing.assert_close(again["pos_embed"], published.sincos(6, 2, 24), rtol=0, atol=1e-6)


def test_text_without_features_for_no_text(tmp_path):
    path = save(tmp_path, published.uvit(**TINY_TEXT))
    with pytest.warns(UserWarning, match="give null_text"):
        network = read_checkpoint(path, heads=2, text_tokens=4)
    assert torch.equal(network.null_tokens, load_file(path)["context_embed.bias"].expand(4, -1))
    with pytest.raises(ValueError, match=r"null_text is \(3, 6\); this network needs \(4, 6\)"):
        read_checkpoint(path, heads=2, text_tokens=4, null_text=torch.zeros(3, 6))
    other = save(tmp_path, published.uvit(**TINY_UVIT))
    with pytest.raises(ValueError, match="null_text is not needed"):
        read_checkpoint(other, heads=2, null_text=torch.zeros(4, 6))


@pytest.mark.parametrize(
    ("config", "format", "message"),
    [
        ({"type": "uvit", "qk_norm": "rms"}, "uvit", "cannot hold a network with qk_norm 'rms': it has 'none'"),
        ({"type": "uvit", "refine_channels": 4}, "uvit", "refine_channels"),
        ({"type": "uvit", "skip_scale": 0.5}, "uvit", "skip_scale"),
        ({"type": "uvit"}, "dit", "networks of type dit; this one is of type uvit"),
        ({"type": "uvit"}, "u-vit", "Unknown format 'u-vit'; did you mean 'uvit'"),
        ({"type": "dit", "num_classes": 3}, "pixart", "num_classes 3|modulation 'adaln'"),
        ({"type": "dit", "num_classes": 3, "modulation": "adaln_single"}, "dit", "modulation 'adaln_single'"),
        ({"type": "dit"}, "dit", "needs y_embedder.embedding_table.weight"),
        ({"type": "dit", "num_classes": 3, "position_scale": 2.0}, "dit", "position_scale"),
        ({"type": "dit", "num_classes": 3, "gelu": "exact"}, "dit", "gelu 'exact'"),
        ({"type": "dit", "num_classes": 3, "mlp_ratio": 2.0}, "diffusers-dit", "mlp_ratio 2.0"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, config, format, message):
    network = build({"size": 4, "patch": 2, "channels": 3, "dim": 16, "depth": 2, "heads": 2} | config)
    with pytest.raises(ValueError, match=message):
        write_checkpoint(network, tmp_path / ("out" if "diffusers" in format else "out.safetensors"), format)
    assert not list(tmp_path.iterdir())


def test_what_a_format_loses_is_said(tmp_path):
    text = {"text_tokens": 4, "text_dim": 6}
    network = UViT(UViTConfig(size=4, patch=2, channels=3, dim=16, depth=2, heads=2, **text))
    with pytest.warns(UserWarning, match="no place for null_tokens"):
        write_checkpoint(network, tmp_path / "a.safetensors", "uvit")
    network = DiT(DiTConfig(size=4, patch=2, channels=3, dim=16, depth=2, heads=2, num_classes=3, freq_shift=1))
    with pytest.warns(UserWarning, match=r"freq_shift 1.* dit takes 0"):
        write_checkpoint(network, tmp_path / "b.safetensors", "dit")
