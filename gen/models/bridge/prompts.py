"""Prompts through transformers' text encoders: CLIP in chunks, T5 and Gemma in one piece, all with weights.

A reader gives one prompt's `Condition` with a batch of 1: tokens (1, L, D), mask (1, L), pooled (1, P). A word's weight
multiplies the features of its tokens, as in AUTOMATIC1111 without its normalisation.
"""

from __future__ import annotations

import re
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gen.models.bridge.load import device_of
from gen.nn.prompt_weights import token_weights, weighted
from samplers.denoiser import Condition

if TYPE_CHECKING:
    from gen.nn.learned_tokens import LearnedTokens, Read


class PromptReader(nn.Module):
    """What a Generator asks of a text encoder. Prompts are positive or negative: Sana reads the two in different ways.

    encoders: the networks that it reads with, by the pipeline's names, for adapters.
    breaks: the word BREAK begins a new chunk.
    takes: what it may be asked for beside the words, names of `gen.models.prompt_reading.Reading`.
    varies: the network computes with as many tokens as a prompt has, not with the same number for all.
    """

    breaks = False
    varies = False
    takes: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.encoders: dict[str, nn.Module] = {}

    def condition(self, prompt: str, negative: bool = False) -> Condition:
        """A reader that `takes` something has a third argument, a `Reading`."""
        raise NotImplementedError


class ClipReader(nn.Module):
    """A CLIP text encoder.

    penultimate: take the features before the last layer, without the final norm (SDXL, SD3).
    learned: words beside the vocabulary (`gen.nn.learned_tokens`), which are no part of the weights.
    """

    encoder: Any  # of transformers
    learned: LearnedTokens | None

    def __init__(self, tokenizer: Any, encoder: nn.Module, penultimate: bool = False):
        super().__init__()
        self.tokenizer, self.encoder, self.penultimate = tokenizer, encoder, penultimate
        self.length = min(tokenizer.model_max_length, self.encoder.config.max_position_embeddings)
        self.learn(None)

    def learn(self, learned: LearnedTokens | None) -> None:
        """Read these words too from now on, or no more."""
        object.__setattr__(self, "learned", learned)  # not a submodule

    def read(self, prompt: str, chunks: int | None = None, skip: int | None = None) -> tuple[Tensor, Tensor]:
        """(tokens (1, 77 n, D), pooled (1, P) of the first chunk) of a prompt in n chunks of 75 tokens, read apart.

        The word BREAK begins a new chunk. chunks: how many at most; what does not fit is named in a warning. skip: how many of
        the last layers are left out, beside the one that `penultimate` leaves out; ValueError for more than there are.
        """
        parts = self._chunks(prompt)
        if chunks is not None and len(parts) > chunks:
            unread = self.tokenizer.decode([i for ids, _ in parts[chunks:] for i in ids if i < len(self.tokenizer)])
            warn_unread(unread, f"{self.length - 2} tokens that CLIP reads with this model")
            parts = parts[:chunks]
        device = device_of(self.encoder)
        ids = self._rows(parts, device)
        real = None
        if getattr(self.encoder.config, "use_attention_mask", False):
            real = torch.tensor([[i < len(ids) + 2 for i in range(self.length)] for ids, _ in parts], device=device)
        learned = self.learned
        # the encoder sees an ordinary id in their place: some find the end of a text by the highest id
        with learned.in_place(self.encoder.get_input_embeddings(), ids) if learned else nullcontext(ids) as ids:
            out = self.encoder(ids, attention_mask=real, output_hidden_states=self.penultimate or skip is not None)
        tokens = out.last_hidden_state if skip is None and not self.penultimate else self._layer(out.hidden_states, skip or 0)
        pooled = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
        if any(weight != 1 for _, weights in parts for weight in weights):
            scale = [[1.0, *weights, *[1.0] * (self.length - 1 - len(weights))] for _, weights in parts]
            tokens = tokens * torch.tensor(scale, device=device, dtype=tokens.dtype)[..., None]
        return tokens.reshape(1, -1, tokens.shape[-1]), pooled[:1]

    def ids(self, prompt: str) -> Tensor:
        """(1, 77 n): the tokens that `read` reads of a prompt."""
        return self._rows(self._chunks(prompt), device_of(self.encoder)).reshape(1, -1)

    def _rows(self, parts: list[tuple[list[int], list[float]]], device: torch.device) -> Tensor:
        """(n, 77): the tokens of n chunks."""
        return torch.tensor([self._framed(ids, self.tokenizer.pad_token_id) for ids, _ in parts], device=device)

    def _layer(self, states: tuple[Tensor, ...], skip: int) -> Tensor:
        """The features of a layer from the end; through the final norm where the last layer's go through it."""
        last = skip + 1 + self.penultimate
        if last > len(states):
            raise ValueError(
                f"clip_skip is {skip}, and this text encoder has {len(states) - 1} layers; give at most "
                f"{len(states) - 1 - self.penultimate}."
            )
        network = getattr(self.encoder, "text_model", self.encoder)
        return states[-last] if self.penultimate else network.final_layer_norm(states[-last])

    def _framed(self, ids: list[int], pad: int) -> list[int]:
        """start, ids, end, padding."""
        framed = [self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id]
        return framed + [pad] * (self.length - len(framed))

    def _chunks(self, prompt: str) -> list[tuple[list[int], list[float]]]:
        """(token ids, their weights) of every chunk; at least one."""
        plain, weights = weighted(prompt)
        room, parts, begin = self.length - 2, [], 0
        for stop in [*re.finditer(r"\bBREAK\b", plain), None]:
            end = len(plain) if stop is None else stop.start()
            ids, weighing = _tokens(self.tokenizer, plain[begin:end], weights[begin:end], self.learned)
            parts += [(ids[i : i + room], weighing[i : i + room]) for i in range(0, max(len(ids), 1), room)]
            begin = end if stop is None else stop.end()
        full = [part for part in parts if part[0]]
        return full or [([], [])]


class Sentence(nn.Module):
    """T5 or Gemma: up to `length` tokens, padded.

    masked: the encoder does not see the padding.
    lower: PixArt and Sana learned from lower-case captions without spaces around them.
    """

    encoder: Any  # of transformers

    def __init__(self, tokenizer: Any, encoder: nn.Module, length: int, masked: bool, lower: bool = False):
        super().__init__()
        self.tokenizer, self.encoder, self.length, self.masked, self.lower = tokenizer, encoder, length, masked, lower

    def read(self, prompt: str, instruction: str = "", length: int | None = None) -> tuple[Tensor, Tensor]:
        """(tokens (1, L, D), mask (1, L), True = a real token). instruction: text before the prompt, of which the features
        are left out again, but for the first token's. length: L, its own if None."""
        length = self.length if length is None else length
        plain, weights = weighted(prompt)
        if self.lower:
            plain, weights = _lowered(plain, weights)
        before = len(self.tokenizer.encode(instruction)) if instruction else 0
        room = length + max(before - 2, 0)
        read = self.tokenizer(
            instruction + plain, padding="max_length", max_length=room, truncation=True, return_tensors="pt",
            return_offsets_mapping=True,
        )  # fmt: skip
        offsets = [(start - len(instruction), end - len(instruction)) for start, end in read["offset_mapping"][0].tolist()]
        end = max((end for _, end in offsets), default=0)
        if bool(read["attention_mask"].all()) and plain[max(end, 0) :].strip():
            warn_unread(plain[max(end, 0) :], f"{length} tokens that the text encoder reads")
        device = device_of(self.encoder)
        mask = read["attention_mask"].to(device)
        tokens = self.encoder(read["input_ids"].to(device), attention_mask=mask if self.masked else None)[0]
        scale = token_weights(plain, weights, [(max(start, 0), end) if end > 0 else (0, 0) for start, end in offsets])
        if any(weight != 1 for weight in scale):
            tokens = tokens * torch.tensor(scale, device=device, dtype=tokens.dtype)[None, :, None]
        if instruction:
            tokens, mask = (torch.cat([v[:, :1], v[:, room - length + 1 : room]], dim=1) for v in (tokens, mask))
        return tokens, mask.bool()


def whole_mask(tokens: Tensor) -> Tensor:
    """A mask (B, L) under which every token is real."""
    return tokens.new_ones(tokens.shape[:2], dtype=torch.bool)


def _tokens(
    tokenizer: Any, plain: str, weights: list[float], learned: LearnedTokens | None = None
) -> tuple[list[int], list[float]]:
    def read(text: str) -> Read:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], encoded["offset_mapping"]

    ids, offsets = read(plain) if learned is None else learned.read(plain, read)
    return ids, token_weights(plain, weights, offsets)


def _lowered(plain: str, weights: list[float]) -> tuple[str, list[float]]:
    pairs = [(low, weight) for character, weight in zip(plain, weights, strict=True) for low in character.lower()]
    text = "".join(low for low, _ in pairs)
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    return text[start:end], [weight for _, weight in pairs[start:end]]


def warn_unread(unread: str, limit: str) -> None:
    """Say which end of a prompt is not read."""
    unread = unread.strip()
    shown = unread[:200] + "…" * (len(unread) > 200)
    warnings.warn(f"A prompt is longer than the {limit}; not read: {shown!r}", stacklevel=2)
