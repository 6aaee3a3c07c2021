"""What a family's file says, in one type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gen.models.bridge.network import BridgedNetwork
from gen.models.bridge.prompts import PromptReader

Parts = Mapping[str, Any]  # part name -> network, tokenizer, or None where the pipeline may do without and does


@dataclass(frozen=True)
class Family:
    """A family of diffusers pipelines.

    backbone: the part that denoises.
    classes: for every part the class names that model_index.json may give it, the first being the one that is used for all
        (names from older versions come after it).
    optional: parts that may be missing. network(parts, index): the backbone behind our interface. reader(parts, index): its
        prompts, or None without text.
    clock: as of `samplers.denoiser.NetworkDenoiser`. defaults(parts, index): guidance, steps, size and so on, over what the
        scheduler says.
    native: the format of `gen.models.formats` by which our own network reads the backbone.
    native_usual: our own network is the default. Otherwise it is there for who asks for it.
    native_options: of `gen.models.formats.read.read_checkpoint`: what the pipeline tells of its network.
    bins: whether pictures are made at the nearest size of `gen.models.buckets` by default; None: there is no list.
    own_sigmas: the pipeline hands even sigmas to a flow scheduler; "whole": of whole timesteps, which the network is told
        without a shift.
    mu(index): how it finds the mu of a dynamic shift (`gen.models.bridge.schedule.sampling`).
    lent: (text encoder, tokenizer) that published pipelines lack and `text_encoder` brings, and a hub id that has them.
    few: words in the names of distilled models, and their usual numbers of steps, over those of `gen.models.bridge.pipeline`.
    index_defaults(index): defaults that the pipeline's own settings decide, over all others.
    """

    name: str
    backbone: str
    classes: Mapping[str, tuple[str, ...]]
    clock: str
    network: Callable[[Parts, Mapping[str, Any]], BridgedNetwork]
    reader: Callable[[Parts, Mapping[str, Any]], PromptReader] | None
    defaults: Callable[[nn.Module], dict[str, Any]]
    size: Callable[[nn.Module, int], int]
    optional: tuple[str, ...] = ()
    native: str | None = None
    native_usual: bool = True
    native_options: Mapping[str, Any] = field(default_factory=dict)
    bins: bool | None = None
    own_sigmas: bool | str = False
    mu: Callable[[Mapping[str, Any]], str | float] = field(default=lambda index: "line")
    lent: tuple[str, str, str] | None = None
    few: Mapping[str, int] = field(default_factory=dict)
    index_defaults: Callable[[Mapping[str, Any]], dict[str, Any]] = field(default=lambda index: {})
    class_names: Callable[[Mapping[str, Any]], tuple[str, ...] | None] = field(default=lambda index: None)


VAES = ("AutoencoderKL", "AutoencoderTiny")
CLIP_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
FAST_TOKENIZER = ("PreTrainedTokenizerFast", "TokenizersBackend")
QWEN_TOKENIZER = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
T5_TOKENIZER = ("T5Tokenizer", "T5TokenizerFast")


def latent_size(network: nn.Module, factor: int) -> int:
    """Pixels of a picture by default: the network's sample_size, counted in latent pixels."""
    config: Any = network.config
    size = config.get("sample_size") or 64
    return (size if isinstance(size, int) else max(size)) * factor
