"""Small random pipelines of diffusers that begin with pictures: name -> (pipeline, what its call is given)."""

from __future__ import annotations

from typing import Any

import torch

from tests.gen.pipelines import SIZE, flux, sd3, sdxl, seeded, stable_diffusion, unet
from tests.gen.whole_pipelines import SIDES, mask, parts_of, picture

KONTEXT = {"_auto_resize": False, "max_area": SIZE * SIZE}


def kontext() -> Any:
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**parts_of(flux())), {"prompt": "a red heart", "image": picture(), **SIDES, **KONTEXT}


def instruct() -> Any:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipe = StableDiffusionInstructPix2PixPipeline(
        **{**parts_of(stable_diffusion()), "unet": unet(in_channels=8)}, requires_safety_checker=False
    )
    return pipe, {"prompt": "make it red", "negative_prompt": "blurry", "image": picture()}


def sd_image_to_image() -> Any:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**parts_of(stable_diffusion()), requires_safety_checker=False)
    return pipe, {"prompt": "a red heart", "image": picture(), "strength": 0.5}


def sd_inpaint() -> Any:
    from diffusers import StableDiffusionInpaintPipeline

    pipe = StableDiffusionInpaintPipeline(**parts_of(stable_diffusion()), requires_safety_checker=False)
    return pipe, {"prompt": "a red heart", "image": picture(), "mask_image": mask(), "strength": 0.75, **SIDES}


def sd_inpaint_channels() -> Any:
    from diffusers import StableDiffusionInpaintPipeline

    parts = {**parts_of(stable_diffusion()), "unet": unet(in_channels=9)}
    pipe = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    return pipe, {"prompt": "a red heart", "image": picture(), "mask_image": mask(), "strength": 1.0, **SIDES}


def sd_control() -> Any:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    control = seeded(
        ControlNetModel, block_out_channels=(8, 16), layers_per_block=1, in_channels=4, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2, norm_num_groups=4,
        conditioning_embedding_out_channels=(4, 8),
    )  # fmt: skip
    with torch.no_grad():
        control.controlnet_cond_embedding.conv_out.weight.mul_(50)
    pipe = StableDiffusionControlNetPipeline(**parts_of(stable_diffusion()), controlnet=control, requires_safety_checker=False)
    ranges = {"control_guidance_start": 0.2, "control_guidance_end": 0.8, "controlnet_conditioning_scale": 3.0}
    return pipe, {"prompt": "a red heart", "image": picture(), **ranges, **SIDES}


def sd3_image_to_image() -> Any:
    from diffusers import StableDiffusion3Img2ImgPipeline

    pipe = StableDiffusion3Img2ImgPipeline(**parts_of(sd3()))
    return pipe, {"prompt": "a red heart", "image": picture(), "strength": 0.6, **SIDES, "max_sequence_length": 16}


def flux_image_to_image() -> Any:
    from diffusers import FluxImg2ImgPipeline

    pipe = FluxImg2ImgPipeline(**parts_of(flux()))
    return pipe, {"prompt": "a red heart", "image": picture(), "strength": 0.6, **SIDES, "max_sequence_length": 16}


def sdxl_inpaint() -> Any:
    from diffusers import StableDiffusionXLInpaintPipeline

    pipe = StableDiffusionXLInpaintPipeline(**parts_of(sdxl()))
    return pipe, {"prompt": "a red heart", "image": picture(), "mask_image": mask(), "strength": 0.7, **SIDES}


def flux_inpaint() -> Any:
    from diffusers import FluxInpaintPipeline

    pipe = FluxInpaintPipeline(**parts_of(flux()))
    sizes = {**SIDES, "max_sequence_length": 16}
    return pipe, {"prompt": "a red heart", "image": picture(), "mask_image": mask(), "strength": 0.7, **sizes}


EDITING = (
    flux_image_to_image, flux_inpaint, instruct, kontext, sd3_image_to_image, sd_control, sd_image_to_image, sd_inpaint,
    sd_inpaint_channels, sdxl_inpaint,
)  # fmt: skip
