"""pi-Flow: a student that says, in one evaluation, where to go for the rest of a step; it imitates the teacher on its own way.

The student's last layer is widened: what comes out is a policy, x0 as a function of the point and the time, which a sampler
follows in many small steps without the network (`samplers.policy`). In training the policy is followed to random times of its
step, and there its velocity is compared with the teacher's. As the points are the policy's own, its errors are corrected where
they lead. No derivative, no discriminator and no second network take part.

Velocities are those of z = x / (alpha + sigma) in tau = sigma / (alpha + sigma), eps - x0, on any path; on a rectified flow
they are the flow itself.

Source: arXiv 2510.14974, Algorithm 1; what it leaves out, its repository Lakonik/piFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.networks.lora.with_layers import LoraWithLayers
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import StudentConfig
from distill.objectives.bases.teacher import Scale
from distill.types import Batch, Draws, Phase
from gen.nn.backbones.policy_head import PolicyHeadConfig, as_policy, head_layers
from samplers.denoiser import Condition
from samplers.noise_ratio import at_ratio
from samplers.path import NoiseLevel, expand
from samplers.policy import Clean, MixturePolicy, PolicyPrediction, follow_rows, straight_time


class PiFlowConfig(StudentConfig):
    """policy: "grid" (the paper's DX) or "mixture" (GMFlow) of `components`. shift: times are even in tau / (shift + (1 -
    shift) tau). substeps: of the whole path. states: points of a step at which the teacher is asked. window: the velocity that
    is compared is the mean of so many substeps; 0: that of the point alone. mixing_steps: training begins on the teacher's
    trajectory, and goes over to the policy's in so many steps. dropout: of a mixture's components, on the way to the points.
    apart: how far its components begin from one another, in the network's own numbers."""

    policy: Literal["grid", "mixture"] = "mixture"
    components: int = Field(default=8, ge=1, le=1024)
    shift: float = Field(default=1.0, gt=0)
    substeps: int = Field(default=128, ge=1)
    states: int = Field(default=2, ge=1)
    window: int = Field(default=0, ge=0)
    mixing_steps: int = Field(default=0, ge=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    apart: float = Field(default=0.05, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> PiFlowConfig:
        if self.lora is not None and not self.merge:
            raise ValueError("a policy's last layer is wider than the teacher's, which no LoRA holds: set merge to true")
        if self.target_ema is not None:
            raise ValueError("targets are the teacher's own: leave target_ema out")
        return self


class PiFlowObjective(StudentObjective):
    """See the module."""

    config: PiFlowConfig
    sampler = "policy"
    source: ClassVar[str] = "arXiv 2510.14974"

    def __init__(self, config: PiFlowConfig, network: nn.Module, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        self.sampler_options: Mapping[str, Any] = {"substeps": config.substeps}
        self.policy = self.planned.build()
        self.edges = self.policy.time(straight_time(self.levels))  # type: ignore[arg-type]

    @property
    def planned(self) -> PolicyHeadConfig:
        """The policy of the student's network: a grid spans the longest step."""
        plain = PolicyHeadConfig(kind=self.config.policy, count=self.config.components, shift=self.config.shift)
        longest = plain.build().time(straight_time(self.levels)).diff().max()  # type: ignore[arg-type, union-attr]
        return plain.model_copy(update={"segment": float(longest)})

    def make_student(self, network: nn.Module) -> nn.Module:
        if not isinstance(network, nn.Identity):
            if self.config.start != "network" or self.config.lora is not None:
                raise ValueError(
                    "The student's last layer is made here from the teacher's: leave the network section out, or set "
                    "objective.start to network for one with a policy of its own."
                )
            return network
        scalars = (*(("guidance",) if self.config.embed_guidance else ()), *self.scalars)
        wide = as_policy(self.teacher.network, self.planned, scalars, self.config.apart)
        if self.config.lora is None:
            return wide.train().requires_grad_(True)
        return LoraWithLayers(wide.eval().requires_grad_(False), self.config.lora, head_layers(wide))

    # ---- points ----

    def at(self, time: Tensor) -> NoiseLevel:
        """The level of the path at times (B,) of the policy's clock, of which the last is the student's noisiest."""
        tau = self.policy.tau(time)
        return at_ratio(self.path, tau / (1 - tau))

    def start(self, draws: Draws, device: torch.device) -> tuple[NoiseLevel, Tensor, Tensor]:
        """(the levels where steps begin, their times, those where they end), (B,): a step in the share of its length."""
        edges = self.edges.to(device)
        place = edges[0] + (edges[-1] - edges[0]) * draws.uniform("step", device=device).double()
        index = torch.searchsorted(edges, place, right=True).clamp(1, len(edges) - 1)
        return self.levels.to(device)[index], edges[index], edges[index - 1]

    def ways(self, draws: Draws, room: Tensor, teachers: float) -> tuple[Tensor, Tensor]:
        """(B, states) both: how far the policy is followed before each point, and how far the teacher's velocity after it.

        room (B,): of the step, less the window. Together the policy's ways take at most a share 1 - `teachers` of it, at
        random, and the teacher's ways all the rest.
        """
        states, device = self.config.states, room.device
        own = draws.uniform("policy's way", (states,), device).double().sort(1).values
        own = own.diff(dim=1, prepend=torch.zeros_like(own[:, :1])) * (1 - teachers) * room[:, None]
        cuts = draws.uniform("teacher's way", (max(states - 1, 0),), device).double().sort(1).values
        ends = torch.zeros_like(room)[:, None], torch.ones_like(room)[:, None]
        return own, torch.cat([ends[0], cuts, ends[1]], 1).diff(dim=1) * teachers * room[:, None]

    def velocity(self, clean: Clean, z: Tensor, time: Tensor, length: Tensor) -> Tensor:
        """The policy's velocity (B, ...) at z, or its mean over a window of `length` (B,) from there on."""
        tau, steps = self.policy.tau(time), (length * self.config.substeps).round()
        local = (z - clean(z, tau)) / expand(tau, z)
        if not bool((steps >= 2).any()):
            return local
        end = torch.where(steps >= 2, time - length, time)
        moved = follow_rows(clean, self.policy, z, time, end, self.config.substeps)
        whole = tau - self.policy.tau(end)
        mean = (z - moved) / expand(torch.where(steps >= 2, whole, 1.0), z)
        return torch.where(expand(steps >= 2, z).bool(), mean, local)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, x0 = self.config, self.clean(batch)
        condition, scale = self.condition(batch, x0.device, draws), self.scale(draws, x0.device)
        level, time, end = self.start(draws, x0.device)
        x = level.mix(x0, draws.normal_like("eps", x0))
        said = self.predict(models["student"], x, level, condition, scale)
        assert isinstance(said, PolicyPrediction)
        clean: Any = said.clean
        followed = clean.detached()
        if isinstance(followed, MixturePolicy) and config.dropout:
            followed = followed.without(draws.uniform("dropout", (config.components,), x0.device) < config.dropout)

        teachers = max(1 - step / config.mixing_steps, 0.0) if config.mixing_steps else 0.0
        each = 1 / max(round(self.policy.segment * config.substeps), 1) * self.policy.segment
        window = torch.minimum(torch.full_like(time, config.window * each), time - end)
        own, led = self.ways(draws, time - end - window, teachers)
        z, errors = x / expand(level.alpha + level.sigma, x), []
        for i in range(config.states):
            with torch.no_grad():
                then = (time - own[:, i]).clamp(min=1e-4)
                z = follow_rows(followed, self.policy, z, time, then, config.substeps)
                target = self.asked(models, z, then, condition, scale)
            after = (then - led[:, i]).clamp(min=1e-4)
            shown = self.velocity(clean, z, then, then - after + window)
            errors.append((shown - target).square().flatten(1).mean(1))
            z = z + expand(self.policy.tau(after) - self.policy.tau(then), z) * target
            time = after
        error = torch.stack(errors).mean()  # Algorithm 1 (arXiv 2510.14974)
        return error, {"error": error.detach()}

    @torch.no_grad()
    def asked(self, models: Mapping[str, nn.Module], z: Tensor, time: Tensor, condition: Condition, scale: Scale) -> Tensor:
        """The teacher's velocity (B, ...) at z."""
        level = self.at(time)
        prediction = self.teacher_predict(models, expand(level.alpha + level.sigma, z) * z, level, condition, scale)
        return prediction.eps - prediction.x0
