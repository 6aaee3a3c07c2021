"""What methods that make a fast student of a trained model have in common: the teacher, the student, their samplers.

The teacher is a model folder. It decides the path, what the networks predict, the encoders and the scale of latents; the
student starts as its copy, or as a LoRA on it. A method subclasses `StudentObjective` and writes `loss`; every network is
called through `predict`, `teacher_predict` or `target_predict`, which know the teacher's guidance and what the student
receives.

Images or latents x are (B, C, H, W); levels hold one value per sample, (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.data.source import Source
from distill.losses import solver_steps
from distill.losses.solver_steps import LevelTable
from distill.networks.discriminator import choose_blocks
from distill.networks.lora.overlay import LoraNetwork
from distill.objectives.bases.frozen_copies import copies_state, ema_update, frozen_copy, load_copies
from distill.objectives.bases.objective import Objective
from distill.objectives.bases.student_export import export_student
from distill.objectives.bases.student_network import make_student
from distill.objectives.bases.student_sampling import sample_as_exported, sample_as_teacher, unit_noise
from distill.objectives.bases.teacher import Scale, Teacher, predict_guided
from distill.optim.precision import autocast
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Preview, Role, drop_labels, knows_no_label
from gen.models.folder import Defaults
from samplers.denoiser import Condition, Context
from samplers.guidance.two_branch import Guided
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.registry import get_grid

Places = Callable[[int], tuple[int, ...]]  # the blocks that are judged, of so many


class StudentObjective(Objective):
    """Roles `student` (trains), `teacher` (frozen) and, with target_ema, `target`.

    Subclasses write `loss` and may set `sampler` and `sampler_options`, the solver that the student is sampled with; `scalars`,
    what its network receives besides the time; and `source`, the paper, for the model card.
    """

    makes_network = True
    draws_pictures = True
    scalars: ClassVar[tuple[str, ...]] = ()
    sampler: str = "ddim"
    sampler_options: Mapping[str, Any] = {}
    source: ClassVar[str] = ""
    config: Any

    def __init__(self, config: Any, network: nn.Module, source: Source | None = None, teacher: Teacher | None = None):
        self.config = config
        self.teacher = teacher or Teacher.load(config.teacher)
        self.model = self.teacher.model
        self.autoencoder, self.text_encoder = self.teacher.autoencoder, self.teacher.text_encoder
        self.dtype, self.path = self.teacher.dtype, self.teacher.path
        self.teacher.read_null()
        self.levels = LevelTable.of(get_grid(config.schedule, self.path, config.steps, **config.schedule_options))
        student = self.make_student(network)
        self.roles = {"student": Role(student), "teacher": Role(self.teacher.network, trains=False, ema=False)}
        if config.target_ema is not None:
            self.roles["target"] = frozen_copy(student)
        of = config.teacher
        self.teacher_levels = LevelTable.of(get_grid(of.schedule, self.path, of.steps, **of.schedule_options))

    def make_student(self, network: nn.Module) -> nn.Module:
        """The network that trains. network: the one that the run's config describes, an identity for none."""
        return make_student(self.config, self.teacher, network, self.scalars)

    @property
    def reads_text(self) -> bool:
        """Do captions reach the networks? What does not tells no samples apart."""
        return self.text_encoder is not None

    # ---- the networks ----

    def predict(self, network: nn.Module, x: Tensor, level: NoiseLevel, condition: Condition, scale: Scale = 1.0) -> Prediction:
        """The student's prediction, given the guidance scale if it reads one. Differentiable."""
        dtype = self.dtype if isinstance(unwrap(network), LoraNetwork) else None
        return self.teacher.denoiser(network, dtype)(x, level, self.with_guidance(condition, scale, x), Context())

    def with_guidance(self, condition: Condition, scale: Scale, x: Tensor) -> Condition:
        """The condition and, for a network that receives it, the guidance scale of each sample of x."""
        if not self.config.embed_guidance:
            return condition
        scale = scale if isinstance(scale, Tensor) else torch.full((len(x),), float(scale), device=x.device)
        return replace(condition, extra={**condition.extra, "guidance": scale})

    @torch.no_grad()
    def target_predict(
        self,
        models: Mapping[str, nn.Module],
        x: Tensor,
        level: NoiseLevel,
        condition: Condition,
        scale: Scale = 1.0,
        role: str | None = None,
    ) -> Prediction:
        """The prediction that targets are made of, without gradients: by `role`, or the averaged student where there is one,
        or the student itself."""
        role = role or ("target" if "target" in self.roles else "student")
        return self.predict(unwrap(models[role]), x, level, condition, scale)

    @torch.no_grad()
    def teacher_predict(
        self, models: Mapping[str, nn.Module], x: Tensor, level: NoiseLevel, condition: Condition, scale: Scale = 1.0
    ) -> Guided:
        """The teacher's prediction under classifier-free guidance of a scale, or one per sample; `cond` is the one without. No
        gradients."""
        denoiser = self.teacher.denoiser(models["teacher"], self.dtype)
        return predict_guided(denoiser, x, level, condition, scale, self.config.teacher.guidance_interval)

    @torch.no_grad()
    def teacher_step(
        self, models: Mapping[str, nn.Module], x: Tensor, s: NoiseLevel, t: NoiseLevel, condition: Condition, scale: Scale = 1.0
    ) -> Tensor:
        """x at t from x at s by one step of the teacher's solver."""

        def predict(x: Tensor, level: NoiseLevel) -> Prediction:
            return self.teacher_predict(models, x, level, condition, scale)

        return solver_steps.step(self.config.teacher.solver, predict, x, s, t)

    def judged_blocks(self, chosen: Sequence[int], places: Places) -> tuple[tuple[int, ...], list[int]]:
        """(the blocks of the teacher whose tokens a discriminator reads, the width of each): see `choose_blocks`."""
        denoiser = self.teacher.denoiser(self.teacher.network, self.dtype)
        return choose_blocks(denoiser, self.teacher.latent_size(), self.teacher.empty_condition(), chosen, places)

    # ---- the batch ----

    def scale(self, draws: Draws, device: torch.device) -> Scale:
        """The teacher's guidance scale: its number, or one per sample (B,)."""
        scale = self.config.teacher.guidance_scale
        if not isinstance(scale, tuple):
            return scale
        low, high = scale
        return low + (high - low) * draws.uniform("guidance", device=device)

    def clean(self, batch: Batch) -> Tensor:
        """The x0 of a batch (B, C, h, w), float32: scaled latents, or the pictures themselves."""
        return self.teacher.clean(batch)

    def condition(self, batch: Batch, device: torch.device, draws: Draws | None = None) -> Condition:
        """What the captions or labels of a batch say; in training, with its draws, without a share of the labels."""
        return self.teacher.condition(batch if draws is None else self.dropped(batch, draws), device)

    def dropped(self, batch: Batch, draws: Draws, group: int = 1) -> Batch:
        """The batch without a share of its labels, where the networks know what no label is."""
        share = self.config.drop_label if knows_no_label(self.teacher.network) else 0.0
        return drop_labels(batch, share, draws, group)

    # ---- pictures ----

    def defaults(self) -> Defaults:
        """How the exported student samples."""
        config = self.config
        return Defaults(
            num_inference_steps=config.steps,
            guidance_scale=config.default_guidance_scale if config.embed_guidance else 1.0,
            guidance="embedded" if config.embed_guidance else "cfg",
            sampler=self.sampler,
            sampler_options=dict(self.sampler_options),
            schedule=config.schedule,
            schedule_options=config.schedule_options,
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
        settings = self.defaults()

        def predict(x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
            return self.predict(network, x, level, condition, settings.guidance_scale)

        return sample_as_exported(predict, self.path, settings, noise, condition, seeds, steps)

    def decode(self, x0: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of x0 (B, C, h, w), differentiable in it, and not kept to [-1, 1]."""
        return self.teacher.decode(x0)

    @torch.no_grad()
    def render(self, x0: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of x0 (B, C, h, w)."""
        return self.decode(x0).clamp(-1, 1)

    def decoded(self, batch: Batch) -> Tensor:
        return batch.images if batch.images is not None else self.render(self.clean(batch))

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview | None:
        like, prompts = self.clean(batch), self.config.preview.prompts
        reads_text = self.text_encoder is not None
        count = len(prompts) if reads_text else min(16, len(batch))
        if reads_text:
            condition = self.condition(Batch(index=torch.arange(count), captions=prompts), like.device)
        else:
            condition = self.condition(batch, like.device).map(lambda v: v[:count])
        seeds = range(seed, seed + count)
        with autocast(like.device):
            images = self.render(self.draw(models["student"], unit_noise(seeds, like), condition, seeds))
        return images, prompts if reads_text else None

    def check_steps(self, steps: int) -> None:
        settings = self.defaults()
        get_grid(settings.schedule, self.path, steps, **settings.schedule_options)

    @torch.no_grad()
    def pictures(self, models: Mapping[str, nn.Module], batch: Batch, seeds: Sequence[int], steps: int) -> Tensor:
        like = self.clean(batch)
        condition = self.condition(batch, like.device)
        return self.render(self.draw(models["student"], unit_noise(seeds, like), condition, seeds, steps))

    @torch.no_grad()
    def teacher_sample(self, batch: Batch, seeds: Sequence[int], steps: int) -> Tensor:
        """Pictures by the teacher's own solver at the scale that the student draws with."""
        scale, like = self.config.default_guidance_scale, self.clean(batch)

        def predict(x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
            return self.teacher_predict({"teacher": self.teacher.network}, x, level, condition, scale)

        condition = self.condition(batch, like.device)
        return self.render(
            sample_as_teacher(predict, self.path, self.config.teacher, unit_noise(seeds, like), condition, steps)
        )

    # ---- files ----

    def teacher_digest(self) -> str:
        return self.teacher.sampling_digest(self.config.teacher, self.config.default_guidance_scale)

    def inputs(self) -> dict[str, str]:
        return {"teacher": self.teacher.files_digest()}

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """A model folder that samples in `steps` steps by itself, or a LoRA folder for `load_adapter` (see `StudentConfig`)."""
        method = type(self).__name__.removesuffix("Objective")
        export_student(models["student"], self.teacher, self.defaults(), method, self.source, self.config.merge, folder)

    # ---- after a step, and what is kept ----

    def after_step(self, step: int) -> None:
        if "target" in self.roles:
            ema_update(self.roles["target"].network, self.roles["student"].network, self.config.target_ema)

    def kept(self) -> dict[str, nn.Module]:
        """Networks that neither train nor stay as they were: a checkpoint has them."""
        return {"target": self.roles["target"].network} if "target" in self.roles else {}

    def state_dict(self) -> dict[str, Tensor]:
        return copies_state(self.kept())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        load_copies(self.kept(), state, type(self).__name__)
