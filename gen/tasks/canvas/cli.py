"""`fewstep panorama`, `outpaint` and `upscale`: pictures larger than the model's own, from windows."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.groups import grouped
from gen.cli.options import (
    Cache,
    Device,
    Dtype,
    Guidance,
    GuidanceScale,
    LoraDir,
    MethodOptions,
    Model,
    Negative,
    Output,
    PartOptions,
    Quiet,
    Sampler,
    Schedule,
    Steps,
)
from gen.cli.output import OutputTarget, exit_code, save_all, save_free, say
from gen.cli.values import parse_options, sides

Prompt = Annotated[str | None, typer.Argument(help="What it shows, in quotes; helps much.")]
Picture = Annotated[Path, typer.Argument(help="The picture (PNG, JPEG, WebP, ...).")]
Window = Annotated[str | None, typer.Option(metavar="N|WxH", help="Pixels of a window. [default: the model's own size]")]
Stride = Annotated[str | None, typer.Option(metavar="N|WxH", help="Pixels between windows. [default: half a window]")]
Weights = Annotated[str, typer.Option(help="How a window counts towards its edge: flat, linear, cosine, gaussian.")]
ShiftFrom = Annotated[
    float | None, typer.Option(metavar="LOGSNR", help="Move windows at every step from here; -20: all steps.")
]
WindowBatch = Annotated[int, typer.Option(help="Windows per network call; fewer need less memory.")]
Number = Annotated[int, typer.Option("--number", "-n", help="How many pictures.")]
Seed = Annotated[int | None, typer.Option(help="The first picture's seed. [default: random]")]
Option = Annotated[  # an earlier spelling of --sampler-option and the like
    list[str] | None, typer.Option(metavar="OF:NAME=VALUE", hidden=True)
]
Lora = Annotated[list[str] | None, typer.Option(metavar="FILE[:WEIGHT]", help="A LoRA or a relative; repeatable.")]


@dataclass(frozen=True)
class WindowOptions(MethodOptions):
    """What all three commands take."""

    window: Window = None
    stride: Stride = None
    weights: Weights = "linear"
    shift_from: ShiftFrom = None
    window_batch: WindowBatch = 8
    number: Number = 1
    seed: Seed = None
    steps: Steps = None
    sampler: Sampler = None
    schedule: Schedule = None
    guidance_scale: GuidanceScale = None
    negative: Negative = None
    guidance: Guidance = None
    cache: Cache = None
    option: Option = None
    lora: Lora = None
    lora_dir: LoraDir = None
    model: Model = "default"
    output: Output = None
    device: Device = None
    dtype: Dtype = None
    quiet: Quiet = False


METHODS = ("sampler", "schedule", "guidance", "cache")


@grouped
def panorama(
    *,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="One, or several along the width.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels. [default: four windows wide, one tall]")] = None,
    circular: Annotated[
        str, typer.Option(metavar="AXIS", help="none, horizontal (the right edge goes on at the left), vertical, both.")
    ] = "none",
    sync: Annotated[float, typer.Option(help="SyncDiffusion: how strongly windows are brought together; 0 is not.")] = 0.0,
    sync_distance: Annotated[str, typer.Option(help="What of them: latent, pictures, lpips:FILE.")] = "latent",
    run: WindowOptions,
    parts: PartOptions,
) -> int:
    """Make a picture of any size: windows denoised together, which flow into one another."""
    width, height = sides("--size", size) or (None, None)
    own = {"width": width, "height": height, "circular": circular, "sync": sync, "sync_distance": sync_distance}
    return _run("panorama", (), list(prompts or []) or None, " ".join(prompts or []), own, run, parts)


@grouped
def outpaint(
    *,
    picture: Picture,
    prompt: Prompt = None,
    left: Annotated[int, typer.Option(help="Pixels to paint on this side.")] = 0,
    right: Annotated[int, typer.Option(help="Likewise.")] = 0,
    top: Annotated[int, typer.Option(help="Likewise.")] = 0,
    bottom: Annotated[int, typer.Option(help="Likewise.")] = 0,
    recurrence: Annotated[int, typer.Option(help="Passes of every step: more fit better to what is there.")] = 1,
    run: WindowOptions,
    parts: PartOptions,
) -> int:
    """Paint around a picture, which stays as it is to the pixel."""
    own = {"left": left, "right": right, "top": top, "bottom": bottom, "recurrence": recurrence}
    return _run("outpaint", (picture,), prompt, f"{picture.stem} outpainted", own, run, parts)


@grouped
def upscale(
    *,
    picture: Annotated[str, typer.Argument(help="The picture (PNG, JPEG, WebP, ...); with --low, the prompt to draw it from.")],
    prompt: Prompt = None,
    scale: Annotated[
        float | None, typer.Option(help="How many times as wide and tall. [default: 2, or the model's own]")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of the enlarged picture is made anew, 0 to 1. [default: 0.4]")
    ] = None,
    noise_level: Annotated[
        float | None, typer.Option(help="Noise on the picture, for a model that was trained to enlarge. [default: its least]")
    ] = None,
    low: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Draw the picture with this model first, and keep it beside: a cascade.")
    ] = None,
    run: WindowOptions,
    parts: PartOptions,
) -> int:
    """Make a picture larger: by a model that was trained to (--model upscale), or enlarged, partly noised and denoised."""
    own = {"scale": scale, "strength": strength, "noise_level": noise_level}
    if low is not None:
        if prompt is not None:
            raise ValueError("With --low the first argument is the prompt, and another follows; put all of it in quotes.")
        if os.path.isfile(picture):  # not Path.is_file, which raises for a prompt too long for a name
            raise ValueError(
                f"With --low the first argument is a prompt, and {picture} is a file; leave --low out to enlarge that."
            )
        label, prompt = picture, picture
        drawn, seed = _drawn(low, prompt, run)
        picture, run = str(drawn), replace(run, seed=seed, negative=None)
    else:
        label = f"{Path(picture).stem} upscaled"
    return _run("upscale", (Path(picture),), prompt, label, own, run, parts, optional_prompt=low is not None)


def _drawn(low: str, prompt: str, run: WindowOptions) -> tuple[Path, int]:
    """(file of the picture that the model `low` draws, beside the output and with its own recipe; its seed)."""
    from gen.cli.lora import open_with

    target = OutputTarget.of(run.output)
    if target.name is not None:
        target = replace(target, name=f"{Path(target.name).stem}.low.png", suffix=".png")
    generator = open_with([], low, run.device, run.dtype, run.quiet)
    subject = _subject(generator, "cascade", prompt)
    made = generator(**subject, seed=run.seed, negative_prompt=run.negative, progress=not run.quiet)
    file = save_free(made.images[0], target.of_recipe(made.recipes[0], f"{prompt} low", None), made.recipes[0])
    print(file, flush=True)
    return file, made.seeds[0]


def options_of(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """sampler:eta=0.5 and the like as the arguments of a call."""
    pairs_of_method: dict[str, list[str]] = {}
    for pair in pairs:
        method, colon, rest = pair.partition(":")
        if not colon or method not in METHODS:
            raise ValueError(f"--option {pair}: write OF:NAME=VALUE, where OF is one of {', '.join(METHODS)}.")
        pairs_of_method.setdefault(f"{method}_options", []).append(rest)
    return {name: parse_options(rest) for name, rest in pairs_of_method.items()}


def _subject(generator: Any, method: str, prompt: Any) -> dict[str, Any]:
    """The prompt, or the class of a model of classes, which has one for the whole canvas."""
    if generator.text_encoder is not None or not generator.classes:
        return {"prompt": prompt}
    if isinstance(prompt, list) and len(prompt) > 1:
        raise ValueError(f"A model of classes makes a {method} of one class; {len(prompt)} were given.")
    return {"class_labels": prompt or -1}


def _processes(seed: int | None) -> tuple[Any, bool, int | None]:
    """(group, whether this process is the first, seed): under torchrun or accelerate launch, windows are spread over all."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None, True, seed
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group()
    one = [secrets.randbits(32) if seed is None else seed]
    torch.distributed.broadcast_object_list(one)
    return torch.distributed.group.WORLD, torch.distributed.get_rank() == 0, one[0]


def _run(
    method: str,
    pictures: tuple,
    prompt: Any,
    label: str,
    method_options: Mapping[str, Any],
    run: WindowOptions,
    parts: PartOptions,
    optional_prompt: bool = False,
) -> int:
    """Generate and save; returns the exit code. method_options: the arguments that are the command's own. optional_prompt: it
    is left out for a model that reads none."""
    target = OutputTarget.of(run.output)
    call: dict[str, Any] = run.keywords()
    for name, options in options_of(run.option or []).items():
        call[name] = options | call.get(name, {})
    for name in ("window", "stride"):
        both = sides(f"--{name}", getattr(run, name))
        call[name] = None if both is None else (both[1], both[0])
    for name in (
        "weights",
        "shift_from",
        "window_batch",
        "seed",
        "sampler",
        "schedule",
        "guidance_scale",
        "guidance",
        "cache",
        "lora_dir",
    ):
        call[name] = getattr(run, name)
    quiet = run.quiet

    from gen.cli.lora import open_with

    group, first_process, call["seed"] = _processes(call["seed"])
    quiet = quiet or not first_process
    generator = open_with(run.lora or [], run.model, run.device, run.dtype, quiet, **parts.arguments())
    if optional_prompt and generator.text_encoder is None and not generator.classes:
        prompt = None
    call |= _subject(generator, method, prompt) | {"group": group}
    start = time.perf_counter()

    try:
        result = getattr(generator, method)(
            *pictures,
            **method_options,
            **call,
            num_inference_steps=run.steps,
            negative_prompt=run.negative,
            num_images_per_prompt=run.number,
            progress=not quiet,
            on_images=(lambda batch: save_all(batch, target, label, run.number > 1)) if first_process else None,
        )
    except KeyboardInterrupt as stop:
        say("Interrupted.", quiet)
        return exit_code(stop)
    first = result.recipes[0]
    say(
        f"{method}, {first.width} x {first.height}, seed {first.seed}, {first.num_inference_steps} steps, "
        f"{first.nfe:g} evaluations, {time.perf_counter() - start:.1f} s on {generator.device}",
        quiet,
    )
    return 0


IMAGE, REPLAY, COMMANDS = None, None, (panorama, outpaint, upscale)
