"""Options that several commands share, in one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Steps = Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's]")]
Sampler = Annotated[str | None, typer.Option(help="See `fewstep samplers`. [default: the model's]")]
GuidanceScale = Annotated[float | None, typer.Option(help="1 is no guidance. [default: the model's]")]
Negative = Annotated[str | None, typer.Option(help="What the picture should not be.")]
Height = Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")]
Width = Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE|DIR", help="A .png file, or a folder.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps. [default: the best present]")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16. [default: the device's fast one]")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the paths of finished files.")]
