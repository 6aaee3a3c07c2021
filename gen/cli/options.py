"""Options that several commands share, in one wording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli import complete
from gen.cli.output import OutputTarget
from gen.cli.values import parse_options, sides

Steps = Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's]")]
Sampler = Annotated[
    str | None, typer.Option(help="See `fewstep samplers`. [default: the model's]", autocompletion=complete.samplers)
]
GuidanceScale = Annotated[float | None, typer.Option(help="0 and 1 are no guidance. [default: the model's]")]
Negative = Annotated[str | None, typer.Option(help="What the picture should not be.")]
Height = Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")]
Width = Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")]
Size = Annotated[
    str | None,
    typer.Option(metavar="WxH", help="Pixels of both sides, or one number for a square: --width and --height in one."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|DIR",
        help="A .png, .jpg, .webp or .avif file (of several pictures each gets its seed behind the name), or a folder.",
    ),
]
Written = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="OUT", help="What to write, as in every other command.", show_default=False),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        help="See `fewstep samplers`; or a table, NAME.json. [default: the model's]", autocompletion=complete.schedules
    ),
]
Guidance = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="See `fewstep samplers`; 'apg + rescale' stacks. [default: cfg]", autocompletion=complete.guidance
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="Log-SNR levels at which guidance acts.")
]
Cache = Annotated[
    str | None, typer.Option(metavar="NAMES", help="Spare evaluations; see `fewstep samplers`.", autocompletion=complete.caches)
]
Bins = Annotated[
    bool | None, typer.Option("--bins/--no-bins", help="Make it at a size the model knows, then cut. [default: the model's]")
]
Fast = Annotated[
    bool | None, typer.Option("--fast/--no-fast", help="The default model's 4-step student. [default: where it serves]")
]
AnyModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="default, fast, a model folder of ours or diffusers', a checkpoint's file, or a hub id.",
        autocompletion=complete.models,
    ),
]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps. [default: the best present]", autocompletion=complete.devices)
]
Dtype = Annotated[
    str | None,
    typer.Option(help="auto, float32, bfloat16, float16. [default: the device's fast one]", autocompletion=complete.dtypes),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the paths of finished files.")]
Model = Annotated[
    str,
    typer.Option(
        help="default, a model folder of ours or diffusers', a checkpoint's file, or a hub id (owner/name).",
        autocompletion=complete.models,
    ),
]
Vae = Annotated[
    str | None, typer.Option(metavar="DIR|ID", help="The autoencoder, for a checkpoint or instead of a pipeline's.")
]
TextEncoder = Annotated[str | None, typer.Option(metavar="DIR|ID", help="The text encoder, for a checkpoint that reads text.")]
Variant = Annotated[
    str | None, typer.Option(help="Weights of a diffusers pipeline by the name in their files: fp16. [default: by --dtype]")
]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="Hold the denoiser's layers in fewer bits: int8, fp8, int4, nf4. [default: as they are]",
        autocompletion=complete.quantize,
    ),
]
Offload = Annotated[
    str | None,
    typer.Option(
        help="Bring to the device only what is in use: model, group, sequential, disk. [default: all is there]",
        autocompletion=complete.offload,
    ),
]
VaeTile = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Decode in tiles of this size, for less memory. [default: whole]")
]
PreviewDecoder = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|ID|FILE", help="A tiny decoder of its latents, such as TAESD: previews, --decoder tiny."),
]
Decoder = Annotated[str | None, typer.Option(metavar="tiny", help="What decodes pictures. [default: the model's autoencoder]")]
AttentionBackend = Annotated[
    str | None,
    typer.Option(metavar="BACKEND", help="How attention is computed, a name that `fewstep env` lists. [default: auto]"),
]
Compile = Annotated[
    str | None,
    typer.Option(metavar="regional|full", help="Compile the denoiser's blocks, or all of it, by torch.compile. [default: no]"),
]
CudaGraphs = Annotated[
    bool | None, typer.Option("--cuda-graphs", help="With --compile full on CUDA: launch all kernels at once.")
]
Native = Annotated[
    bool | None,
    typer.Option("--native/--no-native", help="Run a pipeline's denoiser in our network. [default: DiT and PixArt]"),
]
ModelOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="What a checkpoint does not tell, e.g. heads=16; repeatable.")
]
Lora = Annotated[
    list[str] | None, typer.Option(metavar="FILE[:WEIGHT]", help="A LoRA or a relative (safetensors); repeatable.")
]
LoraDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="LoRA files that prompts name, as in <lora:NAME:0.8>; see docs/prompts.md.",
    ),
]
PromptSyntax = Annotated[
    str | None, typer.Option(metavar="full|weights", help="What of prompts is more than words. [default: full]")
]
NoiseKind = Annotated[
    str | None, typer.Option(metavar="torch|philox", help="Draw noise on the CPU, or on the device. [default: torch]")
]
Embedding = Annotated[list[str] | None, typer.Option(metavar="FILE", help="Learned words (textual inversion); repeatable.")]
Import = Annotated[
    list[Path] | None,
    typer.Option("--import", metavar="FILE.py", help="Run a file of your own that registers methods by name; repeatable."),
]
Nonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Take LoRA files with NaN or infinite values.")]


@dataclass(frozen=True)
class SamplingOptions:
    """How many pictures, and how they are sampled."""

    number: Annotated[int, typer.Option("--number", "-n", help="How many pictures.")] = 1
    seed: Annotated[int | None, typer.Option(help="The first one's seed. [default: random]")] = None
    steps: Steps = None
    sampler: Sampler = None
    guidance_scale: GuidanceScale = None

    def keywords(self) -> dict[str, Any]:
        """As a call of a `Generator` takes them."""
        return {
            "num_images_per_prompt": self.number,
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "sampler": self.sampler,
            "guidance_scale": self.guidance_scale,
        }


@dataclass(frozen=True)
class DeviceOptions:
    """Where a command computes, and whether it says more than paths."""

    device: Device = None
    dtype: Dtype = None
    quiet: Quiet = False


@dataclass(frozen=True)
class PlaceOptions(DeviceOptions):
    """Where pictures are made and put."""

    output: Output = None

    def target(self) -> OutputTarget:
        """Checked before anything is made."""
        return OutputTarget.of(self.output)


@dataclass(frozen=True)
class MachineOptions(DeviceOptions):
    """Where a command computes, the user's own files that it runs first, and whether it says more than paths."""

    import_: Import = None

    def run_imports(self) -> None:
        """Before names are looked up that those files register."""
        from gen.io.user_code import import_files

        import_files(self.import_)


@dataclass(frozen=True)
class MethodOptions:
    """Options of the sampler, the schedule, the guidance and the cache."""

    sampler_option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the sampler; repeatable.")] = None
    schedule_option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the schedule; repeatable.")] = (
        None
    )
    guidance_option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the guidance; repeatable.")] = (
        None
    )
    cache_option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the cache; repeatable.")] = None

    def keywords(self) -> dict[str, Any]:
        """Those that were given, as a call takes them."""
        pairs_of = {option.name: getattr(self, option.name) for option in fields(MethodOptions)}
        return {f"{name}s": parse_options(pairs) for name, pairs in pairs_of.items() if pairs}


@dataclass(frozen=True)
class SizeOptions:
    """How large a picture is."""

    height: Height = None
    width: Width = None
    size: Size = None

    def keywords(self) -> dict[str, Any]:
        """`height` and `width`, as a call takes them. ValueError where a side is said twice."""
        both = sides("--size", self.size)
        if both is None:
            return {"height": self.height, "width": self.width}
        if twice := "--height" if self.height is not None else "--width" if self.width is not None else None:
            raise ValueError(f"--size says both sides, and {twice} says one again; give --size, or --width and --height.")
        return {"height": both[1], "width": both[0]}


@dataclass(frozen=True)
class CallOptions(SizeOptions):
    """How a picture is sampled, and how large it is: settings of one call, with `MethodOptions` beside."""

    sampler: Sampler = None
    schedule: Schedule = None
    guidance_scale: GuidanceScale = None
    negative: Negative = None
    guidance: Guidance = None
    guidance_interval: GuidanceInterval = None
    cache: Cache = None
    bins: Bins = None
    lora_dir: LoraDir = None
    prompt_syntax: PromptSyntax = None
    noise_kind: NoiseKind = None

    def keywords(self) -> dict[str, Any]:
        """As a call of a `Generator` takes them. A schedule that is a file of levels is read."""
        call = {**vars(self), **super().keywords()}
        call.pop("size")
        call["negative_prompt"], call["use_resolution_binning"] = call.pop("negative"), call.pop("bins")
        return call | schedule_keywords(self.schedule)


@dataclass(frozen=True)
class RuleOptions(MethodOptions):
    """The schedule, guidance and cache of commands beside `fewstep image`, with their options."""

    schedule: Schedule = None
    guidance: Guidance = None
    guidance_interval: GuidanceInterval = None
    cache: Cache = None
    lora_dir: LoraDir = None

    def keywords(self) -> dict[str, Any]:
        """As a call of a `Generator` takes them."""
        own = {"guidance": self.guidance, "guidance_interval": self.guidance_interval, "cache": self.cache}
        return own | {"lora_dir": self.lora_dir} | super().keywords() | schedule_keywords(self.schedule)


def schedule_keywords(schedule: str | None) -> dict[str, Any]:
    """The keywords of a schedule's name, or of a table of levels in a file NAME.json."""
    if not str(schedule).lower().endswith(".json"):
        return {"schedule": schedule}
    from samplers.search.table import read_table

    table = read_table(str(schedule))
    options = {"values": table.sigmas, "unit": "sigma", "pure_noise": table.pure_noise}
    return {"schedule": "table", "schedule_options": options}


@dataclass(frozen=True)
class PartOptions:
    """Where the parts of a model are that it does not bring, and what it does not tell of itself."""

    vae: Vae = None
    text_encoder: TextEncoder = None
    native: Native = None
    variant: Variant = None
    quantize: Quantize = None
    offload: Offload = None
    vae_tile: VaeTile = None
    preview_decoder: PreviewDecoder = None
    decoder: Decoder = None
    attention: AttentionBackend = None
    compile: Compile = None
    cuda_graphs: CudaGraphs = None
    model_option: ModelOption = None

    def arguments(self) -> dict[str, Any]:
        """Those of `Generator.from_pretrained` that were given."""
        given = {option.name: getattr(self, option.name) for option in fields(PartOptions)}
        return model_arguments({**given, "model_option": None, "model_options": self.model_option})


def model_arguments(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Generator.from_pretrained` that were given, from the options of a command."""
    arguments = {name: value for name, value in parts.items() if value is not None and value != []}
    if "attention" in arguments:
        arguments["attention_backend"] = arguments.pop("attention")
    if "model_options" in arguments:
        arguments["model_options"] = parse_options(arguments["model_options"])
    return arguments
