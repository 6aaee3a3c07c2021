"""Folders that diffusers writes: our networks give diffusers' own outputs; both directions; the authors' form of the same."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.models.formats import read_checkpoint, write_checkpoint
from gen.nn.backbones.dit import DiTConfig
from gen.nn.registry import build
from samplers.denoiser import Condition
from tests.gen import published

DITS = {
    "published": {"num_attention_heads": 2, "attention_head_dim": 8, "out_channels": 8, "sample_size": 4, "num_layers": 3},
    "no variance, exact gelu": {
        "num_attention_heads": 3, "attention_head_dim": 4, "in_channels": 3, "sample_size": 6, "num_layers": 2, "patch_size": 3,
        "activation_fn": "gelu", "norm_eps": 1e-2, "num_embeds_ada_norm": 5,
    },
    "no bias": {
        "num_attention_heads": 1, "attention_head_dim": 16, "out_channels": 8, "sample_size": 8, "num_layers": 1,
        "attention_bias": False, "norm_eps": 1e-6,
    },
}  # fmt: skip
PIXARTS = {
    "published": {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "sample_size": 4},
    "interpolated": {
        "num_attention_heads": 3, "attention_head_dim": 4, "cross_attention_dim": 12, "sample_size": 6, "patch_size": 3,
        "interpolation_scale": 2, "in_channels": 3, "out_channels": 3,
    },
    "large": {
        "num_attention_heads": 2, "attention_head_dim": 4, "cross_attention_dim": 8, "sample_size": 128, "patch_size": 16,
        "use_additional_conditions": False, "activation_fn": "gelu",
    },
}  # fmt: skip
TEXT_DIM = 6


def randomise(model) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)


@torch.no_grad()
def a_dit(**options):
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(**options).eval()
    randomise(model)
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks[1:]:  # as in every converted file
        block.norm1.emb.load_state_dict(first)
    return model


@torch.no_grad()
def a_pixart(**options):
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(num_layers=2, caption_channels=TEXT_DIM, **options).eval()
    randomise(model)
    return model


def picture(model, batch=3):
    generator = torch.Generator().manual_seed(1)
    size = model.config.sample_size
    return torch.randn(batch, model.config.in_channels, size, size, generator=generator), torch.tensor([0, 371, 999])


def text(batch=3, tokens=5):
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    return torch.randn(batch, tokens, TEXT_DIM, generator=torch.Generator().manual_seed(2)), mask


def run_pixart(model, x, time):
    tokens, mask = text()
    added = {"resolution": None, "aspect_ratio": None}
    return model(x, tokens, time, added, encoder_attention_mask=mask.float()).sample


def assert_same(result, expected):
    """1e-5 of the size of the output, in float32."""
    assert expected.std() > 0.05
    assert (result - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("options", DITS)
@torch.no_grad()
def test_dit_gives_diffusers_outputs(tmp_path, options):
    model = a_dit(**DITS[options])
    model.save_pretrained(tmp_path)
    network = read_checkpoint(tmp_path)
    x, time = picture(model)
    label = torch.tensor([2, 0, 4])
    assert_same(network(x, time.float(), Condition(label)), model(x, time, label).sample)
    null = torch.full((3,), model.config.num_embeds_ada_norm)
    assert_same(network(x, time.float(), Condition()), model(x, time, null).sample)


@pytest.mark.parametrize("options", PIXARTS)
@torch.no_grad()
def test_pixart_gives_diffusers_outputs(tmp_path, options):
    model = a_pixart(**PIXARTS[options])
    model.save_pretrained(tmp_path)
    null = torch.randn(120, TEXT_DIM)
    network = read_checkpoint(tmp_path, null_text=null)
    x, time = picture(model)
    tokens, mask = text()
    assert_same(network(x, time.float(), Condition(tokens=tokens, mask=mask)), run_pixart(model, x, time))
    expected = model(x, null.expand(3, -1, -1), time, {"resolution": None, "aspect_ratio": None}).sample
    assert_same(network(x, time.float(), Condition()), expected)


@pytest.mark.skipif("size_conditions" not in DiTConfig.model_fields, reason="this DiT reads no sizes")
@torch.no_grad()
def test_pixart_with_size_conditions_gives_diffusers_outputs(tmp_path):
    model = a_pixart(**PIXARTS["interpolated"] | {"use_additional_conditions": True})
    model.save_pretrained(tmp_path / "there")
    network = read_checkpoint(tmp_path / "there", null_text=torch.zeros(120, TEXT_DIM))
    (x, time), (tokens, mask) = picture(model), text()
    size, aspect = torch.tensor([[512.0, 1024.0], [768.0, 768.0], [1024.0, 512.0]]), torch.tensor([[0.5], [1.0], [2.0]])
    added = {"resolution": size, "aspect_ratio": aspect}
    expected = model(x, tokens, time, added, encoder_attention_mask=mask.float()).sample
    condition = Condition(tokens=tokens, mask=mask, extra={"size": size, "aspect": aspect})
    assert_same(network(x, time.float(), condition), expected)
    write_checkpoint(network, tmp_path / "again", "diffusers-pixart")
    before, after = (load_file(tmp_path / at / "diffusion_pytorch_model.safetensors") for at in ("there", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "again/config.json").read_text())["use_additional_conditions"] is True


@pytest.mark.parametrize("family", ["dit", "pixart"])
@pytest.mark.filterwarnings("ignore:.*does not hold features")
@torch.no_grad()
def test_writing_what_was_read_is_the_same_folder(tmp_path, family):
    """Tensors bit for bit; and diffusers opens what we wrote, without a missing or an unknown key."""
    for i, options in enumerate((DITS if family == "dit" else PIXARTS).values()):
        model = (a_dit if family == "dit" else a_pixart)(**options)
        there, again = tmp_path / f"there{i}", tmp_path / f"again{i}"
        model.save_pretrained(there)
        write_checkpoint(read_checkpoint(there, dtype=None), again, f"diffusers-{family}")
        before, after = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (there, again))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
        opened, info = type(model).from_pretrained(again, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        x, time = picture(model)
        label = torch.tensor([1, 2, 3])
        results = [m(x, time, label).sample if family == "dit" else run_pixart(m, x, time) for m in (model, opened)]
        assert torch.equal(*results)


def authors_names(weights: dict[str, torch.Tensor], blocks: int, family: str) -> dict[str, torch.Tensor]:
    """diffusers' tensors under the authors' names, as the authors' conversion scripts pair them."""
    w = dict(weights)
    pairs = {"x_embedder.proj": "pos_embed.proj"}
    emb = "transformer_blocks.0.norm1.emb" if family == "dit" else "adaln_single.emb"
    pairs |= {f"t_embedder.mlp.{j}": f"{emb}.timestep_embedder.linear_{k}" for j, k in ((0, 1), (2, 2))}
    if family == "dit":
        pairs |= {"final_layer.adaLN_modulation.1": "proj_out_1", "final_layer.linear": "proj_out_2"}
    else:
        pairs |= {"t_block.1": "adaln_single.linear", "final_layer.linear": "proj_out"}
        pairs |= {f"y_embedder.y_proj.fc{k}": f"caption_projection.linear_{k}" for k in (1, 2)}
    for i in range(blocks):
        ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
        pairs |= {f"{ours}.mlp.fc1": f"{theirs}.ff.net.0.proj", f"{ours}.mlp.fc2": f"{theirs}.ff.net.2"}
        pairs |= {f"{ours}.attn.proj": f"{theirs}.attn1.to_out.0"}
        if family == "dit":
            pairs |= {f"{ours}.adaLN_modulation.1": f"{theirs}.norm1.linear"}
        else:
            pairs |= {f"{ours}.cross_attn.q_linear": f"{theirs}.attn2.to_q"}
            pairs |= {f"{ours}.cross_attn.proj": f"{theirs}.attn2.to_out.0"}
    named = {f"{a}.{leaf}": w[f"{b}.{leaf}"] for a, b in pairs.items() for leaf in ("weight", "bias")}
    for i in range(blocks):
        for leaf in ("weight", "bias"):
            at = f"transformer_blocks.{i}"
            named[f"blocks.{i}.attn.qkv.{leaf}"] = torch.cat([w[f"{at}.attn1.to_{part}.{leaf}"] for part in "qkv"])
            if family == "pixart":
                kv = torch.cat([w[f"{at}.attn2.to_{part}.{leaf}"] for part in "kv"])
                named[f"blocks.{i}.cross_attn.kv_linear.{leaf}"] = kv
        if family == "pixart":
            named[f"blocks.{i}.scale_shift_table"] = w[f"transformer_blocks.{i}.scale_shift_table"]
    if family == "dit":
        named["y_embedder.embedding_table.weight"] = w[f"{emb}.class_embedder.embedding_table.weight"]
    else:
        named["final_layer.scale_shift_table"] = w["scale_shift_table"]
    return named


@torch.no_grad()
def test_the_authors_dit_gives_diffusers_outputs_at_the_papers_frequencies(tmp_path):
    model = a_dit(**DITS["published"] | {"norm_eps": 1e-6})
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    named = authors_names(model.state_dict(), 3, "dit") | {"pos_embed": published.sincos(4, 2, 16)}
    save_file(named, tmp_path / "DiT.safetensors")
    network = read_checkpoint(tmp_path / "DiT.safetensors", heads=2)
    x, time = picture(model)
    label = torch.tensor([2, 0, 4])
    assert_same(network(x, time.float(), Condition(label)), model(x, time, label).sample)
    # and one form into the other: the same tensors
    with pytest.warns(UserWarning, match="freq_shift 0"):
        write_checkpoint(network, tmp_path / "folder", "diffusers-dit")
    converted = load_file(tmp_path / "folder/diffusion_pytorch_model.safetensors")
    own = {name: value for name, value in model.state_dict().items() if name in converted}
    assert own.keys() == converted.keys() and all(torch.equal(own[name], converted[name]) for name in own)
    assert json.loads((tmp_path / "folder/config.json").read_text())["norm_eps"] == 1e-6


@torch.no_grad()
def test_the_authors_pixart_gives_diffusers_outputs(tmp_path):
    model = a_pixart(**PIXARTS["published"])
    null = torch.randn(120, TEXT_DIM)
    named = authors_names(model.state_dict(), 2, "pixart") | {"y_embedder.y_embedding": null}
    save_file(named | {"pos_embed": published.sincos(4, 2, 16)}, tmp_path / "PixArt.safetensors")
    network = read_checkpoint(tmp_path / "PixArt.safetensors", heads=2)
    x, time = picture(model)
    tokens, mask = text()
    assert_same(network(x, time.float(), Condition(tokens=tokens, mask=mask)), run_pixart(model, x, time))
    model.save_pretrained(tmp_path / "folder")
    other = read_checkpoint(tmp_path / "folder", null_text=null)
    write_checkpoint(other, tmp_path / "back.safetensors", "pixart")
    before, after = load_file(tmp_path / "PixArt.safetensors"), load_file(tmp_path / "back.safetensors")
    assert before.keys() == after.keys()
    torch.testing.assert_close(before.pop("pos_embed"), after.pop("pos_embed"), rtol=0, atol=1e-6)
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_shards_and_older_class_names(tmp_path):
    model = a_dit(**DITS["published"])
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    config = json.loads((tmp_path / "config.json").read_text())
    older = {"_class_name": "Transformer2DModel", "double_self_attention": False, "only_cross_attention": False}
    older |= {"cross_attention_dim": None, "num_vector_embeds": None, "use_linear_projection": False, "_name_or_path": "x"}
    (tmp_path / "config.json").write_text(json.dumps(config | older | {"attention_type": "default"}))
    x, time = picture(model)
    label = torch.tensor([2, 0, 4])
    expected = model(x, time, label).sample
    for path in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors.index.json"):
        assert_same(read_checkpoint(path)(x, time.float(), Condition(label)), expected)


def test_blocks_with_embeddings_of_their_own_are_refused(tmp_path):
    model = a_dit(**DITS["published"])
    with torch.no_grad():
        model.transformer_blocks[2].norm1.emb.timestep_embedder.linear_1.bias[3] += 1e-3
    model.save_pretrained(tmp_path)
    message = r"repeats one tensor with other values: transformer_blocks\.2\.norm1\.emb\.timestep_embedder\.linear_1\.bias"
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name 'UNet2DConditionModel'"),
        ({"_class_name": ["os", "system"]}, "_class_name"),
        ({"_class_name": "PixArtTransformer2DModel"}, "norm_type 'ada_norm_zero'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "key 'auto_map', which is not known"),
        ({"trust_remote_code": True}, "key 'trust_remote_code'"),
        ({"_target_": "evil.Model"}, "key '_target_'"),
        ({"sample_sizes": 4}, "did you mean 'sample_size'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine True"),
        ({"activation_fn": ["gelu"]}, "activation_fn"),
        ({"norm_type": {}}, "norm_type"),
        ({"activation_fn": "geglu"}, "activation_fn 'geglu'"),
        ({"num_attention_heads": 3}, "not 3 heads of 8"),
        ({"num_attention_heads": True}, "num_attention_heads True"),
        ({"attention_head_dim": 16}, "not 2 heads of 16"),
        ({"sample_size": -4}, "sample_size -4"),
        ({"sample_size": 5}, "size 5 must be a multiple of patch 2"),
        ({"norm_eps": "1e-5"}, "norm_eps '1e-5'"),
    ],
)
def test_configs_that_do_not_belong(tmp_path, change, message):
    """No class is imported on a file's word: a module of that name beside it stays untouched."""
    a_dit(**DITS["published"] | {"num_layers": 1}).save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_without_a_config_the_size_is_asked_for(tmp_path):
    a_dit(**DITS["published"] | {"num_layers": 1}).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"does not tell its size .* give size"):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"width 16, which is no published one .*give heads"):
        read_checkpoint(tmp_path, size=4)
    assert read_checkpoint(tmp_path, size=4, heads=2).config.heads == 2


def test_frequencies_and_epsilon_of_diffusers_matter():
    """The two settings change outputs: a network without them would not pass above."""
    config = {"type": "dit", "size": 4, "patch": 2, "channels": 3, "dim": 16, "depth": 1, "heads": 2, "num_classes": 3}
    networks = [build(config | change) for change in ({}, {"freq_shift": 1}, {"mlp_norm_eps": 1e-2})]
    with torch.no_grad():
        for network in networks:
            randomise(network)
        x, time = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([40.0, 700.0])
        plain, shifted, soft = (network(x, time, Condition()) for network in networks)
    assert (plain - shifted).abs().max() > 1e-2 and (plain - soft).abs().max() > 1e-4
