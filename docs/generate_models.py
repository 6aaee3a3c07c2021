"""Writes docs/models.md: every family of models and what works with it, read from the code: python docs/generate_models.py"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gen.models.bridge.chat import ChatReader
from gen.models.bridge.families import (
    auraflow,
    chroma,
    cogview4,
    dit,
    flux,
    flux2,
    flux_edit,
    hidream,
    kolors,
    krea2,
    lumina2,
    pixart,
    qwen_image,
    qwen_image21,
    sana,
    sd3,
    sdxl,
    stable_diffusion,
    z_image,
)
from gen.models.bridge.hook_layouts import LAYOUTS
from gen.models.bridge.parts import TextPart
from gen.models.bridge.pipeline import PIPELINES

PAGE = Path(__file__).with_name("models.md")


@dataclass(frozen=True)
class Row:
    """A pipeline in the table: the adapter of its network, what reads its prompts (None: nothing that may be asked for more),
    and a model to open."""

    network: type[Any]
    reader: type[Any] | None
    model: str


# a new family adds a row
ROWS: dict[str, Row] = {
    "StableDiffusionPipeline": Row(
        stable_diffusion.UNet, stable_diffusion.StableDiffusionReader, "stable-diffusion-v1-5/stable-diffusion-v1-5"
    ),
    "LatentConsistencyModelPipeline": Row(
        stable_diffusion.UNet, stable_diffusion.StableDiffusionReader, "SimianLuo/LCM_Dreamshaper_v7"
    ),
    "StableDiffusionXLPipeline": Row(sdxl.SDXLUNet, sdxl.SDXLReader, "stabilityai/stable-diffusion-xl-base-1.0"),
    "KolorsPipeline": Row(kolors.KolorsUNet, kolors.KolorsReader, "Kwai-Kolors/Kolors-diffusers"),
    "StableDiffusion3Pipeline": Row(sd3.SD3, sd3.SD3Reader, "stabilityai/stable-diffusion-3.5-medium"),
    "FluxPipeline": Row(flux.Flux, flux.FluxReader, "black-forest-labs/FLUX.1-schnell"),
    "FluxKontextPipeline": Row(flux_edit.Kontext, flux.FluxReader, "black-forest-labs/FLUX.1-Kontext-dev"),
    "FluxFillPipeline": Row(flux_edit.Fill, flux.FluxReader, "black-forest-labs/FLUX.1-Fill-dev"),
    "Flux2Pipeline": Row(flux2.Flux2, ChatReader, "black-forest-labs/FLUX.2-dev"),
    "Flux2KleinPipeline": Row(flux2.Flux2, ChatReader, "black-forest-labs/FLUX.2-klein-4B"),
    "ChromaPipeline": Row(chroma.Chroma, chroma.ChromaReader, "lodestones/Chroma1-HD"),
    "QwenImagePipeline": Row(qwen_image.QwenImage, ChatReader, "Qwen/Qwen-Image"),
    "QwenImageEditPipeline": Row(qwen_image.QwenImageEdit, None, "Qwen/Qwen-Image-Edit"),
    "QwenImageEditPlusPipeline": Row(qwen_image.QwenImageEditPlus, None, "Qwen/Qwen-Image-Edit-2509"),
    "QwenImage21Pipeline": Row(qwen_image21.QwenImage21, ChatReader, "Qwen/Qwen-Image-2.1"),
    "ZImagePipeline": Row(z_image.ZImage, ChatReader, "Tongyi-MAI/Z-Image-Turbo"),
    "Krea2Pipeline": Row(krea2.Krea2, ChatReader, "krea/Krea-2"),
    "Lumina2Pipeline": Row(lumina2.Lumina2, lumina2.Lumina2Reader, "Alpha-VLLM/Lumina-Image-2.0"),
    "HiDreamImagePipeline": Row(hidream.HiDream, hidream.HiDreamReader, "HiDream-ai/HiDream-I1-Full"),
    "AuraFlowPipeline": Row(auraflow.AuraFlow, auraflow.AuraFlowReader, "fal/AuraFlow"),
    "CogView4Pipeline": Row(cogview4.CogView4, cogview4.CogView4Reader, "THUDM/CogView4-6B"),
    "SanaPipeline": Row(sana.Sana, sana.SanaReader, "Efficient-Large-Model/Sana_1600M_1024px_diffusers"),
    "SanaSprintPipeline": Row(sana.SanaSprint, sana.SanaReader, "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers"),
    "PixArtSigmaPipeline": Row(pixart.PixArt, TextPart, "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"),
    "PixArtAlphaPipeline": Row(pixart.PixArt, TextPart, "PixArt-alpha/PixArt-XL-2-1024-MS"),
    "DiTPipeline": Row(dit.BridgedDiT, None, "facebook/DiT-XL-2-256"),
}
EDITS = {"picture": "`--image`", "mask": "`--image --mask`", "": ""}

BEFORE = """# Models

What opens, what works with it, and a command for each. `python docs/generate_models.py` writes this page from the code.

| model | try it |
|---|---|
| the default model and its student | `fewstep image "a red heart"` (`--no-fast` for the teacher) |
"""
MIDDLE = """
Folders of ours, published checkpoints and single files open too: [formats.md](formats.md). What a family is by default, and how
its pictures compare with diffusers', is in [pipelines.md](pipelines.md).

## For all of them
Every sampler and schedule, guidance by classifier-free rules, prompts that change on the way, `AND` and LoRAs by name
([prompts.md](prompts.md)), negative prompts, image to image and inpainting, restoration and energies
([guidance.md](guidance.md)), regions and views ([regions.md](regions.md)), canvases ([canvas.md](canvas.md)), LoRA files
([adapters.md](adapters.md)), caches of outputs (`reuse`, `easy`), previews, recipes. Models with class labels in the place of
text have no prompts.

## What differs
`nag` is normalised attention guidance, `pag` and `seg` perturbed attention; block caches are `first_block` and `taylor`, which
leave out blocks, and skip-layer guidance (`slg`) needs the same. `--native` (`native=True`) runs the denoiser in our own
network, [which computes the same](pipelines.md#in-our-own-networks). The last column is what prompts may be read with.

| model | ControlNet | edits by itself | `nag` | `pag`, `seg` | block caches | reading |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The page; KeyError for a family without a row here."""
    tried = [f'| {PIPELINES[name].name} | `fewstep image "a cat" --model {ROWS[name].model}{_rest(name)}` |' for name in ROWS]
    missing = PIPELINES.keys() - ROWS.keys()
    if missing:
        raise KeyError(f"docs/generate_models.py has no row for {', '.join(sorted(missing))}; add one.")
    ours = "| the default model and its student | | | yes | yes | yes | |"
    return BEFORE + "\n".join(tried) + "\n" + MIDDLE + "\n".join([ours, *map(_works, ROWS)]) + "\n"


def _rest(name: str) -> str:
    edits, lent = ROWS[name].network.reads, PIPELINES[name].lent
    borrowed = "" if lent is None else f" --text-encoder {lent[2]}"
    return borrowed + {"picture": " --image cat.png", "mask": " --image cat.png --mask hole.png", "": ""}[edits]


def _works(name: str) -> str:
    family, row = PIPELINES[name], ROWS[name]
    layout = LAYOUTS[family.classes[family.backbone][0]]
    without = layout.without or {}
    text = family.reader is not None
    options = ", ".join(f"`{option}`" for option in _takes(row))
    if getattr(row.network, "reads_sizes", False):
        options += ", sizes"
    cells = [
        family.name,
        "yes" if row.network.controlled_by else "",
        EDITS[row.network.reads],
        _yes(text and "text" not in without),
        "with `--native`" if "heads" in without and family.native else _yes("heads" not in without),
        _yes("block" not in without),
        options,
    ]
    return f"| {' | '.join(cells)} |"


def _takes(row: Row) -> tuple[str, ...]:
    if row.reader in (TextPart, ChatReader):  # T5 here; a reader that sees pictures has no row of its own
        return ("max_sequence_length",)
    return () if row.reader is None else row.reader.takes


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
