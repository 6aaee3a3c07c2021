"""The families of the table tests: how each tiny pipeline is built and called. A family adds a row to FAMILIES."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gen.generator import Generator
from tests.gen import more_pipelines, pipelines_chat
from tests.gen.lora import published, shapes_of
from tests.gen.pipelines import SIZE
from tests.gen.test_bridge_parity import NEGATIVE, PROMPT, pack

CLOSE = {"atol": 1e-4, "rtol": 0}


@dataclass(frozen=True)
class Row:
    """A family in the tables.

    build: the pipeline; options of it by keyword.
    blocks: how many blocks hooks find in its network.
    negative: (pipeline, prompt) -> arguments of its call with a negative prompt; None where it takes none.
    defaults: arguments of the pipeline's call for what we do by default; lists are for one picture.
    scale: our guidance scale as arguments of the pipeline's call.
    unguided: the pipeline's call without guidance.
    mixed: patches have seen one another before the first block that hooks find.
    packed: the pipeline takes latents as tokens.
    lora: naming (comfy, kohya) -> (network) -> name in such files -> weight shape, where names are not the modules' own;
        diffusers reads them too.
    ours_alone: namings that diffusers does not read.
    cat: tokens of the word in its tiny vocabulary; T5's makes one of the space before it.
    """

    build: Callable[..., Any]
    blocks: int
    scale: Callable[[float], dict[str, Any]]
    unguided: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    mixed: bool = False
    negative: Callable[[Any, str], dict[str, Any]] | None = lambda pipeline, prompt: {"negative_prompt": [prompt]}
    packed: bool = False
    lora: Mapping[str, Callable[[Any], dict[str, tuple[int, ...]]]] = field(default_factory=dict)
    ours_alone: tuple[str, ...] = ()
    cat: int = 3


def plain(build: Callable[..., Any], blocks: int, **options: Any) -> Row:
    """A row of a pipeline that guides as we do."""
    return Row(build, blocks, lambda scale: {"guidance_scale": scale}, {"guidance_scale": 1.0}, **options)


def attentions(network: Any) -> dict[str, tuple[int, ...]]:
    """The layers of every attention of every block, by their own names."""
    return {name: shape for name, shape in shapes_of(network, "to_").items() if "refiner" not in name}


def flux2_blocks(network: Any) -> dict[str, tuple[int, ...]]:
    """Its authors' names, of the layers that diffusers reads in every form."""
    return {name: shape for name, shape in published(network).items() if "_blocks" in name}


FLUX2_LORA = {"comfy": flux2_blocks, "kohya": flux2_blocks}
PUBLISHED = {"comfy": published, "kohya": published}


def klein_negative(pipeline: Any, prompt: str) -> dict[str, Any]:
    """It takes features in the place of a negative prompt."""
    return {"negative_prompt_embeds": pipeline.encode_prompt(prompt)[0]}


FAMILIES: dict[str, Row] = {
    "auraflow": plain(more_pipelines.auraflow, 4, ours_alone=("comfy", "kohya"), lora=PUBLISHED),
    "chroma": plain(more_pipelines.chroma, 4, packed=True, ours_alone=("comfy", "kohya"), lora=PUBLISHED, cat=4),
    "cogview4": plain(more_pipelines.cogview4, 2, ours_alone=("comfy", "kohya")),
    "hidream": plain(more_pipelines.hidream, 4, ours_alone=("kohya",), cat=4),
    "flux2": Row(
        pipelines_chat.flux2,
        blocks=2,
        scale=lambda scale: {"guidance_scale": scale},
        unguided={"guidance_scale": 1.0},
        negative=None,
        lora=FLUX2_LORA,
    ),
    "flux2_klein": Row(
        pipelines_chat.flux2_klein,
        blocks=2,
        scale=lambda scale: {"guidance_scale": scale},
        unguided={"guidance_scale": 1.0},
        negative=klein_negative,
        lora=FLUX2_LORA,
    ),
    "krea2": Row(
        pipelines_chat.krea2,
        blocks=2,
        scale=lambda scale: {"guidance_scale": scale - 1},
        unguided={"guidance_scale": 0.0},
        packed=True,
        lora={"comfy": published},
        ours_alone=("kohya",),
    ),
    "lumina2": plain(more_pipelines.lumina2, 2, mixed=True, ours_alone=("comfy", "kohya"), lora=PUBLISHED),
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
        lora={"kohya": lambda network: {k.replace("to_out.0", "out"): v for k, v in attentions(network).items()}},
    ),
}


def latents_for(generator: Generator, batch: int, seed: int = 5) -> torch.Tensor:
    side = SIZE // generator.factor
    return torch.randn(batch, generator.channels, side, side, generator=torch.Generator().manual_seed(seed))


def theirs(row: Row, pipeline: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
    """The pipeline's pictures (B, 3, H, W) in [0, 1]."""
    call = {"prompt": [PROMPT], "height": SIZE, "width": SIZE, "output_type": "pt", **options}
    call = {name: value * len(x) if isinstance(value, list) else value for name, value in call.items()}
    call = {name: value() if callable(value) else value for name, value in call.items()}  # lists that are of all
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline(latents=(pack(x) if row.packed else x).clone(), **call).images


def ours(generator: Generator, x: torch.Tensor, **options: Any) -> torch.Tensor:
    call = {"height": SIZE, "width": SIZE, "output_type": "pt", "progress": False, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was made for pictures of")
        return generator([PROMPT] * len(x), latents=x, **call).images


__all__ = ["CLOSE", "FAMILIES", "NEGATIVE", "PROMPT", "Row", "latents_for", "ours", "theirs"]
