"""`python -m distill.propagation MODEL CONFIG [--levels 50] [--count 64]`: how a model's errors add up as it is sampled.

Runs the model's ancestral chain from pure noise, without guidance, with the captions or labels of the data that a training
config names, and prints how far its points are from those data, noised, at ten levels of it: arXiv 2308.05021, section 3.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from distill.config import load_config
from distill.data.source import make_source
from distill.losses.propagation import cumulative_errors
from distill.losses.solver_steps import LevelTable
from distill.objectives.bases.teacher import Teacher, TeacherConfig
from gen.cli.parser import Parser
from samplers.denoiser import Context
from samplers.registry import get_grid


def measure_propagation(teacher: Teacher, source: Any, levels: int, count: int, seed: int = 0) -> dict[float, float]:
    """The clock of a level -> the cumulative error there, at about ten levels down to clean data.

    levels: steps of the chain. count: samples of the source that it is compared with, and that are drawn.
    """
    batch = source.batch(range(count))
    x0 = teacher.clean(batch)
    condition, denoiser = teacher.condition(batch, x0.device), teacher.denoiser(teacher.network, teacher.dtype)
    ladder = LevelTable.of(get_grid("uniform", teacher.path, levels))
    numbers = sorted({levels * tenth // 10 for tenth in range(10)}, reverse=True)
    errors = cumulative_errors(
        lambda x, level: denoiser(x, level, condition, Context()).x0, x0, numbers, ladder, torch.Generator().manual_seed(seed)
    )
    return {float(ladder.t[number]): error for number, error in zip(numbers, errors, strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m distill.propagation", description="How a model's errors add up as it is sampled.")
    parser.add_argument("model", help='"default", a model folder, a diffusers pipeline or a hub id')
    parser.add_argument("config", help="a training config, whose data the chain is compared with")
    parser.add_argument("--levels", type=int, default=50, help="steps of the chain (default: 50)")
    parser.add_argument("--count", type=int, default=64, help="samples (default: 64)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        if given.levels < 2 or given.count < 2:
            raise ValueError(f"--levels {given.levels} --count {given.count}: give at least 2 of each")
        config = load_config(given.config)
        teacher, source = Teacher.load(TeacherConfig(model=given.model)), make_source(config.data, config.seed)
        found = measure_propagation(teacher, source, given.levels, given.count, given.seed)
    except (ValueError, OSError) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    print("level   cumulative error")
    for level, value in found.items():
        print(f"{level:5.2f}   {value:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
