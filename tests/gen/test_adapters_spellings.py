"""How programs spell the keys of adapter files beyond the plain formats, and what they store as alpha: each is one layer of one
part, with its scale, and comes back key by key."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.adapters import AdapterError, Adapters, from_tensors, read_adapter, renamed, write_adapter
from gen.adapters.foreign import READ
from gen.adapters.keys import parse
from tests.gen import pipelines

PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
PLAIN = PATH.replace(".", "_")
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
DOWN, UP = torch.arange(32.0).reshape(2, 16) / 32, torch.arange(32.0).reshape(16, 2) / 16


def pair(stem: str, ends: tuple[str, str] = ("lora_A.weight", "lora_B.weight")) -> dict[str, torch.Tensor]:
    return {f"{stem}.{ends[0]}": DOWN.clone(), f"{stem}.{ends[1]}": UP.clone()}


KOHYA = ("lora_down.weight", "lora_up.weight")
# key spelling -> (a file, the part of its layer)
FILES = {
    "peft's name": (pair(f"unet.{PATH}", ("lora_A.default.weight", "lora_B.default.weight")), "denoiser"),
    "peft's numbered name": (pair(f"unet.{PATH}", ("lora_A.default_0.weight", "lora_B.default_0.weight")), "denoiser"),
    "a name of one's own": (pair(PATH, ("lora_A.my style-2.weight", "lora_B.my style-2.weight")), "denoiser"),
    "a name with kohya's factors": (pair(f"unet.{PATH}", ("lora_down.hero.weight", "lora_up.hero.weight")), "denoiser"),
    "peft inside of a pipeline's part": (pair(f"unet.base_model.model.{PATH}"), "denoiser"),
    "peft around a pipeline": (pair(f"base_model.model.unet.{PATH}"), "denoiser"),
    "peft around a text encoder": (pair(f"base_model.model.text_encoder.{TEXT}"), "text_encoder"),
    "fal, diffusion-pipe": (pair(f"base_model.model.diffusion_model.{PATH}"), "denoiser"),
    "compiled": (pair(f"unet._orig_mod.{PATH}"), "denoiser"),
    "compiled, in the middle": (pair(f"unet.down_blocks.1._orig_mod.{PATH.partition('.1.')[2]}"), "denoiser"),
    "data parallel": (pair(f"module.{PATH}"), "denoiser"),
    "sharded": (pair(f"unet._fsdp_wrapped_module.{PATH}"), "denoiser"),
    "DiffSynth": (pair(f"pipe.unet.{PATH}", ("lora_A.default.weight", "lora_B.default.weight")), "denoiser"),
    "ComfyUI": (pair(f"diffusion_model.{PATH}", KOHYA), "denoiser"),
    "ComfyUI, text": (pair(f"text_encoders.clip_l.transformer.{TEXT}", KOHYA), "text_encoder"),
    "ComfyUI, text alone": (pair(f"clip_l.transformer.{TEXT}", KOHYA), "text_encoder"),
    "OMI": (pair("unet.input_blocks.3.1.transformer_blocks.0.attn1.to_q", KOHYA), "denoiser"),
    "OMI, text": (pair(f"clip_l.{TEXT}", KOHYA), "text_encoder"),
    "OMI's first form": (pair(f"lora_unet.{PATH}", KOHYA), "denoiser"),
    "OMI's first form, text": (pair(f"lora_clip_l.{TEXT}", KOHYA), "text_encoder"),
    "TheLastBen": (pair(f"lora_unet_{PLAIN}_", KOHYA), "denoiser"),
    "a dot that was left": (pair(f"lora_unet_{PLAIN.removesuffix('_to_q')}.to_q", KOHYA), "denoiser"),
    "lycoris": (pair(f"lycoris_{PLAIN}", KOHYA), "denoiser"),
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    pipe = pipelines.stable_diffusion()
    return {"denoiser": pipe.unet, "text_encoder": pipe.text_encoder}


@pytest.mark.parametrize("case", FILES)
def test_every_spelling_finds_its_layer(case, parts, tmp_path):
    tensors, part = FILES[case]
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    named = renamed(adapter, parts)
    [(layer, delta)] = named.layers.items()
    assert layer == f"{part}.{TEXT if part == 'text_encoder' else PATH}" and delta.scale == 1
    assert torch.equal(delta.factors["down"], DOWN) and torch.equal(delta.factors["up"], UP)
    if adapter.format != "peft":
        written = load_file(write_adapter(adapter, tmp_path / "b.safetensors"))
        assert written.keys() == tensors.keys() and all(torch.equal(written[key], tensors[key]) for key in tensors)


def test_a_file_of_two_spellings(parts):
    """As a merge by hand of a kohya file for the denoiser and diffusers' for the text encoder."""
    adapter = from_tensors({**pair(f"lora_unet_{PLAIN}", KOHYA), **pair(f"text_encoder.{TEXT}")})
    assert set(renamed(adapter, parts).layers) == {f"denoiser.{PATH}", f"text_encoder.{TEXT}"}


@pytest.mark.parametrize("end", ["lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.hero.weight",
                                 "lora_magnitude_vector.hero", "dora_scale", "magnitude"])  # fmt: skip
@pytest.mark.parametrize("stem", [f"unet.{PATH}", f"lora_unet_{PLAIN.removesuffix('_to_q')}.to_q", f"lora_unet_{PLAIN}"])
def test_every_spelling_of_a_magnitude(end, stem):
    factors = pair(f"lora_unet_{PLAIN}", KOHYA) if stem.startswith("lora") else pair(stem)
    value = torch.rand(16, generator=torch.Generator().manual_seed(0)) + 1
    [delta] = from_tensors({**factors, f"{stem}.{end}": value}).layers.values()
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    combined = weight + (UP @ DOWN).double()
    expected = torch.stack([m * row / row.square().sum().sqrt() for m, row in zip(value.double(), combined, strict=True)])
    torch.testing.assert_close(delta.delta(weight), expected - weight, rtol=1e-12, atol=1e-12)


ALPHAS = {
    "int64": torch.tensor(4), "int8": torch.tensor(4, dtype=torch.int8), "one value": torch.tensor([4.0]),
    "bfloat16": torch.tensor(4, dtype=torch.bfloat16), "float16": torch.tensor(4, dtype=torch.float16),
    "float64": torch.tensor(4, dtype=torch.float64), "float8": torch.tensor(4.0).to(torch.float8_e4m3fn),
    "uint8": torch.tensor([4], dtype=torch.uint8),
}  # fmt: skip


@pytest.mark.parametrize("kind", ALPHAS)
def test_alpha_in_every_number_format(kind, tmp_path):
    tensors = {**pair(f"lora_unet_{PLAIN}", KOHYA), f"lora_unet_{PLAIN}.alpha": ALPHAS[kind]}
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert [delta.scale for delta in adapter.layers.values()] == [2.0]
    back = load_file(write_adapter(adapter, tmp_path / "b.safetensors"))[f"lora_unet_{PLAIN}.alpha"]
    assert back.dtype == ALPHAS[kind].dtype and back.shape == ALPHAS[kind].shape
    narrow = load_file(write_adapter(adapter, tmp_path / "c.safetensors", dtype=torch.float16))
    assert narrow[f"lora_unet_{PLAIN}.alpha"].dtype == ALPHAS[kind].dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64])
def test_factors_in_every_number_format(dtype, parts, tmp_path):
    tensors = {key: value.to(dtype) for key, value in pair(f"lora_unet_{PLAIN}", KOHYA).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    weight = torch.zeros(16, 16, dtype=torch.float64)
    [delta] = adapter.layers.values()
    down, up = (tensors[f"lora_unet_{PLAIN}.{end}"].double() for end in KOHYA)
    torch.testing.assert_close(delta.delta(weight), up @ down, rtol=1e-12, atol=0)
    Adapters(pipelines.stable_diffusion().unet).load(adapter)


def test_adapters_side_by_side_in_one_file():
    both = {**pair(PATH, ("lora_A.a.weight", "lora_B.a.weight")), **pair(PATH, ("lora_A.b.weight", "lora_B.b.weight"))}
    with pytest.raises(AdapterError, match="side by side, 'a' and 'b'; save each in a file of its own"):
        from_tensors(both)


NOT_READ = {
    "GLoRA": {f"lora_unet_{PLAIN}.{end}.weight": DOWN for end in ("a1", "a2", "b1", "b2")} | {
        f"lora_unet_{PLAIN}.alpha": torch.tensor(1.0)},
    "OFT": {f"lora_unet_{PLAIN}.oft_blocks": torch.zeros(2, 4, 4), f"lora_unet_{PLAIN}.alpha": torch.tensor(1.0)},
    "BOFT": {f"base_model.model.{PATH}.boft_R": torch.zeros(2, 4, 4)},
    "IA3": {f"lora_unet_{PLAIN}.weight": DOWN, f"lora_unet_{PLAIN}.on_input": torch.tensor(True)},
    "AdaLoRA": {f"base_model.model.{PATH}.lora_{x}": DOWN for x in "ABE"},
    "T-LoRA": {f"lora_unet_{PLAIN}.lambda_layer": DOWN, f"lora_unet_{PLAIN}.alpha": torch.tensor(1.0)},
    "sparse remainder": {**pair(f"lora_unet_{PLAIN}", KOHYA), f"lora_unet_{PLAIN}.bias_indices": torch.zeros(2, 3)},
    "learned scalar": {**pair(f"lora_unet_{PLAIN}", KOHYA), f"lora_unet_{PLAIN}.scalar": torch.tensor(1.0)},
    "first factor has a bias": {**pair(f"unet.{PATH}"), f"unet.{PATH}.lora_A.bias": torch.zeros(2)},
    "cloneofsimo": {"unet:0:up": UP, "unet:0:down": DOWN},
    "Control-LoRA": {"lora_controlnet": torch.zeros(1)},
    "ControlNet-LLLite": {"lllite_unet_x.cond_emb": DOWN},
    "replaces the model's": {**pair(f"unet.{PATH}"), "unet.conv_out.weight": DOWN},
    "embedding table": {**pair(f"base_model.model.{PATH}"), "base_model.model.emb.lora_embedding_A": DOWN},
}  # fmt: skip


@pytest.mark.parametrize("method", NOT_READ)
def test_a_method_that_is_not_applied_is_named(method):
    """Also where unknown keys are passed over and nothing else is in the file."""
    with pytest.raises(AdapterError, match=method):
        from_tensors(NOT_READ[method])
    if not any("lora_up" in key or "lora_B." in key for key in NOT_READ[method]):
        with pytest.raises(AdapterError, match=method):
            from_tensors(NOT_READ[method], strict=False)


def test_every_method_of_peft_is_read_or_named():
    mapping = pytest.importorskip("peft.mapping").PEFT_TYPE_TO_PREFIX_MAPPING
    for kind, prefix in mapping.items():
        if kind.value in (*READ, "ADALORA"):  # these have keys of LoRA, and tests of their own
            continue
        with pytest.raises(AdapterError, match="which is not applied here"):
            from_tensors({f"base_model.model.{PATH}.{prefix}x": DOWN})


SHAPES = ((), (0,), (1,), (2,), (8,), (8, 8), (0, 8), (2, 8, 1), (1, 1, 1, 1), (2, 2, 2, 2, 2, 2))
WHOLE = {
    "lora": {"lora_down.weight": (2, 8), "lora_up.weight": (8, 2)},
    "core": {"lora_down.weight": (2, 4, 1, 1), "lora_up.weight": (8, 2, 1, 1), "lora_mid.weight": (2, 2, 3, 3)},
    "loha": {f"hada_w{i}_{side}": (8, 2) if side == "a" else (2, 8) for i in (1, 2) for side in "ab"},
    "lokr": {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2": (4, 4)},
    "full": {"diff": (8, 8), "diff_b": (8,)},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_tensor_of_any_shape_is_read_or_a_sentence(kind):
    """Every ending in every shape, also without dimensions, beside the factors of a whole layer."""
    network = torch.nn.ModuleDict({"x": torch.nn.Conv2d(4, 8, 3) if kind == "core" else torch.nn.Linear(8, 8)})
    refused = 0
    ends = [key.partition(".")[2] for key in (f"x.{end}" for end in (*WHOLE[kind], "alpha", "dora_scale", "lora_up.bias",
            "lora_mid.weight", "diff", "diff_b", "hada_t1", "lokr_t2", "lokr_w1", "w_norm"))]  # fmt: skip
    for end in ends:
        for shape in SHAPES:
            tensors = {f"lora_unet_x.{name}": torch.zeros(own) for name, own in WHOLE[kind].items()}
            tensors[f"lora_unet_x.{end}"] = torch.ones(shape)
            try:
                Adapters(network).load(from_tensors(tensors))
            except AdapterError as error:
                assert str(error).endswith((".", "do.")) and "Traceback" not in str(error)
                refused += 1
    assert refused > len(ends) * len(SHAPES) / 2
    assert parse("lora_unet_x.alpha").factor == "alpha"
