"""Autoencoders and text encoders on their own: for networks that come without, and as parts of our model folders.

A source is a folder or a hub repository: of the part itself, or of a diffusers pipeline that has one. In a model folder of ours
such a part is a folder with a small config.json (`type`, and what the library's own config does not say) and the library's
folders inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.io.weights import CheckpointError, system_errors, write_json
from gen.models.bridge.hub import part_folder
from gen.models.bridge.load import CLASSES, STEMS, digest, find_weights, load_network, load_tokenizer, read_part_config
from gen.models.bridge.prompts import ClipReader, PromptReader, Sentence, whole_mask
from gen.models.bridge.vae import BridgedAutoencoder
from gen.models.prompt_reading import USUAL, Reading
from samplers.denoiser import Condition

# the one part whose class a file may choose
VAE_CLASSES = (
    "AutoencoderKL",
    "AutoencoderTiny",
    "AutoencoderDC",
    "AutoencoderKLFlux2",
    "AutoencoderKLQwenImage",
    "AutoencoderKLQwenImage21",
    "AutoencoderKLWan",
)
AUTOENCODER = "diffusers_autoencoder"
# kind of text encoder -> classes of encoder and tokenizer, the model_type of its config, what a whole model has besides
TEXT: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "t5": ("T5EncoderModel", "T5Tokenizer", ("t5",), ("decoder.", "lm_head.")),
    "clip": (
        "CLIPTextModel",
        "CLIPTokenizer",
        ("clip", "clip_text_model"),
        ("vision_model.", "visual_projection.", "text_projection.", "logit_scale"),
    ),
}
READ = {"t5": "T5's (PixArt: t5-v1_1-xxl)", "clip": "CLIP's (U-ViT: clip-vit-large-patch14)"}


class TextPart(PromptReader):
    """T5 or CLIP in front of one network. length: tokens that it reads; T5's padding is hidden, CLIP's is not, as the networks
    were trained."""

    def __init__(self, kind: str, tokenizer: Any, encoder: nn.Module, length: int):
        super().__init__()
        self.kind, self.length = kind, length
        self.takes = ("max_sequence_length",) if kind == "t5" else ("clip_skip",)
        self.reader = (
            Sentence(tokenizer, encoder, length, masked=True, lower=True) if kind == "t5" else ClipReader(tokenizer, encoder)
        )

    @property
    def dim(self) -> int:
        """Width of the features."""
        config: Any = self.reader.encoder.config
        return config.d_model if self.kind == "t5" else config.hidden_size

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        if isinstance(self.reader, Sentence):
            tokens, mask = self.reader.read(prompt, length=reading.max_sequence_length)
            return Condition(tokens=tokens, mask=mask)
        tokens, _ = self.reader.read(prompt, chunks=1, skip=None if negative else reading.clip_skip)
        return Condition(tokens=tokens, mask=whole_mask(tokens))

    def save_folder(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        save_foreign(self.reader.encoder, folder / "text_encoder", dtype)
        self.reader.tokenizer.save_pretrained(folder / "tokenizer")
        write_json(folder / "config.json", {"type": self.kind, "length": self.length})


def save_foreign(network: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """A library's network in the library's own form; in `dtype` through a copy."""
    if dtype is not None and next(network.parameters()).dtype != dtype:
        import copy

        network = copy.deepcopy(network).to(dtype)
    with system_errors(folder):
        network.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]


def open_autoencoder(
    source: str | Path, channels: int | None = None, scale: float | None = None, like: Mapping[str, Any] | None = None
) -> tuple[nn.Module, str]:
    """(autoencoder, digest of its weights).

    source: a folder, a hub id, or a file of AutoencoderKL in its authors' layout.
    channels: what the network takes.
    scale: in place of the config's own.
    like: the config that has a file's scale and shift of latents, as it says none; None: those of Stable Diffusion for 4
        channels and of FLUX for 16.
    """
    if isinstance(source, str | Path) and str(source) and Path(source).is_file():
        from gen.models.bridge.files.autoencoder import open_autoencoder_file

        network, files = open_autoencoder_file(Path(source), channels, like)
        return BridgedAutoencoder(network, latent_scale=scale), files
    folder = part_folder(source, "vae", ("config.json",))
    config = read_part_config(folder)
    kind = config.get("_class_name")
    if kind not in VAE_CLASSES:
        raise CheckpointError(folder, f"is a {kind!r}; an autoencoder is one of {', '.join(VAE_CLASSES)}.")
    network, files = load_network(folder, kind, torch.float32)
    autoencoder = BridgedAutoencoder(network, latent_scale=scale)
    if channels not in (None, autoencoder.channels):
        raise CheckpointError(folder, f"makes {autoencoder.channels} channels, and the network takes {channels}.")
    return autoencoder, files


def open_text_encoder(source: str | Path, kind: str, length: int, dim: int, dtype: torch.dtype) -> tuple[TextPart, str]:
    """(reader of prompts, digest of its weights). dim: the width of the features that the network reads."""
    encoder_class, tokenizer_class, model_types, besides = TEXT[kind]
    folder = part_folder(source, "text_encoder", ("config.json",), also=("tokenizer",))
    config = read_part_config(folder)
    if config.get("model_type") not in model_types:
        raise CheckpointError(folder, f"is a {config.get('model_type')!r} model; this network reads features of {READ[kind]}.")
    encoder, files = load_network(folder, encoder_class, dtype, besides)
    beside = folder.parent / "tokenizer"
    has_tokenizer = any(
        (folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json")
    )
    tokenizer = load_tokenizer(beside if beside.is_dir() and not has_tokenizer else folder, tokenizer_class)
    part = TextPart(kind, tokenizer, encoder, length)
    if part.dim != dim:
        raise CheckpointError(folder, f"gives features of width {part.dim}, and the network reads {dim}.")
    return part, files


def open_saved(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """A part of one of our model folders, from its config.json's values. dtype: of a text encoder."""
    kind = config.get("type")
    if kind == AUTOENCODER:
        scale = config.get("latent_scale")
        if config.keys() - {"type", "latent_scale"} or (scale is not None and not (isinstance(scale, float) and scale > 0)):
            raise CheckpointError(folder / "config.json", "holds more than type and latent_scale, a number above 0.")
        return open_autoencoder(folder / "vae", scale=scale)[0]
    length = config.get("length")
    if config.keys() != {"type", "length"} or isinstance(length, bool) or not isinstance(length, int) or not 0 < length < 4096:
        raise CheckpointError(folder / "config.json", "must hold type and length, a number of tokens from 1 to 4095.")
    encoder_class, tokenizer_class, _, _ = TEXT[str(kind)]
    encoder, _ = load_network(folder / "text_encoder", encoder_class, dtype)
    return TextPart(str(kind), load_tokenizer(folder / "tokenizer", tokenizer_class), encoder, length)


def saved_digest(folder: Path, kind: str) -> str:
    """The digest of the weights of such a part."""
    inner, name = ("vae", "AutoencoderKL") if kind == AUTOENCODER else ("text_encoder", TEXT[kind][0])
    return digest(find_weights(folder / inner, STEMS[CLASSES[name]])[1])
