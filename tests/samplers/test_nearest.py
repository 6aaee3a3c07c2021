"""What "did you mean" suggests: the near name, and none rather than a far one; every place asks the same function."""

from __future__ import annotations

from pathlib import Path

import pytest

from samplers.lookup import nearest

ROOT = Path(__file__).parents[2]
KNOWN = ("euler", "lms", "dpmpp_2m", "DPM++ 2M SDE", "karras", "drop_caption", "down_blocks.0.attn.to_q", "日本")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("eular", "euler"),
        ("Karas", "karras"),
        ("dpm++2m", "dpmpp_2m"),
        ("dpmpp-2m_sde", "DPM++ 2M SDE"),
        ("drop_captions", "drop_caption"),
        ("down_blocks_0_attn_to_q_lora", "down_blocks.0.attn.to_q"),
        ("xyz", None),
        ("lsm", "lms"),
        ("drop_label", None),  # shares a beginning and is something else
        ("heun", None),
        ("", None),
        ("???", None),
        (None, None),
        (3.5, None),
    ],
)
def test_only_a_near_name_is_suggested(name, found):
    assert nearest(name, KNOWN) == found


@pytest.mark.parametrize(
    ("name", "found"),
    [("dpm2m", "dpmpp_2m"), ("dpm2", "dpm_2"), ("eulra", "euler_a"), ("eulerb", "euler"), ("dpm2ma", "dpm_2_a")],
)
def test_of_names_nearly_as_near_the_one_that_has_all_letters_is_meant(name, found):
    assert nearest(name, ("dpm_2", "dpm_2_a", "dpmpp_2m", "dpm_solver_2m", "euler", "euler_a")) == found


def test_long_names_cost_little_and_no_names_are_none():
    assert nearest("a" * 10_000_000, KNOWN) is None and nearest("euler", ()) is None


def test_nobody_has_a_measure_of_their_own():
    texts = {
        path: path.read_text() for top in ("samplers", "gen", "distill", "customization") for path in (ROOT / top).rglob("*.py")
    }
    using = [path for path, text in texts.items() if "difflib" in text]
    assert len(using) == 1 and "def nearest" in texts[using[0]]
    assert sum("import nearest" in text for text in texts.values()) > 15
