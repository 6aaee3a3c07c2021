"""What methods that make a fast student of a trained model have in common: the teacher, the student, their samplers.

The teacher is a model folder. It decides the path, what the networks predict, the encoders and the scale of latents; the
student starts as its copy, or as a LoRA on it. A method subclasses `StudentObjective` and writes `loss`; every network is
called through `predict`, `teach` or `frozen`, which know the teacher's guidance and what the student is told.

Images or latents x are (B, C, H, W); levels hold one value per sample, (B,).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.checkpointing.resume import fill
from distill.losses import solver_steps as steps
from distill.networks.discriminator import shown_by, shown_widths
from distill.networks.lora.overlay import LoraConfig, LoraNetwork
from distill.objectives.bases.student_pictures import StudentPictures
from distill.parallel.data_parallel import bare
from distill.types import Batch, Draws, Role, drop_labels, knows_no_label
from gen.models.folder import ModelConfig, Option
from gen.models.options import DTYPES
from gen.models.pretrained import find_model, load_model
from gen.nn.conditions import join
from gen.nn.registry import Config, build, config_of
from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.guidance.two_branch import as_guided, both_branches, lerp, scale_at
from samplers.interval import EVERYWHERE
from samplers.path import NoiseLevel
from samplers.prediction import Guided, Prediction
from samplers.registry import get_grid, grid_info

if TYPE_CHECKING:
    from distill.data.source import Source

Scale = float | Tensor
Places = Callable[[int], tuple[int, ...]]  # the blocks that are judged, of so many


class TeacherConfig(Config):
    """The model that is distilled.

    model: "default", a model folder, a diffusers pipeline or a hub id. guidance_scale: a number, or [low, high] to draw one per
    sample uniformly; 1 is none. guidance_interval: (low, high) log-SNR in which guidance acts. solver, steps, schedule: how it
    is run, over how many levels of which grid. dtype: of its weights, which save memory as bfloat16.
    """

    model: str = "default"
    guidance_scale: float | tuple[float, float] = 1.0
    guidance_interval: tuple[float, float] | None = None
    solver: Literal["ddim", "euler", "heun"] = "ddim"
    steps: int = Field(64, gt=0)
    schedule: str = "uniform"
    schedule_options: dict[str, Option] = Field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _check(self) -> TeacherConfig:
        if isinstance(self.guidance_scale, tuple) and not self.guidance_scale[0] <= self.guidance_scale[1]:
            raise ValueError(f"guidance_scale {self.guidance_scale} is empty: give [low, high]")
        grid_info(self.schedule)
        return self


class StudentPreviewConfig(Config):
    """The contact sheet made while training, by the student's own sampler; without text, labels of the batch."""

    prompts: tuple[str, ...] = ("a red heart", "a cat", "a rocket", "a house")


class StudentConfig(Config):
    """What every method of this kind is told. Without a network section the student has the teacher's own network.

    steps, schedule: the levels that the student is to sample with. embed_guidance: the student is told the guidance scale
    (its network's config needs scalars: [guidance]) and learns all of the teacher's range. guidance_scale: the one that the
    exported student draws with by default; the middle of the teacher's range if not given. target_ema: decay of an averaged
    copy of the student that makes the targets; None: the student itself makes them. lora: train a LoRA on the teacher and
    export it alone, or, with `merge`, a whole model. start: the teacher's weights, or those that the run's init_from gave.
    drop_label: share of the samples that are trained without their label; empty captions are the data's (`drop_caption`).
    """

    teacher: TeacherConfig = TeacherConfig()
    steps: int = Field(4, gt=0)
    schedule: str = "uniform"
    schedule_options: dict[str, Option] = Field(default_factory=dict)
    embed_guidance: bool = False
    guidance_scale: float | None = Field(None, ge=0, le=100)
    target_ema: float | None = Field(None, ge=0, lt=1)
    lora: LoraConfig | None = None
    merge: bool = False
    start: Literal["teacher", "network"] = "teacher"
    drop_label: float = Field(0.1, ge=0, le=1)
    preview: StudentPreviewConfig = StudentPreviewConfig()

    @model_validator(mode="after")
    def _check(self) -> StudentConfig:
        grid_info(self.schedule)
        if self.lora is not None and self.embed_guidance:
            raise ValueError("a LoRA cannot be told the guidance scale: leave embed_guidance or lora out")
        if self.lora is not None and self.start == "network":
            raise ValueError("a LoRA starts from the teacher: leave start out")
        return self


@dataclass
class Teacher:
    """A loaded model: its config and networks."""

    model: ModelConfig
    network: nn.Module
    autoencoder: nn.Module | None = None
    text_encoder: nn.Module | None = None
    name: str = "unnamed"
    weights: Mapping[str, str] = field(default_factory=dict)  # sha256 of each part's file; none of networks made in memory

    @classmethod
    def load(cls, config: TeacherConfig) -> Teacher:
        name, folder = find_model(config.model)
        opened = load_model(folder)
        frozen = {part: network.eval().requires_grad_(False) for part, network in opened.parts.items()}
        network = frozen["denoiser"].to(DTYPES[config.dtype])
        return cls(opened.config, network, frozen.get("autoencoder"), frozen.get("text_encoder"), name, opened.weights)


class StudentObjective(StudentPictures):
    """Roles `student` (trains), `teacher` (frozen) and, with target_ema, `target`. Subclasses write `loss` and may set
    `sampler` and `sampler_options`, the solver that the student is sampled with, and `scalars`, what its network is told
    besides the time."""

    makes_network = True
    scalars: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, network: nn.Module, source: Source | None = None, teacher: Teacher | None = None):
        self.config = config
        self.given = teacher or Teacher.load(config.teacher)
        self.model = self.given.model
        self.autoencoder, self.text_encoder = self.given.autoencoder, self.given.text_encoder
        self.dtype = next((p.dtype for p in self.given.network.parameters()), None)
        self.dtype = None if self.dtype == torch.float32 else self.dtype
        self.path = self.denoiser(self.given.network).path
        if self.text_encoder is not None and hasattr(self.given.network, "set_null"):
            self.given.network.set_null(self.text_encoder.condition("", True))
        student = self._start(network)
        self.roles = {"student": Role(student), "teacher": Role(self.given.network, trains=False, ema=False)}
        if config.target_ema is not None:
            self.roles["target"] = following(student)
        options = dict(config.schedule_options)
        self.levels = steps.Ladder.of(get_grid(config.schedule, self.path, config.steps, **options))
        own = config.teacher
        self.teacher_levels = steps.Ladder.of(get_grid(own.schedule, self.path, own.steps, **own.schedule_options))

    def _start(self, network: nn.Module) -> nn.Module:
        config = self.config
        if getattr(self.given.network, "bridged", False) and (config.lora is None or config.merge):
            raise ValueError(
                f"The teacher {self.given.name!r} is a diffusers pipeline, whose copy cannot be saved as a model of ours: "
                "train a LoRA on it (objective.lora, for example {rank: 64}, without merge)."
            )
        if config.lora is not None:
            return LoraNetwork(self.given.network, config.lora)
        if isinstance(network, nn.Identity):
            network = self._like_teacher((*(("guidance",) if config.embed_guidance else ()), *self.scalars))
        told = "guidance" in (getattr(getattr(network, "config", None), "scalars", None) or ())
        if told != config.embed_guidance and hasattr(network, "config"):
            raise ValueError(
                f"embed_guidance is {str(config.embed_guidance).lower()}, but the student's network "
                f"{'is' if told else 'is not'} told a guidance scale; set network.scalars to "
                f"{'[guidance]' if config.embed_guidance else '[]'}, or embed_guidance to {str(told).lower()}."
            )
        if config.start == "teacher":
            copy_weights(self.given.network, network)
        return freeze_unread(network)

    def _like_teacher(self, scalars: tuple[str, ...]) -> nn.Module:
        """A network of the teacher's kind and sizes, in float32, that is told `scalars` besides."""
        teacher = self.given.network
        if not scalars:
            return copy.deepcopy(teacher).float().train().requires_grad_(True)
        if not hasattr(teacher.config, "scalars"):
            raise ValueError(
                f"The teacher's network cannot be told its {scalars[0]} ({type(teacher).__name__} has no such input); "
                + (
                    "leave embed_guidance out, and give one guidance_scale or train a LoRA."
                    if scalars[0] == "guidance"
                    else "this method needs a teacher on a DiT or U-ViT of ours."
                )
            )
        told = dict.fromkeys((*teacher.config.scalars, *scalars))
        return build({**config_of(teacher), "scalars": list(told)}).train().requires_grad_(True)

    # ---- the networks ----

    def denoiser(self, network: nn.Module, dtype: torch.dtype | None = None) -> NetworkDenoiser:
        return self.model.denoiser(network, dtype)

    def predict(self, network: nn.Module, x: Tensor, level: NoiseLevel, condition: Condition, scale: Scale = 1.0) -> Prediction:
        """The student's prediction, told the guidance scale if it reads one. Differentiable."""
        dtype = self.dtype if isinstance(bare(network), LoraNetwork) else None
        return self.denoiser(network, dtype)(x, level, self.told(condition, scale, x), Context())

    def told(self, condition: Condition, scale: Scale, x: Tensor) -> Condition:
        """The condition and, for a network that is told it, the guidance scale of each sample of x."""
        if not self.config.embed_guidance:
            return condition
        scale = scale if isinstance(scale, Tensor) else torch.full((len(x),), float(scale), device=x.device)
        return replace(condition, extra={**condition.extra, "guidance": scale})

    @torch.no_grad()
    def frozen(
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
        return self.predict(bare(models[role]), x, level, condition, scale)

    @torch.no_grad()
    def teach(
        self, models: Mapping[str, nn.Module], x: Tensor, level: NoiseLevel, condition: Condition, scale: Scale = 1.0
    ) -> Guided:
        """The teacher's prediction under classifier-free guidance of a scale, or one per sample; `cond` is the one without."""
        denoiser = self.denoiser(models["teacher"], self.dtype)
        if not isinstance(scale, Tensor) and scale == 1:
            plain = denoiser(x, level, condition, Context())
            return as_guided(plain, plain.raw, plain)
        cond, null = both_branches(denoiser, x, level, condition, None, Context())
        inside = scale_at(lambda _: torch.as_tensor(scale), self.config.teacher.guidance_interval or EVERYWHERE, level)
        return as_guided(cond, lerp(null.raw, cond.raw, inside), cond, null)

    @torch.no_grad()
    def teacher_step(
        self, models: Mapping[str, nn.Module], x: Tensor, s: NoiseLevel, t: NoiseLevel, condition: Condition, scale: Scale = 1.0
    ) -> Tensor:
        """x at t from x at s by one step of the teacher's solver."""

        def predict(x: Tensor, level: NoiseLevel) -> Prediction:
            return self.teach(models, x, level, condition, scale)

        return steps.step(self.config.teacher.solver, predict, x, s, t)

    def judged_by(self, network: nn.Module, chosen: Sequence[int], places: Places) -> tuple[tuple[int, ...], list[int]]:
        """(the blocks whose tokens a discriminator reads, the width of each): those chosen, or, none given, some of the way
        through; of a U-Net all levels on the way down and the middle."""
        size = self.latent_size()
        widths = shown_widths(self.denoiser(network, self.dtype), size, self.blank())
        blocks = tuple(chosen) or (places(len(widths)) if shown_by(network) == "block" else tuple(range(len(widths))))
        if max(blocks) >= len(widths):
            raise ValueError(f"The discriminator reads block {max(blocks)}, but the network has {len(widths)}, counted from 0.")
        return blocks, [widths[block] for block in blocks]

    def latent_size(self, most: int = 16) -> tuple[int, int, int]:
        """(C, H, W) of a small latent that the teacher's network takes."""
        config: Any = self.given.network.config
        factor = getattr(self.autoencoder, "factor", 1)
        side = max(min(self.model.sample_size // factor, most) // config.patch, 1) * config.patch
        return config.channels, side, side

    def blank(self) -> Condition:
        """The condition of one picture of nothing."""
        config: Any = self.given.network.config
        if self.text_encoder is None:
            return Condition(label=torch.tensor([0]) if getattr(config, "num_classes", 0) else None)
        device = next(self.given.network.parameters()).device
        return self.condition(Batch(index=torch.arange(1), captions=[""]), device)

    # ---- the batch ----

    def scale(self, draws: Draws, device: torch.device) -> Scale:
        """The teacher's guidance scale: its number, or one per sample (B,)."""
        given = self.config.teacher.guidance_scale
        if not isinstance(given, tuple):
            return given
        return given[0] + (given[1] - given[0]) * draws.uniform("guidance", device=device)

    def pick(self, draws: Draws, purpose: str, count: int, device: torch.device) -> Tensor:
        """(B,) int64, uniform over 0 ... count - 1."""
        return (draws.uniform(purpose, device=device).double() * count).long().clamp(max=count - 1)

    def pick_start(self, draws: Draws, count: int, noisiest_share: float, device: torch.device) -> Tensor:
        """(B,) int64 as `pick`, but the last of them, the noisiest, for a share of the samples besides."""
        noisiest = draws.uniform("noisiest", device=device) < noisiest_share
        return torch.where(noisiest, count - 1, self.pick(draws, "step", count, device))

    @torch.no_grad()
    def clean(self, batch: Batch) -> Tensor:
        """The x0 of a batch (B, C, h, w), float32: scaled latents, or the pictures themselves."""
        if batch.latents is not None:
            return batch.latents * self.model.latent_scale
        if self.autoencoder is None:
            return batch.images
        return self.autoencoder.to(batch.images.device).encode(batch.images).float() * self.model.latent_scale

    def dropped(self, batch: Batch, draws: Draws, group: int = 1) -> Batch:
        """The batch without a share of its labels, where the networks know what no label is."""
        share = self.config.drop_label if knows_no_label(self.given.network) else 0.0
        return drop_labels(batch, share, draws, group)

    @torch.no_grad()
    def condition(self, batch: Batch, device: torch.device, draws: Draws | None = None) -> Condition:
        """What the captions or labels of a batch say; in training, with its draws, without a share of the labels."""
        batch = batch if draws is None else self.dropped(batch, draws)
        if self.text_encoder is None or batch.captions is None:
            return Condition(label=batch.labels if getattr(self.given.network.config, "num_classes", 0) else None)
        encoder = self.text_encoder.to(device)
        if not hasattr(encoder, "encode"):
            return join([encoder.condition(caption) for caption in batch.captions])
        tokens, mask = encoder.encode(batch.captions)
        return Condition(tokens=tokens.float(), mask=mask)

    # ---- after a step, and what is kept ----

    def after_step(self, step: int) -> None:
        if "target" in self.roles:
            move_towards(self.roles["target"].network, self.roles["student"].network, self.config.target_ema)

    def kept(self) -> dict[str, nn.Module]:
        """Networks that neither train nor stay as they were: a checkpoint has them."""
        return {"target": self.roles["target"].network} if "target" in self.roles else {}

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{role}.{name}": v for role, network in self.kept().items() for name, v in network.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        kept = self.kept()
        unknown = sorted(name for name in state if name.partition(".")[0] not in kept)
        if unknown:
            raise ValueError(f"{type(self).__name__} keeps no {unknown[0]!r}, which the checkpoint holds.")
        for role, network in kept.items():
            own = {name.partition(".")[2]: value for name, value in state.items() if name.partition(".")[0] == role}
            fill(network, own)


def freeze_unread(network: nn.Module) -> nn.Module:
    """Leave out of the training what the network's output does not depend on: the coarse outputs of several resolutions. They
    are a teacher's own loss (`diffusion`), and a parameter without a gradient would stop data-parallel training."""
    for parameter in network.unread() if hasattr(network, "unread") else ():  # type: ignore[operator]
        parameter.requires_grad_(False)
    return network


def following(network: nn.Module) -> Role:
    """The role of a frozen copy."""
    return Role(copy.deepcopy(network).eval().requires_grad_(False), trains=False, ema=False, follows=True)


@torch.no_grad()
def move_towards(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) network, over all floating tensors; 0 copies. Both whole, or both in shards."""
    for mine, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mine.is_floating_point() and decay:
            mine.lerp_(theirs.to(mine), 1 - decay)
        else:
            mine.copy_(theirs)


@torch.no_grad()
def copy_weights(teacher: nn.Module, student: nn.Module) -> None:
    """Start a student as its teacher. It may have `scalar_embeds` more, which begin at zero; anything else is an error."""
    theirs, own = teacher.state_dict(), student.state_dict()
    extra = [name for name in own if name not in theirs and not name.startswith("scalar_embeds.")]
    left = [name for name in theirs if name not in own]
    other = [name for name in own if name in theirs and own[name].shape != theirs[name].shape]
    if extra or left or other:
        what = f"lacks {left[0]}" if left else f"has {extra[0]} besides" if extra else f"has another shape of {other[0]}"
        raise ValueError(
            f"The student's network is not the teacher's: it {what}. Give the teacher's network section, or set "
            "objective.start to network."
        )
    for name, value in own.items():
        if name in theirs:
            value.copy_(theirs[name])
