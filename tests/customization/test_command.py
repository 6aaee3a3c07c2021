"""`fewstep lora train`: a folder and a prompt, or a config; what cannot be is one sentence, and no file is harmed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from customization.data import OWN_SOURCES
from customization.train import SHIPPED, check_method, main, parser, read_config, simple_config
from distill.registry import SOURCES
from gen.adapters import read_adapter
from gen.cli.app import main as fewstep
from gen.nn.registry import from_registry
from tests.benchmarks.teaching import GRID
from tests.customization.kit import pictures

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "lora").glob("*.yaml"))
QUICK = ["device=cpu", "precision=fp32"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configs_are_valid(file):
    config, _ = read_config(file, [])
    check_method(config.objective)
    from_registry({**OWN_SOURCES, **SOURCES}, "data source", config.data)


def test_the_shipped_config_is_what_the_command_sets(tmp_path):
    """So that what docs say of the one holds for the other."""
    file = next(file for file in CONFIGS if file.stem == "folder")
    command = ["pictures", "--prompt", "a <new> cat", "--token", "<new>=cat", "--run", "runs/lora/folder"]
    made, _ = simple_config(parser().parse_intermixed_args(command))
    made.objective["name"] = "folder"
    objectives = [check_method(config.objective)[1] for config in (made, read_config(file, [])[0])]
    assert objectives[0] == objectives[1]
    assert made.model_copy(update={"objective": {}}) == read_config(file, [])[0].model_copy(update={"objective": {}})
    other, _ = simple_config(parser().parse_intermixed_args([*command, "--model", "folder"]))
    assert (other.objective["adapter"], other.optimizer.lr, other.max_steps) == (
        {"type": "lora", "rank": 16, "targets": []}, 1e-4, 500
    )  # fmt: skip
    whole, _ = simple_config(parser().parse_intermixed_args([*command, "--all-layers"]))
    assert whole.objective["adapter"]["targets"] == []
    steps, rank, rate, targets = GRID["rank 8, 5e-4, cross-attention"]  # a row of the table in docs/lora.md
    assert (steps[-1], rank, rate, targets) == (SHIPPED["steps"], SHIPPED["rank"], SHIPPED["rate"], SHIPPED["targets"])
    oft, _ = simple_config(parser().parse_intermixed_args([*command, "--type", "oft", "--steps", "5", "--lr", "1e-3"]))
    assert "rank" not in oft.objective["adapter"] and (oft.max_steps, oft.optimizer.lr) == (5, 1e-3)


def test_a_folder_and_a_prompt_make_a_file(tmp_path, tiny_model, capsys):
    images, out = pictures(tmp_path / "images"), tmp_path / "out" / "cat.safetensors"
    words = ["--prompt", "a <new> cat", "--token", "<new>=red", "--class-prompt", "a cat", "--preview", "the <new> moon"]
    options = ["--model", str(tiny_model), "--steps", "2", "--rank", "2", "--type", "dora", "--run", str(tmp_path / "run")]
    prior = ["data.prior.count=2", "data.prior.num_inference_steps=1", "objective.preview.num_inference_steps=1"]
    assert fewstep(["lora", "train", str(images), *words, *options, "-o", str(out), *QUICK, *prior]) == 0
    assert capsys.readouterr().out.strip().endswith(str(out))
    adapter = read_adapter(out)
    assert set(adapter.types) == {"DoRA LoRA"} and adapter.words.keys() == {"<new>"} and adapter.name == "cat"
    assert adapter.metadata["modelspec.title"] == "cat" and adapter.metadata["ss_num_reg_images"] == "2"
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == [f"{step:08d}.png" for step in range(3)]
    halfway = read_adapter(tmp_path / "run" / "exports" / "step-00000001" / "adapter.safetensors")
    assert halfway.types == adapter.types and halfway.words.keys() == adapter.words.keys()
    assert (tmp_path / "run" / "export" / "new.safetensors").is_file()
    before = out.read_bytes()
    assert main([str(images), *words, *options, "-o", str(out), *QUICK]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err and out.read_bytes() == before
    assert main([str(images), *words, *options, "--resume", "never", *QUICK]) == 1
    assert "resume is never" in capsys.readouterr().err


BAD = {
    "no such folder": (["nowhere"], "does not exist"),
    "empty": (["EMPTY", "--prompt", "a cat"], "gives no samples"),
    "no caption": (["IMAGES"], "have no caption"),
    "word unused": (["IMAGES", "--prompt", "a cat", "--token", "<new>"], "No caption has the word <new>"),
    "no module": (
        ["IMAGES", "--prompt", "a cat", "objective.adapter.targets=[nothing]"],
        "no layer of the denoiser ends in it",
    ),
    "rank": (["IMAGES", "--prompt", "a cat", "--rank", "999"], "has a rank of at most"),
    "alpha": (["IMAGES", "--prompt", "a cat", "objective.adapter.alpha=.nan"], "finite number"),
    "type": (["IMAGES", "--prompt", "a cat", "--type", "lor"], "objective|adapter.type"),
    "key": (["IMAGES", "--prompt", "a cat", "data.imagess=x"], "imagess"),
    "a picture": (["PICTURE", "--prompt", "a cat"], "is a picture; give the folder that it is in"),
    "method": (["IMAGES", "--prompt", "a cat", "objective.type=loras"], "did you mean 'lora'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, tmp_path, tiny_model, capsys):
    arguments, reason = BAD[case]
    (tmp_path / "empty").mkdir()
    places = {
        "IMAGES": str(pictures(tmp_path / "images", 1)),
        "EMPTY": str(tmp_path / "empty"),
        "PICTURE": str(tmp_path / "images" / "0.png"),
        "nowhere": str(tmp_path / "no"),
    }
    own = [] if case == "no such folder" else ["--model", str(tiny_model), "--run", str(tmp_path / "run"), *QUICK]
    assert main([places.get(a, a) for a in arguments] + own) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert any(part in said[-1] for part in reason.split("|")) and said[-1].startswith("fewstep: ")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(tmp_path, tiny_model, capsys):
    images, run = pictures(tmp_path / "images", 1), tmp_path / "run"
    command = [str(images), "--prompt", "a <new> cat", "--model", str(tiny_model), "--steps", "2", "--run", str(run), *QUICK]
    out = tmp_path / "cat.safetensors"
    assert main([*command, "--rank", "2", "-o", str(out)]) == 0
    said = capsys.readouterr().err
    assert "Note: <new> in the captions is no word that is learned; --token '<new>=WORDS' teaches it" in said
    assert f"Draw with it: fewstep image 'a <new> cat' --model {tiny_model} --lora {out}" in said
    before = out.read_bytes()
    out.unlink()
    assert main([*command, "--rank", "2", "-o", str(out)]) == 0 and out.read_bytes() == before  # the same again: its result
    capsys.readouterr()
    assert main([*command, "--rank", "2", "--lr", "3e-3"]) == 2
    said = capsys.readouterr().err
    assert "holds a finished run of other settings (" in said and "optimizer.lr: 0.0001 -> 0.003" in said
    assert main([*command, "--rank", "2", "--token", "<new>=red", "--run", str(tmp_path / "other")]) == 0
    assert "Note:" not in capsys.readouterr().err
    assert main([*command, "--rank", "2", "max_steps=3"]) == 0  # further, from where it was
    assert "Resuming" in capsys.readouterr().out


def test_a_run_whose_folder_nobody_named_gets_one_of_its_own(tmp_path, tiny_model, capsys, monkeypatch):
    """Also where the other one was stopped on its way, and for other pictures."""
    monkeypatch.chdir(tmp_path)
    first, second = pictures(tmp_path / "first", 1), pictures(tmp_path / "second", 2)
    options = ["--prompt", "a cat", "--model", str(tiny_model), "--steps", "2", "--rank", "2", *QUICK]
    assert main([str(first), *options, "-o", "cat.safetensors"]) == 0
    Path("cat.safetensors").rename("one.safetensors")
    assert main([str(second), *options, "-o", "cat.safetensors"]) == 0
    said = capsys.readouterr().err
    assert "Note: runs/lora/cat holds another run; this one is kept in runs/lora/cat-2." in said
    one, two = read_adapter("one.safetensors"), read_adapter("cat.safetensors")
    assert any(not torch.equal(d.factors["up"], two.layers[layer].factors["up"]) for layer, d in one.layers.items())
    Path("cat.safetensors").unlink()
    assert main([str(first), *options, "-o", "cat.safetensors"]) == 0  # the first again: its own result, at once
    assert Path("cat.safetensors").read_bytes() == Path("one.safetensors").read_bytes()
    assert "Note:" not in capsys.readouterr().err and sorted(p.name for p in Path("runs/lora").iterdir()) == ["cat", "cat-2"]
