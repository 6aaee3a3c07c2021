"""One picture by several models: unite and conquer, and collaborative diffusion, from open Generators.

    unite([Part(a, "a red heart", scale=3.0, reliability=0.5), Part(b, "a flower", scale=2.0, reliability=0.5)], seed=1)
    collaborate([Part(a, "a red heart"), Part(b)], "runs/distill/collaborate/export", seed=1)

The first model decides the size, the noise path and how latents become pictures; the others must work on the same latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gen.io.threads import all_of
from gen.io.validators import check_float, check_int, check_text
from gen.pipeline.subjects import draw_seeds, read_labels
from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.cfg import ClassifierFree
from samplers.multi_model.collaborative_diffusion import CollaborativeDiffusion
from samplers.multi_model.unite_and_conquer import Member, UniteAndConquer
from samplers.noise import normal, seeded_noise
from samplers.registry import get_grid, get_solver
from samplers.sample import sample

if TYPE_CHECKING:
    from PIL import Image

    from gen.models.model import Model


@dataclass(frozen=True)
class Part:
    """One model and its condition: a prompt, or a class of a model of classes; None is nothing.

    scale: how strongly that counts, the model's own guidance scale if None.
    reliability: how much `unite` trusts its unconditional prediction; those of all models sum to 1.
    """

    model: Model
    prompt: str | int | None = None
    scale: float | None = None
    reliability: float = 1.0

    @property
    def strength(self) -> float:
        scale = self.model.config.defaults.guidance_scale if self.scale is None else self.scale
        return check_float("scale", scale, -100, 100)

    def condition(self) -> Condition:
        """(1, ...)."""
        model, condition = self.model, Condition()
        if model.text_encoder is not None:
            model.read_null(model.adapters)
            condition = model.encode_prompt([check_text("prompt", self.prompt or "")], model.adapters)
        elif model.classes:
            label = read_labels(-1 if self.prompt is None else self.prompt, model.config.classes, model.classes)
            condition = Condition(label=torch.tensor(label, device=model.device))
        elif self.prompt is not None:
            raise ValueError(f"The model {model.name!r} is unconditional; leave its prompt out.")
        return condition


def unite(parts: Sequence[Part], *, seed: int = 0, count: int = 1, **call: Any) -> list[Image.Image]:
    """Pictures by unite and conquer (`samplers.multi_model.unite_and_conquer`): seeds seed, seed + 1, ... call:
    num_inference_steps, sampler, schedule, by default the first model's. ValueError says which models cannot work together."""
    check(parts)
    members = tuple(
        Member(p.model.denoiser, p.condition(), p.strength, p.reliability, adapters=dict(p.model.adapters)) for p in parts
    )
    with all_of(part.model.network for part in parts):
        return _run(parts[0].model, UniteAndConquer(members), seed, count, **call)


def collaborate(
    parts: Sequence[Part], influence: str | Path, *, seed: int = 0, count: int = 1, **call: Any
) -> list[Image.Image]:
    """Pictures by collaborative diffusion (`samplers.multi_model.collaborative_diffusion`), with the maps that `distill.train`
    has exported to the folder `influence` for these models in this order. Each model has its own guidance. Otherwise as
    `unite`."""
    from gen.models.components import load_component
    from gen.nn.influence_networks import Influences

    check(parts)
    first = parts[0].model
    network = load_component(influence, "influence")
    if not isinstance(network, Influences):
        raise ValueError(f"{influence} holds no influence maps; give what configs/distill/collaborate.yaml exports.")
    network = network.to(first.device)
    denoisers = [_guided(part) for part in parts]
    with all_of(part.model.network for part in parts):
        return _run(
            first, CollaborativeDiffusion(network.members(denoisers, [p.condition() for p in parts])), seed, count, **call
        )


def check(parts: Sequence[Part]) -> None:
    """ValueError unless there are models, of one kind of latents, on one device."""
    if not parts:
        raise ValueError("There are no models to work together; give one or more.")
    first = parts[0].model
    for part in parts[1:]:
        other = part.model
        for name in ("channels", "factor", "device"):
            mine, its = getattr(first, name), getattr(other, name)
            if mine != its:
                raise ValueError(f"The {name} of {first.name!r} is {mine}, and of {other.name!r} {its}; choose models alike.")
        if first.config.latent_scale != other.config.latent_scale:
            raise ValueError(
                f"The latents of {other.name!r} have another scale than those of {first.name!r}; choose models alike."
            )


def _guided(part: Part) -> Denoiser:
    denoiser = part.model.denoiser
    return denoiser if part.prompt is None or part.strength == 1 else ClassifierFree(denoiser, part.strength)


@torch.no_grad()
def _run(
    first: Model,
    denoiser: Denoiser,
    seed: int,
    count: int,
    num_inference_steps: int | None = None,
    sampler: str | None = None,
    schedule: str | None = None,
) -> list[Image.Image]:
    from gen.pipeline.output import to_pil

    defaults, count = first.config.defaults, check_int("count", count, 1, 1024)
    steps = check_int("num_inference_steps", num_inference_steps or defaults.num_inference_steps, 1, 1000)
    solver = get_solver(sampler or defaults.sampler, **({} if sampler else defaults.sampler_options))
    levels = get_grid(schedule or defaults.schedule, denoiser.path, steps, **({} if schedule else defaults.schedule_options))
    seeds, side = draw_seeds(count, seed, None, None), first.config.sample_size // first.factor
    noise = normal(seeds, (first.channels, side, side), "latents", device=first.device)
    context = Context(adapters=dict(first.adapters))
    x = sample(denoiser, solver, noise * levels[0].sigma, levels, noise=seeded_noise(seeds, noise), context=context)
    return to_pil(first.decode(x).permute(0, 2, 3, 1).cpu().numpy())
