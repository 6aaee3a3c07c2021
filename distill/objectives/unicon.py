"""Training of a joint adapter: pictures and maps of them, denoised together (UniCon, arXiv 2410.11439).

The model stays as it is. Each picture of a batch gets a map made from it (`gen.models.control_pictures`), and both go through
the model as rows of one batch, each with a noise level drawn for itself, so that one adapter learns the joint distribution and
both conditionals; the loss is the model's own, on both. Ours: a share of the samples has one of the two without noise, as a run
gives them that draws a picture of a map, and a share has both at the same level, as a run that draws both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.levels import draw_levels
from distill.networks.joined import JoinedNetwork
from distill.networks.lora.targets import find_layers
from distill.objectives.bases.attachment import AttachmentConfig, AttachmentObjective
from distill.objectives.bases.student_sampling import as_exported, unit_noise
from distill.objectives.bases.teacher import Teacher
from distill.types import Batch, Draws, Phase, Preview, Role, drop_labels, encoded, knows_no_label, pictures_of
from gen.io.weights import write_bytes
from gen.models.components import save_component
from gen.models.control_pictures import check_kind, map_of
from gen.nn.joint import JointAdapter, JointAdapterConfig
from gen.nn.reference_encoder import attention_sizes
from samplers.denoiser import Condition, Context
from samplers.multi_model.joint import JointStreams
from samplers.path import NoiseLevel
from samplers.registry import get_grid
from samplers.rows import stack_conditions
from samplers.sample import sample

PREVIEWED = 6  # pictures


class JointObjectiveConfig(AttachmentConfig):
    """kind: of maps (`gen.models.control_pictures.KINDS`).

    rank: of the changes of q, k and v in joint attention; map_rank: of those of linear layers in the stream of maps, of which
    `exclude` leaves out the ends of names. given: share of samples of which the picture or the map, either as often, is
    without noise. together: share of samples with both at one level. The rest is of `AttachmentConfig`.
    """

    kind: str = "segments"
    rank: int = Field(default=16, gt=0)
    map_rank: int = Field(default=16, ge=0)
    exclude: tuple[str, ...] = ()
    given: float = Field(default=0.4, ge=0, le=1)
    together: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> JointObjectiveConfig:
        check_kind(self.kind)
        if self.given + self.together > 1:
            raise ValueError("given and together are shares of the samples; their sum must not exceed 1")
        return self


class JointObjective(AttachmentObjective):
    """See the module. Role `joint` trains; `teacher` is frozen. The data must be pictures."""

    trained = "joint"
    source: ClassVar[str] = "UniCon, arXiv 2410.11439"

    def __init__(self, config: JointObjectiveConfig, network: nn.Module, source: Any = None, teacher: Teacher | None = None):
        super().__init__(config, teacher)
        base: Any = self.teacher.network
        if not hasattr(getattr(base, "config", None), "heads"):
            raise ValueError(
                f"The model {self.teacher.name!r} is a {type(base).__name__}, and a joint adapter is trained for a network of "
                "ours with attention; choose another teacher."
            )
        adapter: Any = self._made(base) if isinstance(network, nn.Identity) else network
        self.roles = {
            "joint": Role(JoinedNetwork(base, adapter.train().requires_grad_(True))),
            "teacher": Role(base, trains=False, ema=False),
        }

    def _made(self, base: Any) -> JointAdapter:
        """A fresh adapter for the teacher's network."""
        config = self.config
        sizes: dict[str, Any] = attention_sizes(base, "joint")
        names = find_layers(base, (), config.exclude) if config.map_rank else []
        changed = {name: tuple(base.get_submodule(name).weight.shape) for name in names}
        made = JointAdapterConfig(
            kind=config.kind,
            layers=sizes["layers"],
            dim=sizes["layer_dim"],
            rank=config.rank,
            map_rank=config.map_rank,
            changed=changed,
        )
        return JointAdapter(made).to(next(base.parameters()).device)

    # ---- what is denoised ----

    @torch.no_grad()
    def pair(self, batch: Batch) -> Tensor:
        """The x0 of pictures and then of their maps, (2 B, C, h, w)."""
        pictures = pictures_of(batch)
        maps = map_of(self.config.kind, (pictures.float() + 1) / 2) * 2 - 1
        return torch.cat([self.clean(batch), encoded(maps, self.autoencoder, self.teacher.model.latent_scale)])

    def levels(self, draws: Draws, device: torch.device) -> tuple[NoiseLevel, Tensor]:
        """(levels (2 B,) of pictures and then maps, 1 where a row is noised and 0 where it is given (2 B,))."""
        config = self.config
        own = [draw_levels(config.time, self.path, replace(draws, phase=draws.phase + name), device).t for name in ("", "map")]
        kind, which = draws.uniform("given", device=device), draws.uniform("which", device=device)
        given = kind < config.given
        together = (kind >= config.given) & (kind < config.given + config.together)
        noised = [~(given & (which >= 0.5)), ~(given & (which < 0.5))]
        own[1] = torch.where(together, own[0], own[1])
        times = [torch.where(keep, time, torch.zeros_like(time)) for keep, time in zip(noised, own, strict=True)]
        return self.path(torch.cat(times)), torch.cat(noised)

    def condition(self, batch: Batch, draws: Draws, device: torch.device) -> Condition:
        """What captions or labels say, of pictures and of maps."""
        return stack_conditions([self.teacher.condition(batch, device)] * 2)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if knows_no_label(self.teacher.network):
            batch = drop_labels(batch, self.config.drop_label, draws)
        x0 = self.pair(batch)
        level, noised = self.levels(draws, x0.device)
        like = x0[: len(batch)]
        eps = torch.cat([draws.normal_like("eps", like), draws.normal_like("eps of maps", like)])
        denoiser = self.teacher.denoiser(models["joint"], self.teacher.dtype)
        prediction = denoiser(level.mix(x0, eps), level, self.condition(batch, draws, x0.device), Context())
        error, weight = self.error(prediction, x0, eps)
        loss = (noised * weight * error).sum() / noised.sum().clamp_min(1)
        pictures, maps = (noised * error).detach().unflatten(0, (2, -1)).sum(1) / noised.unflatten(0, (2, -1)).sum(1).clamp_min(
            1
        )
        return loss, {"raw_error": pictures, "map_error": maps}

    # ---- what is shown and written ----

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview:
        """Pictures and their maps; pictures drawn of maps, maps of pictures, and both drawn together."""
        batch = batch.first(PREVIEWED)
        count, x0 = len(batch), self.pair(batch)
        noise = unit_noise(range(seed, seed + 2 * count), x0)
        condition = self.condition(batch, Draws(seed, batch.index, "preview"), x0.device)
        defaults = self.teacher.model.defaults
        levels = get_grid(defaults.schedule, self.path, defaults.num_inference_steps, **defaults.schedule_options)
        trained: Any = models["joint"]
        stacked = JoinedNetwork(trained.base, trained.adapter, count)  # guidance has its branches in one batch
        denoiser, shown = self.teacher.denoiser(stacked, self.teacher.dtype), [x0]
        for held in ({1: self.path(0.0)}, {0: self.path(0.0)}, {}):
            streams = JointStreams(denoiser, count, x0, noise, held)
            guided, solver = as_exported(streams, defaults)
            shown.append(sample(guided, solver, noise * levels[0].sigma, levels, condition))
        drawn = [self.teacher.decode(rows).float().clamp(-1, 1) for rows in shown]
        images = torch.cat([drawn[0], drawn[1][:count], drawn[2][count:], drawn[3]])
        rows = ("picture", "map", "of the map", "of the picture", "drawn with it", "its map")
        return images, [name for name in rows for _ in range(count)]

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """The adapter's folder, in bfloat16, for `--joint-adapter`."""
        trained: Any = models["joint"]
        save_component(trained.adapter, folder, torch.bfloat16)
        use = f'fewstep image "a red cat" --model {self.teacher.name} --joint {self.config.kind} --joint-adapter THIS_FOLDER'
        text = f"# A joint adapter for {self.teacher.name}\n\nPictures and {self.config.kind} ({self.source}).\n\n    {use}\n"
        write_bytes(folder / "README.md", text.encode())
