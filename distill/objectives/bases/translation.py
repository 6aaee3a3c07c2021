"""What methods that train a translator have in common (arXiv 2403.12036): the one-step model, the two domains, the judges.

Domain B are a batch's pictures. Domain A are the pictures of `extra["source"]` (`distill/data/picture_pairs.py`), or made
from those of B. Direction `there` makes B of A, `back` makes A of B. All pictures are (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.data.drawn_edges import drawn_edges
from distill.losses.adversarial import AdversarialLossConfig
from distill.networks.feature_maps import load_feature_maps, picture_distance
from distill.networks.lora.targets import find_layers
from distill.networks.patch_discriminator import PatchDiscriminator, fooling_loss, telling_loss
from distill.networks.trained_translator import TrainedTranslator
from distill.objectives.bases.objective import Objective
from distill.objectives.bases.teacher import Teacher, TeacherConfig
from distill.optim.precision import autocast
from distill.parallel.shards import detached_weights
from distill.types import SOURCE, Batch, Draws, Phase, Preview, Role, pictures_of
from gen.models.translation.config import DirectionConfig, LayersConfig, TranslatorConfig
from gen.models.translation.files import as_read, save_translator
from gen.models.translation.network import TranslationBase, TranslationJob, Translator
from gen.nn.low_rank import Scale
from samplers.denoiser import Condition

PREVIEWED = 8  # pictures


class TranslationConfig(AdversarialLossConfig):
    """teacher: the one-step model, which stays as it is; guidance and solver of it are not used.

    there, back: the directions A -> B and B -> A (`gen.models.translation.config.DirectionConfig`); back: None for none.
    made_from: "edges": pictures of A are the outlines of those of B. None: the data have them.
    rank, alpha, targets: of the denoiser's LoRA, all linear layers of its blocks where none is named; full: layers whose whole
    weight trains, as published for the first one. coder_rank, coder_alpha: of the LoRA on all convolutions and linear layers
    of the autoencoder. alpha is the rank where not given.
    features: the network by which pictures are compared.
    adversarial_weight: of the discriminator of each direction. penalty: on its gradient. adversarial_from: the first step that
    heeds it.
    """

    teacher: TeacherConfig = TeacherConfig(model="fast")
    there: DirectionConfig = DirectionConfig(name="there")
    back: DirectionConfig | None = None
    made_from: Literal["edges"] | None = None
    rank: int = Field(default=8, gt=0)
    alpha: float | None = Field(default=None, gt=0)
    targets: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    coder_rank: int = Field(default=4, gt=0)
    coder_alpha: float | None = Field(default=None, gt=0)
    features: str = "evaluator"
    adversarial_weight: float = Field(default=0.5, ge=0)
    adversarial_from: int = Field(default=0, ge=0)
    penalty: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _directions_apart(self) -> TranslationConfig:
        if self.back is not None and self.back.name == self.there.name:
            raise ValueError(f"there and back are both named {self.there.name!r}; give each a name of its own")
        return self

    @property
    def directions(self) -> tuple[DirectionConfig, ...]:
        return (self.there,) if self.back is None else (self.there, self.back)


@dataclass(frozen=True)
class Side:
    """One direction on a batch: its config, what goes in, what comes out where both are pairs, and the role of its judge."""

    direction: DirectionConfig
    given: Tensor
    wanted: Tensor
    judge: str


class TranslationObjective(Objective):
    """See the module. Roles: `translator` trains, with `discriminator` and, for the way back, `discriminator_back`."""

    makes_network = True
    source: ClassVar[str] = "arXiv 2403.12036"
    compares = True  # pictures, by `features`
    projected: int | None = None
    config: Any

    def __init__(self, config: Any, network: nn.Module, source: Any = None, teacher: Teacher | None = None):
        self.config, self.data = config, source
        self.teacher = teacher or Teacher.load(config.teacher)
        if not isinstance(network, nn.Identity):
            raise ValueError("A translator is made of its teacher: leave the section network empty, {}.")
        self.autoencoder = self.teacher.autoencoder
        base = self.teacher.network
        self.teacher.read_null()
        made = Translator(self.translator_config(), TranslationBase(self.teacher.model, base, self.teacher.autoencoder))
        trained = TrainedTranslator(made, self.projected).train().requires_grad_(True)
        self.roles = {"translator": Role(trained), "teacher": Role(base, trains=False, ema=False)}
        if config.adversarial_weight:
            second = config.penalty > 0 or config.penalised
            for side in ("discriminator", "discriminator_back")[: len(config.directions)]:
                self.roles[side] = Role(PatchDiscriminator(), ema=False, second_order=second)
        self.maps: Any = load_feature_maps(config.features) if self.compares else None
        self._made: dict[tuple[int, ...], tuple[int, list[Tensor]]] = {}  # what the discriminators of a step judge

    def translator_config(self) -> TranslatorConfig:
        """What is to be trained, as the finished folder says it."""
        config, network, autoencoder = self.config, self.teacher.network, self.teacher.autoencoder
        kinds = (nn.Linear, nn.Conv2d)
        coder = [] if autoencoder is None else [name for name, one in autoencoder.named_modules() if isinstance(one, kinds)]
        full = find_layers(network, config.full, kinds=kinds, what="denoiser", key="full") if config.full else []
        layers = LayersConfig(
            denoiser=tuple(find_layers(network, config.targets, kinds=kinds if config.targets else (nn.Linear,))),
            full=tuple(full),
            autoencoder=tuple(coder),
        )
        return TranslatorConfig(
            model=self.teacher.name,
            weights=dict(self.teacher.weights),
            directions=config.directions,
            layers=layers,
            rank=config.rank,
            scale=(config.alpha or config.rank) / config.rank,
            coder_rank=config.coder_rank,
            coder_scale=(config.coder_alpha or config.coder_rank) / config.coder_rank,
            stochastic=bool(getattr(config, "stochastic", 0.0)),
        )

    def clean(self, batch: Batch) -> Tensor:
        return self.teacher.clean(batch)

    # ---- a batch ----

    def sides(self, batch: Batch, draws: Draws) -> list[Side]:
        """The batch as each direction sees it."""
        there, back = self.config.there, self.config.back
        b = pictures_of(batch)
        if self.config.made_from == "edges":
            a = drawn_edges((b.float() + 1) / 2, draws) * 2 - 1
        elif SOURCE in batch.extra:
            a = batch.extra[SOURCE]
        else:
            raise ValueError(
                "The data have one picture for each sample, and a translator learns from two: give data of type pairs or "
                "unpaired, or made_from: edges."
            )
        a = as_read(a, there.reads)
        b = b if back is None else as_read(b, back.reads)
        made = [Side(there, a, b, "discriminator")]
        return made if back is None else [*made, Side(back, b, a, "discriminator_back")]

    def condition(self, batch: Batch, direction: DirectionConfig) -> Condition:
        """What the network is told in a direction: its own prompt, or what the batch says."""
        if direction.prompt is not None and self.teacher.text_encoder is not None:
            batch = replace(batch, captions=[direction.prompt] * len(batch))
        elif batch.captions is None and self.teacher.text_encoder is not None:
            batch = replace(batch, captions=[""] * len(batch))
        return self.teacher.condition(batch, batch.index.device if batch.images is None else batch.images.device)

    def job(self, batch: Batch, side: Side, strength: Scale = 1.0, noise: Tensor | None = None) -> TranslationJob:
        return TranslationJob(side.direction.name, side.given, self.condition(batch, side.direction), strength, noise)

    # ---- losses that methods share ----

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,): how far pictures are apart in features."""
        return picture_distance(self.maps, a, b)

    def heeds_judges(self, step: int) -> bool:
        return bool(self.config.adversarial_weight) and step >= self.config.adversarial_from

    def fooling(self, models: Mapping[str, nn.Module], side: Side, made: Tensor) -> Tensor:
        """The translator's adversarial loss for pictures of one direction."""
        return fooling_loss(self.config, detached_weights(models[side.judge]), made.clamp(-1, 1), side.wanted)

    def keep(self, batch: Batch, step: int, made: list[Tensor]) -> None:
        """Pictures of the translator's update, for the discriminators' of the same step to judge."""
        self._made = {index: entry for index, entry in self._made.items() if entry[0] == step}
        self._made[_key(batch)] = (step, [one.detach().clamp(-1, 1) for one in made])

    def judged(self, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int) -> list[Tensor]:
        """Pictures of every direction as they were drawn in this step, or drawn now."""
        kept = self._made.get(_key(batch))
        if kept is not None and kept[0] == step:
            return kept[1]
        with torch.no_grad():
            jobs = self.jobs(batch, self.sides(batch, draws), draws)
            return [made[0].clamp(-1, 1) for made in models["translator"](*jobs)]

    def jobs(self, batch: Batch, sides: list[Side], draws: Draws) -> list[TranslationJob]:
        """What the translator is asked for in its update, the first of them one for each side."""
        return [self.job(batch, side) for side in sides]

    def telling(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a discriminator: of domain B, or of A for the way back."""
        same = replace(draws, phase="translator")  # outlines are drawn alike in all updates of a step
        made, sides = self.judged(models, batch, same, step), self.sides(batch, same)
        number = [side.judge for side in sides].index(phase.role)
        return telling_loss(self.config, models[phase.role], sides[number].wanted, made[number], self.config.penalty)

    # ---- what is shown and written ----

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview:
        """Of each direction what went in, what came out, and what was there."""
        batch = batch.first(PREVIEWED)
        images, count = pictures_of(batch), len(batch)
        sides = self.sides(batch, Draws(seed, batch.index, "preview"))
        with autocast(images.device):
            made = models["translator"](*(self.job(batch, side) for side in sides))
        shown, words = [], []
        for side, (picture, *_) in zip(sides, made, strict=True):
            shown += [side.given, picture.float().clamp(-1, 1), side.wanted]
            words += ["given"] * count + [side.direction.name] * count + ["there is"] * count
        return torch.cat(shown), words

    def inputs(self) -> dict[str, str]:
        return {"teacher": self.teacher.files_digest()}

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """The translator's folder, in bfloat16, for `fewstep translate --model FOLDER`."""
        trained: Any = models["translator"]
        save_translator(trained.translator, folder, torch.bfloat16, self.source)


def _key(batch: Batch) -> tuple[int, ...]:
    """What drawn pictures are kept by: the samples' numbers. A measurement has samples of its own with such numbers."""
    return torch.is_grad_enabled(), *batch.index.tolist()
