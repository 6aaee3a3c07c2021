"""diffusers pipelines with tiny networks and random weights, one per family."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.!()[]:"
SIZE = 32  # pixels of the pictures


def seeded(build: Any, *args: Any, seed: int = 0, **options: Any) -> Any:
    """A network with random weights, none of them zero: initialised zeros would hide inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(*args, **options)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape) * (0.05 if parameter.ndim > 1 else 0.1))
    return network.eval()


def clip_tokenizer(pad: str = "<|endoftext|>", length: int = 77):
    from transformers import CLIPTokenizer

    pieces = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=length)


def clip(seed: int, projected: bool = False, dim: int = 16, positions: int = 77):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(LETTERS) * 2 + 2,
        hidden_size=dim,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=12,
        max_position_embeddings=positions,
        hidden_act="gelu" if projected else "quick_gelu",
        bos_token_id=len(LETTERS) * 2,
        eos_token_id=len(LETTERS) * 2 + 1,
        pad_token_id=1,
    )
    return seeded(CLIPTextModelWithProjection if projected else CLIPTextModel, config, seed=seed)


def t5_tokenizer():
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def t5(seed: int, dim: int = 16):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=64, d_model=dim, d_kv=8, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )  # fmt: skip
    return seeded(T5EncoderModel, config, seed=seed)


def vae(channels: int = 4, **options: Any):
    from diffusers import AutoencoderKL

    return seeded(
        AutoencoderKL,
        block_out_channels=(8, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=SIZE,
        seed=9,
        **options,
    )


def qwen_vae(**options: Any):
    """A mean and a deviation per channel of latents, which have a dimension of time."""
    from diffusers import AutoencoderKLQwenImage

    sizes = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [True]}
    norm = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
    return seeded(AutoencoderKLQwenImage, **{**sizes, **norm, **options}, seed=9)


def flux2_vae(**options: Any):
    """Latents in patches of 2 x 2, which a batch norm has numbers for."""
    from diffusers import AutoencoderKLFlux2

    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    network = seeded(AutoencoderKLFlux2, **{**sizes, **kinds, "sample_size": SIZE, **options}, seed=9)
    numbers = torch.Generator().manual_seed(1)
    network.bn.running_mean.copy_(0.3 * torch.randn(16, generator=numbers))
    network.bn.running_var.copy_(0.5 + torch.rand(16, generator=numbers))
    return network


def unet(**options: Any):
    from diffusers import UNet2DConditionModel

    return seeded(
        UNet2DConditionModel,
        **{
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "sample_size": SIZE // 2,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        }
        | options,
    )


def stable_diffusion(prediction: str = "epsilon", **scheduler: Any):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    return StableDiffusionPipeline(
        vae=vae(scaling_factor=0.18215),
        text_encoder=clip(1),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=DDIMScheduler(**noise, steps_offset=1, prediction_type=prediction, **scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def latent_consistency():
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    return LatentConsistencyModelPipeline(
        vae=vae(scaling_factor=0.18215),
        text_encoder=clip(1),
        tokenizer=clip_tokenizer(),
        unet=unet(time_cond_proj_dim=32),
        scheduler=LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )


def sdxl(zeros: bool = True):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=clip(1),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(2, projected=True),
        tokenizer_2=clip_tokenizer("!"),
        unet=unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 12,
            transformer_layers_per_block=(1, 1),
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        ),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def sdxl_refiner():
    """It reads the second text encoder, and a score in the place of the target size."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

    return StableDiffusionXLImg2ImgPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=clip(4, projected=True),
        tokenizer_2=clip_tokenizer("!"),
        unet=unet(
            cross_attention_dim=16,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=5 * 8 + 12,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        ),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def transformer(kind: str, **options: Any):
    import diffusers

    sizes = {
        "sample_size": SIZE // 2,
        "num_layers": 2,
        "patch_size": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "in_channels": 4,
    }
    return seeded(getattr(diffusers, kind), **{**sizes, **options})


def pixart(sigma: bool = False, sized: bool = False):
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline

    network = transformer(
        "PixArtTransformer2DModel",
        num_attention_heads=3,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=16,
        norm_type="ada_norm_single",
        use_additional_conditions=sized,
    )
    return (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(3),
        vae=vae(scaling_factor=0.18215),
        transformer=network,
        scheduler=DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
    )


def dit(shared: bool = False):
    """shared: with one time and label embedding for all blocks, as in every converted file."""
    from diffusers import DDIMScheduler, DiTPipeline

    network = transformer(
        "DiTTransformer2DModel",
        out_channels=8,
        num_embeds_ada_norm=1000,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_zero",
    )
    first = network.transformer_blocks[0].norm1.emb.state_dict()
    for block in network.transformer_blocks[1:] if shared else ():
        block.norm1.emb.load_state_dict(first)
    names = {str(i): f"thing {i}, other {i}" for i in range(1000)}
    return DiTPipeline(network, vae(scaling_factor=0.18215), DDIMScheduler(clip_sample=False), id2label=names)


def sd3(with_t5: bool = True):
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    network = transformer(
        "SD3Transformer2DModel",
        in_channels=8,
        out_channels=8,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        pos_embed_max_size=24,
    )
    return StableDiffusion3Pipeline(
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(8, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(1, projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(2, projected=True),
        tokenizer_2=clip_tokenizer("!"),
        text_encoder_3=t5(3, 32) if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )


def flux(guided: bool = True):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    network = seeded(
        FluxTransformer2DModel,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=guided,
    )
    scheduler = (
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True) if guided else FlowMatchEulerDiscreteScheduler()
    )
    return FluxPipeline(
        scheduler=scheduler,
        vae=vae(4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(1),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(3),
        tokenizer_2=t5_tokenizer(),
        transformer=network,
    )


def gemma():
    """(tokenizer, encoder)."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *LETTERS]
    tokenizer = GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    encoder = seeded(
        Gemma2Model,
        Gemma2Config(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=8192,
        ),
        seed=5,
    )
    return tokenizer, encoder


def sana():
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline

    tokenizer, encoder = gemma()
    autoencoder = seeded(
        AutoencoderDC,
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
        seed=9,
    )
    network = seeded(
        __import__("diffusers").SanaTransformer2DModel,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=SIZE // 2,
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=autoencoder,
        transformer=network,
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", algorithm_type="dpmsolver++"
        ),
    )


def save(pipeline: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
