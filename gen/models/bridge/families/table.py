"""The table of families: every pipeline that opens natively, and what works with it. Whoever lists families reads this."""

from __future__ import annotations

from dataclasses import dataclass
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
from gen.models.bridge.families.base import Family
from gen.models.bridge.hook_layouts import LAYOUTS, BlockLayout
from gen.models.bridge.parts import TextPart

FEATURES = ("text", "negative", "image", "mask", "lora", "control", "image_prompt", "cache", "block_cache", "canvas")


@dataclass(frozen=True)
class FamilyRow:
    """A pipeline in the table.

    network: the adapter of its network.
    reader: what reads its prompts, None where nothing more may be asked of it.
    model: a hub id to open.
    embedded: the network embeds its guidance scale, so that a negative prompt has nothing to act on.
    """

    family: Family
    network: type[Any]
    reader: type[Any] | None
    model: str
    embedded: bool = False

    @property
    def layout(self) -> BlockLayout:
        """Where hooks find their places in its network."""
        return LAYOUTS[self.family.classes[self.family.backbone][0]]

    def has_hook(self, name: str) -> bool:
        return name not in (self.layout.without or {})

    def works(self, feature: str) -> bool:
        """Does one of `FEATURES` work with it?

        text, negative: prompts and negative prompts.
        image, mask: pictures to start from, inpainting.
        lora, control, image_prompt: LoRA files, ControlNets, IP-Adapters.
        cache, block_cache: caches of outputs, and of blocks.
        canvas: windows of a larger picture.
        """
        text, fills = self.family.reader is not None, self.network.reads == "mask"
        return {
            "text": text,
            "negative": text and not self.embedded,
            "image": not fills,
            "mask": True,
            "lora": True,
            "control": bool(self.network.controlled_by),
            "image_prompt": self.network.takes_image_prompts,
            "cache": True,
            "block_cache": self.has_hook("block"),
            "canvas": not fills,
        }[feature]


# a new family adds a row
FAMILIES: dict[str, FamilyRow] = {
    "StableDiffusionPipeline": FamilyRow(
        stable_diffusion.FAMILY,
        stable_diffusion.UNet,
        stable_diffusion.StableDiffusionReader,
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    "LatentConsistencyModelPipeline": FamilyRow(
        stable_diffusion.LCM,
        stable_diffusion.UNet,
        stable_diffusion.StableDiffusionReader,
        "SimianLuo/LCM_Dreamshaper_v7",
        embedded=True,
    ),
    "StableDiffusionXLPipeline": FamilyRow(
        sdxl.FAMILY, sdxl.SDXLUNet, sdxl.SDXLReader, "stabilityai/stable-diffusion-xl-base-1.0"
    ),
    "StableDiffusionXLImg2ImgPipeline": FamilyRow(
        sdxl.REFINER, sdxl.SDXLRefiner, sdxl.SDXLReader, "stabilityai/stable-diffusion-xl-refiner-1.0"
    ),
    "KolorsPipeline": FamilyRow(kolors.FAMILY, kolors.KolorsUNet, kolors.KolorsReader, "Kwai-Kolors/Kolors-diffusers"),
    "StableDiffusion3Pipeline": FamilyRow(sd3.FAMILY, sd3.SD3, sd3.SD3Reader, "stabilityai/stable-diffusion-3.5-medium"),
    "FluxPipeline": FamilyRow(flux.FAMILY, flux.Flux, flux.FluxReader, "black-forest-labs/FLUX.1-schnell", embedded=True),
    "FluxKontextPipeline": FamilyRow(
        flux_edit.KONTEXT, flux_edit.Kontext, flux.FluxReader, "black-forest-labs/FLUX.1-Kontext-dev", embedded=True
    ),
    "FluxFillPipeline": FamilyRow(
        flux_edit.FILL, flux_edit.Fill, flux.FluxReader, "black-forest-labs/FLUX.1-Fill-dev", embedded=True
    ),
    "Flux2Pipeline": FamilyRow(flux2.DEV, flux2.Flux2, ChatReader, "black-forest-labs/FLUX.2-dev", embedded=True),
    "Flux2KleinPipeline": FamilyRow(flux2.KLEIN, flux2.Flux2, ChatReader, "black-forest-labs/FLUX.2-klein-4B"),
    "ChromaPipeline": FamilyRow(chroma.FAMILY, chroma.Chroma, chroma.ChromaReader, "lodestones/Chroma1-HD"),
    "QwenImagePipeline": FamilyRow(qwen_image.FAMILY, qwen_image.QwenImage, ChatReader, "Qwen/Qwen-Image"),
    "QwenImageEditPipeline": FamilyRow(qwen_image.EDIT, qwen_image.QwenImageEdit, None, "Qwen/Qwen-Image-Edit"),
    "QwenImageEditPlusPipeline": FamilyRow(
        qwen_image.EDIT_PLUS, qwen_image.QwenImageEditPlus, None, "Qwen/Qwen-Image-Edit-2509"
    ),
    "QwenImage21Pipeline": FamilyRow(qwen_image21.FAMILY, qwen_image21.QwenImage21, ChatReader, "Qwen/Qwen-Image-2.1"),
    "ZImagePipeline": FamilyRow(z_image.FAMILY, z_image.ZImage, ChatReader, "Tongyi-MAI/Z-Image-Turbo"),
    "Krea2Pipeline": FamilyRow(krea2.FAMILY, krea2.Krea2, ChatReader, "krea/Krea-2"),
    "Lumina2Pipeline": FamilyRow(lumina2.FAMILY, lumina2.Lumina2, lumina2.Lumina2Reader, "Alpha-VLLM/Lumina-Image-2.0"),
    "HiDreamImagePipeline": FamilyRow(hidream.FAMILY, hidream.HiDream, hidream.HiDreamReader, "HiDream-ai/HiDream-I1-Full"),
    "AuraFlowPipeline": FamilyRow(auraflow.FAMILY, auraflow.AuraFlow, auraflow.AuraFlowReader, "fal/AuraFlow"),
    "CogView4Pipeline": FamilyRow(cogview4.FAMILY, cogview4.CogView4, cogview4.CogView4Reader, "THUDM/CogView4-6B"),
    "SanaPipeline": FamilyRow(sana.FAMILY, sana.Sana, sana.SanaReader, "Efficient-Large-Model/Sana_1600M_1024px_diffusers"),
    "SanaSprintPipeline": FamilyRow(
        sana.SPRINT, sana.SanaSprint, sana.SanaReader, "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", embedded=True
    ),
    "PixArtSigmaPipeline": FamilyRow(pixart.SIGMA, pixart.PixArt, TextPart, "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"),
    "PixArtAlphaPipeline": FamilyRow(pixart.ALPHA, pixart.PixArt, TextPart, "PixArt-alpha/PixArt-XL-2-1024-MS"),
    "DiTPipeline": FamilyRow(dit.FAMILY, dit.BridgedDiT, None, "facebook/DiT-XL-2-256"),
}
