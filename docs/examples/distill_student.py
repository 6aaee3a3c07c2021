"""Train a small teacher and distil it into a one-step student: python docs/examples/distill_student.py distill.png

The data are discs of 16 x 16 pixels. The teacher learns flow matching. The student learns by consistency distillation to go
from any noise level to the picture. The sheet shows the teacher at 20 steps and at 1, and the student at 1, from one noise.
"""

from __future__ import annotations

import argparse
import colorsys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from distill.config import TrainConfig
from distill.train import make_trainer
from distill.types import Batch
from gen import Generator, contact_sheet

NETWORK = {"type": "uvit", "size": 16, "channels": 3, "patch": 4, "dim": 96, "depth": 3, "heads": 4}


class Discs:
    """Coloured discs on white; sample i has its own place, radius and hue."""

    def __len__(self) -> int:
        return 4096

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        index = torch.as_tensor(counters)
        axis = torch.linspace(-1, 1, 16)
        images = []
        for number in (index % len(self)).tolist():
            x, y, radius, hue = torch.rand(4, generator=torch.Generator().manual_seed(number)).tolist()
            distance = torch.hypot(axis - (x - 0.5) * 0.6, axis[:, None] - (y - 0.5) * 0.6) - (0.35 + 0.25 * radius)
            cover = (0.5 - 8 * distance).clamp(0, 1)  # 1 inside, 0 outside, smooth at the edge
            colour = torch.tensor(colorsys.hsv_to_rgb(hue, 0.9, 0.9))[:, None, None]
            images.append(1 + cover * (2 * colour - 2))
        return Batch(index, images=torch.stack(images))


def train(output: Path, objective: dict[str, Any], network: dict[str, Any], steps: int, rate: float) -> Path:
    """One run; returns the model folder that it exports."""
    config = {
        "output": output,
        "max_steps": steps,
        "batch_size": 32,
        "precision": "fp32",
        "network": network,
        "objective": objective,
        "data": {},
        "optimizer": {"lr": rate, "betas": (0.9, 0.99), "clip": 1.0},
        "schedule": {"warmup": 20, "cooldown": 0.3},
        "ema": {"decay": 0.98},
    }
    make_trainer(TrainConfig(**config), source=Discs()).train()
    return output / "export"


def make(folder: Path, teacher_steps: int = 1600, student_steps: int = 400, pictures: int = 8) -> Image.Image:
    """Train both in a folder, and draw with both."""
    defaults = {"sampler": "dpmpp_2m", "schedule": "uniform", "num_inference_steps": 20}
    teacher = train(folder / "teacher", {"type": "diffusion", "defaults": defaults}, NETWORK, teacher_steps, 2e-3)
    objective = {"type": "consistency_distillation", "teacher": {"model": str(teacher)}, "steps": 1, "sigma_max": 80.0}
    student = train(folder / "student", objective, {}, student_steps, 3e-4)

    images, captions = [], []
    for name, model, steps in (("teacher", teacher, 20), ("teacher", teacher, 1), ("student", student, 1)):
        generator = Generator.from_pretrained(model)
        call = {"num_images_per_prompt": pictures, "seed": 0, "num_inference_steps": steps, "progress": False}
        images += [image.resize((64, 64), Image.Resampling.NEAREST) for image in generator(**call).images]
        captions += [f"{name}, {steps}"] * pictures
    return contact_sheet(images, captions, columns=pictures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="the PNG to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder)).save(given.output)
