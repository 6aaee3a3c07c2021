"""Training of a network that tells a thing from what is behind it, from drawings whose alpha is known.

A model stays as it is: its autoencoder and its predictions only make pictures as they will be met. In shares of each batch the
network sees

- the composite itself, without latents, so that pictures of other models and files are read as well;
- a teacher's clean image of it, noised to a random level, with guidance;
- else its encoding, with a little noise, decoded; with the latents, as in LayerDiffuse (arXiv 2402.17113).

With c the picture seen, a and b the opacity and background that are predicted, p = c - (1 - a) b the colour times alpha that
follows, and stars for what is true, the loss is

    |a - a*| + |grad a - grad a*| + |p - p*| + |grad p - grad p*| + w_b |(1 - a*) (b - b*)| + w_c |p' + (1 - a) b - c|

where p' is p within [0, a], so that the last term is the consistency loss of LayerDecomp (arXiv 2411.17864): what colours
within bounds cannot explain. An opacity beyond 1 where it is 1, or below 0 where it is 0, is no error: it is clamped when it is
used, so that what is opaque becomes wholly opaque.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.pictures import gradient_difference, within
from distill.objectives.bases.objective import Objective
from distill.objectives.bases.teacher import Teacher, TeacherConfig, predict_guided
from distill.types import Batch, Draws, Phase, Preview, Role, pictures_of, rows_of
from gen.io.alpha import lifted, upon
from gen.io.weights import write_bytes
from gen.models.components import save_component
from gen.nn.registry import Config
from gen.nn.transparency import Transparency, TransparencyConfig

MEASURED = 64  # pictures
PREVIEWED = 6


class TransparentConfig(Config):
    """teacher: the model whose autoencoder and predictions make the pictures. direct, predicted: shares of the batch that are
    composites as they are, and the teacher's predictions; the others are encodings. times: (lowest, highest) noise level of
    predictions, as a share of the path's clock. noise: standard deviation of the noise on encodings. small_steps: steps that
    train on pictures of half the size, without predictions; whole ones from this step on. background_weight,
    consistency_weight: w_b and w_c above."""

    teacher: TeacherConfig = TeacherConfig(guidance_scale=(1.0, 5.0))
    direct: float = Field(default=0.3, ge=0, le=1)
    predicted: float = Field(default=0.25, ge=0, le=1)
    times: tuple[float, float] = (0.05, 0.35)
    noise: float = Field(default=0.1, ge=0)
    small_steps: int = Field(default=0, ge=0)
    background_weight: float = Field(default=0.5, ge=0)
    consistency_weight: float = Field(default=0.5, ge=0)

    @model_validator(mode="after")
    def _check(self) -> TransparentConfig:
        if self.direct + self.predicted > 1:
            raise ValueError("direct and predicted are shares of a batch; their sum must not exceed 1")
        if not 0 <= self.times[0] <= self.times[1] <= 1:
            raise ValueError(f"times is {self.times}; give (lowest, highest) with 0 <= lowest <= highest <= 1")
        return self


class Seen(NamedTuple):
    """Pictures (B, 3, H, W) in [0, 1], their latents (B, C, h, w), and which rows know these (B,)."""

    pictures: Tensor
    latents: Tensor
    known: Tensor


class TransparentObjective(Objective):
    """See the module. Role `transparency` trains; `teacher` is frozen. The data must have layers (`layered`)."""

    makes_network = True
    source: ClassVar[str] = "arXiv 2402.17113, 2411.17864"

    def __init__(self, config: TransparentConfig, network: nn.Module, source: Any = None, teacher: Teacher | None = None):
        self.config, self.data = config, source
        self.teacher = teacher or Teacher.load(config.teacher)
        autoencoder: Any = self.teacher.autoencoder
        if autoencoder is None:
            raise ValueError(f"The teacher {self.teacher.name!r} has no autoencoder that makes pictures; choose another.")
        self.teacher.read_null()
        if isinstance(network, nn.Identity):
            sizes = {"latent_channels": autoencoder.channels, "factor": autoencoder.factor}
            network = Transparency(TransparencyConfig(**sizes, size=self.teacher.model.sample_size))
        if not isinstance(network, Transparency):
            raise ValueError(
                f"The network is a {type(network).__name__}; give network: {{type: transparency}}, or leave it out."
            )
        self.roles = {
            "transparency": Role(network.train().requires_grad_(True)),
            "teacher": Role(self.teacher.network, trains=False, ema=False),
        }

    # ---- what the network sees ----

    @torch.no_grad()
    def seen(self, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, predicted: bool = True) -> Seen:
        """What the network sees of a batch. predicted: the teacher's predictions are among it."""
        config, teacher = self.config, self.teacher
        kind = draws.uniform("kind")
        made = (kind >= config.direct).nonzero()[:, 0]
        pictures = pictures_of(batch).clone()
        shape = [side // teacher.autoencoder.factor for side in pictures.shape[2:]]
        latents = pictures.new_zeros(len(batch), teacher.autoencoder.channels, *shape)
        known = torch.zeros(len(batch), device=pictures.device)
        if len(made):
            rows, draws = chosen(batch, made), Draws(draws.seed, batch.index[made], draws.phase)
            clean = teacher.clean(rows)
            x0 = clean + config.noise * teacher.model.latent_scale * draws.normal_like("noise", clean)
            by_teacher = (kind[made] < config.direct + config.predicted).nonzero()[:, 0]
            if predicted and len(by_teacher):
                x0[by_teacher] = self._predicted(models, rows, clean, by_teacher, draws)
            pictures[made] = teacher.decode(x0)
            latents[made], known[made] = x0 / teacher.model.latent_scale, 1.0
        return Seen((pictures.clamp(-1, 1) + 1) / 2, latents, known)

    def _predicted(self, models: Mapping[str, nn.Module], batch: Batch, clean: Tensor, rows: Tensor, draws: Draws) -> Tensor:
        """The teacher's clean image of some rows, noised to a random level."""
        teacher, (low, high) = self.teacher, self.config.times
        time = (low + (high - low) * draws.uniform("time", device=clean.device).double())[rows]
        level = teacher.path(time * teacher.path.t_noise)
        asked = self.config.teacher.guidance_scale
        scale: float | Tensor
        if isinstance(asked, tuple):
            scale = (asked[0] + (asked[1] - asked[0]) * draws.uniform("guidance", device=clean.device))[rows]
        else:
            scale = asked
        x = level.mix(clean[rows], draws.normal_like("eps", clean)[rows])
        condition = teacher.condition(rows_of(batch, rows), clean.device)
        return predict_guided(teacher.denoiser(models["teacher"], teacher.dtype), x, level, condition, scale).x0.float()

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        small = step < self.config.small_steps
        batch = halved(batch) if small else batch
        foreground, background = layers_of(batch)
        colour, opacity = foreground[:, :3], foreground[:, 3:]
        seen = self.seen(models, batch, draws, predicted=not small)
        alpha, behind = (part.float() for part in models["transparency"](*seen))
        bounded = alpha.clamp(0, 1)
        alpha = within(alpha, opacity, 0, 1)
        lift = seen.pictures - (1 - bounded) * behind
        again = upon(lifted(seen.pictures, bounded, behind), behind)
        parts = {
            "alpha": (alpha - opacity).abs().mean() + gradient_difference(alpha, opacity),
            "colour": (lift - colour).abs().mean() + gradient_difference(lift, colour),
            "background": self.config.background_weight * ((1 - opacity) * (behind - background)).abs().mean(),
            "consistency": self.config.consistency_weight * (again - seen.pictures).abs().mean(),
        }
        total = torch.stack(list(parts.values())).sum()
        return total, {name: value.detach() for name, value in parts.items()}

    # ---- what is shown, measured and written ----

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview:
        """What the network sees; the opacity it finds, and the true one; the thing upon grey; and what is behind it."""
        batch = batch.first(PREVIEWED)
        seen = self.seen(models, batch, Draws(seed, batch.index, "preview"))
        alpha, behind = (part.float().clamp(0, 1) for part in models["transparency"](*seen))
        pictures, truth = seen.pictures, layers_of(batch)[0][:, 3:]
        grey = upon(lifted(pictures, alpha, behind), torch.full_like(pictures, 0.5))
        images = torch.cat([pictures, alpha.expand_as(pictures), truth.expand_as(pictures), grey, behind]) * 2 - 1
        return images, [name for name in ("seen", "opacity", "true", "on grey", "behind") for _ in range(len(batch))]

    @torch.no_grad()
    def measure(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """On the data's first pictures, as they will be met: mean errors of the opacity, of the colour times alpha, and
        LayerDecomp's consistency, in levels of 255."""
        if self.data is None:
            return {}
        device = next(models["transparency"].parameters()).device
        batch = self.data.batch(range(MEASURED)).to(device)
        seen, (foreground, _) = self.seen(models, batch, Draws(0, batch.index, "measure")), layers_of(batch)
        alpha, behind = (part.float().clamp(0, 1) for part in models["transparency"](*seen))
        layer = lifted(seen.pictures, alpha, behind)
        errors = {
            "alpha_error": alpha - foreground[:, 3:],
            "colour_error": layer[:, :3] - foreground[:, :3],
            "consistency_error": upon(layer, behind) - seen.pictures,
        }
        return {name: 255 * error.abs().mean().item() for name, error in errors.items()}

    def inputs(self) -> dict[str, str]:
        return {"teacher": self.teacher.files_digest()}

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """The network's folder, in bfloat16, for `--transparency FOLDER`."""
        save_component(models["transparency"], folder, torch.bfloat16)
        use = 'fewstep image "a red cat" --transparent --transparency THIS_FOLDER --output cat.png'
        text = (
            f"# Transparency for {self.teacher.name}\n\nIt finds things and what is behind them ({self.source}).\n\n    {use}\n"
        )
        write_bytes(folder / "README.md", text.encode())


def chosen(batch: Batch, rows: Tensor) -> Batch:
    """Some samples of a batch, with their pictures and layers."""
    extra = {name: value[rows] for name, value in batch.extra.items()}
    return replace(rows_of(batch, rows), images=pictures_of(batch)[rows], extra=extra)


def halved(batch: Batch) -> Batch:
    """A batch with pictures and layers of half the size, by means of squares of four pixels; that of a layer upon a background
    is then nearly the layer's upon the background's, and exactly so upon plain ones."""
    extra = {name: F.avg_pool2d(value, 2) for name, value in batch.extra.items()}
    return replace(batch, images=F.avg_pool2d(pictures_of(batch), 2), extra=extra)


def layers_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """(foreground (B, 4, H, W) with colours times alpha, background (B, 3, H, W)) of a batch, in [0, 1], beside its pictures.
    ValueError where it has none."""
    if "foreground" not in batch.extra or "background" not in batch.extra:
        raise ValueError("The data have no layers; give data: {type: layered}.")
    device = pictures_of(batch).device
    return batch.extra["foreground"].to(device), batch.extra["background"].to(device)
