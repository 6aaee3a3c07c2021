"""Pictures beside the batch: those to stay away from (negative token merging) and those to resemble (shared attention)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.io.images import digest, fit, read_picture
from gen.io.validators import check_int, check_option_values, check_texts
from gen.nn.conditions import pad_tokens
from gen.tasks.edit.task import fit_and_warn, read_mask, size_tolerance
from gen.tasks.training_free.options import First, TrainingFreeRecord
from gen.tasks.training_free.task import TrainingFreeMethod, as_list, not_in_recipe
from samplers.denoiser import Condition, Denoiser
from samplers.guidance.multi_reference import MultiReference
from samplers.guidance.negtome import NegativeMerging
from samplers.guidance.reference_batch import References
from samplers.lookup import check_options
from samplers.noise import normal

if TYPE_CHECKING:
    from gen.models.model import Model
    from gen.pipeline.types import Item

MAX_REFERENCES = 16


@dataclass(frozen=True)
class ReferenceImages:
    """latents (R, C, h, w) as the denoiser sees them; masks (R, 1, H, W) or None."""

    latents: Tensor
    masks: Tensor | None
    digests: tuple[str, ...]
    mask_digests: tuple[str, ...]

    @classmethod
    def read(cls, model: Model, name: str, images: Any, masks: Any, height: int, width: int) -> ReferenceImages:
        sources = as_list(images)
        check_int(f"the number of pictures in {name}", len(sources), 1, MAX_REFERENCES)
        originals = [read_picture(name, one, "RGB") for one in sources]
        joined_masks = None
        if masks is not None:
            mask_sources = as_list(masks)
            if len(mask_sources) != len(sources):
                raise ValueError(
                    f"{name} has {len(sources)} pictures and {len(mask_sources)} masks; give one mask each, or none."
                )
            masks = [
                read_mask(f"{name}_mask", one, picture, "picture") for one, picture in zip(mask_sources, originals, strict=True)
            ]
            joined_masks = torch.cat([fit(one, height, width) for one in masks])
        pictures = torch.cat([fit_and_warn(name, one, height, width, size_tolerance(model)) for one in originals])
        digests = tuple(digest(one) for one in pictures[:, None])
        mask_digests = () if joined_masks is None else tuple(digest(one) for one in joined_masks[:, None])
        latents = pictures.to(model.device) * 2 - 1
        if model.autoencoder is not None:
            with torch.no_grad():
                encoded = [model.autoencoder.encode(one) for one in latents[:, None]]
            latents = torch.cat(encoded).float() * model.config.latent_scale
        return cls(latents, None if joined_masks is None else joined_masks.to(model.device), digests, mask_digests)

    def beside(self, seeds: Sequence[int], conditions: tuple[Condition | None, ...] = ()) -> References:
        """With noise of their own for every picture of a batch, by its seed."""
        shape, device = self.latents.shape[1:], self.latents.device
        noise = [normal(list(seeds), shape, f"reference {r}", device=device) for r in range(len(self.latents))]
        return References(self.latents, torch.stack(noise, dim=1), self.masks, conditions)


@dataclass(frozen=True)
class _Row:
    name: str
    options: tuple[str, ...]


def _options(name: str, takes: tuple[str, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {**check_option_values(f"{name}_options", keywords.get("options") or {})}
    check_options(_Row(name, takes), chosen, "training-free change")
    if "layers" in chosen and not isinstance(chosen["layers"], tuple):
        chosen["layers"] = (chosen["layers"],)
    return chosen


@dataclass(frozen=True)
class NegTome(TrainingFreeMethod):
    """pictures None: the batch's first picture."""

    pictures: ReferenceImages | None
    record: TrainingFreeRecord

    @classmethod
    def make(cls, model: Model, keywords: Mapping[str, Any], height: int, width: int) -> NegTome:
        chosen = _options("negtome", ("scale", "threshold", "layers", "interval"), keywords)
        NegativeMerging(model.denoiser, None, **chosen)  # options are checked here
        if isinstance(keywords[""], str) and keywords[""] == "batch":
            if keywords.get("mask") is not None:
                raise ValueError("negtome='batch' takes no mask; leave negtome_mask out, or give a picture.")
            return cls(None, TrainingFreeRecord(options=chosen))
        pictures = ReferenceImages.read(model, "negtome", keywords[""], keywords.get("mask"), height, width)
        return cls(pictures, TrainingFreeRecord(digests=pictures.digests, masks=pictures.mask_digests, options=chosen))

    @classmethod
    def keywords_from_record(cls, record: TrainingFreeRecord, keywords: Mapping[str, Any]) -> dict[str, Any]:
        if not record.digests:
            if keywords:
                raise ValueError("The picture was made with negtome='batch'; leave negtome out.")
            return {"": "batch"}
        if "" not in keywords:
            raise not_in_recipe("negtome pictures", "negtome, --negtome FILE")
        return dict(keywords)

    def wrap_network(self, model, denoiser, seeds, prompts, condition) -> Denoiser:
        references = None if self.pictures is None else self.pictures.beside(seeds)
        return NegativeMerging(denoiser, references, **self.record.options)  # type: ignore[arg-type]

    def record_of(self, items: Sequence[Item]) -> TrainingFreeRecord:
        if self.pictures is not None:
            return self.record
        item = items[0]
        first = First(prompt=item.prompt, negative_prompt=item.negative_prompt, class_label=item.label, seed=item.seed)
        return self.record.model_copy(update={"first": first})


@dataclass(frozen=True)
class Reference(TrainingFreeMethod):
    """Multi-reference self-attention; texts: what each picture shows, () for what the call asks for."""

    pictures: ReferenceImages
    record: TrainingFreeRecord

    @classmethod
    def make(cls, model: Model, keywords: Mapping[str, Any], height: int, width: int) -> Reference:
        chosen = _options("reference", ("weight", "layers", "interval", "null"), keywords)
        pictures = ReferenceImages.read(model, "reference", keywords[""], keywords.get("mask"), height, width)
        texts = () if keywords.get("prompt") is None else tuple(check_texts("reference_prompt", keywords["prompt"]))
        if texts and len(texts) != len(pictures.latents):
            raise ValueError(f"reference has {len(pictures.latents)} pictures, {len(texts)} prompts; give one each, or none.")
        if texts and model.text_encoder is None:
            raise ValueError(f"The model {model.name!r} reads no text; leave reference_prompt out.")
        record = TrainingFreeRecord(digests=pictures.digests, masks=pictures.mask_digests, texts=texts, options=chosen)
        reference = cls(pictures, record)
        reference.wrap_network(model, model.denoiser, [0], [""], None)  # options are checked here
        return reference

    @classmethod
    def keywords_from_record(cls, record: TrainingFreeRecord, keywords: Mapping[str, Any]) -> dict[str, Any]:
        if "" not in keywords:
            raise not_in_recipe("reference pictures", "reference, --free-custom FILE")
        return {**keywords, "prompt": list(record.texts) or None}

    def map_condition(self, model, prompts, condition, adapters) -> Condition:
        """Padded to the references' prompts, so that one batch can hold all."""
        for reference in self._conditions(model):
            assert condition.tokens is not None and reference.tokens is not None  # prompts are for models that read text
            condition = pad_tokens(condition, max(condition.tokens.shape[1], reference.tokens.shape[1]))
        return condition

    def wrap_network(self, model, denoiser, seeds, prompts, condition) -> Denoiser:
        conditions: tuple[Condition | None, ...] = ()
        if condition is not None and self.record.texts:
            padded = [pad_tokens(text, condition.tokens.shape[1]) for text in self._conditions(model)]
            conditions = tuple(
                replace(condition[:1], tokens=text.tokens, mask=_mask(text, condition), pooled=text.pooled) for text in padded
            )
        options = dict(self.record.options)
        weights = options.pop("weight", 3.0)
        return MultiReference(denoiser, self.pictures.beside(seeds, conditions), weights, **options)  # type: ignore[arg-type]

    def _conditions(self, model: Model) -> list[Condition]:
        """What each reference picture shows, as the text encoder reads it."""
        return [model.encode_prompt([text]) for text in self.record.texts]


def _mask(text: Condition, condition: Condition) -> Tensor | None:
    if condition.mask is None or text.mask is not None or text.tokens is None:
        return text.mask
    return text.tokens.new_ones(text.tokens.shape[:2], dtype=torch.bool)
