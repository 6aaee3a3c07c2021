"""AdaDiff: a policy of steps, which gives every prompt as many as its picture is worth, learned by policy gradients.

    gradient = E (R(a) - R(b)) grad log pi(a | prompt),   R(a) = quality of the picture in a steps - cost a / most

for a choice a that is drawn and the policy's likeliest choice b, with the same noise. As R(b) does not depend on a, the
estimate is unbiased. The model stays as it is: it is asked for pictures, and no gradient passes through it.

Source: arXiv 2311.14768; no code is published. Its reward is that of good pictures only, and a fixed loss for others, which
`least` and `loss` are; the scale of `cost` is ours, as it depends on the reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

import distill.networks.evaluator  # noqa: F401  (makes the shipped judge known as a reward)
from distill.data.source import Source
from distill.objectives.bases.objective import Objective
from distill.objectives.bases.rewarded import RewardTerm, prompts_of, score_pictures
from distill.objectives.bases.student_sampling import sample_by
from distill.objectives.bases.teacher import Teacher, TeacherConfig
from distill.types import Batch, Draws, Phase, Role
from gen.nn.registry import Config
from gen.nn.step_policy import StepPolicy
from gen.rewards import get_reward
from samplers.denoiser import Condition


class StepPolicyObjectiveConfig(Config):
    """teacher: the model, which draws by its own defaults but for the number of steps, at `teacher.guidance_scale`.

    rewards: their weighted sum is the quality. cost: what the most steps take away from it. least, loss: pictures of less
    quality count as -loss, whatever their steps. entropy: how much the policy is kept from making up its mind early.
    """

    teacher: TeacherConfig = TeacherConfig()
    rewards: tuple[RewardTerm, ...] = Field(default=(RewardTerm(type="evaluator"),), min_length=1)
    cost: float = Field(default=1.0, ge=0)
    least: float | None = None
    loss: float = Field(default=1.0, ge=0)
    entropy: float = Field(default=0.01, ge=0)

    @model_validator(mode="after")
    def _one_scale(self) -> StepPolicyObjectiveConfig:
        if isinstance(self.teacher.guidance_scale, tuple):
            raise ValueError("pictures are drawn at one guidance scale: give teacher.guidance_scale as one number")
        return self


class StepPolicyObjective(Objective):
    """See the module. Role `policy`."""

    def __init__(
        self,
        config: StepPolicyObjectiveConfig,
        network: nn.Module,
        source: Source | None = None,
        teacher: Teacher | None = None,
    ):
        self.config, self.teacher = config, teacher or Teacher.load(config.teacher)
        if not isinstance(network, StepPolicy):
            raise ValueError("This method trains a policy of steps: set network.type to step_policy.")
        self.choices = network.config.choices
        self.teacher.check_draws_pictures("judge its latents by a reward of your own")
        self.teacher.read_null()
        self.rewards = [(term.weight, get_reward(term.type, **term.options)) for term in config.rewards]
        self.roles = {"policy": Role(network), "teacher": Role(self.teacher.network, trains=False, ema=False)}

    def clean(self, batch: Batch) -> Tensor:
        """What is denoised, of which the size alone counts; for prompts alone zeros of the model's size."""
        if batch.latents is not None or batch.images is not None:
            return self.teacher.clean(batch)
        return self.teacher.blank(batch)

    def inputs(self) -> dict[str, str]:
        return {"teacher": self.teacher.files_digest()}

    @torch.no_grad()
    def quality(self, models: Mapping[str, nn.Module], batch: Batch, steps: Sequence[int], noise: Tensor) -> Tensor:
        """(B,) of pictures in so many steps each, from unit noise."""
        condition = self.teacher.condition(batch, noise.device)
        denoiser, scale = self.teacher.denoiser(models["teacher"], self.teacher.dtype), self.config.teacher.guidance_scale
        found = noise.new_zeros(len(noise))
        assert not isinstance(scale, tuple)
        for count in sorted(set(steps)):
            rows = [i for i, one in enumerate(steps) if one == count]
            seeds = [int(batch.index[i]) for i in rows]
            told: Condition = condition.map(lambda value, rows=rows: value[rows])  # type: ignore[misc]
            x0 = sample_by(denoiser, self.teacher.model.defaults, noise[rows], told, seeds, count, scale)
            prompts = prompts_of(batch)
            found[rows] = score_pictures(self.teacher.decode, self.rewards, x0, [prompts[i] for i in rows]).to(found)
        return found

    def reward(self, quality: Tensor, steps: Sequence[int]) -> Tensor:
        """R (B,)."""
        found = quality - self.config.cost * torch.tensor(steps, device=quality.device) / self.choices[-1]
        return found if self.config.least is None else torch.where(quality < self.config.least, -self.config.loss, found)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        noise = draws.normal_like("eps", self.clean(batch))
        device = noise.device
        logits = models["policy"](self.teacher.condition(batch, device), len(batch))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_p = logits.log_softmax(1)
        gumbel = -torch.log(-torch.log(draws.uniform("choice", (len(self.choices),), device).clamp(1e-9, 1 - 1e-7)))
        drawn, likeliest = (logits.detach() + gumbel).argmax(1), logits.argmax(1)
        tried, kept = ([self.choices[i] for i in one.tolist()] for one in (drawn, likeliest))
        rewards, baseline = (self.reward(self.quality(models, batch, one, noise), one) for one in (tried, kept))
        chosen = log_p.gather(1, drawn[:, None])[:, 0]
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        total = -((rewards - baseline) * chosen).mean() - self.config.entropy * entropy
        steps = torch.tensor(kept, dtype=torch.float32)
        return total, {"reward": baseline.mean(), "steps": steps.mean(), "entropy": entropy.detach()}
