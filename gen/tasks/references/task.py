"""References: pictures that those of a call resemble, through an encoder trained for the model (`gen.nn.reference`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.adapters.words import embedding_of
from gen.io.images import digest, read_picture
from gen.io.validators import check_float, check_int, check_interval, check_option_values
from gen.models.reference import OpenedReference, find_reference, open_reference
from gen.nn.reference import MASK, PREFIXES, SCALE, SEEN, TOKENS, WORD, SubjectTokens, WeakerReferences, WithReferences
from gen.nn.reference_encoder import EncodedReferences
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Item, ReadPrompts, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.ranges import WithinRanges
from gen.tasks.references.options import ReferencesKeywords, ReferencesRecord
from gen.tasks.several import listed, read_masks
from samplers.denoiser import NULL, Condition, Denoiser
from samplers.guidance.cfg import ClassifierFree
from samplers.guidance.embedded import EmbeddedGuidance
from samplers.guidance.fusion import FusionSampling
from samplers.interval import EVERYWHERE
from samplers.lookup import nearest
from samplers.sample import Solver

if TYPE_CHECKING:
    from gen.models.model import Model

MOST = 16  # pictures
NAME = "references"
RECORDED = ("references_scale", "references_range", "references_fusion", "references_fusion_options")
FUSION = {"eta": (0.0, 1.0), "guidance": (0.0, 100.0), "scale": (-100.0, 100.0)}  # options of its moves


@dataclass(frozen=True)
class ReferencesTask(Task):
    """The references of a call.

    encoded: tokens (G, M, D) of the groups, all pictures in one, or each by itself. masks: (G, h, w) or None.
    summary: (1, D) of all pictures.
    """

    opened: OpenedReference
    encoded: EncodedReferences
    summary: Tensor
    masks: Tensor | None
    record_: ReferencesRecord

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(always_guided=True, by_level=True)

    @classmethod
    def from_call(cls, model: Model, args: ReferencesKeywords, settings: Settings) -> tuple[ReferencesTask | None, Settings]:
        sources = listed(args.references)
        if not sources:
            orphan = next((name for name, value in vars(args).items() if value is not None and value != []), None)
            if orphan is not None:
                raise ValueError(f"{orphan} was given without references; give the pictures to resemble.")
            return None, settings
        if len(sources) > MOST:
            raise ValueError(f"references has {len(sources)} pictures; give {MOST} at most.")
        scale = _scales(args.references_scale, len(sources))
        pictures = [read_picture(NAME, one, "RGB") for one in sources]
        masks = read_masks("references_mask", NAME, model, settings, args.references_mask, len(sources))
        opened = _opened(model, args.references_encoder, args.references_vision)
        interval = args.references_range
        record = ReferencesRecord(
            encoder=opened.digest,
            vision=opened.vision,
            images=tuple(digest(one) for one in pictures),
            masks=() if masks is None else tuple(digest(one) for one in masks),
            scale=scale,
            interval=None if interval in (None, EVERYWHERE) else check_interval("references_range", interval),
            fusion=check_int("references_fusion", args.references_fusion or 0, 0, 100),
            fusion_options=_fusion_options(args.references_fusion_options),
        )
        features = torch.cat([opened.features(one.to(model.device)) for one in pictures])
        with torch.no_grad():
            together = opened.network(features[None])
            apart = masks is not None or len(scale) > 1
            encoded = opened.network(features[:, None]) if apart else together
        laid = None if masks is None else F.avg_pool2d(masks, model.factor)[:, 0].to(model.device)
        return cls(opened, encoded, together.summary, laid, record), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> ReferencesKeywords:
        record, given = recipe.references, len(listed(keywords.get(NAME)))
        count = 0 if record is None else len(record.images)
        if given != count:
            raise ValueError(
                f"The picture resembles {'a reference' if count == 1 else f'{count} references'}, which its recipe does not "
                "hold; give the same again (references, --reference)."
                if count
                else "The picture was made without references; leave references out."
            )
        if said := [name for name in RECORDED if keywords.get(name) is not None]:
            raise ValueError(f"The recipe says how its references act already; leave {', '.join(said)} out.")
        own = {name: value for name, value in keywords.items() if name in vars(ReferencesKeywords())}
        if record is None:
            return ReferencesKeywords(**own)
        own |= {"references_scale": list(record.scale), "references_range": record.interval or EVERYWHERE}
        own |= {"references_fusion": record.fusion, "references_fusion_options": dict(record.fusion_options)}
        return ReferencesKeywords(**own)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        alone = next((name for name, task in settings.tasks.items() if task.traits.guides_itself), None)
        if self.record_.fusion and alone is not None:
            raise ValueError(f"references_fusion does not go with {alone}, which guides itself; leave one of them out.")
        if self.record_.fusion and "canvas" in settings.tasks:
            raise ValueError(
                "references_fusion moves a picture as a whole, and a canvas is seen in windows; leave one of them out."
            )
        before = None if recipe is None else recipe.references
        names = {"encoder": "references_encoder", "vision": "references_vision", "images": NAME, "masks": "references_mask"}
        for part, keyword in names.items():
            if before is not None and getattr(before, part) != getattr(self.record_, part):
                raise ValueError(f"This {keyword} is not what the picture was made with: its sha256 differs.")

    # ---- the word that stands for the pictures ----

    def read_prompts(self, model: Model, prompts: list[str], adapters: Mapping[str, float], read: ReadPrompts) -> Condition:
        if not any(WORD in prompt for prompt in prompts):
            return read(prompts)
        encoder = self.opened.network
        if encoder.config.subject == "none":
            raise ValueError(f"This reference encoder knows no word {WORD}; say what the picture shows in words of your own.")
        reader = _reader(model)
        if any(model.loaded_adapters.loaded[name].words for name in adapters if model.loaded_adapters is not None):
            raise ValueError(f"The word {WORD} and learned words cannot be in force together yet; leave one of them out.")
        vector = encoder.word_vector(self.summary)
        if vector.shape[1] != embedding_of(reader).weight.shape[1]:
            raise ValueError("The reference encoder was trained with another text encoder; give one that is for this model.")
        # what a prompt gives is kept by its text, so the word is another one for other pictures
        name = f"<ref-{hashlib.sha256(repr((self.record_.encoder, self.record_.images)).encode()).hexdigest()[:16]}>"
        texts = [prompt.replace(WORD, name) for prompt in prompts]
        first = max(embedding_of(reader).weight.shape[0], len(getattr(reader, "tokenizer", ())))
        before = reader.learned
        reader.learn(SubjectTokens({name: vector[:, None]}, first))
        try:
            condition = read(texts)
            if encoder.config.subject == "word" or condition.tokens is None:
                return condition
            places = torch.stack([(reader.ids(text)[0] >= first) for text in texts])
        finally:
            reader.learn(before)
        places = F.pad(places, (0, condition.tokens.shape[1] - places.shape[1])).to(condition.tokens.device)
        with torch.no_grad():
            tokens = encoder.fuse(condition.tokens, self.summary.expand(len(texts), -1), places)
        return replace(condition, tokens=tokens)

    # ---- what the network attends to ----

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        rows = len(batch.noise)
        negative = batch.negative and self._on(batch.negative, rows, asked=False)
        return replace(batch, condition=self._on(batch.condition, rows), negative=negative)

    def _on(self, condition: Condition, rows: int, asked: bool = True) -> Condition:
        """With the references, one row for each of the condition's, or `rows`; at scale 0 where they are not asked for."""
        own = next((value for value in (condition.tokens, condition.label) if value is not None), None)
        rows, groups = rows if own is None else len(own), len(self.encoded.tokens)
        scale = torch.tensor(self.record_.scale, device=self.encoded.tokens.device).expand(groups)
        values = {
            TOKENS: self.encoded.tokens,
            SEEN: self.encoded.seen,
            SCALE: scale if asked else torch.zeros_like(scale),
            NULL + SCALE: torch.zeros_like(scale),
            **({} if self.masks is None else {MASK: self.masks}),
        }
        extra = {prefix + NAME: value[None].expand(rows, *value.shape) for prefix, value in values.items()}
        return replace(condition, extra={**condition.extra, **extra})

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        within = WithReferences(denoiser, {NAME: self.opened.network})
        interval = self.record_.interval
        return within if interval is None else WithinRanges(within, {NAME: interval}, PREFIXES)

    def wrap_guided(self, denoiser: Denoiser, solver: Solver, batch: SamplingBatch) -> tuple[Denoiser, Solver]:
        if not self.record_.fusion:
            return denoiser, solver
        options: dict[str, Any] = {"eta": 1.0, "guidance": 3.0, "scale": 0.8, **self.record_.fusion_options}
        network: Denoiser = batch.model.denoiser
        for task in batch.settings.tasks.values():  # a move heeds whatever the step that follows it does
            network = task.wrap_network(network, batch)
        plain = WeakerReferences(network, options["scale"])
        if batch.model.config.defaults.guidance == "embedded":  # such a network is told the scale, and compares nothing
            return denoiser, FusionSampling(
                solver, EmbeddedGuidance(plain, options["guidance"]), self.record_.fusion, options["eta"]
            )
        refiner = ClassifierFree(plain, options["guidance"], batch.negative)
        return denoiser, FusionSampling(solver, refiner, self.record_.fusion, options["eta"])

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {NAME: self.record_}


def _scales(scale: Any, count: int) -> tuple[float, ...]:
    """One number, or one for each picture."""
    given = [1.0] if scale is None else listed(scale)
    if len(given) not in (1, count):
        pictures = f"{count} pictures; give one, or {count}" if count > 1 else "1 picture; give 1"
        raise ValueError(f"references_scale has {len(given)} numbers where references has {pictures}.")
    return tuple(check_float("references_scale", one, -100, 100) for one in given)


def _fusion_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of fusion sampling, those that are given."""
    chosen = check_option_values("references_fusion_options", given or {})
    if unknown := next((name for name in chosen if name not in FUSION), None):
        near = nearest(unknown, FUSION)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"references_fusion_options has no {unknown!r:.80}; it has {', '.join(FUSION)}.{hint}")
    return {name: check_float(f"references_fusion_options[{name!r}]", value, *FUSION[name]) for name, value in chosen.items()}


def _opened(model: Model, folder: Any, vision: Any) -> OpenedReference:
    """An encoder that the model has open already, or from its folder."""
    found = find_reference(folder)
    key = (str(found.resolve()), "" if vision is None else str(vision))
    if key not in model.opened_references:
        model.opened_references[key] = open_reference(found, model, vision, model.dtype, model.device)
    return model.opened_references[key]


def _reader(model: Model) -> Any:
    """What reads the model's prompts and can learn a word."""
    readers = [module for module in model.text_encoder.modules() if hasattr(module, "learn")] if model.text_encoder else []
    if len(readers) != 1:
        raise ValueError(f"The word {WORD} is read by models with one text encoder, ours or CLIP; leave it out of the prompt.")
    return readers[0]
