"""Tiny decoders (TAESD, TAESDXL, TAESD3, TAEF1): previews of what a run makes, and pictures in little time.

Source: https://github.com/madebyollin/taesd. They read what the denoiser works on. A source is a folder or hub repository of
diffusers' AutoencoderTiny, its safetensors file alone, or the authors' `taesd_decoder.safetensors`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.io.digests import file_digest
from gen.io.weights import CheckpointError, TensorFile
from gen.models.bridge.hub import part_folder
from gen.models.bridge.load import load_network, read_part_config

CLASS = "AutoencoderTiny"
_LAYER = re.compile(r"^(\d+)\.")


class TinyDecoder(nn.Module):
    """network: diffusers' DecoderTiny.

    channels, factor: of latents, and pixels for each of theirs.
    scale, shift: of what the denoiser works on, (z - shift) scale.
    digest: of its weights.
    """

    def __init__(
        self, network: nn.Module, channels: int, factor: int, scale: float = 1.0, shift: float = 0.0, digest: str = ""
    ):
        super().__init__()
        self.network, self.channels, self.factor, self.digest = network, channels, factor, digest
        self.scale, self.shift = scale, shift

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], float32."""
        return self.network(latents.float() / self.scale + self.shift)


def open_tiny(source: str | Path, channels: int, factor: int) -> TinyDecoder:
    """The tiny decoder for latents of so many channels, of which each is `factor` pixels wide. CheckpointError for one that is
    damaged, unsafe, or for other latents."""
    if isinstance(source, str | Path) and str(source) and Path(source).is_file():
        opened = _from_file(Path(source))
    else:
        folder = part_folder(source, "vae", ("config.json",))
        config = read_part_config(folder)
        if config.get("_class_name") != CLASS:
            raise CheckpointError(folder, f"is a {config.get('_class_name')!r:.80}; a preview decoder is an {CLASS}.")
        network, digest = load_network(folder, CLASS, torch.float32)
        own: Any = network.config
        levels = len(own["num_decoder_blocks"]) - 1
        opened = TinyDecoder(
            network.decoder,  # type: ignore[arg-type]
            own["latent_channels"],
            own["upsampling_scaling_factor"] ** levels,
            float(own.get("scaling_factor") or 1.0),
            float(own.get("shift_factor") or 0.0),
            digest,
        )
    if (opened.channels, opened.factor) != (channels, factor):
        raise CheckpointError(
            source,
            f"decodes latents of {opened.channels} channels to {opened.factor} pixels each, and this model's have {channels} "
            f"and {factor}; give the tiny decoder that was made for it.",
        )
    return opened.eval().requires_grad_(False)


def _from_file(path: Path) -> TinyDecoder:
    from diffusers.models.autoencoders.vae import DecoderTiny

    file = TensorFile(path)
    tensors = {name: tensor.clone() for name, tensor in file.tensors()}
    decoder = {name.removeprefix("decoder.layers."): v for name, v in tensors.items() if name.startswith("decoder.layers.")}
    if not decoder:  # the authors' file, where a clamp without weights is the first layer
        decoder = {_LAYER.sub(lambda m: f"{int(m[1]) - 1}.", name): value for name, value in tensors.items()}
    try:
        blocks, width, channels = _sizes(decoder)
        network = DecoderTiny(channels, 3, blocks, (width,) * len(blocks), 2, "relu", "nearest")
        network.layers.load_state_dict(decoder)
    except (KeyError, ValueError, RuntimeError, IndexError):
        raise CheckpointError(path, "is no tiny decoder that is known; TAESD's, TAESDXL's, TAESD3's and TAEF1's are.") from None
    return TinyDecoder(network, channels, 2 ** (len(blocks) - 1), digest=file_digest(path))


def _sizes(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], int, int]:
    """(blocks of every level, width, channels of latents): a convolution, and then levels of blocks that end in one."""
    numbers = sorted({int(match[1]) for name in tensors if (match := _LAYER.match(name))})
    first, blocks = tensors["0.weight"], [0]
    for number in numbers[1:]:
        if f"{number}.weight" in tensors:
            blocks.append(0)
        else:
            blocks[-1] += 1
    return tuple(blocks[:-1]), first.shape[0], first.shape[1]
