"""LoRA files for the networks of `tests.gen.pipelines`, in kohya's format, with factors drawn from their place in the file."""

from __future__ import annotations

import re

import torch
from torch import nn

from gen.adapters.originals import originals

OTHER = re.compile(r"(qkv|linear1)\.\d$|img_in\.proj$")  # OMI's names, of layers that have the authors' already


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def factors(out: int, width: int, kernel: tuple[int, ...] = (), seed: int = 0, rank: int = 3) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, width, *kernel, generator=random) / width**0.5
    return down, torch.randn(out, rank, *[1] * len(kernel), generator=random) / 4


def kohya(prefix: str, names: dict[str, tuple[int, ...]], alpha: float = 1.5) -> dict[str, torch.Tensor]:
    """A file's tensors for layers of these names and weight shapes, with alphas that are not the rank, nor all the same but
    in attention, where diffusers reads one alpha for all layers of a U-Net."""
    tensors = {}
    for seed, (name, (out, width, *kernel)) in enumerate(names.items()):
        key = f"{prefix}_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = factors(out, width, tuple(kernel), seed)
        tensors[f"{key}.alpha"] = torch.tensor(alpha + (seed % 3 == 0 and "att" not in name))
    return tensors


def shapes_of(network: nn.Module, only: str = "") -> dict[str, tuple[int, ...]]:
    return {name: tuple(m.weight.shape) for name, m in layers_of(network).items() if only in name}


def published(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of its weight; `test_adapters_originals` says that the names are right."""
    modules = layers_of(network)
    found = {}
    for name, targets in originals(network, modules):
        if "processor" not in name and "cross." not in name and not OTHER.search(name):
            shape = modules[targets[0].module].weight.shape
            rows = max((target.cut[1] for target in targets if target.cut), default=shape[0])
            found[name] = (rows, *shape[1:])
    return found


def text(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """CLIP's layers as files name them, with text_model in front whatever the library's version calls them."""
    return {name if name.startswith("text_") else f"text_model.{name}": shape for name, shape in shapes.items()}


def every_layer(generator, text_parts: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """A LoRA in kohya's format on all linear layers and convolutions of the denoiser and of these text encoders."""
    tensors = kohya("lora_unet", shapes_of(generator.network.network))
    prefixes = {"T5EncoderModel": "lora_te3", "CLIPTextModel": "lora_te1"}
    for part in text_parts:
        encoder = generator.text_encoder.encoders[part]
        kind = type(encoder).__name__
        prefix = prefixes.get(kind, "lora_te1" if part == "text_encoder" else "lora_te2")
        tensors |= kohya(prefix, text(shapes_of(encoder)) if "CLIP" in kind else shapes_of(encoder))
    return tensors
