"""Picture to picture in one step (`gen.models.translation`): the run begins with the picture's latents, and ends in a decoder
that sees what the encoder saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.adapters import Adapter, Delta
from gen.io.images import digest, read_picture
from gen.io.validators import check_float
from gen.models.translation.config import DirectionConfig
from gen.models.translation.files import (
    as_read,
    find_direction,
    find_translator,
    open_translator,
    read_translator_config,
    translator_digest,
)
from gen.models.translation.network import TranslationBase, Translator
from gen.pipeline.output import Output
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Caller, Crop, Decode, Item, ReadPrompts, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.edit.options import EditKeywords
from gen.tasks.edit.task import fit_and_warn, own_size, size_tolerance
from gen.tasks.translate.options import TranslateKeywords, TranslationRecord
from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.path import Path as NoisePath
from samplers.prediction import Prediction

if TYPE_CHECKING:
    from gen.models.model import Model


@dataclass(frozen=True)
class OpenedTranslator:
    """A translator on a model that is open. adapter: the name under which the model has its changes of the denoiser, as an
    adapter of its own that acts in translations alone; digest: of its weights."""

    translator: Translator
    adapter: str
    digest: str


@dataclass(frozen=True)
class WithAdapter:
    """A denoiser with one adapter more in force."""

    denoiser: Denoiser
    adapter: str
    weight: float

    @property
    def path(self) -> NoisePath:
        return self.denoiser.path

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        weights: Any = context.adapters
        return self.denoiser(x, level, condition, replace(context, adapters={**weights, self.adapter: self.weight}))


@dataclass(frozen=True)
class Translate(Task):
    """A translation. latents: of the picture (1, C, h, w), as the denoiser sees them; maps: what the encoder saw."""

    opened: OpenedTranslator
    direction: DirectionConfig
    latents: Tensor
    maps: tuple[Tensor, ...]
    begun: TranslationRecord

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(chooses_size=True)

    @classmethod
    def choose_size(
        cls, model: Model, args: TranslateKeywords, height: int | None, width: int | None, multiple: int
    ) -> tuple[TranslateKeywords, int | None, int | None]:
        edit, height, width = own_size(model, EditKeywords(args.translate), height, width, multiple, name="translate")
        return replace(args, translate=edit.image), height, width

    @classmethod
    def from_call(cls, model: Model, args: TranslateKeywords, settings: Settings) -> tuple[Translate | None, Settings]:
        if args.translate is None:
            orphan = next((name for name, value in vars(args).items() if value is not None), None)
            if orphan is not None:
                raise ValueError(f"{orphan} was given without a picture to translate; give translate too.")
            return None, settings
        if settings.steps != 1:
            raise ValueError(
                f"A translation is one step, and {settings.steps} are asked for; leave num_inference_steps (--steps) out."
            )
        if model.offload is not None and model.device.type != "cpu":
            raise ValueError(
                "A translation changes parts of the model for a moment, which go with no offloading; open it without offload."
            )
        opened = _opened(model, find_translator("default" if args.translator is None else args.translator))
        direction = find_direction(opened.translator.config, args.translate_direction)
        strength = 1.0 if args.translate_strength is None else args.translate_strength
        strength = check_float("translate_strength", strength, 0, 1)
        source = read_picture("translate", args.translate, "RGB")
        picture = fit_and_warn("translate", source, settings.height, settings.width, size_tolerance(model))
        with torch.no_grad():
            read = as_read((picture * 2 - 1).to(model.device), direction.reads)
            latents, maps = opened.translator.encode(direction.name, read, strength)
        record = TranslationRecord(image=digest(picture), translator=opened.digest, direction=direction.name, strength=strength)
        return cls(opened, direction, latents.float(), tuple(maps), record), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> TranslateKeywords | None:
        record, picture = recipe.translation, keywords.get("translate")
        if record is None and (picture is not None or keywords.get("translator") is not None):
            raise ValueError("The picture was made without translate; leave it out.")
        if record is None:
            return None
        if picture is None:
            raise ValueError(
                "The picture was translated from another, which is not in its recipe; give it as translate (--translate), with "
                "its translator's folder as translator (--translator), unless it was the default one."
            )
        return TranslateKeywords(picture, keywords.get("translator"), record.direction, record.strength)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        for name in ("hires", "refiner", "composition", "layout", "views", "canvas", "restoration", "image"):
            if name in settings.tasks:
                raise ValueError(f"A translation begins and ends in its own way, which goes without {name}; leave one out.")
        recorded = None if recipe is None else recipe.translation
        if recorded is not None and recorded != self.begun:
            what, option = ("translator", "translator") if recorded.image == self.begun.image else ("picture", "translate")
            raise ValueError(
                f"This {what} is not the one that the picture was made with: its sha256 differs; give that as {option}."
            )

    def read_prompts(self, model: Model, prompts: list[str], adapters: Mapping[str, float], read: ReadPrompts) -> Condition:
        fixed = self.direction.prompt
        return read(prompts if fixed is None else [fixed] * len(prompts))

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        z = self.latents.to(batch.noise).expand_as(batch.noise)
        mixed = self.opened.translator.mixed(z, self.begun.strength, batch.noise)
        return replace(batch, x=(batch.settings.levels[0].sigma * mixed).contiguous())

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        return WithAdapter(denoiser, self.opened.adapter, self.begun.strength)

    @torch.no_grad()
    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        # one at a time, so that a picture does not depend on its batch
        rows = [
            self.opened.translator.decode(self.direction.name, row[None].float(), self.maps, self.begun.strength)
            for row in latents.to(model.device)
        ]
        images = (torch.cat(rows).float() / 2 + 0.5).clamp(0, 1)
        return images if crop is None else crop(images)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"translation": self.begun}


def _opened(model: Model, folder: Path) -> OpenedTranslator:
    """The translator of a folder on a model, opened once."""
    read_translator_config(folder)  # says what a folder is that has no weights
    weights = translator_digest(folder)
    if weights not in model.translators:
        base = TranslationBase(model.config, model.network, model.autoencoder)
        translator = open_translator(folder, base, model.weights).to(model.device)
        name = f"translator {weights[:16]}"
        acting = dict(model.adapters)
        model.load_adapter(denoiser_adapter(translator, name))
        model.set_adapters(acting)
        model.translators[weights] = OpenedTranslator(translator, name, weights)
    return model.translators[weights]


def denoiser_adapter(translator: Translator, name: str) -> Adapter:
    """A translator's changes of the denoiser as an adapter, whose weight is the strength of a translation."""
    changes, network = translator.denoiser, translator.base.network
    prefix = "network." if getattr(network, "bridged", False) else ""  # our wrapper's name for it, which files do not have
    layers: dict[str, Delta] = {}
    for layer in changes.names:
        key = layer.replace(".", "/")
        if key in changes.full:
            shape = network.get_parameter(f"{layer}.weight").shape
            delta = Delta({"weight": changes.full[key].detach().view(shape)})
        else:
            delta = Delta({"down": changes.down[key].detach(), "up": changes.up[key].detach()}, changes.scale)
        layers[f"denoiser.{layer.removeprefix(prefix)}"] = delta
    return Adapter(name, layers)


def translate(
    generator: Caller,
    image: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    translator: Any = None,
    direction: str | None = None,
    strength: float | None = None,
    **call: Any,
) -> Output:
    """A picture made of another in one step. Its recipe replays, given the image and the translator again.

    image: the picture (file, PIL, array or tensor).
    translator: "default" (icons of outlines), for the model "fast", or the folder of one that was trained on this model
        (docs/translate.md).
    direction: what it makes, by the translator's own names; its first if None.
    strength: how much of the picture is kept, 0 to 1 (1); the rest comes from noise, so that seeds make different pictures.
    Other arguments are those of a call.
    """
    for name, value in (("num_inference_steps", 1), ("guidance_scale", None)):
        if call.get(name) not in (None, value):
            raise ValueError(f"A translation is one step without guidance; leave {name} out.")
    call["num_inference_steps"] = 1
    if generator.config.defaults.guidance != "embedded" and (generator.text_encoder is not None or generator.classes):
        call["guidance_scale"] = 1.0
    keywords = {"translator": translator, "translate_direction": direction, "translate_strength": strength}
    return generator(prompt, **call, translate=image, **keywords)
