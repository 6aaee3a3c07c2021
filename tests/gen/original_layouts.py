"""Pipelines of diffusers as one file in the names of their authors: the way back from `gen.models.bridge.files.layouts`,
written from the authors' code."""

from __future__ import annotations

from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def renamed(values: Tensors, table: tuple[tuple[str, str], ...]) -> Tensors:
    out = {}
    for name, value in values.items():
        for old, new in table:
            name = name.replace(old, new)
        out[name] = value
    return out


RESNET = (
    ("norm1.", "in_layers.0."), ("conv1.", "in_layers.2."), ("time_emb_proj.", "emb_layers.1."), ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."), ("conv_shortcut.", "skip_connection."),
)  # fmt: skip


def unet(network: Any) -> Tensors:
    """openaimodel.py's UNetModel: input_blocks counts every resnet and every downsampling."""
    values, out, config = network.state_dict(), {}, network.config
    per, levels = config.layers_per_block, len(config.block_out_channels)
    top = (
        ("time_embedding.linear_1.", "time_embed.0."), ("time_embedding.linear_2.", "time_embed.2."),
        ("add_embedding.linear_1.", "label_emb.0.0."), ("add_embedding.linear_2.", "label_emb.0.2."),
        ("conv_in.", "input_blocks.0.0."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2."),
    )  # fmt: skip
    for name, value in values.items():
        part = name.split(".")
        if part[0] == "down_blocks":
            at = 1 + int(part[1]) * (per + 1)
            if part[2] == "downsamplers":
                out[f"input_blocks.{at + per}.0.op.{part[-1]}"] = value
                continue
            place = f"input_blocks.{at + int(part[3])}.{int(part[2] == 'attentions')}."
        elif part[0] == "up_blocks":
            at = int(part[1]) * (per + 1)
            if part[2] == "upsamplers":
                attends = any(other.startswith(f"up_blocks.{part[1]}.attentions.") for other in values)
                out[f"output_blocks.{at + per}.{1 + attends}.conv.{part[-1]}"] = value
                continue
            place = f"output_blocks.{at + int(part[3])}.{int(part[2] == 'attentions')}."
        elif part[0] == "mid_block":
            place = f"middle_block.{2 * int(part[2]) if part[1] == 'resnets' else 1}."
        else:
            out |= renamed({name: value}, top)
            continue
        rest = ".".join(part[4 if part[0] != "mid_block" else 3 :])
        out |= {place + key: v for key, v in renamed({rest: value}, RESNET if "resnets" in part else ()).items()}
    assert levels > 1
    return out


def vae(network: Any) -> Tensors:
    """CompVis' AutoencoderKL: up blocks are counted from the last, attention is by 1 x 1 convolutions."""
    levels, out = len(network.config.block_out_channels), {}
    for name, value in network.state_dict().items():
        part = name.split(".")
        if len(part) > 2 and part[1] in ("down_blocks", "up_blocks"):
            side, at = ("down", int(part[2])) if part[1] == "down_blocks" else ("up", levels - 1 - int(part[2]))
            inner = ".".join(part[5:]).replace("conv_shortcut", "nin_shortcut")
            place = f"block.{part[4]}." if part[3] == "resnets" else f"{side}sample."
            out[f"{part[0]}.{side}.{at}.{place}{inner}"] = value
        elif len(part) > 2 and part[1] == "mid_block":
            if part[2] == "resnets":
                out[f"{part[0]}.mid.block_{int(part[3]) + 1}.{'.'.join(part[4:])}"] = value
                continue
            inner = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[part[4]]
            squared = value[:, :, None, None] if value.ndim == 2 else value
            out[f"{part[0]}.mid.attn_1.{inner}.{part[-1]}"] = squared
        else:
            out[name.replace("conv_norm_out", "norm_out")] = value
    return out


def clip(encoder: Any) -> Tensors:
    """transformers' names as they were in files: with text_model."""
    own = ("text_model.", "text_projection")
    return {name if name.startswith(own) else f"text_model.{name}": v for name, v in encoder.state_dict().items()}


def open_clip(encoder: Any, last: bool = True) -> Tensors:
    """OpenCLIP's text tower. last: write one more layer, which Stable Diffusion 2 never reads."""
    values, out = clip(encoder), {}
    layers = encoder.config.num_hidden_layers
    table = (
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.embeddings.token_embedding.", "token_embedding."), ("text_model.final_layer_norm.", "ln_final."),
        ("text_model.encoder.layers.", "transformer.resblocks."), ("layer_norm1.", "ln_1."), ("layer_norm2.", "ln_2."),
        ("self_attn.", "attn."), ("mlp.fc1.", "mlp.c_fc."), ("mlp.fc2.", "mlp.c_proj."),
    )  # fmt: skip
    for name, value in renamed(values, table).items():
        if name == "text_projection.weight":
            out["text_projection"] = value.T
        elif ".attn.q_proj." in name:
            whole = [renamed(values, table)[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            out[name.replace("q_proj.", "in_proj_")] = torch.cat(whole)
        elif ".attn.k_proj." not in name and ".attn.v_proj." not in name:
            out[name] = value
    if not last:
        out |= {
            name.replace(f"resblocks.{layers - 1}.", f"resblocks.{layers}."): value + 1
            for name, value in out.items() if f"resblocks.{layers - 1}." in name
        }  # fmt: skip
        width = encoder.config.hidden_size
        out |= {"text_projection": torch.ones(width, width), "logit_scale": torch.ones(())}
    return out


def _joined(values: Tensors, name: str, names: tuple[str, ...]) -> torch.Tensor:
    return torch.cat([values[name.replace(names[0], other)] for other in names])


def _swapped(value: torch.Tensor) -> torch.Tensor:
    """scale and shift the other way round."""
    return torch.cat(value.chunk(2)[::-1])


def sd3(network: Any) -> Tensors:
    """mmdit.py."""
    values, out = network.state_dict(), {}
    last = network.config.num_layers - 1
    top = {
        "pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0", "norm_out.linear": "final_layer.adaLN_modulation.1",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2", "proj_out": "final_layer.linear",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    }  # fmt: skip
    inner = {
        "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
        "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
        "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2", "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2", "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
        "attn2.to_out.0": "x_block.attn2.proj", "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
    }  # fmt: skip
    fused = {
        "attn.to_q": ("x_block.attn.qkv", ("to_q", "to_k", "to_v")),
        "attn.add_q_proj": ("context_block.attn.qkv", ("add_q", "add_k", "add_v")),
        "attn2.to_q": ("x_block.attn2.qkv", ("to_q", "to_k", "to_v")),
    }
    for name, value in values.items():
        layer, _, leaf = name.rpartition(".")
        if name == "pos_embed.pos_embed":
            out["pos_embed"] = value
        elif not name.startswith("transformer_blocks."):
            swap = layer == "norm_out.linear"
            out[f"{top[layer]}.{leaf}"] = _swapped(value) if swap else value
        else:
            _, number, *rest = layer.split(".")
            short = ".".join(rest)
            if short in fused:
                out[f"joint_blocks.{number}.{fused[short][0]}.{leaf}"] = _joined(values, name, fused[short][1])
            elif short in inner:
                swap = short == "norm1_context.linear" and int(number) == last
                out[f"joint_blocks.{number}.{inner[short]}.{leaf}"] = _swapped(value) if swap else value
    return out


def flux(network: Any) -> Tensors:
    """flux/model.py."""
    values, out = network.state_dict(), {}
    top = {
        "x_embedder": "img_in", "context_embedder": "txt_in", "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    } | {
        f"time_text_embed.{theirs}.linear_{i}": f"{ours}.{side}_layer"
        for theirs, ours in (
            ("timestep_embedder", "time_in"), ("text_embedder", "vector_in"), ("guidance_embedder", "guidance_in"),
        )
        for i, side in ((1, "in"), (2, "out"))
    }  # fmt: skip
    double = {
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj", "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2", "attn.norm_q": "img_attn.norm.query_norm",
        "attn.norm_k": "img_attn.norm.key_norm", "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
    }  # fmt: skip
    single = {
        "norm.linear": "modulation.lin", "proj_out": "linear2", "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
    }  # fmt: skip
    for name, value in values.items():
        layer, _, leaf = name.rpartition(".")
        kind, *rest = layer.split(".")
        if kind == "transformer_blocks":
            number, short = rest[0], ".".join(rest[1:])
            if short == "attn.to_q":
                out[f"double_blocks.{number}.img_attn.qkv.{leaf}"] = _joined(values, name, ("to_q", "to_k", "to_v"))
            elif short == "attn.add_q_proj":
                out[f"double_blocks.{number}.txt_attn.qkv.{leaf}"] = _joined(values, name, ("add_q", "add_k", "add_v"))
            elif short in double:
                out[f"double_blocks.{number}.{double[short]}.{'scale' if 'norm.' in double[short] else leaf}"] = value
        elif kind == "single_transformer_blocks":
            number, short = rest[0], ".".join(rest[1:])
            if short == "attn.to_q":
                names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
                out[f"single_blocks.{number}.linear1.{leaf}"] = _joined(values, name, names)
            elif short in single:
                out[f"single_blocks.{number}.{single[short]}.{'scale' if short.startswith('attn') else leaf}"] = value
        else:
            out[f"{top[layer]}.{leaf}"] = _swapped(value) if layer == "norm_out.linear" else value
    return out


def z_image(network: Any) -> Tensors:
    """Z-Image's model.py, after Lumina's: q, k and v as one matrix, and a norm that is never used."""
    values, out = network.state_dict(), {"norm_final.weight": torch.ones(network.config.dim)}
    table = (
        ("all_x_embedder.2-1.", "x_embedder."), ("all_final_layer.2-1.", "final_layer."), (".to_out.0.", ".out."),
        (".norm_q.", ".q_norm."), (".norm_k.", ".k_norm."),
    )  # fmt: skip
    for name, value in values.items():
        if ".to_q." in name:
            out[name.replace("to_q", "qkv")] = _joined(values, name, ("to_q", "to_k", "to_v"))
        elif ".to_k." not in name and ".to_v." not in name:
            out |= renamed({name: value}, table)
    return out


def prefixed(prefix: str, values: Tensors) -> Tensors:
    return {prefix + name: value for name, value in values.items()}
