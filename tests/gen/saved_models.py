"""Small models whose weights follow from their names alone, so that recipes saved long ago still find the model that made them.

Neither the initialisation of a network nor the order of its parameters matters: a tensor is drawn by its name in the file.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gen import Generator
from gen.adapters import Adapter, Delta
from gen.nn.registry import build

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "red",
    "blue",
    "heart",
    "cat",
    "dog",
    "on",
    "the",
    "moon",
    "blurry",
    "##s",
    "!",
]
SIZES = {"size": 8, "patch": 2, "dim": 32, "depth": 2, "heads": 2}
TEXT = {"text_tokens": 8, "text_dim": 16}
DEFAULTS = {"num_inference_steps": 4, "guidance_scale": 3.0, "sampler": "dpmpp_2m", "schedule": "uniform"}
FLOW = {"path": {"type": "rectified_flow"}, "prediction": "x0", "clock": "1000t", "sample_size": 32, "defaults": DEFAULTS}
VP = {
    "path": {"type": "variance_preserving", "betas": "scaled_linear"},
    "prediction": "eps",
    "clock": "index",
    "sample_size": 8,
}
CLASSES = {**VP, "classes": ["cat", "dog", "goldfish"], "defaults": {**DEFAULTS, "sampler": "ddim", "schedule": "trailing"}}
AUTOENCODER = {"type": "autoencoder", "factor": 4, "channels": 4, "encoder_widths": [8], "encoder_blocks": [1],
               "decoder_widths": [8], "decoder_blocks": [1]}  # fmt: skip
ENCODER = {"type": "text_encoder", "vocab_size": 16, "dim": 16, "layers": 1, "heads": 2, "hidden": 32, "max_tokens": 8}
STAGES = [
    {"kind": "transformer", "dim": 12, "hidden": 20, "depth": 3, "heads": 2, "patch": 2},
    {"kind": "convnext", "dim": 8, "hidden": 10, "depth": 4, "kernel": 3, "patch": 1},
]
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name -> (model config, network config)
    "text uvit": (FLOW, {"type": "uvit", **SIZES, **TEXT, "channels": 4}),
    "text dit": (FLOW, {"type": "dit", **SIZES, **TEXT, "channels": 4}),
    "class uvit": (CLASSES, {"type": "uvit", **SIZES, "channels": 3, "num_classes": 3}),
    "class dimr": (
        {**CLASSES, **FLOW, "sample_size": 8},
        {"type": "dimr", "size": 8, "channels": 3, "num_classes": 3, "stages": STAGES},
    ),
}
PIPELINES = ("stable_diffusion", "flux")  # of tests.gen.pipelines


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Values of a size at which every tensor matters: of variance 1 / fan-in, or about 1/2."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return values * math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3 * values + 0.5 * name.endswith("weight")


def filled(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(drawn(name, parameter.shape))
    return network.eval().requires_grad_(False)


def adapter(name: str) -> Adapter:
    """A LoRA on two layers of "text uvit"."""

    def factors(layer: str, out: int, width: int) -> dict[str, Tensor]:
        return {"down": drawn(f"{name} down {layer}", (2, width)), "up": drawn(f"{name} up {layer}", (out, 2))}

    layers = {"denoiser.mid_block.attn.to_q": (32, 32), "denoiser.in_blocks.0.mlp.fc1": (128, 32)}
    return Adapter(name, {layer: Delta(factors(layer, *shape), 2.0) for layer, shape in layers.items()})


def picture(side: int, seed: int = 0) -> Tensor:
    """(3, side, side) in steps of 1/255, which every format holds."""
    values = np.random.default_rng(seed).integers(0, 256, (3, side, side), dtype=np.uint8)
    return torch.from_numpy(values).float() / 255


def mask(side: int) -> Tensor:
    """(1, side, side): the upper half is 1."""
    values = torch.zeros(1, side, side)
    values[:, : side // 2] = 1
    return values


@cache
def opened(name: str, folder: Path) -> Generator:
    """A model by name: of the package, of `NETWORKS`, or a pipeline, which is written to `folder` first."""
    on = {"device": "cpu", "dtype": "float32"}
    if name in NETWORKS:
        config, sizes = NETWORKS[name]
        network = filled(build(sizes))
        if "text_dim" not in sizes:
            return Generator(config, network, name=name, **on)
        encoder = filled(build(ENCODER))
        encoder.set_vocabulary(WORDS)
        generator = Generator(config, network, filled(build(AUTOENCODER)), encoder, name=name, **on)
        for lora in ("one", "two") if name == "text uvit" else ():
            generator.load_adapter(adapter(lora), weight=0.0)
        generator.set_adapters({})
        return generator
    if name in PIPELINES:
        from tests.gen import pipelines

        pipeline = getattr(pipelines, name)()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                filled(part)
        return Generator.from_pretrained(pipelines.save(pipeline, folder / name), native=False, **on)
    return Generator.from_pretrained(name, **on)


def given(words: Mapping[str, Any]) -> dict[str, Any]:
    """What a replay is given beside the recipe: {"image": ["picture", 32, 1]} and the like, as tensors."""
    makers = {"picture": picture, "mask": mask}
    made: dict[str, Any] = {}
    for name, value in words.items():
        if isinstance(value, list) and str(value[0]) in makers:
            made[name] = makers[value[0]](*value[1:])
        else:
            made[name] = given(value) if isinstance(value, dict) else value
    return made


def rows(folder: Path) -> list[dict[str, Any]]:
    """id, model, output ("latent" or "pt"), given, recipe: one line each."""
    return [json.loads(line) for line in (folder / "recipes.jsonl").read_text().splitlines()]
