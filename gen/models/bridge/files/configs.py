"""Configs of diffusers' networks from the shapes of files in their authors' layouts.

What shapes do not tell, such as the number of heads, is the same for all published networks of a kind and stands here. Names
are without the prefix that a file with several networks puts before them.
"""

from __future__ import annotations

import math
from typing import Any

from gen.models.bridge.files.rows import Shapes

Config = dict[str, Any]


def count(shapes: Shapes, prefix: str) -> int:
    """How many blocks have names prefix0., prefix1., ...; they must be without a gap."""
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)}
    known = {int(number) for number in numbers if number.isdecimal() and len(number) < 5}
    if known != set(range(len(known))):
        raise ValueError(f"its blocks {prefix}N are not numbered from 0 without a gap")
    return len(known)


def _exact_root(value: int, what: str) -> int:
    root = math.isqrt(value)
    if root * root != value:
        raise ValueError(f"{what} is {value}, which is no square")
    return root


def head_count(width: int, dim: int) -> int:
    if dim < 1 or width % dim:
        raise ValueError(f"its width of {width} is not a multiple of its heads' {dim}")
    return width // dim


def unet(shapes: Shapes) -> Config:
    """UNet2DConditionModel of Stable Diffusion 1, 2 and XL."""
    widths, depths, blocks = [shapes["input_blocks.0.0.weight"][0]], [0], [0]
    for i in range(1, count(shapes, "input_blocks.")):
        if f"input_blocks.{i}.0.op.weight" in shapes:
            widths, depths, blocks = [*widths, widths[-1]], [*depths, 0], [*blocks, 0]
            continue
        widths[-1] = shapes[f"input_blocks.{i}.0.out_layers.3.weight"][0]
        depths[-1] = count(shapes, f"input_blocks.{i}.1.transformer_blocks.")
        blocks[-1] += 1
    if len(set(blocks)) > 1 or not any(depths):
        raise ValueError(f"it has {blocks} blocks and {depths} layers of attention by resolution")
    deepest = count(shapes, "middle_block.1.transformer_blocks.")
    if depths[-1] not in (0, deepest):
        raise ValueError(f"its middle has {deepest} layers of attention where {depths[-1]} are usual")
    level = next(i for i, depth in enumerate(depths) if depth)
    first = f"input_blocks.{1 + level * (blocks[0] + 1)}.1."
    linear = len(shapes[f"{first}proj_in.weight"]) == 2
    config: Config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": blocks[0],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [depth or deepest for depth in depths],
        "cross_attention_dim": shapes[f"{first}transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": [head_count(width, 64) for width in widths] if linear else 8,
        "use_linear_projection": linear,
        "sample_size": 64,
    }
    if "label_emb.0.0.weight" in shapes:
        wide = shapes["label_emb.0.0.weight"][1]
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "sample_size": 128}
        config["projection_class_embeddings_input_dim"] = wide
    return config


def vae(shapes: Shapes, scaling: float, shift: float | None = None) -> Config:
    """AutoencoderKL in CompVis' names. scaling, shift: of the latents."""
    levels = count(shapes, "encoder.down.")
    widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": widths,
        "layers_per_block": count(shapes, "encoder.down.0.block."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "norm_num_groups": 32,
        "sample_size": 512,
        "scaling_factor": scaling,
        "shift_factor": shift,
    }


def clip(shapes: Shapes, activation: str) -> Config:
    """CLIPTextModel, or CLIPTextModelWithProjection, in transformers' names. activation: "quick_gelu" in ViT-L."""
    inner = "text_model." if "text_model.embeddings.token_embedding.weight" in shapes else ""
    words, width = shapes[f"{inner}embeddings.token_embedding.weight"]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes[f"{inner}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count(shapes, f"{inner}encoder.layers."),
        "num_attention_heads": head_count(width, 64),
        "max_position_embeddings": shapes[f"{inner}embeddings.position_embedding.weight"][0],
        "hidden_act": activation,
        "projection_dim": shapes.get("text_projection.weight", (width,))[0],
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": 1,
    }


def open_clip(shapes: Shapes, penultimate: bool) -> Config:
    """The same of OpenCLIP, in its names. penultimate: without the last layer, as Stable Diffusion 2 reads it."""
    words, width = shapes["token_embedding.weight"]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": count(shapes, "transformer.resblocks.") - penultimate,
        "num_attention_heads": head_count(width, 64),
        "max_position_embeddings": shapes["positional_embedding"][0],
        "hidden_act": "gelu",
        "projection_dim": shapes.get("text_projection", (0, width))[1],
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": 1,
    }


def t5(shapes: Shapes) -> Config:
    """T5EncoderModel (v1.1) in transformers' names."""
    words, width = shapes["shared.weight"]
    first = "encoder.block.0.layer.0.SelfAttention."
    buckets, heads = shapes[f"{first}relative_attention_bias.weight"]
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": head_count(shapes[f"{first}q.weight"][0], heads),
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": count(shapes, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


def sd3(shapes: Shapes) -> Config:
    """SD3Transformer2DModel of Stable Diffusion 3 and 3.5."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    dim = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight", (64,))[0]
    layers = count(shapes, "joint_blocks.")
    dual = [i for i in range(layers) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes]
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": layers,
        "attention_head_dim": dim,
        "num_attention_heads": head_count(width, dim),
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": _exact_root(shapes["pos_embed"][1], "the number of its positions"),
        "dual_attention_layers": dual,
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def published_head_width(norm: tuple[int, ...], model: str) -> int:
    """128, by the norm of the heads' keys or queries; ValueError for another."""
    if norm[0] != 128:
        raise ValueError(f"its heads are {norm[0]} wide, and {model}'s are 128")
    return norm[0]


def flux_blocks(shapes: Shapes, model: str) -> Config:
    """What all that are built as FLUX.1 have: two kinds of blocks and their ends."""
    width, channels = shapes["img_in.weight"]
    dim = published_head_width(shapes["double_blocks.0.img_attn.norm.key_norm.scale"], model)
    return {
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count(shapes, "double_blocks."),
        "num_single_layers": count(shapes, "single_blocks."),
        "attention_head_dim": dim,
        "num_attention_heads": head_count(width, dim),
        "joint_attention_dim": shapes["txt_in.weight"][1],
    }


def flux(shapes: Shapes) -> Config:
    """FluxTransformer2DModel of FLUX.1."""
    return {
        **flux_blocks(shapes, "FLUX.1"),
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [16, 56, 56],
    }


def z_image(shapes: Shapes) -> Config:
    """ZImageTransformer2DModel."""
    width, pixels = shapes["x_embedder.weight"]
    dim = published_head_width(shapes["layers.0.attention.q_norm.weight"], "Z-Image")
    return {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": pixels // 4,
        "dim": width,
        "n_layers": count(shapes, "layers."),
        "n_refiner_layers": count(shapes, "noise_refiner."),
        "n_heads": head_count(width, dim),
        "n_kv_heads": head_count(width, dim),
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
    }


def qwen_image(shapes: Shapes) -> Config:
    """QwenImageTransformer2DModel, whose published files have diffusers' names."""
    width, pixels = shapes["img_in.weight"]
    dim = published_head_width(shapes["transformer_blocks.0.attn.norm_q.weight"], "Qwen-Image")
    return {
        "patch_size": 2,
        "in_channels": pixels,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_layers": count(shapes, "transformer_blocks."),
        "attention_head_dim": dim,
        "num_attention_heads": head_count(width, dim),
        "joint_attention_dim": shapes["txt_in.weight"][1],
    }
