"""Configs of the networks of Chroma, FLUX.2, Krea 2, AuraFlow and Lumina 2 from the shapes of their authors' files, as
`configs.py` has them of others."""

from __future__ import annotations

from gen.models.bridge.files.configs import Config, count, flux_blocks, head_count, published_head_width
from gen.models.bridge.files.rows import Shapes


def chroma(shapes: Shapes) -> Config:
    """ChromaTransformer2DModel: FLUX.1's blocks, whose modulation a network beside them computes."""
    hidden, read = shapes["distilled_guidance_layer.in_proj.weight"]
    return {
        **flux_blocks(shapes, "Chroma"),
        "axes_dims_rope": [16, 56, 56],
        "approximator_num_channels": read,
        "approximator_hidden_dim": hidden,
        "approximator_layers": count(shapes, "distilled_guidance_layer.layers."),
    }


def flux2(shapes: Shapes) -> Config:
    """Flux2Transformer2DModel: dev embeds a guidance scale, klein does not."""
    return {
        **flux_blocks(shapes, "FLUX.2"),
        "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1],
        "mlp_ratio": shapes["double_blocks.0.img_mlp.2.weight"][1] / shapes["img_in.weight"][0],
        "axes_dims_rope": [32, 32, 32, 32],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def krea2(shapes: Shapes) -> Config:
    """Krea2Transformer2DModel. Heads of the layers that fuse text are as wide as those of its blocks."""
    width, channels = shapes["first.weight"]
    dim = published_head_width(shapes["blocks.0.attn.qknorm.qnorm.scale"], "Krea 2")
    first = "txtfusion.layerwise_blocks.0."
    text_dim = shapes[f"{first}attn.qknorm.qnorm.scale"][0]
    return {
        "in_channels": channels,
        "num_layers": count(shapes, "blocks."),
        "attention_head_dim": dim,
        "num_attention_heads": head_count(width, dim),
        "num_key_value_heads": head_count(shapes["blocks.0.attn.wk.weight"][0], dim),
        "intermediate_size": shapes["blocks.0.mlp.gate.weight"][0],
        "timestep_embed_dim": shapes["tmlp.0.weight"][1],
        "text_hidden_dim": shapes["txtmlp.0.scale"][0],
        "num_text_layers": shapes["txtfusion.projector.weight"][1],
        "text_num_attention_heads": head_count(shapes[f"{first}attn.wq.weight"][0], text_dim),
        "text_num_key_value_heads": head_count(shapes[f"{first}attn.wk.weight"][0], text_dim),
        "text_intermediate_size": shapes[f"{first}mlp.gate.weight"][0],
        "num_layerwise_text_blocks": count(shapes, "txtfusion.layerwise_blocks."),
        "num_refiner_text_blocks": count(shapes, "txtfusion.refiner_blocks."),
        "axes_dims_rope": [32, 48, 48],
    }


def auraflow(shapes: Shapes) -> Config:
    """AuraFlowTransformer2DModel, whose heads are 256 wide and whose patches are 2 x 2."""
    width, pixels = shapes["init_x_linear.weight"]
    return {
        "sample_size": 64,
        "patch_size": 2,
        "in_channels": pixels // 4,
        "out_channels": shapes["final_linear.weight"][0] // 4,
        "num_mmdit_layers": count(shapes, "double_layers."),
        "num_single_dit_layers": count(shapes, "single_layers."),
        "attention_head_dim": 256,
        "num_attention_heads": head_count(width, 256),
        "joint_attention_dim": shapes["cond_seq_linear.weight"][1],
        "caption_projection_dim": shapes["cond_seq_linear.weight"][0],
        "pos_embed_max_size": shapes["positional_encoding"][1],
    }


def lumina2(shapes: Shapes) -> Config:
    """Lumina2Transformer2DModel, whose heads are 96 wide: a third for each axis of positions."""
    width, pixels = shapes["x_embedder.weight"]
    (dim,) = shapes["layers.0.attention.q_norm.weight"]
    if dim != 96:
        raise ValueError(f"its heads are {dim} wide, and Lumina 2's are 96")
    hidden = shapes["layers.0.feed_forward.w1.weight"][0]
    return {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": pixels // 4,
        "hidden_size": width,
        "num_layers": count(shapes, "layers."),
        "num_refiner_layers": count(shapes, "noise_refiner."),
        "num_attention_heads": head_count(width, dim),
        "num_kv_heads": head_count((shapes["layers.0.attention.qkv.weight"][0] - width) // 2, dim),
        "multiple_of": 256 if hidden == -(-4 * width // 256) * 256 else 1,
        "ffn_dim_multiplier": None if hidden == -(-4 * width // 256) * 256 else hidden / (4 * width),
        "axes_dim_rope": [32, 32, 32],
        "axes_lens": [300, 512, 512],
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
    }


def gemma2(shapes: Shapes) -> Config:
    """Gemma2Model in transformers' names, whose heads are 256 wide."""
    words, width = shapes["embed_tokens.weight"]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count(shapes, "layers."),
        "num_attention_heads": head_count(shapes["layers.0.self_attn.q_proj.weight"][0], 256),
        "num_key_value_heads": head_count(shapes["layers.0.self_attn.k_proj.weight"][0], 256),
        "head_dim": 256,
    }
