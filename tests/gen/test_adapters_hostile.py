"""Files and adapters that must be refused, each with a sentence that says what is wrong.

What weights and LoRA files from outside must not do, and the test that shows it (of this file where no other is named):

| what | tests |
|---|---|
| bytes that are no safetensors, 34 kinds | test_files_that_are_not_safetensors; test_formats_hostile::test_malformed_files |
| any changed or cut byte | test_changed_and_cut_bytes_are_a_sentence_or_an_adapter; \
test_formats_hostile::test_random_damage_is_found_or_harmless |
| exit code 2 and one line on the command line | test_lora_commands::test_damaged_files_are_one_line_and_exit_code_2 |
| NaN and infinity, --allow-nonfinite | test_values_that_are_not_finite; test_lora_commands::test_nonfinite_values_on_request; \
test_formats_hostile::test_nonfinite_values_on_request |
| keys without a module, missing, misshapen | test_adapters_that_fit_nothing; test_an_adapter_that_fits_in_part; \
test_a_thousand_unmatched_layers_are_a_short_message; test_formats_hostile::test_tensors_that_do_not_belong |
| names with paths, NUL, dunders | test_tensors_that_are_no_adapter |
| a rank over a limit, or over both sides | test_tensors_that_are_no_adapter; test_adapters_that_fit_nothing |
| a rank over the smaller side, which trainers do write: noted | test_notes |
| alpha not finite, too large, not one number | test_values_that_are_not_finite; test_tensors_that_are_no_adapter |
| A without B, factors that do not fit, integers | test_tensors_that_are_no_adapter |
| no layer matches | test_adapters_that_fit_nothing |
| a name loaded twice | test_an_adapter_that_fits_in_part; test_adapters_generator::test_wrong_requests |
| a weight beyond 10 | test_adapters_generator::test_wrong_requests |
| a small file that asks for a huge matrix | test_a_small_file_cannot_ask_for_a_huge_matrix |
| fused and unfused to the last bit | test_adapters_apply::test_fused_and_unfused; \
test_adapters_bridge::test_every_way_of_using_one |
| pickles | test_things_that_are_not_files; test_formats_convert::test_pickles_that_harm_or_hold_something_else |
| shards outside the folder, pipes, missing shards | test_formats_hostile::test_shards_stay_in_their_folder; \
test_bridge_hostile::test_shards_that_lead_elsewhere; \
test_bridge_hostile::test_a_fifo_among_the_weights_does_not_hang |
| configs that choose code | test_no_module_is_imported_that_a_config_names; \
test_bridge_hostile::test_configs_that_choose_code |
| configs that are none | test_configs_in_the_metadata; test_a_config_beside_the_file_is_read_as_carefully |
| pipe, broken link, folder, /dev/null, no permission | test_things_that_are_not_files; test_a_file_without_permission; \
test_permission_that_the_system_denies |
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from gen.adapters import AdapterError, Adapters, from_tensors, read_adapter
from gen.io.weights import CheckpointError, load_weights
from tests.gen.malformed import MALFORMED

NAME = "lora_unet_block_to_q"


def good() -> dict[str, torch.Tensor]:
    return {
        f"{NAME}.lora_down.weight": torch.ones(2, 8),
        f"{NAME}.lora_up.weight": torch.ones(8, 2),
        f"{NAME}.alpha": torch.tensor(1.0),
    }


def network() -> nn.Module:
    return nn.ModuleDict({"block": nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_k": nn.Linear(8, 8)}), "norm": nn.LayerNorm(8)})


GOOD = save(good())


@pytest.mark.parametrize("kind", MALFORMED)
def test_files_that_are_not_safetensors(kind, tmp_path):
    """As an adapter, and as the weights of a network."""
    content, reason = MALFORMED[kind]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for read in (read_adapter, lambda path: load_weights(nn.Linear(1, 1), path)):
        with pytest.raises(CheckpointError, match=rf"a\.safetensors: .*{reason}") as error:
            read(path)
        assert "\n" not in str(error.value) and str(error.value)[-1] in ".)"


@pytest.mark.timeout(20)
def test_things_that_are_not_files(tmp_path):
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "a.ckpt").write_bytes(b"")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"")
    for name, reason in {
        "fifo.safetensors": "not a regular file",
        "gone.safetensors": "is a link to a file that does not exist",
        "missing.safetensors": "does not exist",
        "folder.safetensors": "a folder without adapter_model.safetensors",
        "pickled": "has only adapter_model.bin, a pickle file, .* --from-pickle",
        "a.ckpt": "convert it to safetensors first",
    }.items():
        with pytest.raises(CheckpointError, match=reason):
            read_adapter(tmp_path / name)
    for name in ("/dev/null", "a\0b", "x" * 300):
        with pytest.raises(CheckpointError, match=r"not a regular file|cannot be read"):
            read_adapter(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(GOOD)
    (tmp_path / "a.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_adapter(tmp_path / "a.safetensors")


def test_permission_that_the_system_denies(tmp_path, monkeypatch):
    """The same as root sees it."""
    (tmp_path / "a.safetensors").write_bytes(GOOD)

    def denied(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gen.io.weights.safe_open", denied)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: cannot be read \(Permission denied\)\."):
        read_adapter(tmp_path / "a.safetensors")


DAMAGE = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=3)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGE, st.none() | st.integers(0, len(GOOD) - 1), st.booleans())
def test_changed_and_cut_bytes_are_a_sentence_or_an_adapter(tmp_path, changes, end, allow_nonfinite):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    (tmp_path / "a.safetensors").write_bytes(data[:end])
    try:
        adapter = read_adapter(tmp_path / "a.safetensors", allow_nonfinite=allow_nonfinite)
    except CheckpointError as error:
        assert str(error)[-1] in ".?" and str(error).isprintable()
    else:
        factors = [factor for delta in adapter.layers.values() for factor in delta.factors.values()]
        assert factors and (allow_nonfinite or all(factor.isfinite().all() for factor in factors))


def change(**changes) -> dict[str, torch.Tensor]:
    """The good file with tensors changed, added, or, where None, taken out; "weight" may be left out of a name."""
    tensors = good()
    for key, value in changes.items():
        name = f"{NAME}.{key}" + (".weight" if key.startswith("lora_") else "")
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    return tensors


TENSORS = {
    "no adapter": ({"blocks.0.weight": torch.ones(2, 2)}, "is it a checkpoint"),
    "nothing": ({}, "is it a checkpoint"),
    "A without B": (change(lora_up=None), "layer 'block_to_q': it has down but lacks up"),
    "only alpha": ({f"{NAME}.alpha": torch.tensor(1.0)}, "it has no weights"),
    "integers": (change(lora_up=torch.ones(8, 2, dtype=torch.int32)), "holds int32"),
    "ranks differ": (change(lora_up=torch.ones(8, 3)), r"do not fit each other: .*up \(8, 3\)"),
    "a number for a matrix": (change(lora_up=torch.tensor(1.0)), "its up is a single number"),
    "a truth value for alpha": (change(alpha=torch.tensor(True)), "its alpha holds bool"),
    "a row for a matrix": (change(lora_down=torch.ones(2)), "do not fit each other"),
    "no rows": (change(lora_down=torch.ones(0, 8), lora_up=torch.ones(8, 0)), "is empty: "),
    "rank": (change(lora_down=torch.ones(5000, 1), lora_up=torch.ones(1, 5000)), "rank is 5000; ranks up to 4096"),
    "alpha": (change(alpha=torch.tensor(3e4)), "its scale is 15000"),
    "two alphas": (change(alpha=torch.ones(2)), "its alpha has 2 values"),
    "half a LoHa": (
        {f"{NAME}.hada_w1_a": torch.ones(8, 2), f"{NAME}.hada_w1_b": torch.ones(2, 8)}, "lacks hada_w2_a and hada_w2_b"
    ),
    "mixed": (change(hada_w1_a=torch.ones(8, 2)), "lacks|beside"),
    "two W1": ({f"{NAME}.lokr_{w}": torch.ones(2, 2) for w in ("w1", "w1_a", "w2")}, "it has lokr_w1_a beside"),
    "dunder": ({"unet.time_embed.__class__.__init__.lora_A.weight": torch.ones(2, 2)}, "damaged or hostile"),
    "traversal": ({"../../etc/passwd.lora_A.weight": torch.ones(2, 2)}, "damaged or hostile"),
    "NUL": ({"unet.a\0b.lora_A.weight": torch.ones(2, 2)}, "damaged or hostile"),
    "DoRA with bias": (change(dora_scale=torch.ones(8, 1)) | {f"{NAME}.lora_up.bias": torch.ones(8)}, "beside a bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_no_adapter(case, tmp_path):
    tensors, reason = TENSORS[case]
    with pytest.raises(AdapterError, match=reason):
        from_tensors(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=reason) as error:
        read_adapter(tmp_path / "a.safetensors")
    assert "a.safetensors: is not an adapter that can be used: " in str(error.value) and str(error.value)[-1] in ".?"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["lora_up.weight", "alpha"])
def test_values_that_are_not_finite(tensor, value, tmp_path):
    tensors = good()
    tensors[f"{NAME}.{tensor}"] = torch.full_like(tensors[f"{NAME}.{tensor}"], value)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=f"tensor '{NAME}.{tensor}' holds NaN or infinite"):
        read_adapter(tmp_path / "a.safetensors")
    if tensor == "alpha":  # nothing can be made of that
        with pytest.raises(AdapterError, match="must be finite"):
            from_tensors(tensors)
        with pytest.raises(CheckpointError, match=r"its alpha is .*; it must be finite"):
            read_adapter(tmp_path / "a.safetensors", allow_nonfinite=True)
    else:
        [delta] = read_adapter(tmp_path / "a.safetensors", allow_nonfinite=True).layers.values()
        assert torch.equal(delta.factors["up"], tensors[f"{NAME}.{tensor}"]) or value != value


CONFIGS = {
    "not JSON": ("{", "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "a list": ("[]", "holds a list"),
    "NaN": ('{"lora_alpha": NaN}', "NaN is not a number"),
    "text": ('{"lora_alpha": "8"}', "'8' for lora_alpha"),
    "true": ('{"lora_alpha": true}', "True for lora_alpha"),
    "huge": ('{"lora_alpha": 1e300}', "its scale is 5e"),
    "patterns": ('{"alpha_pattern": [1], "lora_alpha": 1}', "not a table"),
    "a back reference": ('{"alpha_pattern": {"(a)\\\\1": 1}, "lora_alpha": 1}', r"escape \\1, which is not read; spell"),
    "a broken expression": ('{"alpha_pattern": {"a[": 1}, "lora_alpha": 1}', r"pattern 'a\[' with a \[ without its \]"),
    "another method": ('{"peft_type": "BOFT"}', "of peft's method 'BOFT', which is not applied here; LORA"),
    "a switch": ('{"peft_type": "LORA", "alora_invocation_tokens": [1]}', "as Activated LoRA has"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_in_the_metadata(case):
    text, reason = CONFIGS[case]
    tensors = {"unet.block.to_q.lora_A.weight": torch.ones(2, 8), "unet.block.to_q.lora_B.weight": torch.ones(8, 2)}
    with pytest.raises(AdapterError, match=reason):
        from_tensors(tensors, {"lora_adapter_metadata": text})


def test_a_config_beside_the_file_is_read_as_carefully(tmp_path):
    save_file({"base_model.model.a.lora_A.weight": torch.ones(2, 8), "base_model.model.a.lora_B.weight": torch.ones(8, 2)},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    os.mkfifo(tmp_path / "adapter_config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "r": 3}')
    with pytest.raises(CheckpointError, match="'r' appears twice"):
        read_adapter(tmp_path)


def test_no_module_is_imported_that_a_config_names(tmp_path, monkeypatch):
    layer = "base_model.model.block.to_q"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "sentinel.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {"auto_mapping": {"base_model_class": "X", "parent_library": "sentinel"}, "peft_type": "LORA", "r": 2,
              "_target_": "sentinel.X", "trust_remote_code": True, "lora_alpha": 1}  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.syspath_prepend(tmp_path)
    Adapters(network()).load(read_adapter(tmp_path))
    assert not (tmp_path / "ran").exists() and "sentinel" not in sys.modules


def test_a_small_file_cannot_ask_for_a_huge_matrix():
    """W1 (x) W2 of eight rows of numbers would be 24 by 10^12."""
    fused = nn.ModuleDict({"attn": nn.ModuleDict({f"to_{name}": nn.Linear(8, 8) for name in "qkv"})})
    wide = {"lokr_w1_a": (24, 1), "lokr_w1_b": (1, 10**6), "lokr_w2_a": (1, 1), "lokr_w2_b": (1, 10**6)}
    tensors = {f"diffusion_model.attn.qkv.{name}": torch.ones(shape) for name, shape in wide.items()}
    with pytest.raises(AdapterError, match=r"is \(24, 1000000000000\) where the model has \(24, 8\)"):
        Adapters(fused).load(from_tensors(tensors))


def layer(name: str, out: int = 8, width: int = 8, rank: int = 2, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = {f"unet.{name}.lora_A.weight": torch.ones(rank, width), f"unet.{name}.lora_B.weight": torch.ones(out, rank)}
    return tensors | {f"unet.{name}.{key}": value for key, value in more.items()}


FITS = {
    "no module": (layer("blokc.to_q"), r"fits nothing in this model: 1 layer has no module .*nearest: block\.to_q\)"),
    "a shape": (layer("block.to_q", 9), r"fits nothing .*denoiser\.block\.to_q is \(9, 8\) where block\.to_q is \(8, 8\)"),
    "transposed": (layer("block.to_q", 4, 16), r"is \(4, 16\) where"),
    "a rank over the layer": (layer("block.to_q", rank=9), r"has rank 9, more than block\.to_q has rows or columns"),
    "a LoRA of a norm": (layer("norm", 8, 1), "where norm is|a LayerNorm, which only a full difference changes"),
    "a bias too long": ({"unet.block.to_q.diff_b": torch.ones(9)}, r"is \(9,\) where"),
    "a magnitude": (layer("block.to_q", lora_magnitude_vector=torch.ones(7)), "magnitude of 7 values where block.to_q needs 8"),
    "a text encoder": ({k.replace("unet", "text_encoder"): v for k, v in layer("block.to_q").items()}, "has no text encoder"),
}


@pytest.mark.parametrize("case", FITS)
def test_adapters_that_fit_nothing(case):
    tensors, reason = FITS[case]
    for strict in (True, False):
        adapters = Adapters(network())
        with pytest.raises(AdapterError, match=reason):
            adapters.load(from_tensors(tensors, name="x"), strict)
        assert not adapters.adapters


def test_an_adapter_that_fits_in_part():
    tensors = layer("block.to_q") | layer("block.to_kk") | layer("block.to_k", 9) | layer("elsewhere")
    adapters = Adapters(network())
    with pytest.raises(AdapterError) as error:
        adapters.load(from_tensors(tensors, name="x"))
    for part in ("x does not fit", "2 layers have no module", "denoiser.block.to_kk (nearest: block.to_k)",
                 "denoiser.elsewhere", "1 layer does not fit", "strict=False to use the 1 that do"):  # fmt: skip
        assert part in str(error.value)
    report = adapters.load(from_tensors(tensors, name="x"), strict=False)
    assert list(report.matched) == ["denoiser.block.to_q"] and set(report.unmatched) == {
        "denoiser.block.to_kk",
        "denoiser.elsewhere",
    }
    assert report.summary() == "x: 1 of 4 layers (LoRA), rank 2, on the denoiser" and "nearest: block.to_k" in str(report)
    with pytest.raises(AdapterError, match="named 'x' is loaded already"):
        adapters.load(from_tensors(layer("block.to_q"), name="x"))


def test_two_layers_for_the_same_weights():
    """A file with two names of one module would act twice there."""
    fused = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(8, 24)})})
    parts = layer("attn.to_q") | layer("attn.to_v")
    assert Adapters(fused).load(from_tensors(parts)).complete
    for other, out in (("attn.q_proj", 8), ("attn.qkv", 24)):
        with pytest.raises(AdapterError, match=rf"{other} changes the same weights of attn.qkv as denoiser.attn.to_q"):
            Adapters(fused).load(from_tensors(parts | layer(other, out)))


def test_notes():
    report = Adapters(nn.ModuleDict({"a": nn.Linear(8, 4)})).load(
        from_tensors(layer("a", 4, rank=6), {"lora_adapter_metadata": json.dumps({"init_lora_weights": "pissa_niter_4"})})
    )
    assert "rank above what the weight can have" in report.text() and "'pissa_niter_4'" in report.text()


def test_a_thousand_unmatched_layers_are_a_short_message():
    tensors = {key: value for i in range(1000) for key, value in layer(f"transformer.blocks.{i}.attn").items()}
    with pytest.raises(AdapterError, match=r"1000 layers have no module .* and 995 more") as error:
        Adapters(network()).load(from_tensors(tensors))
    assert len(str(error.value)) < 1000


def test_a_name_with_two_readings_is_refused():
    ambiguous = nn.ModuleDict({"a_b": nn.Linear(8, 8), "a": nn.ModuleDict({"b": nn.Linear(8, 8)})})
    tensors = {key.replace("block_to_q", "a_b"): value for key, value in good().items()}
    kohya = from_tensors(tensors)
    with pytest.raises(AdapterError, match=r"could be any of a\.b and a_b"):
        Adapters(ambiguous).load(kohya)
    report = Adapters(ambiguous).load(from_tensors(layer("a.b")))
    assert report.matched == {"denoiser.a.b": ("a.b",)}


def test_the_table_names_tests_that_exist():
    folder = Path(__file__).parent
    names = re.findall(r"(?:(test_\w+)::)?\b(test_\w+)\b(?!::)", __doc__)
    assert len(names) > 30
    for file, name in names:
        source = Path(__file__) if not file else folder / f"{file}.py"
        assert f"def {name}(" in source.read_text(), (file, name)


def test_metadata_is_only_text():
    tensors = {key.replace("lora_unet_", "unet.").replace("block_", "block."): value for key, value in good().items()}
    metadata = {"lora_adapter_metadata": json.dumps({"auto_mapping": {"module": "os"}, "r": 2, "unet.lora_alpha": 3})}
    [delta] = from_tensors(tensors, metadata).layers.values()
    assert delta.scale == 0.5  # the file's own alpha comes before a config
