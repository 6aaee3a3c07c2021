"""GGUF, fp8 and bitsandbytes files: their numbers against the libraries that write them, the same pictures as dense files, and
hostile headers."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.generator import Generator
from gen.io.weights import CheckpointError
from gen.models.bridge.files.gguf_file import TYPES, GGUFFile
from gen.models.bridge.files.stored import StoredFile
from gen.nn.quantized import QuantizedWeight, quantize
from tests.gen import test_single_file as single
from tests.gen.test_bridge_parity import CLOSE, noise, ours

gguf = pytest.importorskip("gguf")
PREFIX = "model.diffusion_model."


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- GGUF


def write_gguf(path, tensors, kind: str | None = None, architecture: str = "flux"):
    """Matrices in blocks of a type, all else in float32, by the gguf package."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in tensors.items():
        array = value.numpy()
        if kind is not None and value.ndim == 2 and value.shape[1] % 32 == 0:
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(array, number), raw_dtype=number)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("number", TYPES)
def test_blocks_are_the_numbers_of_the_gguf_package(tmp_path, number):
    """Random bytes with finite scales, which every type takes."""
    name, block, width, scales = TYPES[number]
    assert gguf.GGMLQuantizationType(number).name == name
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (block, width)
    raw = np.random.default_rng(0).integers(0, 256, (6, 2 * width), dtype=np.uint8)
    halves = raw.reshape(-1, width)[:, scales]
    halves[:] = np.full(halves.shape[1] // 2, 0.0123, np.float16).view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "flux")
    writer.add_tensor("x.weight", raw, raw_dtype=gguf.GGMLQuantizationType(number))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "x.gguf")
    assert file.shapes == {"x.weight": (6, 2 * block)} and file.dtypes == {"x.weight": name}
    (_, value), *_ = file.tensors()
    assert isinstance(value, QuantizedWeight) and value.stored_bytes == raw.nbytes
    expected = torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(number)).copy())
    torch.testing.assert_close(value.dense(torch.float32), expected)
    torch.testing.assert_close(value.rows(2, 5).dense(torch.float32), expected[2:5])


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux")
    return single.written(folder, single.flux())


def opened(file, folder, **options) -> Generator:
    return Generator.from_pretrained(file, dtype="float32", text_encoder=folder, vae=folder, device="cpu", **options)


def picture(generator: Generator) -> torch.Tensor:
    return ours("flux", generator, noise(generator, 1), 3.5)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_gguf_file_is_the_model_of_its_numbers(tmp_path, flux, kind):
    """The picture of a file in blocks is that of a file with the dequantised numbers; linear layers keep the blocks."""
    _, file, folder = flux
    tensors = load_file(file)
    coded = opened(write_gguf(tmp_path / "flux.gguf", tensors, kind), folder)
    number = gguf.GGMLQuantizationType[kind]
    rounded = {
        name: torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), number), number).copy())
        if value.ndim == 2 and value.shape[1] % 32 == 0 else value
        for name, value in tensors.items()
    }  # fmt: skip
    save_file(rounded, tmp_path / "rounded.safetensors")
    dense = opened(tmp_path / "rounded.safetensors", folder)
    torch.testing.assert_close(picture(coded), picture(dense), **CLOSE)
    weights = [m.weight for m in coded.network.network.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(isinstance(weight, QuantizedWeight) for weight in weights) > 10
    assert coded.name == "flux"


def test_plain_gguf_is_the_model_itself(tmp_path, flux):
    _, file, folder = flux
    plain = opened(write_gguf(tmp_path / "plain.gguf", load_file(file)), folder)
    assert torch.equal(picture(plain), picture(opened(file, folder)))


def header(*, magic=b"GGUF", version=3, count=1, keys=0, body=b"") -> bytes:
    return magic + struct.pack("<IQQ", version, count, keys) + body


def tensor(name=b"x", axes=(32,), kind=0, offset=0) -> bytes:
    sizes = struct.pack("<I", len(axes)) + struct.pack(f"<{len(axes)}Q", *axes)
    return struct.pack("<Q", len(name)) + name + sizes + struct.pack("<IQ", kind, offset)


NAMED = struct.pack("<Q", 1) + b"a"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "does not begin with GGUF"),
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (header(version=9), "is GGUF of version 9"),
        (header(count=1 << 60), "claims 1152921504606846976 tensors"),
        (header(count=0, keys=1, body=struct.pack("<Q", 1 << 40)), "a text of 1099511627776 bytes"),
        (header(count=0, keys=1, body=struct.pack("<Q", 200) + b"ab"), "its header ends too early"),
        (header(count=0, keys=1, body=struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 1 << 50)), "a list of"),
        (
            header(count=0, keys=1, body=struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9),
            "the unknown kind 9",
        ),
        (header(count=0, keys=1, body=struct.pack("<Q", 1) + b"\xff"), "a name that is no text"),
        (header(body=tensor(kind=77) + bytes(200)), "in the unknown type 77"),
        (header(body=tensor(axes=(1,) * 7) + bytes(200)), "has 7 axes"),
        (header(body=tensor(axes=(1 << 40, 1 << 20)) + bytes(200)), "the download is incomplete"),
        (header(body=tensor(offset=1 << 62) + bytes(200)), "the download is incomplete"),
        (header(body=tensor(axes=(31,), kind=8) + bytes(200)), "rows are no multiple of 32"),
        (header(count=2, body=tensor() + tensor() + bytes(400)), "the name 'x' appears twice"),
        (header(count=2, body=tensor() + tensor(b"y", offset=64) + bytes(400)), "where other data"),
    ],
)
def test_hostile_gguf_headers(tmp_path, content, match):
    """Nothing is allocated for what a header claims: each is refused by what is wrong with it."""
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        GGUFFile(tmp_path / "x.gguf")


def test_gguf_with_scales_that_are_no_numbers(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", {"x.weight": normal(4, 64)}, "Q8_0")
    data = bytearray(path.read_bytes())
    begin = GGUFFile(path)._places["x.weight"][0]
    data[begin + 34 : begin + 36] = np.array([np.nan], np.float16).tobytes()
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="NaN or infinite scales"):
        list(GGUFFile(path).tensors())


# ---- fp8 and int8 in safetensors


def fp8(value: torch.Tensor, kind=torch.float8_e4m3fn) -> torch.Tensor:
    return value.to(kind)


STORED = {
    "plain": lambda w: ({"weight": fp8(w)}, fp8(w).float()),
    "e5m2": lambda w: ({"weight": fp8(w, torch.float8_e5m2)}, fp8(w, torch.float8_e5m2).float()),
    "scale_weight": lambda w: ({"weight": fp8(w / 0.3), "scale_weight": torch.tensor([0.3])}, fp8(w / 0.3).float() * 0.3),
    "weight_scale": lambda w: (
        {"weight": fp8(w / 0.3), "weight_scale": torch.tensor(0.3), "input_scale": torch.tensor(1.0),
         "comfy_quant": as_bytes({"format": "float8_e4m3fn"})}, fp8(w / 0.3).float() * 0.3,
    ),
    "rows": lambda w: scaled_rows(w),
    "blocks": lambda w: scaled_blocks(w),
    "int8": lambda w: (
        {"weight": quantize(w, "int8").parts["data"], "weight_scale": quantize(w, "int8").parts["scale"]},
        quantize(w, "int8").dense(),
    ),
    "bitsandbytes int8": lambda w: (
        {"weight": quantize(w, "int8").parts["data"], "SCB": 127 * quantize(w, "int8").parts["scale"].flatten(),
         "weight_format": torch.tensor(0, dtype=torch.uint8)}, quantize(w, "int8").dense(),
    ),
    "bitsandbytes nf4": lambda w: nf4(w),
    "bitsandbytes nested nf4": lambda w: nf4(w, nested=True),
}  # fmt: skip


def as_bytes(value: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def scaled_rows(w):
    scale = w.abs().amax(1, keepdim=True) / 448
    return {"weight": fp8(w / scale), "scale_weight": scale}, fp8(w / scale).float() * scale


def scaled_blocks(w):
    groups = w.view(len(w), -1, 64)
    scale = groups.abs().amax(-1, keepdim=True) / 448
    codes = fp8(groups / scale)
    return {"weight": codes.view(w.shape), "scale_weight": scale}, (codes.float() * scale).view(w.shape)


def nf4(w, nested=False):
    """As bitsandbytes writes it: a column of bytes, its scales, and what they are as JSON."""
    from gen.nn.quantized import NF4

    coded = quantize(w, "nf4")
    absmax = coded.parts["scale"].flatten()
    described = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(w.shape)}
    made = {"weight": coded.parts["data"].reshape(-1, 1), "weight.quant_map": torch.tensor(NF4)}
    if nested:
        table, outer = torch.linspace(-1, 1, 256), torch.tensor([2.0])
        codes = torch.arange(len(absmax), dtype=torch.uint8)
        described |= {"nested_blocksize": 256, "nested_offset": 3.0, "nested_dtype": "float32"}
        made |= {"weight.absmax": codes, "weight.nested_absmax": outer, "weight.nested_quant_map": table}
        coded.parts["scale"] = (table[codes.long()] * 2 + 3).view(len(w), -1)
    else:
        made["weight.absmax"] = absmax
    return made | {"weight.quant_state.bitsandbytes__nf4": as_bytes(described)}, coded.dense()


def a_nf4() -> dict[str, torch.Tensor]:
    return {f"a.{key}": value for key, value in nf4(normal(8, 128))[0].items()}


@pytest.mark.parametrize("name", STORED)
def test_stored_forms(tmp_path, name):
    """Each way to write a weight gives its numbers, and stays in codes."""
    weight = normal(8, 128) * 0.2
    stored, expected = STORED[name](weight)
    named = {f"a.0.{key}": value.contiguous() for key, value in stored.items()}
    save_file(named | {"a.0.bias": torch.ones(8)}, tmp_path / "x.safetensors")
    file = StoredFile(tmp_path / "x.safetensors")
    assert file.shapes == {"a.0.weight": (8, 128), "a.0.bias": (8,)}
    values = dict(file.tensors())
    assert isinstance(values["a.0.weight"], QuantizedWeight)
    torch.testing.assert_close(values["a.0.weight"].dense(torch.float32), expected.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_an_fp8_file_is_the_model_of_its_numbers(tmp_path, flux, scaled):
    """Through the original layout, where q, k and v are one matrix: the codes are cut by rows."""
    _, file, folder = flux
    coded, rounded = {}, {}
    for name, value in load_file(file).items():
        if value.ndim == 2:
            stored, dense = STORED["rows" if scaled else "plain"](value)
            coded |= {PREFIX + name.removesuffix("weight") + key: part for key, part in stored.items()}
            rounded[name] = dense
        else:
            coded[PREFIX + name] = rounded[name] = value
    save_file(
        coded | ({"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if scaled else {}), tmp_path / "fp8.safetensors"
    )
    save_file(rounded, tmp_path / "dense.safetensors")
    torch.testing.assert_close(
        picture(opened(tmp_path / "fp8.safetensors", folder)), picture(opened(tmp_path / "dense.safetensors", folder)), **CLOSE
    )


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"a.qweight": torch.zeros(8, 8, dtype=torch.int8), "a.wscales": torch.ones(8)}, "Nunchaku's .*pip install nunchaku"),
        ({"a.weight": torch.zeros(8, 8, dtype=torch.uint8), "a.weight_scale_2": torch.ones(())}, "NVFP4"),
        ({"a.weight": torch.zeros(8, 8, dtype=torch.uint8)}, "whole numbers without a scale"),
        ({"a.weight": fp8(torch.ones(8, 8)), "a.weight_scale": torch.ones(3)}, "one number or rows of them fit"),
        ({"a.weight": torch.ones(8, 8), "a.weight_scale": torch.ones(8)}, "which is F32 and needs none"),
        ({"a.weight": fp8(torch.ones(8, 8)), "a.weight_scale": torch.full((), torch.nan)}, "NaN or infinite"),
        (
            {"a.weight": torch.zeros(8, 8, dtype=torch.int8), "a.weight_scale": torch.ones(8),
             "a.comfy_quant": as_bytes({"format": "int8_tensorwise", "convrot": True})}, "quantised as 'convrot'",
        ),
        ({"a.weight": torch.ones(8), "a.comfy_quant": torch.zeros(4, dtype=torch.uint8)}, "meant to be JSON"),
        (a_nf4() | {"a.weight.absmax": torch.ones(3)}, "without a scale for each of its blocks"),
        (a_nf4() | {"a.weight.quant_map": torch.ones(16)}, "levels that are not NF4's"),
        (
            a_nf4()
            | {"a.weight.quant_state.bitsandbytes__nf4": as_bytes({"shape": [1 << 20, 1 << 20], "blocksize": 64})},
            "whole rows of blocks of 64 fit",
        ),
    ],
)  # fmt: skip
def test_forms_that_are_refused(tmp_path, tensors, match):
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=match):
        list(StoredFile(tmp_path / "x.safetensors").tensors())


def test_named_formats_of_the_metadata(tmp_path):
    layers = {"format_version": "1.0", "layers": {"a": {"format": "int8_blockwise", "group_size": 128}}}
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors", {"_quantization_metadata": json.dumps(layers)})
    with pytest.raises(CheckpointError, match="'a' quantised as 'int8_blockwise'; read are float8_e4m3fn"):
        StoredFile(tmp_path / "x.safetensors")
