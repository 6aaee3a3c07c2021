"""Words of a prompt that must not mix: Multi-Concept T2I-Zero (`samplers.guidance.t2i_zero`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.io.validators import check_option_values, check_texts
from gen.tasks.training_free.options import TrainingFreeRecord
from gen.tasks.training_free.task import TrainingFreeMethod, as_list
from samplers.denoiser import Condition, Denoiser
from samplers.guidance.t2i_zero import ConceptSuppression, check_correction, correct_by_similarities
from samplers.lookup import check_options

if TYPE_CHECKING:
    from gen.models.model import Model

CORRECTION = {"strength": 0.1, "window": 3, "quantile": 0.7}


@dataclass(frozen=True)
class _Row:
    name: str = "concepts"
    options: tuple[str, ...] = (*CORRECTION, "suppression", "interval")


@dataclass(frozen=True)
class Concepts(TrainingFreeMethod):
    """record.texts: the words."""

    record: TrainingFreeRecord

    @classmethod
    def make(cls, model: Model, keywords: Mapping[str, Any], height: int, width: int) -> Concepts:
        words = check_texts("concepts", as_list(keywords[""]))
        if model.text_encoder is None:
            raise ValueError(f"The model {model.name!r} reads no text, so there are no concepts; leave concepts out.")
        if not all(word.strip() for word in words) or len({word.lower() for word in words}) < len(words):
            raise ValueError(f"concepts are {words}; give different words of the prompt.")
        chosen = check_option_values("concepts_options", keywords.get("options") or {})
        check_options(_Row(), chosen, "training-free change")
        correction: dict[str, Any] = {name: chosen.get(name, usual) for name, usual in CORRECTION.items()}
        check_correction(**correction)
        concepts = cls(TrainingFreeRecord(texts=tuple(words), options=chosen))
        concepts._suppression(model.denoiser, torch.full((1, 1), -1))  # options are checked here
        return concepts

    @classmethod
    def keywords_from_record(cls, record: TrainingFreeRecord, keywords: Mapping[str, Any]) -> dict[str, Any]:
        if keywords:
            raise ValueError("The recipe names its concepts; leave concepts out.")
        return {"": list(record.texts)}

    def map_condition(self, model, prompts, condition, adapters) -> Condition:
        options: dict[str, Any] = {name: self.record.options.get(name, usual) for name, usual in CORRECTION.items()}
        rows: list[Tensor] = []
        for prompt, tokens, owners in zip(prompts, condition.tokens, self._owners(model, prompts, condition), strict=True):
            if prompt.strip():
                end = len(tokens) if condition.mask is None else int(condition.mask[len(rows)].nonzero().max()) + 1
                places = (owners >= 0).nonzero().flatten().tolist()
                tokens = torch.cat([correct_by_similarities(tokens[:end], places, **options), tokens[end:]])
            rows.append(tokens)
        return replace(condition, tokens=torch.stack(rows))

    def wrap_network(self, model, denoiser, seeds, prompts, condition) -> Denoiser:
        return self._suppression(denoiser, self._owners(model, prompts, condition))

    def _suppression(self, denoiser: Denoiser, owners: Tensor) -> Denoiser:
        options: dict[str, Any] = {"strength": self.record.options.get("suppression", 1.0)}
        if "interval" in self.record.options:
            options["interval"] = self.record.options["interval"]
        return ConceptSuppression(denoiser, owners, **options)

    def _owners(self, model: Model, prompts: Sequence[str], condition: Condition) -> Tensor:
        """(B, T): the number of the concept that each token of each prompt is of, -1 for none."""
        positions = {prompt: _positions(model, prompt, self.record.texts) for prompt in set(prompts)}
        assert condition.tokens is not None
        owners = torch.full(condition.tokens.shape[:2], -1)
        for row, prompt in enumerate(prompts):
            for number, places in enumerate(positions[prompt]):
                owners[row, places] = number
        return owners.to(condition.tokens.device)


@torch.no_grad()
def _positions(model: Model, prompt: str, words: Sequence[str]) -> list[list[int]]:
    """Where in a prompt's tokens each word is: the tokens that a weight on it changes, whatever the text encoder."""
    if not prompt.strip():
        return []
    encoder: Any = model.text_encoder
    plain, places = encoder.condition(prompt).tokens[0], []
    for word in words:
        at = re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", prompt, re.IGNORECASE)
        if at is None:
            raise ValueError(f"The prompt {prompt!r:.80} does not have the concept {word!r}; give words as they stand in it.")
        weighed = encoder.condition(f"{prompt[: at.start()]}({at[0]}:2){prompt[at.end() :]}").tokens[0]
        places.append((weighed != plain).any(-1).nonzero().flatten().tolist())
        if not places[-1]:
            raise ValueError(f"The concept {word!r} is beyond what the text encoder reads of {prompt!r:.80}; shorten it.")
    return places
