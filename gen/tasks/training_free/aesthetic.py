"""Aesthetic gradients: the text encoder moved a few steps towards a reference for each prompt, and put back.

Source: arXiv 2209.12330. The published reference is the mean CLIP embedding of pictures; a text's embedding does too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.io.validators import check_float, check_int, check_option_values, check_texts
from gen.io.weights import read_weights
from gen.nn.conditions import join
from gen.nn.prompt_weights import weighted
from gen.tasks.training_free.options import TrainingFreeRecord
from gen.tasks.training_free.task import TrainingFreeMethod, as_list, not_in_recipe
from samplers.denoiser import Condition
from samplers.lookup import check_options

if TYPE_CHECKING:
    from gen.models.model import Model

MAX_STEPS = 1000


@dataclass(frozen=True)
class Tower:
    """A text encoder's network, and how it makes one vector (1, D) of a text."""

    network: nn.Module
    embed: Callable[[str], Tensor]


@dataclass(frozen=True)
class _Row:
    name: str = "aesthetic"
    options: tuple[str, ...] = ("steps", "rate")


@dataclass(frozen=True)
class Aesthetic(TrainingFreeMethod):
    """embedding (D,): of a file; None: that of record.texts."""

    record: TrainingFreeRecord
    embedding: Tensor | None = None

    @classmethod
    def make(cls, model: Model, keywords: Mapping[str, Any], height: int, width: int) -> Aesthetic:
        towers(model)
        chosen = check_option_values("aesthetic_options", keywords.get("options") or {})
        check_options(_Row(), chosen, "training-free change")
        check_int("aesthetic steps", chosen.get("steps", 10), 0, MAX_STEPS)
        check_float("aesthetic rate", chosen.get("rate", 1e-4), 0, 1)
        source = keywords[""]
        if isinstance(source, Path | Tensor) or (isinstance(source, str) and source.endswith(".safetensors")):
            embedding = read_embedding(source)
            digest = hashlib.sha256(embedding.numpy().tobytes()).hexdigest()
            return cls(TrainingFreeRecord(digests=(digest,), options=chosen), embedding)
        return cls(TrainingFreeRecord(texts=tuple(check_texts("aesthetic", as_list(source))), options=chosen))

    @classmethod
    def keywords_from_record(cls, record: TrainingFreeRecord, keywords: Mapping[str, Any]) -> dict[str, Any]:
        if record.digests and not keywords:
            raise not_in_recipe("an aesthetic embedding", "aesthetic, --aesthetic FILE.safetensors")
        if keywords and not record.digests:
            raise ValueError("The recipe holds its aesthetic's text; leave aesthetic out.")
        return dict(keywords) or {"": list(record.texts)}

    def map_condition(self, model, prompts, condition, adapters) -> Condition:
        """Every prompt read by its own moved encoder; an empty one as it is."""
        loaded = model.loaded_adapters
        active = {} if loaded is None else loaded.on_text(adapters)
        conditions: dict[str, Condition] = {}
        with loaded.reading_with(active) if active else nullcontext():
            for prompt in dict.fromkeys(prompts):
                conditions[prompt] = condition[[prompts.index(prompt)]]
                if prompt.strip():
                    moved = self.moved(model, prompt).map(lambda v: v.to(model.dtype) if v.is_floating_point() else v)
                    conditions[prompt] = replace(conditions[prompt], tokens=moved.tokens, mask=moved.mask, pooled=moved.pooled)
        return join([conditions[prompt] for prompt in prompts])

    def moved(self, model: Model, prompt: str) -> Condition:
        """What a prompt's condition is under encoders moved for it; afterwards every weight is what it was, to the bit."""
        options = self.record.options
        steps, rate = options.get("steps", 10), options.get("rate", 1e-4)
        every = towers(model)
        with weights_kept([tower.network for tower in every]):
            for tower in every:
                goal = self.goal(tower, len(every))
                climb(tower, prompt, goal, steps, rate)  # type: ignore[arg-type]
            with torch.no_grad():
                return model.text_encoder.condition(prompt)  # type: ignore[union-attr, operator]

    @torch.no_grad()
    def goal(self, tower: Tower, towers: int) -> Tensor:
        """A unit vector (D,)."""
        if self.embedding is None:
            vectors = torch.cat([F.normalize(tower.embed(text).float(), dim=-1) for text in self.record.texts])
            return F.normalize(vectors.mean(0), dim=-1)
        width = tower.embed("a").shape[-1]
        if len(self.embedding) != width:
            raise ValueError(
                f"The aesthetic embedding has {len(self.embedding)} numbers, and the text encoder makes {width}; "
                "give one that was made for it."
            )
        return F.normalize(self.embedding.float(), dim=-1)


def climb(tower: Tower, prompt: str, goal: Tensor, steps: int, rate: float) -> list[float]:
    """`steps` of Adam on the cosine of the prompt's vector and the goal; changes the tower's weights. Returns the cosines
    before each step."""
    parameters = [p for p in tower.network.parameters() if p.is_floating_point()]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    cosines = []
    for step in range(1, steps + 1):
        with torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            cosine = F.cosine_similarity(tower.embed(prompt).float(), goal.to(parameters[0].device)[None]).sum()
            gradients = torch.autograd.grad(cosine, parameters, allow_unused=True)
        cosines.append(float(cosine.detach()))
        for i, (parameter, slope) in enumerate(zip(parameters, gradients, strict=True)):
            if slope is None:
                continue
            first[i] = 0.9 * first[i] + 0.1 * slope
            second[i] = 0.999 * second[i] + 0.001 * slope.square()
            size = (second[i] / (1 - 0.999**step)).sqrt() + 1e-8
            parameter.data = parameter.data + rate * first[i] / (1 - 0.9**step) / size
    return cosines


@contextmanager
def weights_kept(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, weights may be replaced; afterwards every one is the tensor that it was."""
    before = [(p, p.data, p.requires_grad) for network in networks for p in network.parameters()]
    try:
        yield
    finally:
        for parameter, data, wanted_gradient in before:
            parameter.data = data
            parameter.requires_grad_(wanted_gradient)


def towers(model: Model) -> list[Tower]:
    """The text encoders that make one vector of a text: ours, and CLIP. ValueError where there is none."""
    encoder: Any = model.text_encoder
    if encoder is not None and hasattr(encoder, "pooled"):
        return [Tower(encoder, lambda text: encoder.pooled([weighted(text)[0]]))]
    clips: list[Tower] = []
    if encoder is not None and hasattr(encoder, "encoders"):
        from gen.models.bridge.prompts import ClipReader

        def tower(clip: ClipReader) -> Tower:
            return Tower(clip.encoder, lambda text: clip.read(text)[1])

        clips = [tower(module) for module in encoder.modules() if isinstance(module, ClipReader)]
    if not clips:
        raise ValueError(
            f"The model {model.name!r} has no text encoder that makes one vector of a text (CLIP, or ours); "
            "leave aesthetic out."
        )
    return clips


def read_embedding(source: str | Path | Tensor) -> Tensor:
    """(D,) float32, of a tensor or a safetensors file with a single one; the mean over rows of (N, D)."""
    tensors = [source] if isinstance(source, Tensor) else list(read_weights(Path(source)).values())
    if len(tensors) != 1 or tensors[0].ndim not in (1, 2) or not tensors[0].is_floating_point():
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors) or "nothing"
        raise ValueError(f"aesthetic holds {shapes}; give one embedding (D,), or several as (N, D).")
    embedding = tensors[0].detach().float().cpu()
    if not bool(embedding.isfinite().all()) or not bool(embedding.any()):
        raise ValueError("aesthetic holds numbers that are not finite, or nothing but zeros; give an embedding.")
    return embedding if embedding.ndim == 1 else F.normalize(embedding, dim=-1).mean(0)
