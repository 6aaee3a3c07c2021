"""Training of a ControlNet for a model on a DiT (arXiv 2302.05543; for transformers arXiv 2401.05252, section 4).

The model stays as it is. Copies of its first blocks see the picture to follow, here made from the very picture that is
denoised, and add to its blocks, by layers that start at zero; the loss is the model's own, of its prediction at a noise level.
Lines are drawn with thresholds and a width that change from sample to sample, so that other drawings than ours are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.data.drawn_edges import drawn_edges
from distill.networks.controlled import ControlledNetwork, follows
from distill.objectives.bases.attachment import AttachmentConfig, AttachmentObjective
from distill.objectives.bases.student_sampling import sample_by, unit_noise
from distill.objectives.bases.teacher import Teacher
from distill.optim.precision import autocast
from distill.types import Batch, Draws, Preview, Role, pictures_of
from gen.io.weights import write_bytes
from gen.models.components import save_component
from gen.models.control_pictures import KINDS
from gen.nn.backbones.dit import DiT
from gen.nn.backbones.dit_control import DiTControl
from samplers.denoiser import Condition

PREVIEWED = 6  # pictures


class ControlConfig(AttachmentConfig):
    """kinds: of pictures to follow (`gen.models.control_pictures`), of which every sample
    has one; one network learns them all.

    depth: blocks that are copied. text: they read the prompt. places: behind which blocks they add. width: of the convolutions.
    thick: share of the line drawings with lines three pixels wide. The rest is of `AttachmentConfig`.
    """

    kinds: tuple[str, ...] = Field(default=("edges",), min_length=1)
    depth: int = Field(default=3, gt=0)
    text: bool = True
    places: Literal["first", "spread"] = "spread"
    width: int = Field(default=96, gt=0)
    thick: float = Field(default=0.4, ge=0, le=1)

    @model_validator(mode="after")
    def _check_kinds(self) -> ControlConfig:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds is {list(self.kinds)}; give some of {', '.join(KINDS)}, each once")
        return self


class ControlObjective(AttachmentObjective):
    """See the module. Role `control` trains; `teacher` is frozen. The data must be pictures."""

    trained = "control"
    source: ClassVar[str] = "arXiv 2302.05543, 2401.05252"

    def __init__(self, config: ControlConfig, network: nn.Module, source: Any = None, teacher: Teacher | None = None):
        super().__init__(config, teacher)
        base = self.teacher.network
        if not isinstance(base, DiT):
            raise ValueError(
                f"The model {self.teacher.name!r} is a {type(base).__name__}, and a control is trained for a DiT of ours; "
                "choose another teacher."
            )
        if base.config.size_conditions:
            raise ValueError(f"{self.teacher.name!r} reads the size of the picture, which is not given here; choose another.")
        self.factor = getattr(self.autoencoder, "factor", 1)
        if isinstance(network, nn.Identity):
            sizes = {"places": config.places, "width": config.width}
            network = DiTControl.of(base, config.depth, self.factor, config.kinds, config.text, **sizes)
        control = ControlledNetwork(base, network.train().requires_grad_(True))
        self.roles = {"control": Role(control), "teacher": Role(base, trains=False, ema=False)}

    # ---- what is followed ----

    @torch.no_grad()
    def shown(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(pictures to follow (B, 3, H, W) in [0, 1], of pictures in [-1, 1]; which of the kinds each is, (B,))."""
        count, pictures = len(self.config.kinds), (images.float() + 1) / 2
        mode = (draws.uniform("kind", device=images.device) * count).long().clamp(max=count - 1)
        made = torch.zeros_like(pictures)
        for number, kind in enumerate(self.config.kinds):
            rows = (mode == number).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            if kind == "edges":
                made[rows] = drawn_edges(pictures[rows], replace(draws, index=draws.index[rows.cpu()]), self.config.thick)
                continue
            with torch.autocast(images.device.type, enabled=False):
                made[rows] = KINDS[kind][0](pictures[rows])
        return made, mode

    def condition(self, batch: Batch, draws: Draws, device: torch.device) -> Condition:
        """What captions or labels say, and the picture to follow."""
        plain = self.teacher.condition(batch, device)
        picture, mode = self.shown(pictures_of(batch), draws)
        extra = follows(picture, self.factor, mode if len(self.config.kinds) > 1 else None)
        return replace(plain, extra={**plain.extra, **extra})

    # ---- what is shown and written ----

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview:
        """Pictures, what is followed of each, and what the model draws by it."""
        batch = batch.first(PREVIEWED)
        like, index, captions = self.clean(batch), batch.index, batch.captions
        draws = Draws(seed, index, "preview")
        condition = self.condition(batch, draws, like.device)
        denoiser = self.teacher.denoiser(models["control"], self.teacher.dtype)
        with autocast(like.device):
            x0 = sample_by(denoiser, self.teacher.model.defaults, unit_noise(range(seed, seed + len(index)), like), condition)
            drawn = self.teacher.decode(x0).float().clamp(-1, 1)
        images = torch.cat([pictures_of(batch), self.shown(pictures_of(batch), draws)[0] * 2 - 1, drawn])
        return images, None if captions is None else [*captions, *["followed"] * len(index), *["drawn"] * len(index)]

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """The control's folder, in bfloat16, for `--controlnet`."""
        trained: Any = models["control"]
        save_component(trained.control, folder, torch.bfloat16)
        kinds = ", ".join(self.config.kinds)
        union = " --control-mode 0" if len(self.config.kinds) > 1 else ""
        use = f'fewstep image "a red cat" --model {self.teacher.name} --control picture.png --controlnet THIS_FOLDER{union}'
        text = f"# A ControlNet for {self.teacher.name}\n\nIt follows {kinds} ({self.source}).\n\n    {use}\n"
        write_bytes(folder / "README.md", text.encode())
