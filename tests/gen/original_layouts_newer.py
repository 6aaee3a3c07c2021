"""The denoisers of Chroma, FLUX.2, Krea 2, AuraFlow and Lumina 2 in the names of their authors: the way back from
`gen.models.bridge.files.layouts_newer`, written from the authors' code."""

from __future__ import annotations

from typing import Any

import torch

from tests.gen.original_layouts import Tensors, _joined, _swapped, flux, renamed


def chroma(network: Any) -> Tensors:
    """chroma.py: FLUX's blocks without modulation of their own, and the approximator's."""
    values = network.state_dict()
    inner = {name: value for name, value in values.items() if not name.startswith("distilled_guidance_layer.")}
    stub: Any = type("Values", (), {"state_dict": lambda self: inner, "config": network.config})()
    table = ((".linear_1.", ".in_layer."), (".linear_2.", ".out_layer."))
    out = flux(stub)
    for name, value in renamed({k: v for k, v in values.items() if k not in inner}, table).items():
        out[name.replace(".weight", ".scale") if ".norms." in name else name] = value
    return out


FLUX2 = (
    ("x_embedder.", "img_in."), ("context_embedder.", "txt_in."),
    ("time_guidance_embed.timestep_embedder.linear_1.", "time_in.in_layer."),
    ("time_guidance_embed.timestep_embedder.linear_2.", "time_in.out_layer."),
    ("time_guidance_embed.guidance_embedder.linear_1.", "guidance_in.in_layer."),
    ("time_guidance_embed.guidance_embedder.linear_2.", "guidance_in.out_layer."),
    ("double_stream_modulation_img.linear.", "double_stream_modulation_img.lin."),
    ("double_stream_modulation_txt.linear.", "double_stream_modulation_txt.lin."),
    ("single_stream_modulation.linear.", "single_stream_modulation.lin."), ("proj_out.", "final_layer.linear."),
    ("norm_out.linear.", "final_layer.adaLN_modulation.1."),
)  # fmt: skip
FLUX2_DOUBLE = (
    ("attn.norm_q.weight", "img_attn.norm.query_norm.scale"), ("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
    ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
    ("attn.to_out.0.", "img_attn.proj."), ("attn.to_add_out.", "txt_attn.proj."), ("ff.linear_in.", "img_mlp.0."),
    ("ff.linear_out.", "img_mlp.2."), ("ff_context.linear_in.", "txt_mlp.0."), ("ff_context.linear_out.", "txt_mlp.2."),
)  # fmt: skip
FLUX2_SINGLE = (
    ("attn.to_qkv_mlp_proj.", "linear1."), ("attn.to_out.", "linear2."), ("attn.norm_q.weight", "norm.query_norm.scale"),
    ("attn.norm_k.weight", "norm.key_norm.scale"),
)  # fmt: skip


def flux2(network: Any) -> Tensors:
    """flux2/model.py."""
    values, out = network.state_dict(), {}
    for name, value in values.items():
        if name.startswith("single_transformer_blocks."):
            out |= renamed({name: value}, (("single_transformer_blocks.", "single_blocks."), *FLUX2_SINGLE))
        elif not name.startswith("transformer_blocks."):
            out |= renamed({name: _swapped(value) if name.startswith("norm_out.") else value}, FLUX2)
        elif ".to_q." in name:
            place = name.replace("transformer_blocks.", "double_blocks.").replace("attn.to_q.", "img_attn.qkv.")
            out[place] = _joined(values, name, ("to_q", "to_k", "to_v"))
        elif ".add_q_proj." in name:
            place = name.replace("transformer_blocks.", "double_blocks.").replace("attn.add_q_proj.", "txt_attn.qkv.")
            out[place] = _joined(values, name, ("add_q", "add_k", "add_v"))
        elif not any(part in name for part in (".to_k.", ".to_v.", ".add_k_proj.", ".add_v_proj.")):
            out |= renamed({name: value}, (("transformer_blocks.", "double_blocks."), *FLUX2_DOUBLE))
    return out


KREA2 = (
    ("final_layer.linear.", "last.linear."), ("final_layer.norm.weight", "last.norm.scale"),
    ("final_layer.scale_shift_table", "last.modulation.lin"), ("txt_in.norm.weight", "txtmlp.0.scale"),
    ("txt_in.linear_1.", "txtmlp.1."), ("txt_in.linear_2.", "txtmlp.3."), ("img_in.", "first."),
    ("time_embed.linear_1.", "tmlp.0."), ("time_embed.linear_2.", "tmlp.2."), ("time_mod_proj.", "tproj.1."),
    ("text_fusion.", "txtfusion."), ("transformer_blocks.", "blocks."), (".attn.to_q.", ".attn.wq."),
    (".attn.to_k.", ".attn.wk."), (".attn.to_v.", ".attn.wv."), (".attn.to_out.0.", ".attn.wo."),
    (".attn.to_gate.", ".attn.gate."), (".attn.norm_q.weight", ".attn.qknorm.qnorm.scale"),
    (".attn.norm_k.weight", ".attn.qknorm.knorm.scale"), (".ff.", ".mlp."), (".norm1.weight", ".prenorm.scale"),
    (".norm2.weight", ".postnorm.scale"), (".scale_shift_table", ".mod.lin"),
)  # fmt: skip


def krea2(network: Any) -> Tensors:
    """krea2.py, where a block's six rows of modulation are one vector."""
    values = renamed(network.state_dict(), KREA2)
    return {name: value.flatten() if name.endswith(".mod.lin") else value for name, value in values.items()}


AURAFLOW = (
    ("time_step_proj.linear_1.", "t_embedder.mlp.0."), ("time_step_proj.linear_2.", "t_embedder.mlp.2."),
    ("context_embedder.", "cond_seq_linear."), ("norm_out.linear.", "modF.1."), ("proj_out.", "final_linear."),
    ("pos_embed.pos_embed", "positional_encoding"), ("pos_embed.proj.", "init_x_linear."),
)  # fmt: skip
AURAFLOW_JOINT = (
    ("joint_transformer_blocks.", "double_layers."), ("ff_context.", "mlpC."), ("ff.", "mlpX."),
    ("norm1_context.linear.", "modC.1."),
    ("norm1.linear.", "modX.1."), ("to_q.", "w2q."), ("to_k.", "w2k."), ("to_v.", "w2v."), ("to_out.0.", "w2o."),
    ("add_q_proj.", "w1q."), ("add_k_proj.", "w1k."), ("add_v_proj.", "w1v."), ("to_add_out.", "w1o."),
    ("linear_1.", "c_fc1."), ("linear_2.", "c_fc2."), ("out_projection.", "c_proj."),
)  # fmt: skip
AURAFLOW_SINGLE = (
    ("single_transformer_blocks.", "single_layers."), ("ff.", "mlp."), ("norm1.linear.", "modCX.1."), ("to_q.", "w1q."),
    ("to_k.", "w1k."), ("to_v.", "w1v."), ("to_out.0.", "w1o."), ("linear_1.", "c_fc1."), ("linear_2.", "c_fc2."),
    ("out_projection.", "c_proj."),
)  # fmt: skip


def auraflow(network: Any) -> Tensors:
    """mmdit.py of AuraFlow: 1 is the text's stream and 2 the picture's."""
    out: Tensors = {}
    for name, value in network.state_dict().items():
        table = AURAFLOW
        if name.startswith("joint_"):
            table = AURAFLOW_JOINT
        elif name.startswith("single_"):
            table = AURAFLOW_SINGLE
        out |= renamed({name: _swapped(value) if name.startswith("norm_out.") else value}, table)
    return out


def lumina2(network: Any) -> Tensors:
    """Lumina's model.py: q, k and v as one matrix, and a norm that is never used."""
    values, out = network.state_dict(), {"norm_final.weight": torch.ones(network.config.hidden_size)}
    table = (
        ("time_caption_embed.caption_embedder.", "cap_embedder."),
        ("time_caption_embed.timestep_embedder.linear_1.", "t_embedder.mlp.0."),
        ("time_caption_embed.timestep_embedder.linear_2.", "t_embedder.mlp.2."),
        ("norm_out.linear_1.", "final_layer.adaLN_modulation.1."), ("norm_out.linear_2.", "final_layer.linear."),
        (".norm1.norm.", ".attention_norm1."), (".norm1.linear.", ".adaLN_modulation.1."), (".norm1.", ".attention_norm1."),
        (".norm2.", ".attention_norm2."), (".attn.to_out.0.", ".attention.out."), (".attn.norm_q.", ".attention.q_norm."),
        (".attn.norm_k.", ".attention.k_norm."), (".linear_1.", ".w1."), (".linear_2.", ".w2."), (".linear_3.", ".w3."),
    )  # fmt: skip
    for name, value in values.items():
        if ".to_q." in name:
            out[name.replace("attn.to_q", "attention.qkv")] = _joined(values, name, ("to_q", "to_k", "to_v"))
        elif ".to_k." not in name and ".to_v." not in name:
            inner = table if name.startswith(("layers.", "noise_refiner.", "context_refiner.")) else table[:5]
            out |= renamed({name: value}, inner)
    return out
