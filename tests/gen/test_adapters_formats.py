"""Every format of adapter files, filled with random numbers as its programs spell and shape them: read, written back, turned
into the others, and the change of each layer against its formula."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gen.adapters import Adapter, AdapterError, Delta, from_tensors, read_adapter, renamed, to_tensors, write_adapter
from gen.adapters.keys import SUFFIXES, parse
from gen.io.weights import CheckpointError, read_metadata


class Net(nn.Module):
    """Names with underscores and numbers in them, as in the networks of diffusers."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(4, 6, 3, padding=1)
        self.mid_block = nn.ModuleDict(
            {
                "attn_1": nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_out": nn.ModuleList([nn.Linear(8, 10)])}),
                "ff": nn.Linear(8, 12),
            }
        )
        self.norm = nn.LayerNorm(8)


RANDOM = torch.Generator().manual_seed(0)


def rand(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=RANDOM).to(dtype)


def number(value: float, dtype=torch.float32) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


KOHYA = {
    "lora_unet_mid_block_attn_1_to_q.lora_down.weight": rand(4, 8, dtype=torch.float16),
    "lora_unet_mid_block_attn_1_to_q.lora_up.weight": rand(8, 4, dtype=torch.float16),
    "lora_unet_mid_block_attn_1_to_q.alpha": number(1.0, torch.bfloat16),
    "lora_unet_mid_block_attn_1_to_out_0.lora_down.weight": rand(2, 8),
    "lora_unet_mid_block_attn_1_to_out_0.lora_up.weight": rand(10, 2),
    "lora_unet_conv_in.lora_down.weight": rand(3, 4, 3, 3),
    "lora_unet_conv_in.lora_up.weight": rand(6, 3, 1, 1),
    "lora_unet_conv_in.alpha": number(2.0),
}
DIFFUSERS = {
    "transformer.mid_block.attn_1.to_q.lora_A.weight": rand(4, 8, dtype=torch.bfloat16),
    "transformer.mid_block.attn_1.to_q.lora_B.weight": rand(8, 4, dtype=torch.bfloat16),
    "transformer.mid_block.ff.lora_A.weight": rand(2, 8),
    "transformer.mid_block.ff.lora_B.weight": rand(12, 2),
    "transformer.mid_block.ff.lora_magnitude_vector": rand(12),
    "text_encoder.norm.diff": rand(8),
}
DIFFUSERS_CONFIG = {
    "r": 4,
    "lora_alpha": 6,
    "alpha_pattern": {"mid_block.ff": 3},
    "use_rslora": True,
    "target_modules": ["to_q"],
}
OLD = {
    "unet.mid_block.attn_1.processor.to_q_lora.down.weight": rand(4, 8),
    "unet.mid_block.attn_1.processor.to_q_lora.up.weight": rand(8, 4),
    "unet.mid_block.attn_1.processor.to_out_lora.down.weight": rand(4, 8),
    "unet.mid_block.attn_1.processor.to_out_lora.up.weight": rand(10, 4),
    "unet.mid_block.ff.lora.down.weight": rand(4, 8),
    "unet.mid_block.ff.lora.up.weight": rand(12, 4),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": rand(4, 8),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": rand(8, 4),
}
TOOLKIT = {
    "diffusion_model.mid_block.attn_1.to_q.lora_A.weight": rand(4, 8),
    "diffusion_model.mid_block.attn_1.to_q.lora_B.weight": rand(8, 4),
}
PEFT = {
    "base_model.model.conv_in.lora_A.weight": rand(3, 4, 3, 3),
    "base_model.model.conv_in.lora_B.weight": rand(6, 3, 1, 1),
    "base_model.model.mid_block.ff.lora_A.weight": rand(3, 8),
    "base_model.model.mid_block.ff.lora_B.weight": rand(12, 3),
}
Q, CONV, FF = "lora_unet_mid_block_attn_1_to_q", "lora_unet_conv_in", "lora_unet_mid_block_ff"
LYCORIS = {
    f"{Q}.hada_w1_a": rand(8, 2), f"{Q}.hada_w1_b": rand(2, 8), f"{Q}.hada_w2_a": rand(8, 2), f"{Q}.hada_w2_b": rand(2, 8),
    f"{Q}.alpha": number(1.0), f"{Q}.dora_scale": rand(1, 8),
    f"{CONV}.lora_down.weight": rand(3, 4, 1, 1), f"{CONV}.lora_mid.weight": rand(3, 3, 3, 3),
    f"{CONV}.lora_up.weight": rand(6, 3, 1, 1), f"{CONV}.alpha": number(1.5), f"{CONV}.dora_scale": rand(6, 1, 1, 1),
    f"{FF}.lokr_w1": rand(3, 2), f"{FF}.lokr_w2_a": rand(4, 2), f"{FF}.lokr_w2_b": rand(2, 4), f"{FF}.alpha": number(1.0),
    "lora_unet_norm.w_norm": rand(8), "lora_unet_norm.b_norm": rand(8),
    "lora_te_text_model_fc.diff": rand(3, 4), "lora_te_text_model_fc.diff_b": rand(3),
    "lora_te2_text_model_fc.lokr_w1": rand(2, 2), "lora_te2_text_model_fc.lokr_w2": rand(3, 4),
    "lora_te2_text_model_fc.alpha": number(7.0),
}  # fmt: skip
DIFFUSERS_METADATA = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in DIFFUSERS_CONFIG.items()})}
SS = {"ss_network_dim": "4", "ss_network_alpha": "1", "sshash_model_hash": "ab" * 32, "modelspec.title": "日本 \n x"}
FILES = {
    "kohya": (KOHYA, SS, "kohya"),
    "diffusers": (DIFFUSERS, DIFFUSERS_METADATA, "diffusers"),
    "old diffusers": (OLD, {}, "diffusers"),
    "ai-toolkit": (TOOLKIT, {"software": '{"name": "ai-toolkit"}'}, "ai-toolkit"),
    "lycoris": (LYCORIS, {"ss_network_module": "lycoris.kohya"}, "kohya"),
    "no prefix": ({key.partition(".")[2]: value for key, value in TOOLKIT.items()}, {}, "diffusers"),
    "raw peft": ({key.replace(".weight", ".default.weight"): value for key, value in PEFT.items()}, {}, "peft"),
}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("file", FILES)
def test_writing_what_was_read_gives_the_file_again(file, tmp_path):
    tensors, metadata, format = FILES[file]
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", **metadata})
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.format == format and adapter.name == "a" and len(adapter.sha256) == 64
    if format == "peft":
        written = write_adapter(adapter, tmp_path / "again")
    else:
        written = write_adapter(adapter, tmp_path / "b.safetensors")
    assert same(load_file(written), tensors)
    assert read_metadata(written) == {"format": "pt", **metadata}


def test_a_peft_folder_comes_back(tmp_path):
    (tmp_path / "a").mkdir()
    save_file(PEFT, tmp_path / "a" / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 4.5, "base_model_name_or_path": None}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    adapter = read_adapter(tmp_path / "a")
    assert {delta.scale for delta in adapter.layers.values()} == {1.5} and adapter.name == "a"
    write_adapter(adapter, tmp_path / "b")
    assert same(load_file(tmp_path / "b" / "adapter_model.safetensors"), PEFT)
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text()) == config


def equal_adapters(a, b) -> None:
    assert a.layers.keys() == b.layers.keys()
    for layer, delta in a.layers.items():
        other = b.layers[layer]
        assert other.scale == pytest.approx(delta.scale, rel=1e-14) and other.magnitude_axis == delta.magnitude_axis
        assert other.factors.keys() - {"alpha"} == delta.factors.keys() - {"alpha"}
        for name in delta.factors.keys() - {"alpha"}:
            assert torch.equal(other.factors[name].flatten(), delta.factors[name].flatten())


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
def test_reading_what_was_written_gives_the_adapter_again(format, tmp_path):
    """With scales that only an explicit alpha or pattern can hold."""
    layers = {
        "denoiser.conv_in": Delta({"down": rand(3, 4, 3, 3), "up": rand(6, 3, 1, 1), "magnitude": rand(6)}, 1.7 / math.sqrt(3)),
        "denoiser.mid_block.attn_1.to_q": Delta({"down": rand(4, 8), "up": rand(8, 4), "up_bias": rand(8)}, 0.3),
        "denoiser.mid_block.ff": Delta(
            {f"hada_w{i}_{s}": rand(*((12, 2) if s == "a" else (2, 8))) for i in (1, 2) for s in "ab"}, 2.0
        ),
        "denoiser.norm": Delta({"weight": rand(8), "bias": rand(8)}),
    }
    made = from_tensors(TOOLKIT, {"keep": "me"})
    made = type(made)("made", layers, {"keep": "me"})
    path = tmp_path / ("made" if format == "peft" else "made.safetensors")
    read = read_adapter(write_adapter(made, path, format))
    assert read.format == format and read.metadata["keep"] == "me"
    if format == "kohya":
        assert set(read.layers) == {f"denoiser.{layer.partition('.')[2].replace('.', '_')}" for layer in layers}
        read = renamed(read, {"denoiser": Net()})
    equal_adapters(made, read)


def test_kohya_to_diffusers_and_back():
    adapter = from_tensors(KOHYA, SS)
    with pytest.raises(AdapterError, match="renamed"):
        to_tensors(adapter, "diffusers")
    named = renamed(adapter, {"denoiser": Net()})
    assert set(named.layers) == {"denoiser.mid_block.attn_1.to_q", "denoiser.mid_block.attn_1.to_out.0", "denoiser.conv_in"}
    tensors, metadata = to_tensors(named, "diffusers")
    assert "unet.mid_block.attn_1.to_out.0.lora_B.weight" in tensors and not any("alpha" in key for key in tensors)
    back = from_tensors(tensors, metadata)
    equal_adapters(named, back)
    again, _ = to_tensors(back, "kohya")
    assert {key: value.float() for key, value in KOHYA.items()}.keys() <= again.keys()
    assert all(torch.equal(again[key].float(), value.float()) for key, value in KOHYA.items())
    assert again["lora_unet_mid_block_attn_1_to_out_0.alpha"] == 2  # absent in the file: alpha is the rank


def test_a_format_without_scales_refuses_to_drop_them():
    adapter = from_tensors(DIFFUSERS, DIFFUSERS_METADATA)
    adapter = type(adapter)("a", {k: d for k, d in adapter.layers.items() if "to_q" in k}, {}, "diffusers")
    with pytest.raises(AdapterError, match="stores no scale"):
        to_tensors(adapter, "ai-toolkit")
    folded = type(adapter)("a", {layer: delta.folded() for layer, delta in adapter.layers.items()})
    weight = torch.zeros(8, 8)
    [before], [after] = adapter.layers.values(), from_tensors(to_tensors(folded, "ai-toolkit")[0]).layers.values()
    assert after.scale == 1.0 and before.scale == 3.0
    torch.testing.assert_close(after.delta(weight), before.delta(weight), rtol=2e-2, atol=2e-2)  # bfloat16 factors


def test_scales():
    layers = from_tensors(KOHYA, SS).layers
    assert layers["denoiser.mid_block_attn_1_to_q"].scale == 0.25
    assert layers["denoiser.mid_block_attn_1_to_out_0"].scale == 1.0 and layers["denoiser.conv_in"].scale == 2 / 3
    layers = from_tensors(DIFFUSERS, DIFFUSERS_METADATA).layers
    assert layers["denoiser.mid_block.attn_1.to_q"].scale == 6 / 2 and layers["denoiser.mid_block.ff"].scale == 3 / math.sqrt(2)
    assert layers["text_encoder.norm"].scale == 1.0
    assert from_tensors(LYCORIS).layers["text_encoder_2.text_model_fc"].scale == 1.0  # whole LoKr: alpha does not act
    assert from_tensors(LYCORIS).layers["denoiser.mid_block_ff"].scale == 0.5


def test_a_dropped_alpha_is_noted():
    [note] = from_tensors(TOOLKIT, {"ss_network_alpha": "2", "ss_network_dim": "4"}).notes
    assert "alpha 2 at rank 4" in note
    assert not from_tensors(KOHYA, SS).notes


def test_types_and_ranks():
    types = {layer: delta.type for layer, delta in from_tensors(LYCORIS).layers.items()}
    assert types == {
        "denoiser.mid_block_attn_1_to_q": "DoRA LoHa",
        "denoiser.conv_in": "DoRA conv LoRA",
        "denoiser.mid_block_ff": "LoKr",
        "denoiser.norm": "full",
        "text_encoder.text_model_fc": "full",
        "text_encoder_2.text_model_fc": "LoKr",
    }
    assert from_tensors(LYCORIS).ranks == (2, 3) and from_tensors(LYCORIS).parts == (
        "denoiser",
        "text_encoder",
        "text_encoder_2",
    )


def f64(name: str) -> torch.Tensor:
    return LYCORIS[name].double()


def test_changes_against_their_formulas():
    """Element by element, as sums over the indices that the methods' papers write."""
    layers = from_tensors(LYCORIS).layers
    weight = rand(8, 8, dtype=torch.float64)
    half = [sum(torch.outer(f64(f"{Q}.hada_w{i}_a")[:, r], f64(f"{Q}.hada_w{i}_b")[r]) for r in range(2)) for i in (1, 2)]
    combined = weight + 0.5 * half[0] * half[1]
    columns = torch.stack(
        [combined[:, j] / combined[:, j].square().sum().sqrt() * f64(f"{Q}.dora_scale")[0, j] for j in range(8)], 1
    )
    torch.testing.assert_close(layers["denoiser.mid_block_attn_1_to_q"].delta(weight), columns - weight, rtol=1e-12, atol=1e-12)

    weight = rand(6, 4, 3, 3, dtype=torch.float64)
    up, mid, down = (f64(f"{CONV}.lora_{s}.weight") for s in ("up", "mid", "down"))
    core = torch.zeros_like(weight)
    for a in range(3):
        for b in range(3):
            core += up[:, a].reshape(6, 1, 1, 1) * down[b].reshape(1, 4, 1, 1) * mid[a, b]
    combined = weight + 0.5 * core
    expected = torch.stack([row / row.norm() * m for row, m in zip(combined, f64(f"{CONV}.dora_scale").flatten(), strict=True)])
    torch.testing.assert_close(layers["denoiser.conv_in"].delta(weight), expected - weight, rtol=1e-12, atol=1e-12)

    w1, w2 = f64(f"{FF}.lokr_w1"), f64(f"{FF}.lokr_w2_a") @ f64(f"{FF}.lokr_w2_b")
    expected = torch.cat([torch.cat([w1[i, j] * w2 for j in range(2)], 1) for i in range(3)], 0) * 0.5
    torch.testing.assert_close(
        layers["denoiser.mid_block_ff"].delta(torch.zeros(12, 8).double()), expected, rtol=1e-12, atol=1e-12
    )
    assert layers["denoiser.mid_block_ff"].delta(torch.zeros(12, 8)).dtype == torch.float32


def test_a_lokr_of_a_convolution():
    """W2 with its kernel flattened, whole, and with a core; all are the Kronecker product over channels, at each pixel."""
    w1, a, b, core = rand(2, 3).double(), rand(4, 2).double(), rand(2, 5 * 9).double(), rand(2, 2, 3, 3).double()
    flat = (a @ b).reshape(4, 5, 3, 3)
    other = rand(2, 5).double()
    cored = torch.einsum("uvkl,uo,vi->oikl", core, a.T, other)
    for w2, factors in (
        (flat, {"lokr_w2_a": a, "lokr_w2_b": b}),
        (flat, {"lokr_w2": flat}),
        (cored, {"lokr_t2": core, "lokr_w2_a": a.T.contiguous(), "lokr_w2_b": other}),
    ):
        change = Delta({"lokr_w1": w1, **factors}).delta(torch.zeros(8, 15, 3, 3).double())
        for y in range(3):
            for x in range(3):
                torch.testing.assert_close(change[:, :, y, x], torch.kron(w1, w2[:, :, y, x]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["lora", "loha", "loha core", "lokr", "full", "dora"])
def test_selecting_rows_is_selecting_rows_of_the_change(kind):
    factors = {
        "lora": {"down": rand(2, 6), "up": rand(9, 2), "up_bias": rand(9)},
        "loha": {f"hada_w{i}_{s}": rand(*((9, 2) if s == "a" else (2, 6))) for i in (1, 2) for s in "ab"},
        "lokr": {"lokr_w1": rand(3, 2), "lokr_w2": rand(3, 3), "bias": rand(9)},
        "full": {"weight": rand(9, 6)},
        "dora": {"down": rand(2, 6), "up": rand(9, 2), "magnitude": rand(9)},
        "loha core": {f"hada_w{i}_{s}": rand(2, 9 if s == "a" else 6) for i in (1, 2) for s in "ab"}
        | {f"hada_t{i}": rand(2, 2, 3, 3) for i in (1, 2)},
    }[kind]
    weight = rand(9, 6, 3, 3) if kind == "loha core" else rand(9, 6)
    delta = Delta(factors, 1.5)
    part = delta.select(3, 6)
    torch.testing.assert_close(part.delta(weight[3:6]), delta.delta(weight)[3:6], rtol=1e-6, atol=1e-6)
    if delta.bias() is not None:
        torch.testing.assert_close(part.bias(), delta.bias()[3:6])


def test_old_names_of_attention():
    """Before its processors were modules, diffusers named their factors; CLIP has other names for the same layers."""
    text = "text_encoder.text_model.encoder.layers.0.self_attn"
    for key, layer in {
        "unet.mid.attn1.processor.to_q_lora.down.weight": "denoiser.mid.attn1.to_q",
        "unet.mid.attn1.processor.to_out_lora.up.weight": "denoiser.mid.attn1.to_out.0",
        f"{text}.to_v_lora.up.weight": f"{text}.v_proj",
        f"{text}.to_out_lora.down.weight": f"{text}.out_proj",
        f"{text}.k_proj.lora_linear_layer.up.weight": f"{text}.k_proj",
    }.items():
        found = parse(key)
        assert (found.layer, found.factor) == (layer, key.split(".")[-2])


PARTS = {
    "lora_te_x.alpha": "text_encoder",
    "lora_te1_x.alpha": "text_encoder",
    "lora_te2_x.alpha": "text_encoder_2",
    "lora_te3_x.alpha": "text_encoder_3",
    "lora_transformer_x.alpha": "denoiser",
    "text_encoder_2.x.lora_A.weight": "text_encoder_2",
    "text_encoders.clip_l.transformer.x.lora_A.weight": "text_encoder",
    "text_encoders.clip_g.transformer.x.lora_A.weight": "text_encoder_2",
    "text_encoders.t5xxl.transformer.x.lora_A.weight": "text_encoder_3",
    "model.diffusion_model.x.lora_A.weight": "denoiser",
}


@pytest.mark.parametrize("key", PARTS)
def test_which_part_a_key_is_for(key):
    assert parse(key).layer == f"{PARTS[key]}.x"


@pytest.mark.parametrize("first", ["down_blocks", "transformer_blocks", "single_transformer_blocks", "blocks"])
def test_a_denoiser_is_called_what_diffusers_calls_it(first):
    layer, prefix = f"{first}.0.x", "unet" if first == "down_blocks" else "transformer"
    adapter = Adapter("a", {f"denoiser.{layer}": Delta({"down": rand(2, 8), "up": rand(8, 2)}, 0.5)})
    tensors, metadata = to_tensors(adapter, "diffusers")
    assert f"{prefix}.{layer}.lora_A.weight" in tensors and f"{prefix}.r" in json.loads(metadata["lora_adapter_metadata"])
    [key] = [key for key in to_tensors(adapter, "kohya")[0] if key.endswith("alpha")]
    assert key.startswith("lora_transformer_" if "transformer_blocks" in layer else "lora_unet_")


def test_every_suffix_is_spelled_once():
    """No ending is the end of another after a dot, so a key has one reading."""
    assert not [(a, b) for a in SUFFIXES for b in SUFFIXES if a != b and a.endswith("." + b) and SUFFIXES[a] != SUFFIXES[b]]


def test_unknown_keys():
    odd = {**TOOLKIT, "diffusion_model.x.lora_C.weight": rand(1)}
    with pytest.raises(AdapterError, match=r"unknown keys: diffusion_model.x.lora_C.weight\."):
        from_tensors(odd)
    assert "1 unknown keys" in from_tensors(odd, strict=False).notes[0]
    with pytest.raises(AdapterError, match="of OFT, which is not applied"):
        from_tensors({**KOHYA, "lora_unet_x.oft_blocks": rand(2, 2)})
    with pytest.raises(AdapterError, match="both the down of the same layer"):
        from_tensors({**TOOLKIT, "diffusion_model.mid_block.attn_1.to_q.lora_down.weight": rand(4, 8)})


def test_writing_needs_a_name(tmp_path):
    with pytest.raises(AdapterError, match=r"ends in \.safetensors"):
        write_adapter(from_tensors(TOOLKIT), tmp_path / "a.pt")
    with pytest.raises(AdapterError, match="choose one of kohya, diffusers"):
        write_adapter(from_tensors(TOOLKIT), tmp_path / "a.safetensors", "webui")
    with pytest.raises(CheckpointError, match="give the adapter's file"):
        read_adapter(tmp_path)
