"""What a file holds, told by the names of its tensors: the pipeline it belongs to, and each of its networks by its prefix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gen.models.bridge.files import configs, configs_newer, layouts, layouts_newer
from gen.models.bridge.files.rows import Shapes

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
PNDM = {"_class_name": "PNDMScheduler", **SD, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
DDIM_V = {
    "_class_name": "DDIMScheduler", **SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    "prediction_type": "v_prediction",
}  # fmt: skip
EULER = {"_class_name": "EulerDiscreteScheduler", **SD, "timestep_spacing": "leading", "steps_offset": 1}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
FLUX_DEV = {
    **FLOW, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}  # fmt: skip

QWEN = {
    **FLOW, "shift": 1.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
    "max_image_seq_len": 8192, "shift_terminal": 0.02, "time_shift_type": "exponential",
}  # fmt: skip


@dataclass(frozen=True)
class Holder:
    """One network of a file. prefixes: what its names begin with, the first that is there; mark: a name that it always has."""

    class_name: str
    prefixes: tuple[str, ...]
    mark: str
    config: Callable[[Shapes], dict[str, Any]]
    convert: Callable[[dict[str, Any], Mapping[str, Any]], Mapping[str, Any]] = layouts.same

    def prefix(self, names: Collection[str]) -> str | None:
        """What its names begin with in this file; None where it is not there."""
        return next((prefix for prefix in self.prefixes if prefix + self.mark in names), None)


@dataclass(frozen=True)
class Kind:
    """A family of published files.

    marks: beginnings of names, without prefix, that together only this family has.
    parts: part of the pipeline -> the networks that it may be, the first that is there.
    scheduler: (config of the backbone, all names, the file's own) -> a scheduler's config.
    index: (config of the backbone, the file's own name) -> values of model_index.json beside the parts.
    variant: (config of the backbone, the file's own name) -> another pipeline that the same layout belongs to, None for the
        usual one; ValueError, in words that follow the file's name, for one that is not opened.
    """

    name: str
    pipeline: str
    marks: tuple[str, ...]
    parts: Mapping[str, tuple[Holder, ...]]
    scheduler: Callable[[Mapping[str, Any], Collection[str], str], dict[str, Any]]
    index: Callable[[Mapping[str, Any], str], dict[str, Any]] = lambda config, file: {}
    variant: Callable[[Mapping[str, Any], str], str | None] = lambda config, file: None


BACKBONE = ("model.diffusion_model.", "model.", "")
VAE = ("first_stage_model.", "vae.")


def vae_holder(scaling: float, shift: float | None = None, alone: bool = False) -> tuple[Holder, ...]:
    """AutoencoderKL. scaling, shift: of the latents; alone: its names may have no prefix."""
    config = functools.partial(configs.vae, scaling=scaling, shift=shift)
    return (Holder("AutoencoderKL", (*VAE, "") if alone else VAE, "encoder.conv_in.weight", config, layouts.vae),)


def _clip(*prefixes: str, projected: bool = False, activation: str = "quick_gelu") -> Holder:
    class_name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    mark, config = "text_model.embeddings.token_embedding.weight", functools.partial(configs.clip, activation=activation)
    return Holder(class_name, prefixes, mark, config)


def _open_clip(*prefixes: str, projected: bool) -> Holder:
    class_name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    config = functools.partial(configs.open_clip, penultimate=not projected)
    return Holder(class_name, prefixes, "token_embedding.weight", config, layouts.open_clip)


def _stable_diffusion(config: Mapping[str, Any], names: Collection[str], file: str) -> dict[str, Any]:
    """Version 1 predicts eps. Version 2 has 1024 features and is v's at 768 pixels; that of 512, eps's, has the same shapes."""
    return DDIM_V if config["cross_attention_dim"] == 1024 else PNDM


def _sdxl(config: Mapping[str, Any], names: Collection[str], file: str) -> dict[str, Any]:
    """Files whose authors trained v say so by empty tensors: v_pred, and ztsnr for a last level without signal."""
    prediction = {"prediction_type": "v_prediction"} if "v_pred" in names else {}
    return {**EULER, **prediction, **({"rescale_betas_zero_snr": True} if "ztsnr" in names else {})}


def _chroma(config: Mapping[str, Any], names: Collection[str], file: str) -> dict[str, Any]:
    """Chroma1-HD has even steps, shifted by 3; Base and those before it sigmas of a beta distribution without a shift."""
    return FLOW if "hd" in file.lower() else {**FLOW, "shift": 1.0, "use_beta_sigmas": True}


def _flux_variant(config: Mapping[str, Any], file: str) -> str | None:
    """Fill takes a picture and a mask beside the latents; Kontext has dev's shapes, and says so in its file's name."""
    taken, made = config["in_channels"], config["out_channels"]
    if taken == 2 * made:
        raise ValueError("is FLUX Depth or Canny, which is not opened; a ControlNet on FLUX does the same (docs/pipelines.md).")
    if taken != made:
        return "FluxFillPipeline"
    return "FluxKontextPipeline" if "kontext" in file.lower() else None


def _sdxl_variant(config: Mapping[str, Any], file: str) -> str | None:
    """The refiner reads the larger text encoder alone."""
    return "StableDiffusionXLImg2ImgPipeline" if config["cross_attention_dim"] == 1280 else None


def _sdxl_index(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    return {"force_zeros_for_empty_prompt": config["cross_attention_dim"] != 1280}


def _flux2_variant(config: Mapping[str, Any], file: str) -> str | None:
    """klein embeds no guidance scale."""
    return None if config["guidance_embeds"] else "Flux2KleinPipeline"


def _flux2_index(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """klein is distilled but where its file is called the base."""
    return {} if config["guidance_embeds"] else {"is_distilled": "base" not in file.lower()}


def _qwen_variant(config: Mapping[str, Any], file: str) -> str | None:
    """Editors have the same layout, and say what they are in their files' names."""
    name = file.lower()
    if "edit" not in name:
        return None
    several = any(word in name for word in ("2509", "2511", "plus"))
    return "QwenImageEditPlusPipeline" if several else "QwenImageEditPipeline"


def _krea2_index(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    return {"is_distilled": "turbo" in file.lower()}


T5 = Holder("T5EncoderModel", ("text_encoders.t5xxl.transformer.",), "shared.weight", configs.t5)
CLIP_L = "text_encoders.clip_l.transformer."

KINDS: tuple[Kind, ...] = (
    Kind(
        "Stable Diffusion 3",
        "StableDiffusion3Pipeline",
        ("joint_blocks.0.context_block.attn.qkv.weight",),
        {
            "transformer": (Holder("SD3Transformer2DModel", BACKBONE, "x_embedder.proj.weight", configs.sd3, layouts.sd3),),
            "vae": vae_holder(1.5305, 0.0609),
            "text_encoder": (_clip(CLIP_L, projected=True),),
            "text_encoder_2": (_clip("text_encoders.clip_g.transformer.", projected=True, activation="gelu"),),
            "text_encoder_3": (T5,),
        },
        lambda config, names, file: FLOW,
    ),
    Kind(
        "FLUX",
        "FluxPipeline",
        ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "vector_in.in_layer.weight"),
        {
            "transformer": (Holder("FluxTransformer2DModel", BACKBONE, "img_in.weight", configs.flux, layouts.flux),),
            "vae": vae_holder(0.3611, 0.1159),
            "text_encoder": (_clip(CLIP_L),),
            "text_encoder_2": (T5,),
        },
        lambda config, names, file: FLUX_DEV if config["guidance_embeds"] else {**FLOW, "shift": 1.0},
        variant=_flux_variant,
    ),
    Kind(
        "Z-Image",
        "ZImagePipeline",
        ("cap_embedder.1.weight", "noise_refiner.0.attention.qkv.weight", "layers.0.adaLN_modulation.0.weight", "x_pad_token"),
        {
            "transformer": (
                Holder("ZImageTransformer2DModel", BACKBONE, "x_embedder.weight", configs.z_image, layouts.z_image),
            ),
            "vae": vae_holder(0.3611, 0.1159),
        },
        lambda config, names, file: {**FLOW, "shift": 3.0 if "turbo" in file.lower() else 6.0},
    ),
    Kind(
        "Chroma",
        "ChromaPipeline",
        ("double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.in_proj.weight", "img_in.weight"),
        {
            "transformer": (
                Holder("ChromaTransformer2DModel", BACKBONE, "img_in.weight", configs_newer.chroma, layouts_newer.chroma),
            ),
            "vae": vae_holder(0.3611, 0.1159),
            "text_encoder": (T5,),
        },
        _chroma,
    ),
    Kind(
        "FLUX.2",
        "Flux2Pipeline",
        ("double_stream_modulation_img.lin.weight", "single_blocks.0.linear1.weight", "img_in.weight"),
        {
            "transformer": (
                Holder("Flux2Transformer2DModel", BACKBONE, "img_in.weight", configs_newer.flux2, layouts_newer.flux2),
            ),
            "vae": (),
        },
        lambda config, names, file: FLUX_DEV,  # as diffusers' convert_flux2_to_diffusers.py; mu is the pipeline's own
        _flux2_index,
        _flux2_variant,
    ),
    Kind(
        "Krea 2",
        "Krea2Pipeline",
        ("txtfusion.projector.weight", "blocks.0.attn.wq.weight", "first.weight"),
        {
            "transformer": (
                Holder("Krea2Transformer2DModel", BACKBONE, "first.weight", configs_newer.krea2, layouts_newer.krea2),
            ),
            "vae": (),
        },
        lambda config, names, file: {**FLUX_DEV, "shift": 1.0, "max_image_seq_len": 6400},  # as diffusers' Krea2Pipeline says
        _krea2_index,
    ),
    Kind(
        "AuraFlow",
        "AuraFlowPipeline",
        ("double_layers.0.attn.w1q.weight", "single_layers.0.modCX.1.weight", "init_x_linear.weight"),
        {
            "transformer": (
                Holder(
                    "AuraFlowTransformer2DModel",
                    BACKBONE,
                    "init_x_linear.weight",
                    configs_newer.auraflow,
                    layouts_newer.auraflow,
                ),
            ),
            "vae": vae_holder(0.13025),
            "text_encoder": (
                Holder("UMT5EncoderModel", ("text_encoders.pile_t5xl.transformer.",), "shared.weight", configs.t5),
            ),
        },
        lambda config, names, file: {**FLOW, "shift": 1.73},  # as ComfyUI's AuraFlow
    ),
    Kind(
        "Lumina 2",
        "Lumina2Pipeline",
        ("cap_embedder.1.weight", "noise_refiner.0.attention.qkv.weight", "layers.0.adaLN_modulation.1.weight"),
        {
            "transformer": (
                Holder(
                    "Lumina2Transformer2DModel", BACKBONE, "x_embedder.weight", configs_newer.lumina2, layouts_newer.lumina2
                ),
            ),
            "vae": vae_holder(0.3611, 0.1159),
            "text_encoder": (
                Holder(
                    "Gemma2Model", ("text_encoders.gemma2_2b.transformer.model.",), "embed_tokens.weight", configs_newer.gemma2
                ),
            ),
        },
        lambda config, names, file: {**FLOW, "shift": 6.0},  # static, as ai-toolkit's copy of the published config
    ),
    Kind(
        "Qwen-Image",
        "QwenImagePipeline",
        ("transformer_blocks.0.img_mod.1.weight", "txt_norm.weight", "img_in.weight"),
        {"transformer": (Holder("QwenImageTransformer2DModel", BACKBONE, "img_in.weight", configs.qwen_image),), "vae": ()},
        lambda config, names, file: QWEN,
        variant=_qwen_variant,
    ),
    Kind(
        "SDXL",
        "StableDiffusionXLPipeline",
        ("input_blocks.0.0.weight", "label_emb.0.0.weight"),
        {
            "unet": (Holder("UNet2DConditionModel", BACKBONE, "input_blocks.0.0.weight", configs.unet, layouts.unet),),
            "vae": vae_holder(0.13025),
            "text_encoder": (_clip("conditioner.embedders.0.transformer."),),
            "text_encoder_2": (
                _open_clip("conditioner.embedders.1.model.", projected=True),
                _open_clip("conditioner.embedders.0.model.", projected=True),  # of the refiner
            ),
        },
        _sdxl,
        _sdxl_index,
        _sdxl_variant,
    ),
    Kind(
        "Stable Diffusion 1 or 2",
        "StableDiffusionPipeline",
        ("input_blocks.0.0.weight", "middle_block.1.transformer_blocks.0."),
        {
            "unet": (Holder("UNet2DConditionModel", BACKBONE, "input_blocks.0.0.weight", configs.unet, layouts.unet),),
            "vae": vae_holder(0.18215),
            "text_encoder": (_clip("cond_stage_model.transformer."), _open_clip("cond_stage_model.model.", projected=False)),
        },
        _stable_diffusion,
    ),
)


# what a name begins with -> what the file is, of those that open only as a pipeline's folder, or not at all
ELSEWHERE: tuple[tuple[str, str], ...] = (
    ("nerf_blocks.", "Chroma1-Radiance, which works on pixels and is not opened"),
    ("double_stream_blocks.0.block.adaLN_modulation", "HiDream, which opens as a pipeline's folder or hub id"),
    ("txt_in.text_norm.", "Qwen-Image 2.1, which opens as a pipeline's folder or hub id"),
    ("ref_time_in.", "FLUX.3, which is not opened"),
    ("head.modulation", "Wan, a model of videos, which is not opened"),
    ("txt_in.individual_token_refiner.", "HunyuanVideo, a model of videos, which is not opened"),
)


def _bare(name: str) -> str:
    """A name without what a file with several networks, or AuraFlow's authors, put before it."""
    return next((name.removeprefix(prefix) for prefix in BACKBONE if prefix and name.startswith(prefix)), name)


def kind_of(names: Collection[str]) -> Kind | None:
    """The kind of a file by the names of its tensors; None for files of another."""
    inner = {_bare(name) for name in names}
    for kind in KINDS:
        if all(any(name.startswith(mark) for name in inner) for mark in kind.marks):
            return kind
    return None


def named_elsewhere(names: Collection[str]) -> str | None:
    """What a file is that does not open from one file, and what to do; None for one that is not known."""
    inner = {_bare(name) for name in names}
    return next((what for mark, what in ELSEWHERE if any(name.startswith(mark) for name in inner)), None)
