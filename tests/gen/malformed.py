"""Byte strings that stand where a safetensors file should, each broken in one way: name -> (bytes, the reason to be given)."""

from __future__ import annotations

import gzip
import json
import pickle
import struct

NAME = "lora_unet_block_to_q.lora_down.weight"
UNUSABLE = "is not a usable safetensors file"


def raw(header: bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    """Length of the header, header, data; the length may lie."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def one(data: bytes = b"1234", **changes) -> bytes:
    """A file of one tensor of four bytes, whose entry is changed, or lacks what is None."""
    return raw({NAME: {key: value for key, value in {**entry(), **changes}.items() if value is not None}}, data)


GOOD = one()
OTHER = "lora_unet_block_to_q.lora_up.weight"
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "one byte": (b"\x08", UNUSABLE),
    "seven bytes": (b"1234567", UNUSABLE),
    "no header": (bytes(8), UNUSABLE),
    "truncated header": (GOOD[:40], UNUSABLE),
    "truncated data": (GOOD[:-1], UNUSABLE),
    "trailing bytes": (GOOD + b"x", UNUSABLE),
    "header of 2^63": (raw(GOOD[8:-4], b"1234", 1 << 63), UNUSABLE),
    "header of 200 MB": (raw(GOOD[8:-4], b"1234", 200_000_000), UNUSABLE),
    "header longer than said": (raw(GOOD[8:-4], b"1234", len(GOOD) - 13), UNUSABLE),
    "not JSON": (raw(b"{ this is not }"), UNUSABLE),
    "not UTF-8": (raw(b'{"\xff\xfe": 1}'), UNUSABLE),
    "a list": (raw(b"[]"), UNUSABLE),
    "null": (raw(b"null"), UNUSABLE),
    "an entry that is no object": (raw({NAME: 1}), UNUSABLE),
    "no shape": (one(shape=None), UNUSABLE),
    "no offsets": (one(data_offsets=None), UNUSABLE),
    "negative shape": (one(shape=[-1]), UNUSABLE),
    "fractional shape": (one(shape=[0.5]), UNUSABLE),
    "overflowing shape": (one(shape=[2**40, 2**40]), UNUSABLE),
    "shape and bytes differ": (one(shape=[2]), UNUSABLE),
    "overlap": (raw({NAME: entry(), OTHER: entry()}, b"1234"), UNUSABLE),
    "hole": (raw({NAME: entry(), OTHER: entry(offsets=(8, 12))}, bytes(12)), UNUSABLE),
    "offsets turned round": (one(data_offsets=[4, 0]), UNUSABLE),
    "offsets beyond the file": (one(data_offsets=[0, 400], shape=[100]), UNUSABLE),
    "unknown dtype": (one(dtype="F31"), UNUSABLE),
    "deep JSON": (raw(b"[" * 100_000), UNUSABLE),
    "metadata that is no text": (raw({"__metadata__": {"a": 1}, NAME: entry()}, b"1234"), UNUSABLE),
    "a name twice": (raw(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), b"1234"), "'a' appears twice"),
    "pickle": (pickle.dumps({"a": 1}), "is a pickle file, which can run code"),
    "zip of torch.save": (b"PK\x03\x04" + bytes(90), "is a pickle file, which can run code"),
    "gzip": (gzip.compress(GOOD, mtime=0), UNUSABLE),
    "web page": (b"\n<!DOCTYPE html><html>404</html>", "is a web page, not weights"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
}
assert len(MALFORMED) >= 27
