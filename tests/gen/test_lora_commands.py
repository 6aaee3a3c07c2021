"""`fewstep lora inspect` and `fewstep lora convert`, and damaged files on the command line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.adapters import Adapter, Delta, read_adapter, write_adapter
from gen.generator import Generator
from gen.models.components import load_component
from gen.models.skeleton import skeleton
from tests.gen import pipelines
from tests.gen.malformed import MALFORMED

UNET = "lora_unet_in_blocks_0_attn_qkv"
METADATA = {
    "ss_base_model_version": "sd_v1",
    "ss_sd_model_name": "base.safetensors",
    "ss_network_module": "networks.lora",
    "modelspec.trigger_phrase": "sks style",
    "ss_tag_frequency": json.dumps({"5_sks": {"cat": 3, "red \x1b[31mdog": 5}}),
}


def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    made = {
        f"{UNET}.lora_down.weight": torch.randn(4, 32, generator=random),
        f"{UNET}.lora_up.weight": torch.randn(96, 4, generator=random),
        f"{UNET}.alpha": torch.tensor(2.0),
        "lora_unet_in_blocks_0_mlp_fc1.hada_w1_a": torch.randn(128, 2, generator=random),
        "lora_unet_in_blocks_0_mlp_fc1.hada_w1_b": torch.randn(2, 32, generator=random),
        "lora_unet_in_blocks_0_mlp_fc1.hada_w2_a": torch.randn(128, 2, generator=random),
        "lora_unet_in_blocks_0_mlp_fc1.hada_w2_b": torch.randn(2, 32, generator=random),
    }
    return {key: value.half() for key, value in made.items()}


@pytest.fixture
def file(tmp_path):
    save_file(tensors(), tmp_path / "style.safetensors", METADATA)
    return tmp_path / "style.safetensors"


def test_what_a_file_holds(fewstep, file):
    code, out, _ = fewstep("lora", "inspect", file, "--json")
    found = json.loads(out)
    assert code == 0 and found["format"] == "kohya" and found["layers"] == 2 and found["bytes"] == file.stat().st_size
    assert found["groups"] == [
        {"part": "denoiser", "kind": "LoRA", "rank": 4, "alpha": 2.0, "scale": 0.5, "layers": 1},
        {"part": "denoiser", "kind": "LoHa", "rank": 2, "alpha": 2.0, "scale": 1.0, "layers": 1},
    ]
    assert found["trained_words"] == ["sks style", "red \x1b[31mdog", "cat"] and found["base_model"] == "sd_v1"
    assert found["trained_from"] == "base.safetensors" and found["trained_with"] == "networks.lora"
    assert found["parameters"] == 4 * (32 + 96) + 4 * (128 + 32) and found["dtypes"] == ["float16"]
    code, out, _ = fewstep("lora", "inspect", file)
    assert code == 0 and "\x1b" not in out and "LoHa" in out and r"sks style, red \x1b[31mdog, cat" in out
    for words in ("sd_v1", "float16", f"{file.stat().st_size:,} bytes", read_adapter(file).sha256):
        assert words in out


def test_what_fits_a_model(fewstep, file, tiny_model, monkeypatch):
    import gen.io.weights

    monkeypatch.setattr(gen.io.weights, "load_weights", lambda *_: pytest.fail("weights were read"))
    code, out, _ = fewstep("lora", "inspect", file, "--model", tiny_model, "--json")
    assert code == 0 and json.loads(out)["model"]["matched"] == {
        "denoiser.in_blocks_0_attn_qkv": ["in_blocks.0.attn.qkv"],
        "denoiser.in_blocks_0_mlp_fc1": ["in_blocks.0.mlp.fc1"],
    }
    more = {"lora_unet_in_blocks_0_mlp_fc9": (32, 128), "lora_unet_mid_block_mlp_fc1": (31, 128), "lora_te_x": (4, 4)}
    changed = tensors()
    for name, (width, out_) in more.items():
        changed |= {f"{name}.lora_down.weight": torch.ones(2, width), f"{name}.lora_up.weight": torch.ones(out_, 2)}
    save_file(changed, file)
    code, out, _ = fewstep("lora", "inspect", file, "--model", tiny_model, "--json")
    model = json.loads(out)["model"]
    assert code == 1 and len(model["matched"]) == 2 and not model["complete"]
    assert model["unmatched"]["denoiser.in_blocks_0_mlp_fc9"] == "nearest: in_blocks.0.mlp.fc2"
    assert set(model["unmatched"]) == {"denoiser.in_blocks_0_mlp_fc9", "text_encoder.x"}
    assert model["mismatched"] == {"denoiser.mid_block_mlp_fc1": "is (128, 31) where mid_block.mlp.fc1 is (128, 32)"}
    code, out, _ = fewstep("lora", "inspect", file, "--model", tiny_model)
    assert code == 1 and "2 of 5 layers fit" in out and "nearest: in_blocks.0.mlp.fc2" in out and "(128, 31)" in out
    save_file({"unet.nowhere.lora_A.weight": torch.ones(2, 8), "unet.nowhere.lora_B.weight": torch.ones(8, 2)}, file)
    code, out, _ = fewstep("lora", "inspect", file, "--model", tiny_model)
    assert code == 1 and "0 of 1 layers fit" in out and "fits nothing in this model" in out


def test_a_skeleton_is_the_model_without_its_weights(tiny_model, class_model):
    for folder in (tiny_model, class_model):
        for part, network in skeleton(folder).items():
            own = load_component(folder / part)
            assert type(network) is type(own)
            assert {k: v.shape for k, v in network.named_parameters()} == {k: v.shape for k, v in own.named_parameters()}
            assert all(parameter.device.type == "meta" for parameter in network.parameters())


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "sana"])
def test_a_skeleton_of_a_pipeline(bridged, name, tmp_path):
    pipeline, generator = bridged(name)
    parts = skeleton(pipelines.save(pipeline, tmp_path))
    own = {"denoiser": generator.network.network, **generator.text_encoder.encoders}
    assert parts.keys() == own.keys()
    for part, network in parts.items():
        assert type(network) is type(own[part])
        assert {k: v.shape for k, v in network.named_parameters()} == {k: v.shape for k, v in own[part].named_parameters()}


@torch.no_grad()
def test_converted_files_make_the_same_change(fewstep, file, tiny_model, tmp_path):
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
    network = generator.network

    def changes(path) -> dict[str, torch.Tensor]:
        generator.load_adapter(path, "a")
        placed = {t.module: delta.delta(torch.zeros(network.get_submodule(t.module).weight.shape))
                  for t, delta in generator.loaded_adapters.parts["denoiser"]._placed["a"]}  # fmt: skip
        generator.unload_adapter("a")
        return placed

    before = changes(file)
    for to, out in (("diffusers", "b.safetensors"), ("peft", "b"), ("ai-toolkit", "c.safetensors"), ("kohya", "d.safetensors")):
        code, printed, err = fewstep(
            "lora", "convert", file, tmp_path / out, "--to", to, "--model", tiny_model, *["--fold"] * (to == "ai-toolkit")
        )
        assert code == 0 and printed.strip() == str(tmp_path / out), err
        after = changes(tmp_path / out)
        assert after.keys() == before.keys()
        for name, change in before.items():
            torch.testing.assert_close(after[name], change, rtol=2e-3, atol=2e-3)  # float16, folded
    assert "transformer.in_blocks.0.attn.qkv.lora_A.weight" in load_file(tmp_path / "b.safetensors")
    for arguments, reason in (
        (("--to", "diffusers"), "with underscores, as kohya does; give the model that it is for with --model"),
        (("--to", "khoya"), "did you mean 'kohya'?"),
        (("--to", "ai-toolkit", "--model", tiny_model), "stores no scale"),
        (("--to", "kohya", "--dtype", "int8"), "Unknown dtype 'int8'"),
    ):
        code, _, err = fewstep("lora", "convert", file, tmp_path / "e.safetensors", *arguments)
        assert code == 2 and reason in err and err.count("\n") == 1 and not (tmp_path / "e.safetensors").exists()
    code, _, err = fewstep("lora", "convert", file, file, "--to", "kohya")
    assert code == 2 and "nothing is overwritten" in err
    code, _, _ = fewstep("lora", "convert", file, tmp_path / "f.safetensors", "--to", "kohya", "--dtype", "float32")
    assert code == 0 and load_file(tmp_path / "f.safetensors")[f"{UNET}.lora_up.weight"].dtype == torch.float32


def test_nonfinite_values_on_request(fewstep, image, file, tiny_model):
    save_file(tensors() | {f"{UNET}.lora_up.weight": torch.full((96, 4), torch.inf)}, file)
    for command in (("lora", "inspect", file), ("lora", "convert", file, "o.safetensors", "--to", "kohya")):
        code, _, err = fewstep(*command)
        assert code == 2 and f"tensor '{UNET}.lora_up.weight' holds NaN or infinite values" in err and err.count("\n") == 1
        assert fewstep(*command, "--allow-nonfinite")[0] == 0
    code, _, err = image("a cat", "--seed", 1, "--steps", 1, "--lora", file)
    assert code == 2 and "holds NaN or infinite values" in err
    code, out, err = image("a cat", "--seed", 1, "--steps", 1, "--lora", f"{file}:0", "--allow-nonfinite")
    assert code == 0, err
    again = ("replay", out.strip(), "--model", tiny_model, "--lora", file)
    code, _, err = fewstep(*again)
    assert code == 2 and "holds NaN or infinite values" in err
    code, _, err = fewstep(*again, "--allow-nonfinite")
    assert code == 0 and "Identical to the last byte" in err


def test_learned_words_are_shown_and_unknown_adapters_named(fewstep, tiny_model, tmp_path):
    words = {"<cat>": {"text_encoder": torch.randn(2, 16)}, "<ink>": {"text_encoder": torch.randn(1, 16)}}
    delta = Delta({"down": torch.randn(2, 32), "up": torch.randn(96, 2)})
    file = write_adapter(Adapter("a", {"denoiser.mid_block.attn.qkv": delta}, words=words), tmp_path / "a.safetensors", "kohya")
    code, out, _ = fewstep("lora", "inspect", file, "--json")
    assert code == 0 and json.loads(out)["learned_words"] == {"<cat>": 2, "<ink>": 1}
    assert "<cat> (2), <ink> (1)" in fewstep("lora", "inspect", file)[1]
    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
    generator.load_adapter(file, "style")
    with pytest.raises(ValueError, match=r"No adapter named 'stile' is loaded; loaded: style\. Did you mean 'style'\?"):
        generator.encode_prompt(["a cat"], {"stile": 1.0})


@pytest.mark.parametrize("kind", ["empty", "truncated header", "deep JSON", "pickle", "LFS pointer", "web page"])
def test_damaged_files_are_one_line_and_exit_code_2(fewstep, image, tmp_path, kind):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(MALFORMED[kind][0])
    for command in (("lora", "inspect", path), ("lora", "convert", path, "o.safetensors", "--to", "kohya")):
        code, out, err = fewstep(*command)
        assert (code, out, err.count("\n")) == (2, "", 1) and str(path) in err
    code, out, err = image("a cat", "--steps", 1, "--lora", path)
    assert (code, out, err.count("\n")) == (2, "", 1) and str(path) in err
