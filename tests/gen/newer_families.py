"""The families of the table tests: how each tiny pipeline is built and called. A family adds a row to FAMILIES."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gen.generator import Generator
from tests.gen import pipelines_chat
from tests.gen.pipelines import SIZE
from tests.gen.test_bridge_parity import NEGATIVE, PROMPT, pack

CLOSE = {"atol": 1e-4, "rtol": 0}


@dataclass(frozen=True)
class Row:
    """A family in the tables.

    build: the pipeline; options of it by keyword.
    blocks: how many blocks hooks find in its network.
    negative: the name of its argument for a negative prompt; None where it takes none.
    defaults: arguments of the pipeline's call for what we do by default; lists are for one picture.
    scale: our guidance scale as arguments of the pipeline's call.
    unguided: the pipeline's call without guidance.
    mixed: patches have seen one another before the first block that hooks find.
    packed: the pipeline takes latents as tokens.
    lora: naming (comfy, kohya) -> the name of a layer in such files, where it is not the module's; diffusers reads them too.
    """

    build: Callable[..., Any]
    blocks: int
    scale: Callable[[float], dict[str, Any]]
    unguided: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    mixed: bool = False
    negative: str | None = "negative_prompt"
    packed: bool = False
    lora: Mapping[str, Callable[[str], str]] = field(default_factory=dict)


FAMILIES: dict[str, Row] = {
    "qwen_image": Row(
        pipelines_chat.qwen_image,
        blocks=2,
        scale=lambda scale: {"true_cfg_scale": scale},
        unguided={"true_cfg_scale": 1.0},
        defaults={"negative_prompt": [""]},  # without one, the pipeline does not guide
        packed=True,
    ),
    "z_image": Row(
        pipelines_chat.z_image,
        blocks=2,
        mixed=True,
        scale=lambda scale: {"guidance_scale": scale - 1},
        unguided={"guidance_scale": 0.0},
        lora={"kohya": lambda name: name.replace("to_out.0", "out")},
    ),
}


def latents_for(generator: Generator, batch: int, seed: int = 5) -> torch.Tensor:
    side = SIZE // generator.factor
    return torch.randn(batch, generator.channels, side, side, generator=torch.Generator().manual_seed(seed))


def theirs(row: Row, pipeline: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
    """The pipeline's pictures (B, 3, H, W) in [0, 1]."""
    call = {"prompt": [PROMPT], "height": SIZE, "width": SIZE, "output_type": "pt", **options}
    call = {name: value * len(x) if isinstance(value, list) else value for name, value in call.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline(latents=(pack(x) if row.packed else x).clone(), **call).images


def ours(generator: Generator, x: torch.Tensor, **options: Any) -> torch.Tensor:
    call = {"height": SIZE, "width": SIZE, "output_type": "pt", "progress": False, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was made for pictures of")
        return generator([PROMPT] * len(x), latents=x, **call).images


__all__ = ["CLOSE", "FAMILIES", "NEGATIVE", "PROMPT", "Row", "latents_for", "ours", "theirs"]
