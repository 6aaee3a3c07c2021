"""A picture and something of it denoised together, each at a noise level of its own (UniCon, arXiv 2410.11439).

A joint denoiser takes two streams as rows of one batch, B rows x and then B rows y, each with its level, and predicts both from
both. One model then draws from every part of the joint distribution, by the levels along a run:

    both fall together                 x, y ~ p(x, y)
    y is clean all the way             x ~ p(x | y)
    x is clean all the way             y ~ p(y | x)
    y waits at a level of its own      x, y ~ p(x, y | y noised to that level): coarse control

In the last case the noised y stays as it is until the run has come down to its level, and falls with x from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel, wide_dtype
from samplers.prediction import Prediction
from samplers.rows import read_as
from samplers.wrappers import DenoiserWrapper

SAME = 1e-9  # difference of log-SNR


@dataclass(frozen=True)
class JointStreams(DenoiserWrapper):
    """A joint denoiser as one of 2 B rows at a single level, of which streams may be held at another.

    denoiser: of rows x, y, with levels of one per row.
    count: B; a batch may hold such rows several times, as guidance stacks its branches.
    clean, noise: (2 B, C, H, W), what is held, and the unit noise that it is noised with; read of held streams alone.
    held: stream (0 is x, 1 is y) -> the level that it waits at; clean data have sigma 0.
    separate: the same denoiser without what joins the streams, for guidance of the join; None for none.
    scale: s of that guidance, raw = raw_separate + s (raw_joint - raw_separate); 1 is none.

    While a stream waits, its clean image is said to be `clean`, so that solvers lead its rows along clean data and `noise`:
    they begin with level.mix(clean, noise), and arrive at its level as what was seen there. Put it around the network, under
    guidance.
    """

    denoiser: Denoiser
    count: int
    clean: Tensor
    noise: Tensor
    held: Mapping[int, NoiseLevel]
    separate: Denoiser | None = None
    scale: float = 1.0

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        began = context.store.setdefault(("joint step", context.step), level)
        waiting = {stream: its for stream, its in self.held.items() if self.waits(its, level, began)}
        if not waiting:
            return self.guided(x, level, condition, context)
        rows = list(x.unflatten(0, (-1, 2, self.count)).unbind(1))
        clean, noise = (value.unflatten(0, (2, self.count)) for value in (self.clean, self.noise))
        levels = [level, level]
        for stream, its in waiting.items():
            rows[stream] = its.mix(clean[stream], noise[stream]).to(x).expand_as(rows[stream])
            levels[stream] = its
        seen = torch.stack(rows, 1).flatten(0, 2)
        prediction = self.guided(seen, self.stacked(levels, x), condition, context)
        x0 = prediction.x0.unflatten(0, (-1, 2, self.count)).clone()
        for stream in waiting:
            x0[:, stream] = clean[stream].to(x0)
        return Prediction(x, level, x0.flatten(0, 2), (1.0, 0.0), prediction.variance)

    def waits(self, its: NoiseLevel, level: NoiseLevel, began: NoiseLevel) -> bool:
        """Is a stream that waits at a level still held? At its own level it is for a step that began above, and no more for the
        step that begins there, so that solvers which look at both ends of a step keep their order. began: where this step did.
        """
        if abs(level.logsnr - its.logsnr) < SAME:
            return bool(began.logsnr < level.logsnr - SAME)
        return bool(level.logsnr < its.logsnr)

    def stacked(self, levels: list[NoiseLevel], x: Tensor) -> NoiseLevel:
        """The level of every row of x."""
        times = len(x) // (2 * self.count)
        wide = wide_dtype(x.device)

        def one(name: str) -> Tensor:
            two = torch.tensor([float(getattr(its, name)) for its in levels], dtype=wide, device=x.device)
            return two.repeat_interleave(self.count).repeat(times)

        return NoiseLevel(one("t"), one("alpha"), one("sigma"))

    def guided(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        """The joint prediction, under guidance of the join where it has a scale."""
        joint = self.denoiser(x, level, condition, context)
        if self.separate is None or self.scale == 1:
            return joint
        alone = read_as(self.separate(x, level, condition, context.fork("separate")), joint.row)
        return joint.with_raw(alone + self.scale * (joint.raw - alone))
