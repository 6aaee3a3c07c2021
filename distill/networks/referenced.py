"""A denoiser with a reference encoder that trains as one network: called as a denoiser, with the encoder's parameters alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.parallel import recompute
from gen.nn.reference import WORD, AddedAttention, Group, SubjectTokens
from gen.nn.reference_encoder import EncodedReferences, ReferenceEncoder
from samplers.denoiser import NULL, Condition, Context

FEATURES, PRESENT, IDS = "resembled features", "resembled present", "resembled ids"


def shows(features: Tensor, present: Tensor, ids: Tensor | None = None) -> dict[str, Tensor]:
    """Of a condition's `extra`: what a `ReferencedNetwork` is shown; nothing without a condition.

    features: (B, N, T, F) of N pictures. present: (B, N) bool, those that are there. ids: (B, L), the prompts' tokens where a
    word stands for the pictures.
    """
    extra = {FEATURES: features, PRESENT: present, NULL + PRESENT: torch.zeros_like(present)}
    return extra if ids is None else {**extra, IDS: ids}


class ReferencedNetwork(nn.Module):
    """`base`, frozen, which attends to what an `encoder` (`gen.nn.reference_encoder`) makes of the pictures that a condition
    shows (`shows`); the same function as the base where it shows nothing.

    text_encoder: reads the prompts of which a word stands for the pictures; frozen too.
    """

    base: nn.Module
    text_encoder: Any

    def __init__(self, base: nn.Module, encoder: ReferenceEncoder, text_encoder: Any = None):
        super().__init__()
        for name, frozen in (("base", base), ("text_encoder", text_encoder)):
            object.__setattr__(self, name, frozen)  # not a submodule: neither its parameters nor its weights are ours
        self.encoder = encoder

    @property
    def config(self) -> Any:
        return self.base.config

    def enable_recompute(self) -> int:
        """Gradient checkpointing of the base's blocks; returns how many modules have it."""
        return recompute.enable(self.base)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        extra, context = condition.extra, context or Context()
        if FEATURES not in extra:
            return self.base(x, time, condition, context)
        encoded: EncodedReferences = self.encoder(extra[FEATURES], extra[PRESENT])
        if IDS in extra:
            condition = replace(condition, tokens=self.read(extra[IDS], condition, encoded.summary))
        group = Group(encoded.tokens, encoded.seen, encoded.tokens.new_ones(len(x)))
        # before any block, which may be evaluated again for its gradients
        made = [self.encoder.keys_values(layer, encoded.tokens) for layer in range(self.encoder.config.layers)]
        added = AddedAttention(self.encoder, [group], lambda layer, _: made[layer])
        return self.base(x, time, condition, added.hooked(context))

    def read(self, ids: Tensor, condition: Condition, summary: Tensor) -> Tensor:
        """Text tokens (B, L, D) of prompts, in which a word is what the pictures' summary (B, D) says."""
        encoder, config = self.text_encoder, self.encoder.config
        assert condition.mask is not None
        first = encoder.word.weight.shape[0]
        if config.subject == "word":
            words = self.encoder.word_vector(summary)
            before = encoder.learned
            encoder.learn(SubjectTokens({WORD: words[:, None]}, first))
            try:
                return encoder(ids, condition.mask).float()
            finally:
                encoder.learn(before)
        assert condition.tokens is not None
        return self.encoder.fuse(condition.tokens, summary, ids >= first)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReferencedNetwork:
        """A copy with an encoder of its own on the same base."""
        return ReferencedNetwork(self.base, copy.deepcopy(self.encoder, memo), self.text_encoder).train(self.training)
