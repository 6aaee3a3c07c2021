"""Training of an autoencoder's decoder for latents as models make them: flat colours and closed outlines though these are off.

The encoder stays, so every model and adapter in its latent space stays valid. The decoder sees, in shares of each batch:

- encodings of drawings with a little noise;
- a teacher's clean image of a drawing noised to a random level, with guidance, and a few-step student's: both should decode
  to the drawing;
- pictures that these models draw from noise, which have no original and are only judged.

Loss = |y - x| + w_g |grad y - grad x| + w_p d(y, x) on the first three, d the distance of a network's features, minus w_a times
the logits of a small discriminator of patches (hinge loss, with the penalty on its gradient at real pictures of Mescheder et
al. 2018, arXiv 1801.04406, equation 9) on all. Fine-tuning a decoder by a discriminator of patches beside a reconstruction and
a perceptual distance: arXiv 2012.09841, section 3.1. What is beyond white where the drawing is white is no error, nor beyond
black: it is clamped when the picture is shown.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.adversarial import AdversarialLossConfig
from distill.losses.distances import psnr
from distill.losses.pictures import gradient_difference, within_white
from distill.networks.feature_maps import load_feature_maps, picture_distance
from distill.networks.patch_discriminator import PatchDiscriminator, fooling_loss, telling_loss
from distill.objectives.bases.objective import Objective
from distill.objectives.bases.student_sampling import as_exported, sample_by
from distill.objectives.bases.teacher import Scale, Teacher, TeacherConfig, predict_guided
from distill.parallel.shards import detached_weights, unwrap
from distill.types import Batch, Draws, Phase, Preview, Role, pictures_of, rows_of
from gen.models.components import save_component
from samplers.denoiser import Context

MEASURED = 64  # pictures


class DecoderConfig(AdversarialLossConfig):
    """teacher: the model whose autoencoder's decoder trains; its `guidance_scale` is that of predictions.

    student: a few-step model in the same latent space. predicted, student_predicted, sampled: shares of the batch; the rest
    are encodings. times: (lowest, highest) noise level of predictions, as a share of the path's clock. teacher_every: at every
    so many steps pictures from noise are the teacher's, otherwise the student's. student_steps: in how many steps, in turn.
    noise: standard deviation of the noise on encodings. features: a network of `distill/networks/feature_maps.py`.
    adversarial_from: the step from which the decoder sees the discriminator. penalty: of the discriminator's gradient.
    """

    teacher: TeacherConfig = TeacherConfig(guidance_scale=(1.0, 5.0))
    student: TeacherConfig | None = None
    predicted: float = Field(default=0.4, ge=0, le=1)
    student_predicted: float = Field(default=0.0, ge=0, le=1)
    sampled: float = Field(default=0.2, ge=0, le=1)
    times: tuple[float, float] = (0.1, 0.5)
    teacher_every: int = Field(default=4, gt=0)
    student_steps: tuple[int, ...] = (4, 1, 4, 2)
    noise: float = Field(default=0.1, ge=0)
    gradient_weight: float = Field(default=1.0, ge=0)
    perceptual_weight: float = Field(default=0.1, ge=0)
    features: str = "evaluator"
    adversarial_weight: float = Field(default=0.01, ge=0)
    adversarial_from: int = Field(default=0, ge=0)
    penalty: float = Field(default=0.1, ge=0)

    @model_validator(mode="after")
    def _check(self) -> DecoderConfig:
        if self.predicted + self.student_predicted + self.sampled > 1:
            raise ValueError("predicted, student_predicted and sampled are shares of a batch; their sum must not exceed 1")
        if not 0 <= self.times[0] <= self.times[1] <= 1:
            raise ValueError(f"times is {self.times}; give (lowest, highest) with 0 <= lowest <= highest <= 1")
        if self.student is None and self.student_predicted:
            raise ValueError("student_predicted asks for a student's predictions; give student: {model: ...}, or leave it out")
        if not self.student_steps or min(self.student_steps) < 1:
            raise ValueError(f"student_steps is {self.student_steps}; give one or more numbers of steps")
        return self


class LatentDecoder(nn.Module):
    """An autoencoder seen as its decoder alone: latents (B, C, h, w) -> pictures (B, 3, f h, f w)."""

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder: Any = autoencoder
        autoencoder.requires_grad_(False)
        for part in (self.autoencoder.decoder, self.autoencoder.decoder_skip):
            part.requires_grad_(True)

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents)


@dataclass(frozen=True)
class DecoderInput:
    """What one step decodes. latents (B, C, h, w); `targets` (M,): the rows that have an original."""

    latents: Tensor
    targets: Tensor


class DecoderObjective(Objective):
    """See the module. Roles `decoder` and `discriminator` train; `teacher` and `student` are frozen."""

    makes_network = True
    source: ClassVar[str] = "arXiv 2012.09841"

    def __init__(
        self,
        config: DecoderConfig,
        network: nn.Module,
        source: Any = None,
        teacher: Teacher | None = None,
        student: Teacher | None = None,
    ):
        self.config, self.data = config, source
        self.teacher = teacher or Teacher.load(config.teacher)
        self.student = student or (Teacher.load(config.student) if config.student else None)
        if not hasattr(self.teacher.autoencoder, "decoder_skip"):
            raise ValueError(f"The teacher {self.teacher.name!r} has no autoencoder of fewstep to train the decoder of.")
        for model in filter(None, (self.teacher, self.student)):
            model.read_null()
        start = self.teacher.autoencoder if isinstance(network, nn.Identity) else network
        decoder = LatentDecoder(copy.deepcopy(start))
        # the encoder is the teacher's, whatever the weights that the decoder starts from
        decoder.autoencoder.encoder.load_state_dict(self.teacher.autoencoder.encoder.state_dict())
        decoder.autoencoder.encoder_skip.load_state_dict(self.teacher.autoencoder.encoder_skip.state_dict())
        self.roles = {
            "decoder": Role(decoder),
            "discriminator": Role(PatchDiscriminator(), ema=False, second_order=config.penalty > 0 or config.penalised),
            "teacher": Role(self.teacher.network, trains=False, ema=False),
        }
        if self.student is not None:
            self.roles["student"] = Role(self.student.network, trains=False, ema=False)
        self.maps: Any = load_feature_maps(config.features) if config.perceptual_weight else None
        self._made: dict[tuple[int, ...], tuple[int, DecoderInput]] = {}  # both updates of a step decode the same latents

    # ---- latents as models make them ----

    def kinds(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """(rows that the teacher predicts, that the student predicts, that are drawn from noise)."""
        u, config = draws.uniform("kind"), self.config
        first = config.predicted
        second = first + config.student_predicted
        third = second + config.sampled
        return ((u < first).nonzero()[:, 0], ((u >= first) & (u < second)).nonzero()[:, 0],
                ((u >= second) & (u < third)).nonzero()[:, 0])  # fmt: skip

    @torch.no_grad()
    def make_latents(self, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int) -> DecoderInput:
        """The latents of a batch at a step: encodings, predictions and pictures from noise, in the rows that `kinds` draws."""
        clean = self.teacher.clean(batch)
        eps = draws.normal_like("eps", clean)
        z = clean + self.config.noise * self.teacher.model.latent_scale * draws.normal_like("noise", clean)
        low, high = self.config.times
        time = low + (high - low) * draws.uniform("time", device=clean.device).double()
        scale = self.scale(draws, clean.device)
        predicted, by_student, sampled = self.kinds(draws)
        if len(predicted):
            level = self.teacher.path(time[predicted] * self.teacher.path.t_noise)
            denoiser = self.teacher.denoiser(models["teacher"], self.teacher.dtype)
            own = scale[predicted] if isinstance(scale, Tensor) else scale
            condition = self.teacher.condition(rows_of(batch, predicted), clean.device)
            x = level.mix(clean[predicted], eps[predicted])
            z[predicted] = predict_guided(denoiser, x, level, condition, own).x0.float()
        if len(by_student) and self.student is not None:
            level = self.student.path(time[by_student] * self.student.path.t_noise)
            own_denoiser = self.student.denoiser(models["student"], self.student.dtype)
            guided, _ = as_exported(own_denoiser, self.student.model.defaults)
            condition = self.student.condition(rows_of(batch, by_student), clean.device)
            x = level.mix(clean[by_student], eps[by_student])
            z[by_student] = guided(x, level, condition, Context()).x0.float()
        if len(sampled):
            z[sampled] = self.sample(models, rows_of(batch, sampled), eps[sampled], step).float()
        targets = torch.ones(len(z), dtype=torch.bool)
        targets[sampled] = False
        return DecoderInput(z / self.teacher.model.latent_scale, targets.nonzero()[:, 0].to(z.device))

    def sample(self, models: Mapping[str, nn.Module], batch: Batch, noise: Tensor, step: int) -> Tensor:
        """x0 (B, C, h, w) that the teacher or the student, whose turn it is, draws from unit noise as its model says."""
        name, model, steps = "student", self.student, self.config.student_steps[step % len(self.config.student_steps)]
        if model is None or step % self.config.teacher_every == 0:
            name, model, steps = "teacher", self.teacher, self.teacher.model.defaults.num_inference_steps
        condition = model.condition(batch, noise.device)
        denoiser = model.denoiser(models[name], model.dtype)
        return sample_by(denoiser, model.model.defaults, noise, condition, batch.index.tolist(), steps)

    def scale(self, draws: Draws, device: torch.device) -> Scale:
        """The guidance scale of predictions: a number, or one for each sample (B,)."""
        scale = self.config.teacher.guidance_scale
        if not isinstance(scale, tuple):
            return scale
        return scale[0] + (scale[1] - scale[0]) * draws.uniform("guidance", device=device)

    def latents(self, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int) -> DecoderInput:
        """`make_latents`, once for all updates of a step."""
        key = (torch.is_grad_enabled(), draws.seed, *batch.index.tolist())  # a measurement is of its own samples
        kept = self._made.get(key)
        if kept is None or kept[0] != step:
            self._made = {index: entry for index, entry in self._made.items() if entry[0] == step}
            kept = self._made[key] = (step, self.make_latents(models, batch, replace(draws, phase="latents"), step))
        return kept[1]

    # ---- losses ----

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        made, images = self.latents(models, batch, draws, step), pictures_of(batch)
        if phase.name == "discriminator":
            return self.discriminator_loss(models, made, images)
        config = self.config
        y = models["decoder"](made.latents).float()
        total, logs = y.new_zeros(()), {}
        if len(made.targets):
            shown, x = within_white(y[made.targets], images[made.targets]), images[made.targets]
            parts = {"l1": (shown - x).abs().mean(), "gradient": gradient_difference(shown, x)}
            total = parts["l1"] + config.gradient_weight * parts["gradient"]
            if self.maps is not None:
                parts["perceptual"] = picture_distance(self.maps, shown, x).mean()
                total = total + config.perceptual_weight * parts["perceptual"]
            logs = {name: value.detach() for name, value in parts.items()}
        if config.adversarial_weight and step >= config.adversarial_from:
            judge = detached_weights(models["discriminator"])
            adversarial = fooling_loss(config, judge, y.clamp(-1, 1), images)
            total = total + config.adversarial_weight * adversarial
            logs["adversarial"] = adversarial.detach()
        return total, logs

    def discriminator_loss(
        self, models: Mapping[str, nn.Module], made: DecoderInput, images: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of every size of patch, with the penalties at real pictures and at decoded ones."""
        with torch.no_grad():
            fake = unwrap(models["decoder"])(made.latents).float().clamp(-1, 1)
        return telling_loss(self.config, models["discriminator"], images, fake, self.config.penalty)

    # ---- what is shown, measured and written ----

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview:
        """Originals; what the decoder that the run began with makes of a step's latents; what this one makes of them."""
        made = self.make_latents(models, batch, Draws(seed, batch.index, "preview"), 0).latents
        before, after = self.teacher.autoencoder.to(made.device).decode(made), models["decoder"](made)
        count = len(batch)
        images = torch.cat([pictures_of(batch), before.float().clamp(-1, 1), after.float().clamp(-1, 1)])
        return images, ["original"] * count + ["before"] * count + ["now"] * count

    @torch.no_grad()
    def measure(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """PSNR in dB of the data's first pictures: of their encodings, and of a step's latents that have an original."""
        if self.data is None:
            return {}
        batch = self.data.batch(range(MEASURED)).to(next(models["decoder"].parameters()).device)
        images = pictures_of(batch)
        made = self.make_latents(models, batch, Draws(0, batch.index, "measure"), 0)
        encoded = self.teacher.clean(batch) / self.teacher.model.latent_scale
        shown = {"psnr": (encoded, images), "psnr_made": (made.latents[made.targets], images[made.targets])}
        return {name: psnr(models["decoder"](z).float().clamp(-1, 1), x).item() for name, (z, x) in shown.items() if len(x)}

    def inputs(self) -> dict[str, str]:
        given = {"teacher": self.teacher, "student": self.student}
        return {name: model.files_digest() for name, model in given.items() if model is not None}

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """The whole autoencoder, its encoder as it was, in bfloat16."""
        decoder: Any = models["decoder"]
        save_component(decoder.autoencoder, folder, torch.bfloat16)
