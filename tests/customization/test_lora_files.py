"""`fewstep lora merge`, `resize`, `extract`, `spectrum`, `interpolate`: files in, one file out, and every wrong request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gen.adapters import Adapters, read_adapter, write_adapter
from gen.io.weights import read_metadata
from gen.models.components import load_component
from gen.models.skeleton import skeleton
from tests.customization.adapters import KINDS, adapter, change, changes, lora, normal

QKV, FC1 = "in_blocks.0.attn.qkv", "mid_block.mlp.fc1"  # (96, 32) and (128, 32)
METADATA = {"ss_base_model_version": "emoji", "ss_network_dim": "4", "ss_network_alpha": "2", "modelspec.title": "Style"}


def kohya(path: Path, seed: int, rank: int = 4, prefix: str = "lora_unet_", **metadata: str) -> Path:
    tensors = {}
    for i, (name, out) in enumerate(((QKV, 96), (FC1, 128))):
        key = prefix + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = normal(seed + i, rank, 32).float()
        tensors[f"{key}.lora_up.weight"] = normal(seed + i + 50, out, rank).float()
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path, {**METADATA, **metadata})
    return path


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    return kohya(tmp_path / "a.safetensors", 1), kohya(tmp_path / "b.safetensors", 9, 3)


def plain(path: Path) -> dict[str, torch.Tensor]:
    """layer, with underscores -> its change in float64."""
    return {layer.replace(".", "_"): one for layer, one in changes(read_adapter(path)).items()}


def close(one: dict, two: dict, tolerance: float = 1e-5) -> None:
    assert one.keys() == two.keys()
    for name, expected in two.items():
        assert float((one[name] - expected).norm()) <= tolerance * float(expected.norm()), name


def test_merge(fewstep, files):
    code, out, err = fewstep("lora", "merge", f"{files[0]}:0.8", f"{files[1]}:-0.5", "-o", "new/m.safetensors")
    assert (code, out.strip()) == (0, "new/m.safetensors"), err
    Path("new/m.safetensors").rename("m.safetensors")
    assert "2 layers (2 LoRA), rank 7, exact" in err
    one, two = map(plain, files)
    close(plain(Path("m.safetensors")), {name: 0.8 * one[name] - 0.5 * two[name] for name in one})
    tensors, metadata = load_file("m.safetensors"), read_metadata("m.safetensors")
    assert f"lora_unet_{QKV.replace('.', '_')}.lora_up.weight" in tensors and len(tensors) == 6
    assert metadata["ss_base_model_version"] == "emoji" and metadata["ss_network_dim"] == "7"
    history = json.loads(metadata["fewstep.made_from"])
    assert history["weights"] == [0.8, -0.5] and history["adapters"][0]["sha256"] == read_adapter(files[0]).sha256


def test_merge_to_a_rank_with_a_report(run, files):
    code, out, _ = run("merge", *files, "-o", "m.safetensors", "--rank", 3, "--json", "--block", "mid_block=2")
    report = json.loads(out)
    one, two = map(plain, files)
    whole = {name: (2 if "mid" in name else 1) * (one[name] + two[name]) for name in one}
    lost = sum(float((plain(Path("m.safetensors"))[name] - whole[name]).norm() ** 2) for name in whole)
    norm = sum(float(change.norm() ** 2) for change in whole.values())
    assert code == 0 and report["ranks"] == [3] and report["format"] == "kohya" and len(report["layers"]) == 2
    assert report["error"] == pytest.approx((lost / norm) ** 0.5, rel=1e-4) and 0.1 < report["error"] < 0.9


@pytest.mark.parametrize("to", ["diffusers", "peft", "ai-toolkit", "kohya"])
def test_merge_into_every_format(run, files, tiny_model, to):
    name = "m" if to == "peft" else "m.safetensors"
    code, _, err = run("merge", *files, "-o", name, "--to", to, "--model", tiny_model)
    assert code == 0, err
    read = read_adapter(Path(name))
    assert read.format == to and not read.notes
    close(plain(Path(name)), {layer: change + plain(files[1])[layer] for layer, change in plain(files[0]).items()})
    code, _, err = run("resize", name, f"r{name}", "--rank", 2)  # and out of each
    assert code == 0 and read_adapter(Path(f"r{name}")).format == to and read_adapter(Path(f"r{name}")).ranks == (2,), err


def test_merge_across_formats_and_prefixes(run, files, tmp_path, tiny_model):
    write_adapter(adapter("dots", in_blocks_0_attn_qkv=lora(3, 96, 32)), "dots.safetensors", "diffusers")
    dots = read_adapter("dots.safetensors")
    assert list(dots.layers) == ["denoiser.in.blocks.0.attn.qkv"]
    kohya(tmp_path / "t.safetensors", 4, prefix="lora_te1_")
    code, _, err = run("merge", files[0], "t.safetensors", "-o", "m.safetensors")
    assert code == 2 and "t has no layer in common" not in err and "a has no layer in common with t" in err
    code, _, err = run("merge", files[0], "t.safetensors", "-o", "m.safetensors", "--disjoint")
    assert code == 0 and {key.partition("_in_")[0] for key in load_file("m.safetensors") if "_in_" in key} == {
        "lora_unet", "lora_te1"
    }  # fmt: skip
    code, _, err = run("merge", files[0], "dots.safetensors", "-o", "n.safetensors")
    assert code == 0, err  # the names agree with underscores
    assert read_adapter("n.safetensors").ranks == (4, 7)


def test_lycoris_becomes_lora_and_is_written(run, tmp_path):
    one = adapter("l", a=KINDS["loha"](), b=KINDS["lokr whole"](), c=KINDS["conv"](), d=KINDS["full"]())
    write_adapter(one, "l.safetensors", "kohya")
    before = changes(one)
    code, _, err = run("merge", "l.safetensors:0.5", "-o", "half.safetensors")
    assert code == 0, err
    close(changes(read_adapter("half.safetensors")), {name: 0.5 * one for name, one in before.items()}, 1e-12)
    code, _, err = run("resize", "l.safetensors", "s.safetensors", "--rank", 4)
    assert code == 0 and "4 layers (3 LoRA, 1 conv LoRA), rank 3/4, relative error" in err
    assert set(read_adapter("s.safetensors").types) == {"LoRA", "conv LoRA"}


def test_sparse_merges_are_reproducible(run, files):
    base = ("merge", *files, "--method", "dare_ties", "--density", 0.6)
    for name, seed in (("a1", 3), ("a2", 3), ("a3", 4)):
        assert run(*base, "-o", f"{name}.safetensors", "--seed", seed, "--sv-fro", 0.9)[0] == 0
    one, two, three = (load_file(f"a{i}.safetensors") for i in (1, 2, 3))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(one[key].shape != three[key].shape or not torch.equal(one[key], three[key]) for key in one)
    assert run("merge", *files, "--method", "ties", "-o", "t.safetensors")[0] == 0
    assert read_adapter("t.safetensors").types == {"full": 2}


def test_a_merged_file_fuses_like_its_parts_and_comes_out_again(run, files, tiny_model):
    assert run("merge", f"{files[0]}:0.8", f"{files[1]}:0.3", "-o", "m.safetensors")[0] == 0
    network = load_component(Path(tiny_model) / "denoiser")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapters = Adapters(network)
    for name, path in (("a", files[0]), ("b", files[1]), ("m", "m.safetensors")):
        adapters.load(read_adapter(path, name))
    with adapters.fusing({"a": 0.8, "b": 0.3}):
        apart = {name: value.clone() for name, value in network.state_dict().items()}
    with adapters.fusing({"m": 1.0}):
        assert not torch.equal(network.state_dict()[f"{QKV}.weight"], before[f"{QKV}.weight"])
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, apart[name], rtol=1e-5, atol=1e-5)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_spectrum(run, files):
    code, out, err = run("spectrum", files[0], "--plot", "s.png")
    assert code == 0 and "rank for 99%" in out and "in_blocks_0_attn_qkv" in out and err.strip() == "s.png"
    picture = Image.open("s.png")
    assert picture.size[0] > 900 and len(set(picture.convert("L").tobytes())) > 20
    code, out, _ = run("spectrum", files[0], "--json")
    layers = json.loads(out)["layers"]
    expected = torch.linalg.svdvals(plain(files[0])["denoiser_in_blocks_0_attn_qkv"])[:4].tolist()
    assert layers[0]["singular_values"] == pytest.approx(expected, rel=1e-6) and layers[0]["rank"] == 4
    assert run("spectrum", files[0], "--plot", "s.png")[0] == 2  # not overwritten


def test_wrong_requests_are_one_sentence_and_write_nothing(run, fewstep, files, tmp_path, tiny_model):
    a, b = files
    nan = load_file(a)
    nan[next(key for key in nan if key.endswith("alpha"))] = torch.tensor(float("nan"))
    save_file(nan, "nan.safetensors")
    save_file({"lora_unet_nowhere.lora_down.weight": torch.ones(2, 8), "lora_unet_nowhere.lora_up.weight": torch.ones(8, 2)},
              "other.safetensors")  # fmt: skip
    shape = {key: value[:, :-1] if "down" in key else value for key, value in load_file(b).items()}
    save_file({key: value.contiguous() for key, value in shape.items()}, "shape.safetensors", {"ss_base_model_version": "xl"})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    out = ("-o", "out.safetensors")
    for arguments, reason in (
        (("merge", a, "nan.safetensors", *out), "holds NaN or infinite values"),
        (("merge", a, "other.safetensors", *out), "no layer in common"),
        (("merge", "other.safetensors", *out, "--model", tiny_model), "fits nothing in this model"),
        (("merge", a, "shape.safetensors", *out), "for different models (trained on emoji and xl)"),
        (("merge", a, a, *out), "a is given twice"),
        (("merge", a, "missing.safetensors", *out), "does not exist"),
        (("merge", a, b, "-o", a), "nothing is overwritten"),
        (("merge", a, b, "-o", "out.bin"), "a name that ends in .safetensors"),
        (("merge", a, b, *out, "--to", "khoya"), "Did you mean 'kohya'?"),
        (("merge", a, b, *out, "--to", "diffusers"), "give the model that they are for with --model"),
        (("merge", a, b, *out, "--rank", 33), "Rank 33 is more than any layer has rows or columns; give at most 32"),
        (("merge", a, b, *out, "--sv-fro", 0.9, "--sv-ratio", 3), "give one of them"),
        (("merge", a, b, *out, "--density", 0.5), "belong to --method ties"),
        (("merge", a, b, *out, "--method", "ties", "--block", "mid=1"), "--block belongs to --method sum"),
        (("merge", a, b, *out, "--block", "mid"), "is not NAME=WEIGHT"),
        (("merge", a, b, *out, "--block", "mid_blok=1"), "fits no layer"),
        (("merge", f"{a}:nan", b, *out), "The weight of a is nan"),
        (("merge", f"{a}:0", *out), "Every layer has weight 0"),
        (("merge", a, b, *out, "--dtype", "int8"), "Unknown dtype 'int8'"),
        (("resize", a, "out.safetensors"), "Nothing says how many"),
        (("extract", tiny_model, tiny_model, "out.safetensors", "--rank", 4), "No linear layer or convolution"),
        (("extract", "nowhere", tiny_model, "out.safetensors", "--rank", 4), "nowhere"),
        (("spectrum", a, "--plot", "out.jpg"), "ends in .png"),
        (("interpolate", a, b, "out.safetensors"), "does not fit"),
        (("interpolate", a, tiny_model, "out"), "two models of one kind"),
        (("interpolate", a, a, "out.safetensors", "--share", "nan"), "The share of the second model is nan"),
    ):  # fmt: skip
        code, printed, err = run(*arguments)
        assert code == 2 and printed == "" and reason in err and err.count("\n") == 1, (arguments, err)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before, arguments
    code, _, err = fewstep("lora", "merge", a)
    assert code == 2 and "The following arguments are required: -o/--output" in err


def test_extraction_gives_the_tuned_model_back(run, tiny_model, tmp_path):
    tuned = tmp_path / "tuned"
    shutil.copytree(tiny_model, tuned)
    weights = load_file(tuned / "denoiser" / "model.safetensors")
    added = {QKV: lora(1, 96, 32, 3), FC1: lora(5, 128, 32, 6)}
    for name, delta in added.items():
        weights[f"{name}.weight"] += 0.1 * change(delta).float()
    weights[f"{FC1}.bias"] += 0.5
    norm = next(name for name in weights if "norm" in name and name.endswith(".weight"))
    weights[norm] *= 1.5
    save_file(weights, tuned / "denoiser" / "model.safetensors")
    code, out, err = run("extract", tuned, tiny_model, "e.safetensors", "--rank", 6, "--others", "--json")
    assert code == 0, err
    report, made = json.loads(out), read_adapter("e.safetensors")
    changed = {f"denoiser.{name}" for name in (*added, norm.removesuffix(".weight"))}
    assert made.format == "diffusers" and set(made.layers) == changed and report["error"] < 1e-5
    network = load_component(Path(tiny_model) / "denoiser")
    adapters = Adapters(network)
    adapters.load(made)
    adapters.fuse({"e": 1.0})
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-5, atol=1e-5)
    code, out, err = run("extract", tuned, tiny_model, "f.safetensors", "--rank", 2, "--json")
    report = json.loads(out)
    for layer, (name, delta) in zip(report["layers"], added.items(), strict=True):
        s = torch.linalg.svdvals(change(delta))
        assert layer["layer"] == f"denoiser.{name}" and layer["rank"] == 2
        assert layer["error"] == pytest.approx(float(s[2:].norm() / s.norm()), rel=1e-3)
    assert set(report["left"]) == {f"denoiser.{FC1}.bias", f"denoiser.{norm}"} and "--others keeps them" in err
    assert report["left"][f"denoiser.{norm}"] == pytest.approx(1 / 3)
    # a file of the denoiser alone says the same, and a rule of rank finds the ranks
    file = tuned / "denoiser" / "model.safetensors"
    code, _, err = run("extract", file, tiny_model, "g.safetensors", "--sv-ratio", 1000, "--to", "kohya")
    assert code == 0 and [d.rank for d in read_adapter("g.safetensors").layers.values()] == [3, 6], err
    weights["in_blocks.0.attn.qkv.weight"] = weights["in_blocks.0.attn.qkv.weight"][:90].contiguous()
    save_file(weights, file)
    code, _, err = run("extract", file, tiny_model, "h.safetensors", "--rank", 2)
    assert code == 2 and "is another network" in err and "(90, 32) there and (96, 32)" in err


def test_interpolation_of_model_folders(run, tiny_model, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(tiny_model, second)
    file = second / "denoiser" / "model.safetensors"
    weights = {name: value + 1.0 for name, value in load_file(file).items()}
    save_file(weights, file)
    code, out, err = run("interpolate", tiny_model, second, "between", "--share", 0.25)
    assert (code, out.strip()) == (0, "between"), err
    made, first = (load_file(Path(folder) / "denoiser" / "model.safetensors") for folder in ("between", tiny_model))
    for name, value in made.items():
        torch.testing.assert_close(value, first[name] + 0.25, rtol=1e-6, atol=1e-6)
    assert (Path("between") / "config.json").read_bytes() == (Path(tiny_model) / "config.json").read_bytes()
    same = load_file("between/text_encoder/model.safetensors")
    assert all(torch.equal(v, same[k]) for k, v in load_file(Path(tiny_model) / "text_encoder/model.safetensors").items())
    assert skeleton(Path("between")).keys() == {"denoiser", "text_encoder"}
    assert run("interpolate", tiny_model, second, "between")[0] == 2
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**config, "prediction": "eps"}))
    code, _, err = run("interpolate", tiny_model, second, "other")
    assert code == 2 and "has prediction 'eps' where" in err and not Path("other").exists()
    (second / "text_encoder" / "model.safetensors").unlink()
    code, _, err = run("interpolate", tiny_model, second, "other")
    assert code == 2 and "holds other weight files" in err and not Path("other").exists()
