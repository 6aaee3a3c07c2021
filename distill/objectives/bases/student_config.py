"""The settings that every method with a student has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from distill.networks.lora.overlay import LoraConfig
from distill.objectives.bases.teacher import TeacherConfig
from gen.models.folder import Option
from gen.nn.registry import Config
from samplers.registry import grid_info


class StudentPreviewConfig(Config):
    """The contact sheet made while training, by the student's own sampler; without text, labels of the batch."""

    prompts: tuple[str, ...] = ("a red heart", "a cat", "a rocket", "a house")


class StudentConfig(Config):
    """The settings of a student. Without a network section it has the teacher's own network.

    steps, schedule, schedule_options: the levels that the student is to sample with.
    embed_guidance: the student receives the guidance scale (its network's config needs scalars: [guidance]) and learns all of
    the teacher's range.
    guidance_scale: the one that the exported student draws with by default; None: the middle of the teacher's range.
    target_ema: decay of an averaged copy of the student that makes the targets; None: the student itself makes them.
    lora: train a LoRA on the teacher and export it alone, or, with `merge`, a whole model.
    start: the teacher's weights, or those that the run's init_from gave.
    drop_label: share of the samples that are trained without their label; empty captions are the data's (`drop_caption`).
    """

    teacher: TeacherConfig = TeacherConfig()
    steps: int = Field(default=4, gt=0)
    schedule: str = "uniform"
    schedule_options: dict[str, Option] = Field(default_factory=dict)
    embed_guidance: bool = False
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    target_ema: float | None = Field(default=None, ge=0, lt=1)
    lora: LoraConfig | None = None
    merge: bool = False
    start: Literal["teacher", "network"] = "teacher"
    drop_label: float = Field(default=0.1, ge=0, le=1)
    preview: StudentPreviewConfig = StudentPreviewConfig()

    @model_validator(mode="after")
    def _check(self) -> StudentConfig:
        grid_info(self.schedule)
        if self.lora is not None and self.embed_guidance:
            raise ValueError("a LoRA has no input for the guidance scale: leave embed_guidance or lora out")
        if self.lora is not None and self.start == "network":
            raise ValueError("a LoRA starts from the teacher: leave start out")
        return self

    @property
    def default_guidance_scale(self) -> float:
        """The scale that a student which receives one draws with by default."""
        scale = self.teacher.guidance_scale
        if self.guidance_scale is not None:
            return self.guidance_scale
        return sum(scale) / 2 if isinstance(scale, tuple) else scale


class UnguidedConfig(StudentConfig):
    """Of methods whose student learns from data: of the teacher they take weights and features, and no guided prediction."""

    @model_validator(mode="after")
    def _unguided(self) -> UnguidedConfig:
        if self.embed_guidance or self.teacher.guidance_scale != 1:
            raise ValueError(
                "this method learns from data and asks no guided teacher: leave embed_guidance and teacher.guidance_scale out"
            )
        return self
