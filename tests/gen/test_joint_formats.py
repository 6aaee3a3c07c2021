"""Networks of text and patches from published files: diffusers' own outputs, both layouts, both directions, nothing unknown."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.io.weights import CheckpointError
from gen.models.formats import FORMATS, detect, read_checkpoint, write_checkpoint
from samplers.denoiser import Condition
from tests.gen.joint import CASES, FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not hold features|no place for null_)")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def assert_same(result, expected, tolerance=1e-5):
    """Of the size of the output."""
    assert expected.float().std() > 0.05 and torch.isfinite(expected).all()
    assert (result - expected).abs().max() < tolerance * expected.abs().max()


def folder_of(tmp_path, name, variant, dtype=torch.float32):
    model = FAMILIES[name].build(variant, dtype)
    model.save_pretrained(tmp_path / "there")
    return model, tmp_path / "there"


@pytest.mark.parametrize(("name", "variant"), CASES)
@torch.no_grad()
def test_diffusers_outputs_at_several_sizes(tmp_path, name, variant):
    """float32, square and not, and where rows have no text: what the null text gives. 1e-5 of the output."""
    family, (model, folder) = FAMILIES[name], folder_of(tmp_path, name, variant)
    null = family.null()
    network = read_checkpoint(folder, **null)
    for size in family.sizes:
        if max(size) > 2 * getattr(network.config, "position_grid", 99):
            continue
        x, time, condition = family.inputs(size)
        assert_same(network(x, time, condition), family.call(model, x, time, condition))
    empty = Condition(
        tokens=null["null_text"].expand(3, -1, -1),
        mask=torch.ones(3, 3, dtype=torch.bool),
        pooled=null["null_pooled"].expand(3, -1) if family.pooled else None,
        extra=condition.extra,
    )
    expected = family.call(model, x, time, empty)
    for nothing in (Condition(extra=condition.extra), condition.null()):
        assert_same(network(x, time, nothing), expected)
    mixed = Condition(
        tokens=condition.tokens,
        mask=torch.cat([condition.mask[:1], torch.zeros(1, condition.mask.shape[1], dtype=torch.bool), condition.mask[2:]]),
        pooled=condition.pooled,
        extra=condition.extra,
    )
    told = network(x, time, mixed)
    assert_same(told[1:2], expected[1:2])
    assert_same(told[::2], family.call(model, x, time, condition)[::2])


@pytest.mark.parametrize(("name", "variant"), CASES)
@torch.no_grad()
def test_other_dtypes(tmp_path, name, variant):
    """float64 to 1e-4, as diffusers rounds positions and times; bfloat16 as near to float64 as diffusers' network is."""
    family, (model, folder) = FAMILIES[name], folder_of(tmp_path, name, variant)
    exact = family.call(model.double(), *family.inputs((8, 8), torch.float64))
    double = read_checkpoint(folder, dtype=torch.float64, **family.null())
    assert_same(double(*family.inputs((8, 8), torch.float64)), exact, 1e-4)
    half = read_checkpoint(folder, dtype=torch.bfloat16, **family.null())
    mine = half(*family.inputs((8, 8), torch.bfloat16))
    theirs = family.call(model.bfloat16(), *family.inputs((8, 8), torch.bfloat16))
    errors = [(one.double() - exact).square().mean().sqrt() / exact.std() for one in (mine, theirs)]
    assert mine.dtype == torch.bfloat16 and errors[0] < 1.5 * errors[1] + 1e-3 and errors[0] < 0.1


@pytest.mark.parametrize(("name", "variant"), CASES)
@torch.no_grad()
def test_both_layouts_both_ways(tmp_path, name, variant):
    """diffusers' folder again bit for bit; the authors' file, read and written, is the same network; told by names."""
    family, (model, there) = FAMILIES[name], folder_of(tmp_path, name, variant)
    theirs, authors = family.formats
    network = read_checkpoint(there, dtype=None)
    again = write_checkpoint(network, tmp_path / "again", theirs)
    before, after = (load_file(folder / WEIGHTS) for folder in (there, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    opened, info = type(model).from_pretrained(again, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    x, time, condition = family.inputs((8, 8))
    assert torch.equal(family.call(model, x, time, condition), family.call(opened, x, time, condition))
    if authors == theirs:
        return
    file = write_checkpoint(network, tmp_path / "authors.safetensors", authors)
    names = load_file(file)
    assert detect(names) == authors and detect(before) == theirs
    heads = {} if "norm" in str(list(names)) or "ln_q" in str(list(names)) else {"heads": network.config.heads}
    read = read_checkpoint(file, **family.rest, **heads, **family.null())
    assert_same(read(x, time, condition), read_checkpoint(there, **family.null())(x, time, condition), 1e-6)
    second = write_checkpoint(read, tmp_path / "second.safetensors", authors)
    assert {key: value.tolist() for key, value in load_file(second).items()} == {k: v.tolist() for k, v in names.items()}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_authors_file_is_what_diffusers_converts(tmp_path, name):
    """diffusers' own converter of single files, on what we write, gives the tensors that diffusers had."""
    from gen.models.bridge.files import layouts

    family = FAMILIES[name]
    if family.formats[0] == family.formats[1]:
        pytest.skip("the authors' layout is diffusers'")
    variant = list(family.variants)[-1]
    model, there = folder_of(tmp_path, name, variant)
    file = write_checkpoint(read_checkpoint(there), tmp_path / "a.safetensors", family.formats[1])
    converted = getattr(layouts, name)(load_file(file), dict(model.config))
    expected = model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_unknown_missing_and_misshapen_tensors_are_refused(tmp_path, name):
    family = FAMILIES[name]
    _, folder = folder_of(tmp_path, name, next(iter(family.variants)))
    file, config = folder / WEIGHTS, folder / "config.json"
    good, told = load_file(file), config.read_text()
    inside = next(key for key in good if key.endswith("attn.to_out.0.weight") or key.endswith("attention.to_out.0.weight"))

    def refused(message, tensors=good, **changes):
        save_file(tensors, file)
        config.write_text(json.dumps(json.loads(told) | changes))
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(folder)

    refused("has unknown evil.weight", good | {"evil.weight": torch.zeros(2)})
    refused("lacks ", {key: value for key, value in good.items() if key != inside})
    refused("the model needs", good | {inside: torch.zeros(3, 3)})
    refused("is not finite|not finite|NaN|infinite", good | {inside: good[inside] * torch.inf})
    refused("has the key 'evil', which is not known", evil=1)
    refused("_class_name 'Evil'", _class_name="Evil")
    number = "num_attention_heads" if "num_attention_heads" in json.loads(told) else "n_heads"
    refused("a whole number from 1 is needed", **{number: -1})
    refused("heads", **{number: 5})


def test_what_a_format_cannot_say_is_refused(tmp_path):
    from gen.nn.registry import build
    from tests.gen.joint import OWN

    for kind, config in OWN.items():
        formats = [format for format in FORMATS.values() if format.kind == kind]
        assert formats
        for format in formats:
            target = tmp_path / (f"{kind}-{format.name}" + ("" if format.config_out else ".safetensors"))
            with pytest.raises(ValueError, match=r"cannot hold a network with (num_classes|pooled_text)"):
                write_checkpoint(build(config | {"num_classes": 3}), target, format.name)
            assert not target.exists()
