"""The closed table of pipelines that open from a folder and run as a whole: what each is made of.

A class that has a native family (`gen.models.bridge.pipeline.PIPELINES`) is opened by that.
"""

from __future__ import annotations

from collections.abc import Mapping

from gen.models.bridge.families.base import CLIP_TOKENIZER, T5_TOKENIZER, VAES

Parts = Mapping[str, tuple[str, ...]]  # part -> the classes that it may be of

CLIP = {"text_encoder": ("CLIPTextModel",), "tokenizer": CLIP_TOKENIZER}
SD: Parts = {"unet": ("UNet2DConditionModel",), "vae": VAES, **CLIP}
SDXL: Parts = {**SD, "text_encoder_2": ("CLIPTextModelWithProjection",), "tokenizer_2": CLIP_TOKENIZER}
SD3: Parts = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": VAES,
    "text_encoder": ("CLIPTextModelWithProjection",),
    "tokenizer": CLIP_TOKENIZER,
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer_2": CLIP_TOKENIZER,
    "text_encoder_3": ("T5EncoderModel",),
    "tokenizer_3": T5_TOKENIZER,
}
FLUX: Parts = {
    "transformer": ("FluxTransformer2DModel",),
    "vae": VAES,
    **CLIP,
    "text_encoder_2": ("T5EncoderModel",),
    "tokenizer_2": T5_TOKENIZER,
}
T5 = {"text_encoder": ("T5EncoderModel",), "tokenizer": T5_TOKENIZER}

WHOLE: dict[str, Parts] = {
    "BriaPipeline": {"transformer": ("BriaTransformer2DModel",), "vae": VAES, **T5},
    "FluxImg2ImgPipeline": FLUX,
    "FluxInpaintPipeline": FLUX,
    "Kandinsky3Pipeline": {"unet": ("Kandinsky3UNet",), "movq": ("VQModel",), **T5},
    "StableDiffusion3Img2ImgPipeline": SD3,
    "StableDiffusionControlNetPipeline": {**SD, "controlnet": ("ControlNetModel",)},
    "StableDiffusionImg2ImgPipeline": SD,
    "StableDiffusionInpaintPipeline": SD,
    "StableDiffusionInstructPix2PixPipeline": SD,
    "StableDiffusionPAGPipeline": SD,
    "StableDiffusionXLInpaintPipeline": SDXL,
}
OPTIONAL = ("text_encoder_3", "tokenizer_3")  # parts that a pipeline may do without
