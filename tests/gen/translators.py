"""A tiny translator on a tiny model, with changes of every kind."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gen.generator import Generator
from gen.models.translation.config import DirectionConfig, LayersConfig, TranslatorConfig
from gen.models.translation.files import save_translator
from gen.models.translation.network import TranslationBase, Translator
from tests.gen.conftest import randomise

DIRECTIONS = (DirectionConfig(name="icon", reads="lines"), DirectionConfig(name="outline", prompt="a cat"))


def tiny_translator(generator: Generator, seed: int | None = 3, **changes) -> Translator:
    """On all layers of a model's blocks and autoencoder; weights drawn by a seed, or its own first ones for None."""
    network, autoencoder = generator.network, generator.autoencoder
    layers = LayersConfig(
        denoiser=tuple(name for name, one in network.named_modules() if isinstance(one, nn.Linear) and "blocks" in name),
        full=tuple(name for name, one in network.named_modules() if isinstance(one, nn.Conv2d))[:1],
        autoencoder=tuple(name for name, one in autoencoder.named_modules() if isinstance(one, nn.Conv2d)),
    )
    settings = {"model": "tiny", "weights": dict(generator.weights), "directions": DIRECTIONS, "layers": layers, "rank": 2}
    config = TranslatorConfig(**{**settings, "coder_rank": 2, **changes})
    translator = Translator(config, TranslationBase(generator.config, network, autoencoder))
    if seed is not None:
        randomise(translator, seed)
        with torch.no_grad():
            for parameter in translator.parameters():
                parameter.mul_(0.3)
    return translator.eval()


def saved_translator(generator: Generator, folder: Path, **changes) -> Path:
    save_translator(tiny_translator(generator, **changes), folder)
    return folder
