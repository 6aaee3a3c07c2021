"""MultiBooth: a concept as a word whose vectors are as long as those of known words, and a LoRA on keys and values of text.

    v' = v |c| / |v|                adaptive concept normalisation: c is the embedding that the word starts as
    loss = E |error|^2 + 0.01 |v|^2     v, as it trains, stays short

Such concepts are drawn together by a layout with `attention: true`, in which each acts where its box is
(`samplers.multi_model.regional_attention`). The file holds v', so that every program reads it. In the paper an encoder makes v
of the pictures; here it trains from the start, as in textual inversion.

Source: arXiv 2404.14239.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from customization.base.config import CustomizationConfig
from customization.base.objective import CustomizationObjective
from customization.base.textual_inversion import PREFIX
from customization.methods.custom_diffusion import ENDS, key_value_layers
from distill.networks.lora.peft_injection import AdapterConfig
from distill.types import Batch, Draws
from gen.adapters import Adapter
from gen.adapters.words import readers_of
from gen.nn.learned_tokens import LearnedTokens


class MultiBoothConfig(CustomizationConfig):
    """tokens: the concept's word, with an init, whose length its vectors have. adapter: a LoRA on keys and values of text,
    unless its targets say otherwise. length_weight: of |v|^2 in the loss."""

    length_weight: float = Field(default=0.01, ge=0)

    @model_validator(mode="after")
    def _has_a_word(self) -> MultiBoothConfig:
        if not self.tokens or any(token.init is None for token in self.tokens.values()):
            raise ValueError('multibooth teaches a word that starts as a known one; give tokens, as in {"<cat>": {init: cat}}')
        return self


def normalised(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Vectors (n, D) brought to lengths (n, 1), with their directions."""
    return vectors * lengths / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)


class NormalisedTokens(LearnedTokens):
    """Learned words that are read at the lengths that they began with."""

    def __init__(self, words: LearnedTokens):
        super().__init__(dict(zip(words.ids, words.vectors, strict=True)), words.first)
        self.lengths = [vector.detach().norm(dim=1, keepdim=True).clone() for vector in self.vectors]

    def fill(self, embedded: Tensor, ids: Tensor) -> Tensor:
        rows = [normalised(v, n.to(v)) for v, n in zip(self.vectors, self.lengths, strict=True)]
        table = torch.cat(rows).to(embedded)
        return torch.where((ids >= self.first)[..., None], table[(ids - self.first).clamp_min(0)], embedded)


class MultiBoothObjective(CustomizationObjective):
    config: MultiBoothConfig
    _targets: tuple[str, ...] | None = None  # found before layers are put into others

    def attach(self) -> dict[str, nn.Parameter]:
        trained = super().attach()
        readers = readers_of(self.generator.text_encoder, self.parts)
        for part, words in self.words.items():
            tokens = NormalisedTokens(words)
            self.words[part] = self.parts[f"{PREFIX}{part}"] = tokens
            readers[part].learn(tokens)
        return trained

    def adapted(self) -> dict[str, AdapterConfig]:
        found = super().adapted()
        layers = found.get("denoiser")
        if layers is not None and not layers.targets:
            self._targets = self._targets or tuple(key_value_layers(self.parts["denoiser"], ENDS))
            found["denoiser"] = layers.model_copy(update={"targets": self._targets})
        return found

    def compute(self, batch: Batch, draws: Draws, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logged = super().compute(batch, draws, step)
        vectors = [value for words in self.words.values() for value in words.vectors]
        length = torch.stack([value.square().sum(1).mean() for value in vectors]).sum()
        return loss + self.config.length_weight * length, {**logged, "length": length.detach()}

    def to_adapter(self, values: Mapping[str, Tensor]) -> Adapter:
        scaled = dict(values)
        for part, words in self.words.items():
            assert isinstance(words, NormalisedTokens)
            for i, lengths in enumerate(words.lengths):
                name = f"{PREFIX}{part}.vectors.{i}"
                scaled[name] = normalised(values[name].detach().float().cpu(), lengths.float().cpu())
        return super().to_adapter(scaled)
