"""peft's patterns for ranks and alphas: the answers of Python's own expressions, and bounded time."""

from __future__ import annotations

import json
import random
import re
import warnings

import pytest
import torch

from gen.adapters import from_tensors, to_tensors
from gen.adapters.patterns import Patterns, matches

PATHS = ("blocks.0.attn.to_q", "blocks.10.attn.to_q", "mid.to_q", "to_q", "blocks.0.ff", "x_blocks.0.attn.to_q")
PATTERNS = (
    "to_q", "blocks.0.attn.to_q", r"blocks\.(0|1)\.attn\..*", r"^mid\.to_q$", r"(blocks|mid)\..*to_(q|k)", r".*\.(?:ff|attn.*)",
    r"blocks\.\d+\.attn\.to_q", r"blocks\.1\d*\..*", r"(?!mid)\w+\.0\..*", r"[bm][^.]+\.(\d\.)?(attn\.)?to_q", r"(?P<x>to)_q",
    r"blocks\.\d{2}\..*", r"blocks\.\d{2,}?\..*", r"(a|b)", r"blocks\.([0-4]|10)\.(attn|ff).*", r"\bto_q\b", r"(x_)?blocks.*ff",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_what_peft_matches(pattern):
    assert [matches(pattern, path) for path in PATHS] == [bool(re.match(rf"(.*\.)?({pattern})$", path)) for path in PATHS]


def test_any_pattern_is_what_an_expression_says_or_is_refused():
    draw = random.Random(0)
    both = 0
    for _ in range(4000):
        pattern = "".join(draw.choice("ab.0_|()*+?[]^$\\d{},2:!=") for _ in range(draw.randint(1, 7)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = [bool(re.match(rf"(.*\.)?({pattern})$", path)) for path in ("a.b", "ab.0.a_b", "aab.b0", "b")]
            found = [matches(pattern, path) for path in ("a.b", "ab.0.a_b", "aab.b0", "b")]
        except (re.error, ValueError):
            continue
        both += 1
        assert found == expected, pattern
    assert both > 1500


@pytest.mark.parametrize("pattern", ["(a+)+$", "((a*)*)*b", "(a|a|a)(a|aa)*(a|a)*(a|aa)+!", "(a|a|a|a)" * 20, "(.*){9}b"])
def test_no_pattern_takes_long(pattern):
    """Each would keep Python's own engine busy for longer than anyone waits."""
    matches(pattern, "a" * 300)


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", "(?<=a)b", "(?i)a", "a**", "(((a*)*)*)*", "a{99}", "(a", "a)", "[a", "a" * 301, "*", r"\q"]
)
def test_patterns_that_are_not_read(pattern):
    with pytest.raises(ValueError):
        matches(pattern, "a")


def test_the_first_that_fits_counts():
    table = Patterns({"to_q": 1, "blocks.0.attn.to_q": 2, r"blocks\.(0|1)\.ff": 3, "ff": 4})
    assert [table.find(path) for path in PATHS] == ["to_q"] * 4 + [r"blocks\.(0|1)\.ff", "to_q"]
    assert table.find("nothing") is None


def test_scales_by_pattern_in_a_file():
    tensors = {}
    for path in PATHS[:3]:
        tensors |= {f"unet.{path}.lora_A.weight": torch.ones(2, 8), f"unet.{path}.lora_B.weight": torch.ones(8, 2)}
    config = {"r": 2, "lora_alpha": 2, "alpha_pattern": {r"blocks\.(0|1)\..*to_(q|k)": 8, r"(?!blocks)mid\..*": 3}}
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    adapter = from_tensors(tensors, metadata)
    assert [delta.scale for delta in adapter.layers.values()] == [4.0, 1.0, 1.5]
    assert json.loads(to_tensors(adapter)[1]["lora_adapter_metadata"])["unet.alpha_pattern"] == config["alpha_pattern"]
