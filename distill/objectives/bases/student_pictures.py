"""What a student's pictures are and what a run of it leaves: previews, evaluations, the exported model and its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.networks.lora.overlay import LoraNetwork
from distill.objectives.bases.objective import Objective
from distill.types import Batch, Preview
from gen.io.weights import write_bytes
from gen.models.folder import Defaults, ModelConfig, write_model
from samplers.denoiser import Condition, Context
from samplers.path import NoiseLevel
from samplers.path import Path as NoisePath
from samplers.prediction import Prediction
from samplers.registry import get_grid, get_solver, solver_info


class StudentPictures(Objective):
    """The half of `StudentObjective` that draws and writes."""

    draws_pictures = True
    sampler: ClassVar[str] = "ddim"
    sampler_options: ClassVar[Mapping[str, Any]] = {}
    source: ClassVar[str] = ""  # of the method, for the model card
    config: Any
    given: Any  # the teacher
    model: ModelConfig
    autoencoder: nn.Module | None
    text_encoder: nn.Module | None
    path: NoisePath
    predict: Any
    teach: Any
    condition: Any

    def default_scale(self) -> float:
        """The guidance scale that a student which reads one is told by default."""
        given = self.config.teacher.guidance_scale
        if self.config.guidance_scale is not None:
            return self.config.guidance_scale
        return sum(given) / 2 if isinstance(given, tuple) else given

    def defaults(self) -> Defaults:
        """How the exported student samples."""
        return Defaults(
            num_inference_steps=self.config.steps,
            guidance_scale=self.default_scale() if self.config.embed_guidance else 1.0,
            guidance="embedded" if self.config.embed_guidance else "cfg",
            sampler=self.sampler,
            sampler_options=dict(self.sampler_options),
            schedule=self.config.schedule,
            schedule_options=self.config.schedule_options,
        )

    @torch.no_grad()
    def draw(
        self,
        network: nn.Module,
        noise: Tensor,
        condition: Condition,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """x0 (B, C, h, w) from unit noise by the sampler of `defaults`, or in `steps` steps; `seeds`, one per row, for one that
        adds noise."""
        from samplers.noise import seeded_noise
        from samplers.sample import sample

        class Student:
            path = self.path

            def __call__(_, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
                return self.predict(network, x, level, condition, settings.guidance_scale)

        settings = self.defaults()
        count = settings.num_inference_steps if steps is None else steps
        levels = get_grid(settings.schedule, self.path, count, **settings.schedule_options)
        solver = get_solver(settings.sampler, **settings.sampler_options)
        more = seeded_noise(seeds or range(len(noise)), noise) if solver_info(settings.sampler).stochastic else None
        return sample(Student(), solver, noise * levels[0].sigma, levels, condition, noise=more)

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview | None:
        from samplers.noise import normal

        like, prompts = self.clean(batch), self.config.preview.prompts
        read = self.text_encoder is not None
        count = len(prompts) if read else min(16, len(batch))
        if read:
            condition = self.condition(Batch(index=torch.arange(count), captions=prompts), like.device)
        else:
            condition = self.condition(batch, like.device).map(lambda v: v[:count])
        seeds = range(seed, seed + count)
        noise = normal(seeds, like.shape[1:], device=like.device, dtype=like.dtype)
        with torch.autocast(like.device.type, torch.bfloat16):
            images = self.decode(self.draw(models["student"], noise, condition, seeds))
        return images, prompts if read else None

    def check_pictures(self, instead: str) -> None:
        """ValueError where the teacher draws no pictures that a network of pictures could look at."""
        sizes: Any = getattr(self.given.network, "config", None)
        channels = getattr(sizes, "channels", 3)
        if self.autoencoder is None and channels != 3:
            raise ValueError(
                f"Pictures are judged, but the teacher {self.given.name!r} draws {channels} channels and has no "
                f"autoencoder to make pictures of them; choose another teacher, or {instead}."
            )

    def seen(self, x0: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of x0 (B, C, h, w), differentiable in it, and not kept to [-1, 1]."""
        latents = x0 / self.model.latent_scale
        return (latents if self.autoencoder is None else self.autoencoder.to(x0.device).decode(latents)).float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of x0 (B, C, h, w)."""
        return self.seen(x0).clamp(-1, 1)

    def decoded(self, batch: Batch) -> Tensor:
        return batch.images if batch.images is not None else self.decode(self.clean(batch))

    def check_steps(self, steps: int) -> None:
        settings = self.defaults()
        get_grid(settings.schedule, self.path, steps, **settings.schedule_options)

    @torch.no_grad()
    def pictures(self, models: Mapping[str, nn.Module], batch: Batch, seeds: Sequence[int], steps: int) -> Tensor:
        noise, condition = self._begin(batch, seeds)
        return self.decode(self.draw(models["student"], noise, condition, seeds, steps))

    @torch.no_grad()
    def taught(self, batch: Batch, seeds: Sequence[int], steps: int) -> Tensor:
        """Pictures by the teacher's own solver at the scale that the student draws with."""
        from samplers.sample import sample

        class Guiding:
            path = self.path

            def __call__(_, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
                return self.teach({"teacher": self.given.network}, x, level, condition, scale)

        own, scale = self.config.teacher, self.default_scale()
        noise, condition = self._begin(batch, seeds)
        levels = get_grid(own.schedule, self.path, steps, **own.schedule_options)
        return self.decode(sample(Guiding(), get_solver(own.solver), noise * levels[0].sigma, levels, condition))

    def teacher_digest(self) -> str:
        from distill.eval.references import digest, weights_digest

        networks = {"denoiser": self.given.network, "autoencoder": self.autoencoder, "text_encoder": self.text_encoder}
        how = self.config.teacher.model_dump_json(exclude={"model", "steps"})
        return digest(weights_digest(networks), self.model.model_dump_json(), how, self.default_scale())

    def inputs(self) -> dict[str, str]:
        from distill.eval.references import digest

        return {"teacher": digest(sorted(self.given.weights.items()), self.model.model_dump_json())}

    def _begin(self, batch: Batch, seeds: Sequence[int]) -> tuple[Tensor, Condition]:
        """(unit noise, one seed a row; what to draw)."""
        from samplers.noise import normal

        like = self.clean(batch)
        noise = normal(seeds, like.shape[1:], device=like.device, dtype=like.dtype)
        return noise, self.condition(batch, like.device)

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """A model folder that samples in `steps` steps by itself, or a LoRA folder for `load_adapter` (see `StudentConfig`)."""
        network, settings = models["student"], self.defaults()
        if isinstance(network, LoraNetwork) and not self.config.merge:
            network.save(folder, type(self).__name__.removesuffix("Objective").lower())
            write_bytes(folder / "README.md", self.card(settings, adapter=True).encode())
            return
        if isinstance(network, LoraNetwork):
            network = network.merged()
        config = self.model.model_copy(update={"defaults": settings})
        write_model(folder, config, network, self.autoencoder, self.text_encoder, readme=self.card(settings))

    def card(self, settings: Defaults, adapter: bool = False) -> str:
        """The text of README.md."""
        method = type(self).__name__.removesuffix("Objective")
        kind = "A LoRA" if adapter else "A model"
        sampler = f"--sampler {settings.sampler} --schedule {settings.schedule} --steps {settings.num_inference_steps}"
        usage = f"fewstep image --model {self.given.name} --lora THIS_FOLDER {sampler} --guidance-scale 1" if adapter else (
            'fewstep image "a red heart" --model THIS_FOLDER'
        )  # fmt: skip
        return (
            f"# {self.given.name}, {method}\n\n{kind} that makes pictures in {settings.num_inference_steps} step"
            f"{'s' if settings.num_inference_steps > 1 else ''}, distilled from {self.given.name!r} with {method}"
            f"{f' ({self.source})' if self.source else ''}.\n\n    {usage}\n"
        )
