"""Options that several commands share, in one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Steps = Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's]")]
Sampler = Annotated[str | None, typer.Option(help="See `fewstep samplers`. [default: the model's]")]
GuidanceScale = Annotated[float | None, typer.Option(help="0 and 1 are no guidance. [default: the model's]")]
Negative = Annotated[str | None, typer.Option(help="What the picture should not be.")]
Height = Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")]
Width = Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE|DIR", help="A .png file, or a folder.")]
Written = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="OUT", help="What to write, as in every other command.", show_default=False),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps. [default: the best present]")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16. [default: the device's fast one]")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the paths of finished files.")]
Model = Annotated[
    str, typer.Option(help="default, a model folder of ours or diffusers', a checkpoint's file, or a hub id (owner/name).")
]
Vae = Annotated[
    str | None, typer.Option(metavar="DIR|ID", help="The autoencoder, for a checkpoint or instead of a pipeline's.")
]
TextEncoder = Annotated[str | None, typer.Option(metavar="DIR|ID", help="The text encoder, for a checkpoint that reads text.")]
Variant = Annotated[
    str | None, typer.Option(help="Weights of a diffusers pipeline by the name in their files: fp16. [default: by --dtype]")
]
Quantize = Annotated[
    str | None, typer.Option(help="Hold the denoiser's layers in fewer bits: int8, fp8, int4, nf4. [default: as they are]")
]
Native = Annotated[
    bool | None, typer.Option("--native/--no-native", help="Run diffusers' DiT and PixArt in our network. [default: yes]")
]
ModelOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="What a checkpoint does not tell, e.g. heads=16; repeatable.")
]
Lora = Annotated[
    list[str] | None, typer.Option(metavar="FILE[:WEIGHT]", help="A LoRA or a relative (safetensors); repeatable.")
]
LoraDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="LoRA files that prompts name, as in <lora:NAME:0.8>; see docs/prompts.md.")
]
PromptSyntax = Annotated[
    str | None, typer.Option(metavar="full|weights", help="What of prompts is more than words. [default: full]")
]
Region = Annotated[
    list[str] | None,
    typer.Option(metavar="LORA=MASK", help="Where a LoRA acts: its name and a picture, white inside; repeatable."),
]
Embedding = Annotated[list[str] | None, typer.Option(metavar="FILE", help="Learned words (textual inversion); repeatable.")]
Guide = Annotated[
    str | None, typer.Option(metavar="NAME|FILE.py:FUNCTION", help="Guide to an energy: see docs/guidance.md. A file is run.")
]
GuideStrength = Annotated[float | None, typer.Option(help="How strongly. [default: the method's]")]
GuideMethod = Annotated[str | None, typer.Option(help="tfg, dps, lgd, mpgd, freedom, ugd. [default: tfg]")]
GuideOption = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the energy and the method; repeatable.")]
Import = Annotated[
    list[Path] | None,
    typer.Option("--import", metavar="FILE.py", help="Run a file of your own that registers methods by name; repeatable."),
]
Nonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Take LoRA files with NaN or infinite values.")]
