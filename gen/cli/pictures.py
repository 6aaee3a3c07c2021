"""`fewstep image` and `fewstep replay`: their options. `gen.cli.image` and `gen.cli.replay` do the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gen.cli import training_free
from gen.cli.encoding import USUAL, EncodingOptions
from gen.cli.energies import ENERGIES
from gen.cli.groups import grouped
from gen.cli.options import (
    Device,
    Dtype,
    Embedding,
    GuidanceScale,
    Guide,
    GuideMethod,
    GuideOption,
    GuideStrength,
    Height,
    Import,
    Lora,
    LoraDir,
    ModelOption,
    Native,
    Negative,
    Nonfinite,
    Output,
    PromptSyntax,
    Quantize,
    Quiet,
    Region,
    Sampler,
    Steps,
    TextEncoder,
    Vae,
    Variant,
    Width,
)


def add(app: typer.Typer) -> None:
    """Make them part of the program."""
    for command in (image, replay):
        app.command()(command)


@grouped
def image(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="Prompts, each in quotes.")] = None,
    number: Annotated[int, typer.Option("--number", "-n", help="Pictures per prompt.")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="The first picture's seed; the next get seed + 1, ... [default: random]")
    ] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    schedule: Annotated[
        str | None, typer.Option(help="See `fewstep samplers`; or a table, NAME.json. [default: the model's]")
    ] = None,
    sampler_option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the sampler; repeatable.")] = None,
    schedule_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the schedule; repeatable.")
    ] = None,
    guidance_scale: GuidanceScale = None,
    negative: Negative = None,
    encoding: EncodingOptions = USUAL,
    guidance: Annotated[
        str | None, typer.Option(metavar="NAMES", help="See `fewstep samplers`; 'apg + rescale' stacks. [default: cfg]")
    ] = None,
    guidance_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the guidance; repeatable.")
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="Log-SNR levels at which guidance acts.")
    ] = None,
    cache: Annotated[str | None, typer.Option(metavar="NAMES", help="Spare evaluations; see `fewstep samplers`.")] = None,
    cache_option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the cache; repeatable.")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture to start from, or to edit: PNG, JPEG, WebP, GIF, BMP.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="White is made anew, black stays as it is in --image.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of --image is replaced, 0 to 1. [default: 0.8; 1 with a mask]")
    ] = None,
    guide: Guide = None,
    guide_strength: GuideStrength = None,
    guide_method: GuideMethod = None,
    guide_option: GuideOption = None,
    negtome: training_free.NegTome = None,
    negtome_mask: training_free.NegTomeMask = None,
    reference: training_free.Reference = None,
    reference_mask: training_free.ReferenceMask = None,
    reference_prompt: training_free.ReferencePrompt = None,
    concept: training_free.Concept = None,
    aesthetic: training_free.Aesthetic = None,
    greedy: training_free.Greedy = None,
    training_free_option: training_free.TrainingFreeOption = None,
    height: Height = None,
    width: Width = None,
    bins: Annotated[
        bool | None,
        typer.Option("--bins/--no-bins", help="Make it at a size the model knows, then cut. [default: the model's]"),
    ] = None,
    lora: Lora = None,
    compose: Annotated[
        str | None, typer.Option(help="Several LoRAs: merge, switch, composite, contrast, cached. [default: merge]")
    ] = None,
    compose_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the composition; repeatable.")
    ] = None,
    region: Region = None,
    embedding: Embedding = None,
    lora_dir: LoraDir = None,
    prompt_syntax: PromptSyntax = None,
    allow_nonfinite: Nonfinite = False,
    fast: Annotated[
        bool | None, typer.Option("--fast/--no-fast", help="The default model's 4-step student. [default: where it serves]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="default, fast, a model folder of ours or diffusers', a checkpoint's file, or a hub id.")
    ] = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    native: Native = None,
    variant: Variant = None,
    quantize: Quantize = None,
    model_option: ModelOption = None,
    grid: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save a contact sheet.")] = None,
    output: Output = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per network call. [default: 8]")] = None,
    batch_invariant: Annotated[
        bool | None,
        typer.Option(
            "--batch-invariant/--no-batch-invariant", help="The same picture to the bit at any batch size. [default: on a CPU]"
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="Keep the recipe in the file.")] = True,
    import_: Import = None,
    quiet: Quiet = False,
) -> int:
    """Make pictures from prompts. Files are named after prompt and seed; nothing is overwritten."""
    from gen.cli.image import run
    from gen.cli.lora import regions_of
    from gen.io.user_code import import_files

    import_files(import_)

    return run(
        prompts or [],
        model=model,
        fast=fast,
        parts={
            "vae": vae,
            "text_encoder": text_encoder,
            "native": native,
            "variant": variant,
            "quantize": quantize,
            "model_options": model_option,
        },
        output=output,
        grid=grid,
        device=device,
        dtype=dtype,
        metadata=metadata,
        quiet=quiet,
        lora=[*(lora or []), *(embedding or [])],
        options={
            "sampler": sampler_option,
            "schedule": schedule_option,
            "guidance": guidance_option,
            "cache": cache_option,
            "guide": guide_option,
            "composition": compose_option,
        },
        energies=ENERGIES,
        guide=guide,
        guide_strength=guide_strength,
        guide_method=guide_method,
        composition=compose,
        regions=regions_of(region),
        lora_dir=lora_dir,
        **encoding.keywords(),
        prompt_syntax=prompt_syntax,
        allow_nonfinite=allow_nonfinite,
        num_images_per_prompt=number,
        seed=seed,
        num_inference_steps=steps,
        sampler=sampler,
        schedule=schedule,
        guidance_scale=guidance_scale,
        negative_prompt=negative,
        guidance=guidance,
        guidance_interval=guidance_interval,
        cache=cache,
        image=image,
        mask=mask,
        strength=strength,
        height=height,
        width=width,
        use_resolution_binning=bins,
        batch_size=batch_size,
        batch_invariant=batch_invariant,
        training_free=training_free.keywords(
            negtome=negtome,
            negtome_mask=negtome_mask,
            reference=reference,
            reference_mask=reference_mask,
            reference_prompt=reference_prompt,
            concept=concept,
            aesthetic=aesthetic,
            greedy=greedy,
            options=training_free_option,
        ),
    )


def replay(
    picture: Annotated[Path, typer.Argument(help="A picture with a fewstep recipe.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file, or a folder. [default: NAME-replay.png beside it]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model, where it is not the default one.")] = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    model_option: ModelOption = None,
    device: Annotated[str | None, typer.Option(help="[default: the recipe's]")] = None,
    dtype: Annotated[str | None, typer.Option(help="[default: the recipe's]")] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="The picture that it started from, if it did.")] = None,
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="The mask, likewise.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A LoRA that it was made with; found by its content; repeatable.")
    ] = None,
    region: Region = None,
    guide: Annotated[
        str | None, typer.Option(metavar="NAME|FILE.py:FUNCTION", help="The energy that it was guided by, if it was your own.")
    ] = None,
    guide_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of that energy: the files that it opens; repeatable.")
    ] = None,
    negtome: training_free.NegTome = None,
    negtome_mask: training_free.NegTomeMask = None,
    reference: training_free.Reference = None,
    reference_mask: training_free.ReferenceMask = None,
    aesthetic: training_free.Aesthetic = None,
    greedy: training_free.Greedy = None,
    allow_nonfinite: Nonfinite = False,
    max_work: Annotated[
        float | None, typer.Option(help="Megapixel evaluations that the recipe may ask for. [default: 4000]")
    ] = None,
    import_: Import = None,
    quiet: Quiet = False,
) -> int:
    """Make the picture of a recipe again and compare. Exit code 1 if a pixel differs."""
    from gen.cli.lora import regions_of
    from gen.cli.replay import run
    from gen.io.user_code import import_files

    import_files(import_)

    return run(
        picture,
        output=output,
        model=model,
        parts={"vae": vae, "text_encoder": text_encoder, "model_options": model_option},
        device=device,
        dtype=dtype,
        image=image,
        mask=mask,
        lora=lora or [],
        regions=regions_of(region),
        guide=guide,
        guide_options=guide_option or [],
        energies=ENERGIES,
        training_free=training_free.keywords(
            negtome=negtome,
            negtome_mask=negtome_mask,
            reference=reference,
            reference_mask=reference_mask,
            aesthetic=aesthetic,
            greedy=greedy,
        ),
        allow_nonfinite=allow_nonfinite,
        max_work=max_work,
        quiet=quiet,
    )
