"""What the layers of diffusers' networks are called by those who published the networks, and so in many adapter files.

The tables are data: (their name, ours), {i} being a block. Ours is one module, or several whose rows are stacked. Their
modulations are (shift, scale) where diffusers' `AdaLayerNormContinuous` has (scale, shift).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from torch import nn

from gen.adapters.targets import Target, stacked, swapped

Names = tuple[str, tuple[str, ...]]
Rows = tuple[tuple[str, str | tuple[str, ...]], ...]


def _qkv(module: str, names: tuple[str, ...] = ("to_q", "to_k", "to_v")) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names)


def _apart(theirs: str, ours: tuple[str, ...]) -> Rows:
    """The parts of a fused projection by number, as the files of the Open Model Initiative have them (OneTrainer)."""
    return tuple((f"{theirs}.{k}", name) for k, name in enumerate(ours))


_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_BLOCK, _SINGLE = "transformer_blocks.{i}", "single_transformer_blocks.{i}"
_TIME = "time_text_embed.timestep_embedder"

FLUX: Rows = (
    ("double_blocks.{i}.img_attn.qkv", _qkv(f"{_BLOCK}.attn")),
    ("double_blocks.{i}.txt_attn.qkv", _qkv(f"{_BLOCK}.attn", _ADDED)),
    *_apart("double_blocks.{i}.img_attn.qkv", _qkv(f"{_BLOCK}.attn")),
    *_apart("double_blocks.{i}.txt_attn.qkv", _qkv(f"{_BLOCK}.attn", _ADDED)),
    *_apart("single_blocks.{i}.linear1", (*_qkv(f"{_SINGLE}.attn"), f"{_SINGLE}.proj_mlp")),
    ("img_in.proj", "x_embedder"),
    ("double_blocks.{i}.img_attn.proj", f"{_BLOCK}.attn.to_out.0"),
    ("double_blocks.{i}.txt_attn.proj", f"{_BLOCK}.attn.to_add_out"),
    ("double_blocks.{i}.img_mlp.0", f"{_BLOCK}.ff.net.0.proj"),
    ("double_blocks.{i}.img_mlp.2", f"{_BLOCK}.ff.net.2"),
    ("double_blocks.{i}.txt_mlp.0", f"{_BLOCK}.ff_context.net.0.proj"),
    ("double_blocks.{i}.txt_mlp.2", f"{_BLOCK}.ff_context.net.2"),
    ("double_blocks.{i}.img_mod.lin", f"{_BLOCK}.norm1.linear"),
    ("double_blocks.{i}.txt_mod.lin", f"{_BLOCK}.norm1_context.linear"),
    ("single_blocks.{i}.linear1", (*_qkv(f"{_SINGLE}.attn"), f"{_SINGLE}.proj_mlp")),
    ("single_blocks.{i}.linear2", f"{_SINGLE}.proj_out"),
    ("single_blocks.{i}.modulation.lin", f"{_SINGLE}.norm.linear"),
    ("double_blocks.{i}.processor.qkv_lora1", _qkv(f"{_BLOCK}.attn")),  # as XLabs' trainer has it
    ("double_blocks.{i}.processor.qkv_lora2", _qkv(f"{_BLOCK}.attn", _ADDED)),
    ("double_blocks.{i}.processor.proj_lora1", f"{_BLOCK}.attn.to_out.0"),
    ("double_blocks.{i}.processor.proj_lora2", f"{_BLOCK}.attn.to_add_out"),
    ("single_blocks.{i}.processor.qkv_lora", _qkv(f"{_SINGLE}.attn")),
    ("single_blocks.{i}.processor.proj_lora", f"{_SINGLE}.proj_out"),
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("time_in.in_layer", f"{_TIME}.linear_1"),
    ("time_in.out_layer", f"{_TIME}.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    ("final_layer.linear", "proj_out"),
)
_AURA_MLP = (("c_fc1", "linear_1"), ("c_fc2", "linear_2"), ("c_proj", "out_projection"))
_AURA_JOINT, _AURA_SINGLE = "joint_transformer_blocks.{i}", "single_transformer_blocks.{i}"
AURAFLOW: Rows = (
    *((f"double_layers.{{i}}.mlpX.{theirs}", f"{_AURA_JOINT}.ff.{ours}") for theirs, ours in _AURA_MLP),
    *((f"double_layers.{{i}}.mlpC.{theirs}", f"{_AURA_JOINT}.ff_context.{ours}") for theirs, ours in _AURA_MLP),
    *((f"single_layers.{{i}}.mlp.{theirs}", f"{_AURA_SINGLE}.ff.{ours}") for theirs, ours in _AURA_MLP),
    *((f"double_layers.{{i}}.attn.w2{kind}", f"{_AURA_JOINT}.attn.to_{kind}") for kind in "qkv"),
    *((f"double_layers.{{i}}.attn.w1{kind}", f"{_AURA_JOINT}.attn.add_{kind}_proj") for kind in "qkv"),
    *((f"single_layers.{{i}}.attn.w1{kind}", f"{_AURA_SINGLE}.attn.to_{kind}") for kind in "qkv"),
    ("double_layers.{i}.attn.w2o", f"{_AURA_JOINT}.attn.to_out.0"),
    ("double_layers.{i}.attn.w1o", f"{_AURA_JOINT}.attn.to_add_out"),
    ("single_layers.{i}.attn.w1o", f"{_AURA_SINGLE}.attn.to_out.0"),
    ("double_layers.{i}.modX.1", f"{_AURA_JOINT}.norm1.linear"),
    ("double_layers.{i}.modC.1", f"{_AURA_JOINT}.norm1_context.linear"),
    ("single_layers.{i}.modCX.1", f"{_AURA_SINGLE}.norm1.linear"),
    ("init_x_linear", "pos_embed.proj"),
    ("cond_seq_linear", "context_embedder"),
    ("t_embedder.mlp.0", "time_step_proj.linear_1"),
    ("t_embedder.mlp.2", "time_step_proj.linear_2"),
    ("modF.1", "norm_out.linear"),
    ("final_linear", "proj_out"),
)
CHROMA: Rows = (
    *FLUX,
    ("distilled_guidance_layer.layers.{i}.in_layer", "distilled_guidance_layer.layers.{i}.linear_1"),
    ("distilled_guidance_layer.layers.{i}.out_layer", "distilled_guidance_layer.layers.{i}.linear_2"),
)


def _lumina2_stack(stack: str) -> Rows:
    return (
        (f"{stack}.{{i}}.attention.qkv", _qkv(f"{stack}.{{i}}.attn")),
        (f"{stack}.{{i}}.attention.out", f"{stack}.{{i}}.attn.to_out.0"),
        *((f"{stack}.{{i}}.feed_forward.w{k}", f"{stack}.{{i}}.feed_forward.linear_{k}") for k in (1, 2, 3)),
        (f"{stack}.{{i}}.adaLN_modulation.1", f"{stack}.{{i}}.norm1.linear"),
    )


LUMINA2: Rows = (
    *_lumina2_stack("layers"),
    *_lumina2_stack("noise_refiner"),
    *_lumina2_stack("context_refiner"),
    ("cap_embedder.1", "time_caption_embed.caption_embedder.1"),
    ("t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2"),
    ("final_layer.adaLN_modulation.1", "norm_out.linear_1"),
    ("final_layer.linear", "norm_out.linear_2"),
)
SD3: Rows = (
    ("joint_blocks.{i}.x_block.attn.qkv", _qkv(f"{_BLOCK}.attn")),
    ("joint_blocks.{i}.x_block.attn2.qkv", _qkv(f"{_BLOCK}.attn2")),
    ("joint_blocks.{i}.context_block.attn.qkv", _qkv(f"{_BLOCK}.attn", _ADDED)),
    *_apart("joint_blocks.{i}.x_block.attn.qkv", _qkv(f"{_BLOCK}.attn")),
    *_apart("joint_blocks.{i}.x_block.attn2.qkv", _qkv(f"{_BLOCK}.attn2")),
    *_apart("joint_blocks.{i}.context_block.attn.qkv", _qkv(f"{_BLOCK}.attn", _ADDED)),
    ("joint_blocks.{i}.x_block.attn.proj", f"{_BLOCK}.attn.to_out.0"),
    ("joint_blocks.{i}.x_block.attn2.proj", f"{_BLOCK}.attn2.to_out.0"),
    ("joint_blocks.{i}.context_block.attn.proj", f"{_BLOCK}.attn.to_add_out"),
    ("joint_blocks.{i}.x_block.mlp.fc1", f"{_BLOCK}.ff.net.0.proj"),
    ("joint_blocks.{i}.x_block.mlp.fc2", f"{_BLOCK}.ff.net.2"),
    ("joint_blocks.{i}.context_block.mlp.fc1", f"{_BLOCK}.ff_context.net.0.proj"),
    ("joint_blocks.{i}.context_block.mlp.fc2", f"{_BLOCK}.ff_context.net.2"),
    ("joint_blocks.{i}.x_block.adaLN_modulation.1", f"{_BLOCK}.norm1.linear"),
    ("joint_blocks.{i}.context_block.adaLN_modulation.1", f"{_BLOCK}.norm1_context.linear"),
    ("x_embedder.proj", "pos_embed.proj"),
    ("t_embedder.mlp.0", f"{_TIME}.linear_1"),
    ("t_embedder.mlp.2", f"{_TIME}.linear_2"),
    ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
    ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
    ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    ("final_layer.linear", "proj_out"),
)
_DIT: Rows = (
    ("blocks.{i}.attn.qkv", _qkv(f"{_BLOCK}.attn1")),
    ("blocks.{i}.attn.proj", f"{_BLOCK}.attn1.to_out.0"),
    ("blocks.{i}.mlp.fc1", f"{_BLOCK}.ff.net.0.proj"),
    ("blocks.{i}.mlp.fc2", f"{_BLOCK}.ff.net.2"),
)
_CROSS: Rows = (
    ("blocks.{i}.cross_attn.q_linear", f"{_BLOCK}.attn2.to_q"),
    ("blocks.{i}.cross_attn.kv_linear", (f"{_BLOCK}.attn2.to_k", f"{_BLOCK}.attn2.to_v")),
    ("blocks.{i}.cross_attn.proj", f"{_BLOCK}.attn2.to_out.0"),
    ("blocks.{i}.cross.q", f"{_BLOCK}.attn2.to_q"),  # as our DiT has it
    ("blocks.{i}.cross.kv", (f"{_BLOCK}.attn2.to_k", f"{_BLOCK}.attn2.to_v")),
    ("blocks.{i}.cross.proj", f"{_BLOCK}.attn2.to_out.0"),
    ("y_embedder.y_proj.fc1", "caption_projection.linear_1"),
    ("y_embedder.y_proj.fc2", "caption_projection.linear_2"),
    ("final_layer.linear", "proj_out"),
)
DIT: Rows = (
    *_DIT,
    ("blocks.{i}.adaLN_modulation.1", f"{_BLOCK}.norm1.linear"),
    ("x_embedder.proj", "pos_embed.proj"),
    ("final_layer.adaLN_modulation.1", "proj_out_1"),
    ("final_layer.linear", "proj_out_2"),
)
PIXART: Rows = (
    *_DIT,
    *_CROSS,
    ("x_embedder.proj", "pos_embed.proj"),
    ("t_block.1", "adaln_single.linear"),
    *[
        (f"{theirs}.mlp.{2 * k}", f"adaln_single.emb.{ours}.linear_{k + 1}")
        for theirs, ours in (
            ("t_embedder", "timestep_embedder"),
            ("csize_embedder", "resolution_embedder"),
            ("ar_embedder", "aspect_ratio_embedder"),
        )
        for k in (0, 1)
    ],
)
SANA: Rows = (
    *_DIT[:2],
    *_CROSS,
    ("blocks.{i}.mlp.inverted_conv.conv", f"{_BLOCK}.ff.conv_inverted"),
    ("blocks.{i}.mlp.depth_conv.conv", f"{_BLOCK}.ff.conv_depth"),
    ("blocks.{i}.mlp.point_conv.conv", f"{_BLOCK}.ff.conv_point"),
    ("x_embedder.proj", "patch_embed.proj"),
    ("t_embedder.mlp.0", "time_embed.emb.timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "time_embed.emb.timestep_embedder.linear_2"),
    ("t_block.1", "time_embed.linear"),
)


_GUIDED = "time_guidance_embed"
FLUX2: Rows = (
    *[row for row in FLUX if row[0].startswith("double_blocks") and ".attn" in str(row[1]) and "lin" not in row[0]],
    ("double_blocks.{i}.img_mlp.0", f"{_BLOCK}.ff.linear_in"),
    ("double_blocks.{i}.img_mlp.2", f"{_BLOCK}.ff.linear_out"),
    ("double_blocks.{i}.txt_mlp.0", f"{_BLOCK}.ff_context.linear_in"),
    ("double_blocks.{i}.txt_mlp.2", f"{_BLOCK}.ff_context.linear_out"),
    ("single_blocks.{i}.linear1", f"{_SINGLE}.attn.to_qkv_mlp_proj"),
    ("single_blocks.{i}.linear2", f"{_SINGLE}.attn.to_out"),
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("time_in.in_layer", f"{_GUIDED}.timestep_embedder.linear_1"),
    ("time_in.out_layer", f"{_GUIDED}.timestep_embedder.linear_2"),
    ("guidance_in.in_layer", f"{_GUIDED}.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", f"{_GUIDED}.guidance_embedder.linear_2"),
    ("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
    ("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
    ("single_stream_modulation.lin", "single_stream_modulation.linear"),
    ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    ("final_layer.linear", "proj_out"),
)
_FUSION = (
    ("blocks", "transformer_blocks"),
    *[(f"txtfusion.{name}", f"text_fusion.{name}") for name in ("layerwise_blocks", "refiner_blocks")],
)
KREA2: Rows = (
    *[
        (f"{theirs}.{{i}}.{part}", f"{ours}.{{i}}.{module}")
        for theirs, ours in _FUSION
        for part, module in (
            *[(f"attn.w{name}", f"attn.to_{name}") for name in "qkv"],
            ("attn.wo", "attn.to_out.0"),
            ("attn.gate", "attn.to_gate"),
            *[(f"mlp.{name}", f"ff.{name}") for name in ("gate", "up", "down")],
        )
    ],
    ("txtfusion.projector", "text_fusion.projector"),
    ("txtmlp.1", "txt_in.linear_1"),
    ("txtmlp.3", "txt_in.linear_2"),
    ("first", "img_in"),
    ("tmlp.0", "time_embed.linear_1"),
    ("tmlp.2", "time_embed.linear_2"),
    ("tproj.1", "time_mod_proj"),
    ("last.linear", "final_layer.linear"),
)
Z_IMAGE: Rows = (
    *[
        (f"{stack}.{{i}}.attention.out", f"{stack}.{{i}}.attention.to_out.0")
        for stack in ("layers", "noise_refiner", "context_refiner")
    ],
    ("x_embedder", "all_x_embedder.2-1"),
    ("final_layer.linear", "all_final_layer.2-1.linear"),
    ("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
)


def _listed(rows: Rows) -> Callable[[nn.Module, Mapping[str, nn.Module]], Iterator[Names]]:
    def names(network: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[Names]:
        for theirs, ours in rows:
            parts = (ours,) if isinstance(ours, str) else ours
            blocks = [""]
            if "{i}" in theirs:
                pattern = re.compile(re.escape(parts[0]).replace(r"\{i\}", r"(\d+)"))
                blocks = [match[1] for name in modules if (match := pattern.fullmatch(name))]
            for i in blocks:
                yield theirs.replace("{i}", i), tuple(part.replace("{i}", i) for part in parts)

    return names


# parts of a residual block, in latent diffusion's names and in diffusers'
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def _unet(network: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[Names]:
    """Latent diffusion numbers the blocks of all levels through: n residual blocks, each with its attention, and one to
    change the resolution on the way down, n + 1 on the way up."""
    places = {f"mid_block.{ours}": f"middle_block.{k}" for k, ours in enumerate(("resnets.0", "attentions.0", "resnets.1"))}
    number = 1
    for level, block in enumerate(getattr(network, "down_blocks", ())):
        for j in range(len(block.resnets)):
            places[f"down_blocks.{level}.resnets.{j}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{level}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += getattr(block, "downsamplers", None) is not None
    number = 0
    for level, block in enumerate(getattr(network, "up_blocks", ())):
        attends = hasattr(block, "attentions")
        for j in range(len(block.resnets)):
            places[f"up_blocks.{level}.resnets.{j}"] = f"output_blocks.{number}.0"
            places[f"up_blocks.{level}.attentions.{j}"] = f"output_blocks.{number}.1"
            number += 1
        places[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{1 + attends}.conv"
    theirs_of = {ours: theirs for theirs, ours in (_UNET | _RESNET).items()}
    for name in modules:
        if name in theirs_of:
            yield theirs_of[name], (name,)
            continue
        parts = name.split(".")
        cut = next((n for n in (3, 4, 5) if ".".join(parts[:n]) in places), None)
        if cut is not None:
            inside = ".".join(parts[cut:])
            inside = theirs_of.get(inside, inside) if "resnets" in parts else inside
            yield ".".join(filter(None, (places[".".join(parts[:cut])], inside))), (name,)


def _clip(network: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[Names]:
    """The encoder proper is `text_model` in files, and in some versions of the library; in others it is the model itself."""
    for name in modules:
        short = name.removeprefix("text_model.")
        yield (f"text_model.{name}" if short == name else short), (name,)


SWAPPED = ("AdaLayerNormContinuous", "AuraFlowPreFinalBlock")  # modules of diffusers that have (scale, shift)
# class of a network -> its other names
ORIGINALS: dict[str, Callable[[nn.Module, Mapping[str, nn.Module]], Iterator[Names]]] = {
    "UNet2DConditionModel": _unet,
    "AuraFlowTransformer2DModel": _listed(AURAFLOW),
    "ChromaTransformer2DModel": _listed(CHROMA),
    "FluxTransformer2DModel": _listed(FLUX),
    "Lumina2Transformer2DModel": _listed(LUMINA2),
    "SD3Transformer2DModel": _listed(SD3),
    "PixArtTransformer2DModel": _listed(PIXART),
    "DiTTransformer2DModel": _listed(DIT),
    "SanaTransformer2DModel": _listed(SANA),
    "Flux2Transformer2DModel": _listed(FLUX2),
    "Krea2Transformer2DModel": _listed(KREA2),
    "ZImageTransformer2DModel": _listed(Z_IMAGE),
    "CLIPTextModel": _clip,
    "CLIPTextModelWithProjection": _clip,
}


def originals(network: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, tuple[Target, ...]]]:
    """(name, where a layer of this name goes) of every name that the network's layers have elsewhere."""
    for theirs, ours in ORIGINALS.get(type(network).__name__, lambda *_: iter(()))(network, modules):
        if ours[0] not in modules:
            continue
        parent = network.get_submodule(ours[0].rpartition(".")[0])
        targets = swapped(ours[0], modules) if type(parent).__name__ in SWAPPED else stacked(ours, modules)
        if targets:
            yield theirs, targets


# our network -> how those who publish adapters for its family spell the names of diffusers' layers
SPELLED: dict[str, Rows] = {"MMDiT": SD3, "FluxTransformer": FLUX, "ZImageTransformer": Z_IMAGE}


def composed(
    network: nn.Module, targets: Mapping[str, tuple[Target, ...]], modules: Mapping[str, nn.Module]
) -> Iterator[tuple[str, tuple[Target, ...]]]:
    """`originals` of our own networks, by way of the names that diffusers has for their layers, which `targets` has."""
    for theirs, parts in _listed(SPELLED.get(type(network).__name__, ()))(network, dict.fromkeys(targets, network)):
        if found := side_by_side([targets.get(part, ()) for part in parts], modules):
            yield theirs, found


def side_by_side(parts: Sequence[tuple[Target, ...]], modules: Mapping[str, nn.Module]) -> tuple[Target, ...]:
    """Where a layer goes whose rows are those of several layers, one after another; () where one of them goes nowhere."""
    if len(parts) == 1:
        return parts[0]
    if any(len(one) != 1 for one in parts):
        return ()
    pieces, stop = [], 0
    for (target,) in parts:
        start, end = target.rows or (0, cast("nn.Linear", modules[target.module]).out_features)
        pieces.append(Target(target.module, target.rows, (stop, stop + end - start)))
        stop += end - start
    return tuple(pieces)


def in_files(network: nn.Module, name: str) -> str:
    """The name of a module as files have it that others are to read."""
    clip = type(network).__name__ == "CLIPTextModel"
    return f"text_model.{name}" if clip and not name.startswith("text_model.") else name
