"""Learned words go through every tool, the trigger phrase says what to write, and files are the same bytes each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from customization.algebra import Keep, Sparse, interpolate, resize, scale, sparse_merge, weighted_sum
from customization.base.metadata import trigger_phrase
from customization.merge.fusion import fuse_by_inputs
from customization.merge.hub import hub_merge, lorahub_factors
from gen.adapters import Adapter, AdapterError, read_adapter, renamed, write_adapter
from gen.adapters.inspect import match
from gen.adapters.words import rename_words
from gen.generator import Generator
from gen.io.weights import read_metadata
from tests.customization.adapters import lora, normal
from tests.customization.kit import pictures, trainer

LAYER = "denoiser.in_blocks.0.attn.qkv"
OTHER_PHRASE = "a <ink> drawing"


def words(seed: int, *names: str) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {"text_encoder": normal(seed + i, 2, 16).float()} for i, name in enumerate(names)}


def taught(name: str, seed: int, *names: str) -> Adapter:
    return Adapter(
        name, {LAYER: lora(seed, 96, 32, 4)}, {"modelspec.trigger_phrase": f"a {names[0]}"}, words=words(seed, *names)
    )


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[w]["text_encoder"], two[w]["text_encoder"]) for w in one)


ONE, TWO = taught("one", 1, "<new>"), taught("two", 9, "<ink>", "<old>")
MOMENTS = {LAYER: torch.eye(32, dtype=torch.float64)}
# every tool that makes an adapter of two others
MERGES = {
    "sum": lambda a, b: weighted_sum([a, b], [0.8, -0.5])[0],
    "lower rank": lambda a, b: weighted_sum([a, b], keep=Keep(rank=2))[0],
    "interpolate": lambda a, b: interpolate(a, b, 0.25)[0],
    **{m: lambda a, b, m=m: sparse_merge([a, b], None, Sparse(m, 0.5))[0] for m in ("ties", "dare", "dare_ties")},
    "fusion": lambda a, b: fuse_by_inputs([a, b], [MOMENTS, MOMENTS])[0],
    "hub": lambda a, b: hub_merge([a, b], {"one": 1.0, "two": 0.5})[0],
    "factors": lambda a, b: lorahub_factors([a, b], {"one": 1.0, "two": 0.5}),
}


@pytest.mark.parametrize("how", MERGES)
def test_a_merge_keeps_the_words_of_all(how):
    made = MERGES[how](ONE, TWO)
    assert same(made.words, {**ONE.words, **TWO.words})
    assert made.metadata["modelspec.trigger_phrase"] == "a <new>, a <ink>"


def test_one_adapter_keeps_its_words():
    for made in (scale(TWO, 0.5), resize(TWO, Keep(rank=2))[0], weighted_sum([TWO])[0]):
        assert same(made.words, TWO.words)


def test_an_adapter_of_weight_0_gives_no_words():
    for weights, left in (([1.0, 0.0], ONE), ([0.0, 1.0], TWO)):
        made = weighted_sum([ONE, TWO], weights)[0]
        assert same(made.words, left.words)
        assert made.metadata["modelspec.trigger_phrase"] == left.metadata["modelspec.trigger_phrase"]


def test_words_alone_are_put_beside_layers():
    alone = Adapter("alone", {}, words=words(3, "<moon>"))
    made = weighted_sum([ONE, alone])[0]
    assert same(made.words, {**ONE.words, **alone.words}) and made.layers.keys() == ONE.layers.keys()
    assert torch.equal(made.layers[LAYER].factors["up"], ONE.layers[LAYER].factors["up"])
    with pytest.raises(AdapterError, match="have learned words and no layers"):
        weighted_sum([alone, Adapter("more", {}, words=words(4, "<sun>"))])


def test_one_word_learned_in_two_ways_is_refused_and_can_be_renamed():
    again = taught("again", 5, "<NEW>")
    with pytest.raises(AdapterError, match=r"one and again have both learned the word '<NEW>'.*--rename-word '<NEW>=<other>'"):
        weighted_sum([ONE, again])
    made = weighted_sum([ONE, rename_words(again, {"<NEW>": "<other>"})])[0]
    assert set(made.words) == {"<new>", "<other>"}
    assert made.metadata["modelspec.trigger_phrase"] == "a <new>, a <other>"
    assert same(weighted_sum([ONE, taught("copy", 1, "<new>")])[0].words, ONE.words)  # the same vectors: one word
    for names, reason in (({"<x>": "<y>"}, "has not learned"), ({"<ink>": "(y)"}, "brackets"), ({"<ink>": "<OLD>"}, "twice")):
        with pytest.raises(AdapterError, match=reason):
            rename_words(TWO, names)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_every_command_keeps_the_words(format, run, fewstep, tiny_model, tmp_path):
    files = [write_adapter(one, tmp_path / f"{one.name}.safetensors", format) for one in (ONE, TWO)]
    keys = [key for file in files for key in load_file(file) if "bundle_emb" in key]
    code, _, err = run("merge", f"{files[0]}:0.8", files[1], "-o", "m.safetensors")
    assert code == 0 and "and the learned words <new>, <ink>, <old>." in err
    assert [key for key in load_file("m.safetensors") if "bundle_emb" in key] == sorted(keys)
    for command in (
        ("resize", "m.safetensors", "r.safetensors", "--rank", 2),
        ("resize", "m.safetensors", "d.safetensors", "--rank", 2, "--dtype", "bfloat16"),
        ("merge", "m.safetensors", "-o", "n.safetensors", "--method", "ties"),
    ):
        assert run(*command)[0] == 0
    for target in ("kohya", "diffusers", None):
        to = ("--to", target) if target else ()
        assert fewstep("lora", "convert", "m.safetensors", f"c-{target}.safetensors", "--model", tiny_model, *to)[0] == 0
    for file in ("r", "n", "c-kohya", "c-diffusers", "c-None"):
        assert same(read_adapter(f"{file}.safetensors").words, {**ONE.words, **TWO.words}), file
    narrow = read_adapter("d.safetensors").words["<new>"]["text_encoder"]
    assert torch.equal(narrow, ONE.words["<new>"]["text_encoder"].bfloat16())
    code, out, err = run("merge", files[0], "-o", "j.safetensors", "--json")
    assert json.loads(out)["words"] == ["<new>"]
    code, _, err = run("resize", files[0], "p", "--rank", 2, "--to", "peft", "--model", tiny_model)
    assert code == 2 and "no place for learned words (<new>); use kohya or diffusers" in err
    code, _, err = fewstep("lora", "convert", files[0], "w.safetensors", "--rename-word", "<new>=<moon>")
    assert code == 0 and set(read_adapter("w.safetensors").words) == {"<moon>"}, err
    assert read_metadata("w.safetensors")["modelspec.trigger_phrase"] == "a <moon>"
    code, _, err = fewstep("lora", "convert", files[0], "v.safetensors", "--rename-word", "<new>")
    assert code == 2 and "is not OLD=NEW" in err


def test_words_alone_are_saved_converted_and_matched(fewstep, tiny_model, tmp_path):
    alone = Adapter("alone", {}, words=words(3, "<moon>"))
    file = write_adapter(alone, tmp_path / "alone.safetensors")
    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
    generator.load_adapter(file)
    assert same(read_adapter(generator.save_adapter("alone", tmp_path / "saved.safetensors")).words, alone.words)
    parts = {"denoiser": generator.network, "text_encoder": generator.text_encoder}
    assert same(renamed(alone, parts).words, alone.words)
    assert match(alone, parts)["complete"]
    wide = Adapter("wide", {}, words={"<moon>": {"text_encoder": torch.zeros(1, 20)}})
    found = match(wide, parts)
    assert not found["complete"] and "of width 20, and the text encoder of this model has 16" in found["problems"]
    code, out, _ = fewstep("lora", "inspect", file, "--model", tiny_model, "--json")
    assert code == 0 and json.loads(out)["model"]["complete"]
    assert fewstep("lora", "convert", file, "c.safetensors", "--to", "kohya", "--model", tiny_model)[0] == 0
    assert same(read_adapter("c.safetensors").words, alone.words)


@pytest.mark.parametrize(
    "prompt, tokens, phrase",
    [
        ("a <new> cat", ["<new>"], "a <new> cat"),
        ("{}, <ink> style", ["<ink>"], "<ink> style"),
        ("{}", ["<ink>"], "<ink>"),
        (None, ["<a>", "<b>"], "<a>, <b>"),
        ("a sks dog", [], "a sks dog"),
        ("a <A> cat", ["<a>", "<b>"], "a <A> cat, <b>"),
        ("a photo of {} .", [], "a photo of"),
        (None, [], ""),
    ],
)
def test_trigger_phrase(prompt, tokens, phrase):
    assert trigger_phrase(prompt, tokens) == phrase


def test_a_run_says_what_triggers_it_and_writes_the_same_bytes_each_time(tiny_model, tmp_path):
    images, files = pictures(tmp_path / "p", captions=True), []
    for run_name in ("one", "two"):
        made = trainer(
            tmp_path / run_name, images, tiny_model, max_steps=2, data={"prompt": "{}, <ink> style"},
            objective={"tokens": {"<ink>": {"init": "red"}}, "text_adapter": {"rank": 2}},
        )  # fmt: skip
        made.train()
        export = tmp_path / run_name / "export"
        files.append({path.name: path.read_bytes() for path in sorted(export.rglob("*")) if path.is_file()})
    assert files[0] == files[1] and {"adapter.safetensors", "ink.safetensors"} <= files[0].keys()
    assert read_metadata(export / "adapter.safetensors")["modelspec.trigger_phrase"] == "<ink> style"
    assert read_metadata(export / "ink.safetensors")["modelspec.trigger_phrase"] == "<ink>"


def test_metadata_are_in_the_order_of_their_names(tmp_path):
    """The library writes them in the order of a hash table, which differs from call to call."""
    metadata = {f"ss_{i}": f'{i} "é" \\ \n\t\x01' for i in range(40)}
    for i in range(4):
        path = write_adapter(Adapter("a", {LAYER: lora(1)}, metadata), tmp_path / f"{i}.safetensors", "kohya")
        assert path.read_bytes() == (tmp_path / "0.safetensors").read_bytes()
    data = path.read_bytes()
    names = list(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"])
    assert names == sorted(names) and read_metadata(path) == {"format": "pt", **metadata}
    save_file(load_file(path), tmp_path / "again.safetensors")  # and the file is still one


def test_weights_are_written_in_one_place():
    """Which writes the same bytes each time."""
    root = Path(__file__).parents[2]
    sources = [path for package in ("samplers", "gen", "distill", "customization") for path in (root / package).rglob("*.py")]
    found = [str(path.relative_to(root)) for path in sources if "save_file(" in path.read_text("utf-8")]
    assert found == ["gen/io/weights.py"]
