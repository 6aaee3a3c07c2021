"""Erased Stable Diffusion: a model is trained away from a concept by its own negative guidance (ESD, arXiv 2303.07345).

    e_theta(x_t, c, t) <- e(x_t, n, t) - eta [e(x_t, c, t) - e(x_t, n, t)]       equation 7, e being the model as it was

c is the concept, a caption of the data; n says nothing, or what is to be drawn instead. x_t is the model's own picture of c as
it stands at a level t of its sampler, so no pictures are needed: the data are prompts (`data: {type: prompts}`). Which layers
train: "x" those of cross-attention, for what a prompt must name; "u" all others, for what is to go whatever the prompt;
"kv" the keys and values of text alone.

Ours: `kept`, prompts at which the model is held as it was, in the same x_t.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from customization.base.config import CustomizationConfig
from customization.base.trainable_subset import Parts
from customization.methods.custom_diffusion import key_value_layers
from customization.methods.factors import PREFIX, FactorObjective, Factors, generator_of, kaiming
from distill.objectives.bases.student_sampling import as_exported
from distill.types import Batch, Draws
from gen.adapters import Delta
from gen.nn.conditions import join
from samplers.denoiser import Condition, Context
from samplers.noise import seeded_noise
from samplers.path import NoiseLevel, expand
from samplers.prediction import Prediction
from samplers.registry import get_grid, solver_info
from samplers.sample import trajectory

CROSS = ("cross", "attn2")  # parts of the names of cross-attention's layers: ours, diffusers'


class ErasureConfig(CustomizationConfig):
    """layers: x, u or kv (see the module). instead: what is drawn in the concept's place; "": nothing in particular. negative:
    eta. rank: of a LoRA that trains; None: whole matrices, as published. steps, guidance_scale: of the sampler that draws x_t,
    None for the model's. kept: prompts that are held; keep_weight: of their loss."""

    writes: ClassVar[str] = "full"

    adapter: None = None
    layers: Literal["x", "u", "kv"] = "x"
    instead: str = ""
    negative: float = Field(default=1.0, ge=0)
    rank: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=2)
    guidance_scale: float | None = Field(default=3.0, ge=0)
    kept: tuple[str, ...] = ()
    keep_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _draws_for_itself(self) -> ErasureConfig:
        unread = [name for name in ("time", "noise_offset", "noise_pyramid", "huber") if getattr(self, name)]
        if unread:
            raise ValueError(
                f"ESD draws its own noisy pictures and takes squares of errors; leave {' and '.join(unread)} out, or use lora"
            )
        return self


def erasing_target(concept: Tensor, instead: Tensor, negative: float) -> Tensor:
    """What the concept's prediction is trained to be; any linear read of the network at one x and level (B, C, h, w)."""
    return instead - negative * (concept - instead)  # equation 7 of arXiv 2303.07345


class ErasureObjective(FactorObjective):
    """See the module."""

    config: ErasureConfig

    def targets(self) -> list[str]:
        if self.config.text_adapter is not None or self.config.tokens:
            raise ValueError("ESD changes the denoiser alone; leave text_adapter and tokens out.")
        if self.generator.text_encoder is None:
            raise ValueError(f"The model {self.generator.name!r} reads no text, so there are no words for it to forget.")
        network = self.parts["denoiser"]
        if self.config.layers == "kv":
            return key_value_layers(network)
        names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        crossing = {name for name in names if set(name.split(".")) & set(CROSS)}
        chosen = [name for name in names if (name in crossing) == (self.config.layers == "x")]
        if not chosen:
            raise ValueError("The denoiser has no layers of cross-attention to train; give layers: u, which trains the others.")
        return chosen

    def factors(self, name: str, module: nn.Linear) -> Factors:
        rank = self.config.rank
        if rank is None:
            return Factors({"weight": torch.zeros(module.out_features, module.in_features)})
        down = kaiming(rank, module.in_features, generator_of(self.seed, name, "down"))
        return Factors({"down": down, "up": torch.zeros(module.out_features, rank)})

    def delta(self, name: str, matrices: Mapping[str, Tensor], factors: Factors) -> Delta:
        return Delta(dict(matrices))

    # ---- a step ----

    def untaught(self, run: Any, *args: Any) -> Any:
        """`run(*args)` with the model as it was."""
        last = f"{PREFIX}{'weight' if self.config.rank is None else 'up'}"
        zeros = {name: torch.zeros_like(value) for name, value in self.trains.items() if name.endswith(last)}
        with torch.no_grad():
            return functional_call(Parts(self.parts), zeros, (run, *args))

    def compute(self, batch: Batch, draws: Draws, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        if batch.captions is None:
            raise ValueError("ESD forgets the captions of its data; give data: {type: prompts, file: ...}, one a line.")
        concept = self.named(list(batch.captions))
        instead = self.named([config.instead] * len(batch.captions)) if config.instead else concept.null()
        x, level = self.untaught(self.own_picture, concept, draws)
        before, other = (self.untaught(self.predict, x, level, one).raw for one in (concept, instead))
        wanted = erasing_target(before, other, config.negative)
        loss = self.squared(self.predict(x, level, concept), wanted)
        if not config.kept:
            return loss, {}
        chosen = (draws.uniform("kept") * len(config.kept)).long().tolist()
        kept = self.named([config.kept[i] for i in chosen])
        held = self.squared(self.predict(x, level, kept), self.untaught(self.predict, x, level, kept).raw)
        return loss + config.keep_weight * held, {"loss_erase": loss.detach(), "loss_keep": held.detach()}

    def squared(self, prediction: Prediction, wanted: Tensor) -> Tensor:
        """The mean squared distance of the network's own output, weighted as the config says."""
        weight = torch.as_tensor(self.diffusion.weight(prediction.level), device=wanted.device)
        return (expand(weight, wanted) ** 2 * (prediction.raw.float() - wanted.float()).square()).mean()

    def named(self, captions: list[str]) -> Condition:
        """One condition of some prompts."""
        return self._sized(join(self.read(captions)), self._shape(len(captions)))

    def _shape(self, rows: int) -> Tensor:
        generator = self.generator
        side = generator.config.sample_size // generator.factor
        return torch.empty(rows, int(generator.network.config.channels), side, side, device=generator.device)

    def own_picture(self, concept: Condition, draws: Draws) -> tuple[Tensor, NoiseLevel]:
        """(x_t, t): the model's pictures as they stand after a number of steps of its sampler that is drawn."""
        generator, config = self.generator, self.config
        settings = generator.config.defaults
        guided, solver = as_exported(generator.denoiser, settings, config.guidance_scale)
        count = config.steps or settings.num_inference_steps
        levels = get_grid(settings.schedule, generator.denoiser.path, count, **settings.schedule_options)
        noise = draws.normal_like("eps", self._shape(len(draws.index)))
        stop = int(float(draws.uniform("stop")[0]) * (len(levels) - 1))  # the last level, clean, has nothing to predict
        added = seeded_noise(draws.index.tolist(), noise) if solver_info(settings.sampler).stochastic else None
        x = noise * levels[0].sigma
        if stop:
            for state in trajectory(guided, solver, x, levels[: stop + 1], concept, noise=added, context=Context()):
                x = state.x
        level, ones = levels[stop], torch.ones(len(x), device=x.device)
        return x, NoiseLevel(level.t * ones, level.alpha * ones, level.sigma * ones)
