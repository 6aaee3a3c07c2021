"""IP-Adapters' files of every kind for tiny U-Nets, in their authors' layout, with random weights; and encoders to see with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

STATES, EMBEDS, FACE = 16, 12, 20  # widths of the tiny encoder's states and embeddings, and of a face's; of SigLIP's vector
KINDS = ("plain", "plus", "full", "face", "face plus", "face plusv2")


def image_encoder(seed: int = 3, embeds: int = EMBEDS):
    """It sees 24 x 24 pixels."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from tests.gen.pipelines import seeded

    config = CLIPVisionConfig(
        hidden_size=STATES, intermediate_size=24, projection_dim=embeds, num_hidden_layers=3, num_attention_heads=2,
        image_size=24, patch_size=8,
    )  # fmt: skip
    return seeded(CLIPVisionModelWithProjection, config, seed=seed)


def ip_adapter(network, kind: str = "plain", seed: int = 0, tokens: int = 4) -> dict[str, Tensor]:
    """The tensors of a file, by their names."""
    source = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source) * (0.2 if len(shape) > 1 else 0.1)

    dim = network.config.cross_attention_dim
    tensors = {f"image_proj.{name}": value for name, value in _projection(kind, dim, tokens, random).items()}
    modules = [(name, network.get_submodule(name.removesuffix(".processor"))) for name in network.attn_processors]
    for number, (name, module) in enumerate(modules):
        inner = module.inner_dim
        if name.endswith("attn2.processor"):
            for row in "kv":
                tensors[f"ip_adapter.{number}.to_{row}_ip.weight"] = random(inner, dim)
        if kind.startswith("face"):
            for row in ("to_q", "to_k", "to_v", "to_out"):
                layer = module.to_out[0] if row == "to_out" else getattr(module, row)
                tensors[f"ip_adapter.{number}.{row}_lora.down.weight"] = random(2, layer.in_features)
                tensors[f"ip_adapter.{number}.{row}_lora.up.weight"] = random(layer.out_features, 2)
    return tensors


def for_flux(transformer, seed: int = 0, tokens: int = 4, xlabs: bool = False) -> dict[str, Tensor]:
    """The tensors of a file for a FLUX, in the usual names or in those of XLabs' files."""
    source = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source) * (0.2 if len(shape) > 1 else 0.1)

    dim, inner = transformer.config.joint_attention_dim, transformer.inner_dim
    before = "ip_adapter_proj_model" if xlabs else "image_proj"
    tensors = {f"{before}.{name}": value for name, value in _projection("plain", dim, tokens, random).items()}
    for number in range(len(transformer.transformer_blocks)):
        for row in "kv":
            usual, theirs = f"ip_adapter.{number}.to_{row}_ip", f"processor.ip_adapter_double_stream_{row}_proj"
            name = f"double_blocks.{number}.{theirs}" if xlabs else usual
            tensors |= {f"{name}.weight": random(inner, dim), f"{name}.bias": random(inner)}
    return tensors


def siglip(seed: int = 3):
    """It sees 24 x 24 pixels, and gives vectors as wide as a face's (`FACE`)."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from tests.gen.pipelines import seeded

    config = SiglipVisionConfig(
        hidden_size=FACE, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8
    )
    return seeded(SiglipVisionModel, config, seed=seed)


def instantx(transformer, seed: int = 0, tokens: int = 5) -> dict[str, Tensor]:
    """The tensors of InstantX's file for a FLUX: keys and values of every block, joint ones first."""
    source = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source) * (0.2 if len(shape) > 1 else 0.1)

    dim, inner = transformer.config.joint_attention_dim, transformer.inner_dim
    tensors = {f"image_proj.{name}": value for name, value in _projection("face", dim, tokens, random).items()}
    for number in range(len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)):
        tensors |= {f"ip_adapter.{number}.to_{row}_ip.weight": random(inner, dim) for row in "kv"}
    return tensors


def _projection(kind: str, dim: int, tokens: int, random) -> dict[str, Tensor]:
    norm = {"norm.weight": 1 + random(dim), "norm.bias": random(dim)}
    if kind == "plain":
        return {"proj.weight": random(tokens * dim, EMBEDS), "proj.bias": random(tokens * dim), **norm}
    if kind == "full":
        return {
            "proj.0.weight": random(STATES, STATES), "proj.0.bias": random(STATES), "proj.2.weight": random(dim, STATES),
            "proj.2.bias": random(dim), **{name.replace("norm", "proj.3"): value for name, value in norm.items()},
        }  # fmt: skip
    if kind == "face":
        return {
            "proj.0.weight": random(2 * FACE, FACE), "proj.0.bias": random(2 * FACE),
            "proj.2.weight": random(tokens * dim, 2 * FACE), "proj.2.bias": random(tokens * dim), **norm,
        }  # fmt: skip
    hidden = dim  # which the shortcut of faces adds to
    resampler = {
        "proj_in.weight": random(hidden, STATES), "proj_in.bias": random(hidden), "proj_out.weight": random(dim, hidden),
        "proj_out.bias": random(dim), "norm_out.weight": 1 + random(dim), "norm_out.bias": random(dim),
    }  # fmt: skip
    for layer in range(4):
        inside = f"layers.{layer}"
        for name in ("0.norm1", "0.norm2", "1.0"):
            resampler |= {f"{inside}.{name}.weight": 1 + random(hidden), f"{inside}.{name}.bias": random(hidden)}
        resampler |= {
            f"{inside}.0.to_q.weight": random(64, hidden), f"{inside}.0.to_kv.weight": random(128, hidden),
            f"{inside}.0.to_out.weight": random(hidden, 64), f"{inside}.1.1.weight": random(4 * hidden, hidden),
            f"{inside}.1.3.weight": random(hidden, 4 * hidden),
        }  # fmt: skip
    if kind == "plus":
        return {"latents": random(1, tokens, hidden), **resampler}
    return {
        **{f"perceiver_resampler.{name}": value for name, value in resampler.items()},
        "proj.0.weight": random(2 * FACE, FACE), "proj.0.bias": random(2 * FACE),
        "proj.2.weight": random(4 * hidden, 2 * FACE), "proj.2.bias": random(4 * hidden),
        "norm.weight": 1 + random(hidden), "norm.bias": random(hidden),
    }  # fmt: skip


def save(folder: Path, tensors: dict[str, Tensor], name: str = "ip-adapter", encoder=None) -> Path:
    """The file with an encoder beside it: CLIP's, if none is given."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors")
    (encoder or image_encoder()).save_pretrained(folder / "image_encoder", safe_serialization=True)
    return folder / f"{name}.safetensors"
