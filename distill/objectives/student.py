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
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill import steps
from distill.discriminator import shown_by, shown_widths
from distill.lora import LoraConfig, LoraNetwork
from distill.objective import Batch, Draws, Objective, Preview, Role, drop_labels, knows_no_label
from distill.parallel import bare
from distill.saving import fill
from gen.checkpoints import write_bytes
from gen.components import Config, build, config_of
from gen.conditions import join
from gen.model_folder import Defaults, ModelConfig, Option, write_model
from gen.pretrained import DTYPES, find_model, load_model
from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.guidance.branches import EVERYWHERE, Guided, both_branches, guided, lerp, scale_at
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.registry import get_grid, get_solver, grid_info, solver_info

if TYPE_CHECKING:
    from distill.data import Source

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


class StudentObjective(Objective):
    """Roles `student` (trains), `teacher` (frozen) and, with target_ema, `target`. Subclasses write `loss` and may set
    `sampler` and `sampler_options`, the solver that the student is sampled with, and `scalars`, what its network is told
    besides the time."""

    makes_network = True
    draws_pictures = True
    sampler: ClassVar[str] = "ddim"
    sampler_options: ClassVar[Mapping[str, Any]] = {}
    scalars: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = ""  # of the method, for the model card

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
            return guided(plain, plain.raw, plain)
        cond, null = both_branches(denoiser, x, level, condition, None, Context())
        inside = scale_at(lambda _: torch.as_tensor(scale), self.config.teacher.guidance_interval or EVERYWHERE, level)
        return guided(cond, lerp(null.raw, cond.raw, inside), cond, null)

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

    # ---- pictures and the result ----

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
        from distill.references import digest, weights_digest

        networks = {"denoiser": self.given.network, "autoencoder": self.autoencoder, "text_encoder": self.text_encoder}
        how = self.config.teacher.model_dump_json(exclude={"model", "steps"})
        return digest(weights_digest(networks), self.model.model_dump_json(), how, self.default_scale())

    def inputs(self) -> dict[str, str]:
        from distill.references import digest

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
