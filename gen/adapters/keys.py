"""The spellings of adapter files, as tables: which part of a model a key is for, which layer, which factor.

lora_unet_blocks_0_attn_qkv.lora_down.weight      kohya, LyCORIS (underscores), also lora_te_, lora_te1_, lora_te2_, lora_te3_
transformer.blocks.0.attn.to_q.lora_A.weight      diffusers (dots), also unet., text_encoder.
base_model.model.blocks.0.attn.qkv.lora_A.weight  peft
diffusion_model.blocks.0.attn.qkv.lora_A.weight   ai-toolkit, ComfyUI, also text_encoders.clip_l.transformer., clip_g, t5xxl
clip_l.text_model...q_proj.lora_down.weight        OMI, which OneTrainer writes: also clip_g., t5., transformer., unet.
double_blocks.0.processor.qkv_lora1.down.weight   XLabs
unet.mid.attn1.processor.to_q_lora.down.weight    diffusers before 0.22, also text_model...q_proj.lora_linear_layer.down.weight

Between a part and a layer, and before a part, the names of wrappers may stand (peft's `base_model.model.`, `_orig_mod.` of
torch.compile, `module.` of data parallelism), and before .weight peft's name for the adapter: `lora_A.my_style.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from gen.adapters.delta import AdapterError

# prefix -> (part, dialect); the first that fits counts
PREFIXES: dict[str, tuple[str, str]] = {
    "lora_unet_": ("denoiser", "kohya"),
    "lora_transformer_": ("denoiser", "kohya"),
    "lycoris_": ("denoiser", "kohya"),
    "lora_te_": ("text_encoder", "kohya"),
    "lora_te1_": ("text_encoder", "kohya"),
    "lora_te2_": ("text_encoder_2", "kohya"),
    "lora_te3_": ("text_encoder_3", "kohya"),
    "lora_unet.": ("denoiser", "kohya"),  # with dots: the first form of OMI's
    "lora_transformer.": ("denoiser", "kohya"),
    "lora_clip_l.": ("text_encoder", "kohya"),
    "lora_clip_g.": ("text_encoder_2", "kohya"),
    "lora_t5.": ("text_encoder_3", "kohya"),
    "base_model.model.": ("denoiser", "peft"),
    "text_encoder.": ("text_encoder", "diffusers"),
    "text_encoder_2.": ("text_encoder_2", "diffusers"),
    "text_encoder_3.": ("text_encoder_3", "diffusers"),
    "unet.": ("denoiser", "diffusers"),
    "transformer.": ("denoiser", "diffusers"),
    "denoiser.": ("denoiser", "diffusers"),
    "model.diffusion_model.": ("denoiser", "ai-toolkit"),
    "diffusion_model.": ("denoiser", "ai-toolkit"),
    "text_encoders.clip_l.transformer.": ("text_encoder", "ai-toolkit"),
    "text_encoders.clip_g.transformer.": ("text_encoder_2", "ai-toolkit"),
    "text_encoders.t5xxl.transformer.": ("text_encoder_3", "ai-toolkit"),
    "clip_l.transformer.": ("text_encoder", "ai-toolkit"),  # ComfyUI's name for the encoder proper
    "clip_g.transformer.": ("text_encoder_2", "ai-toolkit"),
    "t5xxl.transformer.": ("text_encoder_3", "ai-toolkit"),
    "clip_l.": ("text_encoder", "diffusers"),
    "clip_g.": ("text_encoder_2", "diffusers"),
    "t5.": ("text_encoder_3", "diffusers"),
    "t5xxl.": ("text_encoder_3", "diffusers"),
    "pipe.unet.": ("denoiser", "diffusers"),
    "pipe.dit.": ("denoiser", "diffusers"),
}
# what wraps a network, and so its layers' names
WRAPPERS = ("base_model.model.", "module.", "model.diffusion_model.", "diffusion_model.")
_WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)[._]")
BARE = ("denoiser", "diffusers")  # no prefix at all

_SAME = (
    *[f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")],
    *[f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")],
)
# how a key ends -> the factor it is
SUFFIXES: dict[str, str] = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_up.bias": "up_bias",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_B.bias": "up_bias",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
    "lora.alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "magnitude": "magnitude",
    **{name: name for name in _SAME},
    "diff": "weight",
    "diff_b": "bias",
    "w_norm": "weight",
    "b_norm": "bias",
}
# the same with peft's name of an adapter in them: how a key ends, the name being {}
NAMED: dict[str, str] = {
    "lora_A.{}.weight": "down",
    "lora_B.{}.weight": "up",
    "lora_B.{}.bias": "up_bias",
    "lora_down.{}.weight": "down",
    "lora_up.{}.weight": "up",
    "lora_magnitude_vector.{}": "magnitude",
    "lora_magnitude_vector.{}.weight": "magnitude",
    **{f"{name}.{{}}": name for name in _SAME},
}
_NAMED = [
    (re.compile(rf"(.+)\.{re.escape(end).replace(re.escape('{}'), r'([^.]+)')}"), factor) for end, factor in NAMED.items()
]
_PROCESSOR = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight")
_XLABS = re.compile(r"(.+\.processor\.(?:qkv|proj)_lora[12]?)\.(down|up)\.weight")


class Key(NamedTuple):
    """layer: "<part>.<path>"; dialect: the name of the file format that spells it so; adapter: peft's name for it, if the key
    has one."""

    layer: str
    factor: str
    dialect: str
    adapter: str = ""


def parse(key: str) -> Key | None:
    """What a key says; None for one that no table has. AdapterError for one that no honest file has."""
    plain = _WRAPPED.sub("", key)
    if any(bad in plain for bad in ("..", "/", "\\", "\0", "__")) or not plain.isprintable():
        raise AdapterError(f"its key {key[:100]!r} is not the name of a layer; the file is damaged or hostile.")
    part, dialect, rest = _part(plain)
    if old := _PROCESSOR.fullmatch(rest):
        name = {"out": "to_out.0"}.get(old[2], f"to_{old[2]}")
        if old[1].endswith("self_attn"):  # CLIP's own names
            name = f"{old[2]}_proj"
        return Key(f"{part}.{old[1]}.{name}", old[3], dialect)
    if xlabs := _XLABS.fullmatch(rest):
        return Key(f"{part}.{xlabs[1]}", xlabs[2], dialect)
    if (ending := _ending(rest)) is None:
        return None
    path, factor, adapter = ending
    if dialect == "kohya":  # some converters leave dots in the name of the layer, or an underscore after it
        path = path.replace(".", "_").rstrip("_")
    return Key(f"{part}.{path}", factor, dialect, adapter)


def _part(key: str) -> tuple[str, str, str]:
    """(part, dialect, the rest of a key); the outermost name decides on the dialect, the innermost on the part."""
    prefix = next((p for p in PREFIXES if key.startswith(p)), "")
    part, dialect = PREFIXES.get(prefix, BARE)
    rest = key[len(prefix) :]
    wrapped = prefix in WRAPPERS
    while True:
        if wrapper := next((w for w in WRAPPERS if rest.startswith(w)), ""):
            rest = rest.removeprefix(wrapper)
            wrapped = wrapped or not prefix
            continue
        # peft around a pipeline: base_model.model.text_encoder.
        inner = next((p for p in PREFIXES if wrapped and PREFIXES[p][1] == "diffusers" and rest.startswith(p)), "")
        if not inner:
            return part, dialect, rest
        part, rest, wrapped = PREFIXES[inner][0], rest.removeprefix(inner), False


def _ending(rest: str) -> tuple[str, str, str] | None:
    """(path, factor, name of the adapter) by the longest ending that a table has."""
    for dots in (3, 2, 1):
        pieces = rest.rsplit(".", dots)
        if len(pieces) == dots + 1 and (factor := SUFFIXES.get(".".join(pieces[1:]))):
            return pieces[0], factor, ""
    for pattern, factor in _NAMED:
        if match := pattern.fullmatch(rest):
            return match[1], factor, match[2]
    return None


_OURS = {"down": "A.weight", "up": "B.weight", "up_bias": "B.bias"}
_DOTTED = {
    **{factor: f"lora_{end}" for factor, end in _OURS.items()},
    "mid": "lora_mid.weight",
    "magnitude": "lora_magnitude_vector",
    "weight": "diff",
    "bias": "diff_b",
}
_KOHYA = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "mid": "lora_mid.weight",
    "up_bias": "lora_up.bias",
    "magnitude": "dora_scale",
    "weight": "diff",
    "bias": "diff_b",
}
# format -> part -> prefix
WRITTEN: dict[str, dict[str, str]] = {
    "kohya": {
        "denoiser": "lora_unet_",
        "text_encoder": "lora_te_",
        "text_encoder_2": "lora_te2_",
        "text_encoder_3": "lora_te3_",
    },
    "diffusers": {
        "denoiser": "transformer.",
        "text_encoder": "text_encoder.",
        "text_encoder_2": "text_encoder_2.",
        "text_encoder_3": "text_encoder_3.",
    },
    "peft": {"denoiser": "base_model.model."},
    "ai-toolkit": {
        "denoiser": "diffusion_model.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
        "text_encoder_3": "text_encoders.t5xxl.transformer.",
    },
}
# what diffusers' denoisers begin their module names with -> what diffusers calls such a denoiser, and kohya's prefix for it
_BACKBONES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("down_blocks", "mid_block", "up_blocks", "time_embedding", "add_embedding"), ("unet", "lora_unet_")),
    **dict.fromkeys(("transformer_blocks", "single_transformer_blocks"), ("transformer", "lora_transformer_")),
}


def backbone(layers: Iterable[str]) -> tuple[str, str]:
    """(diffusers' name of the denoiser that has these layers, kohya's prefix for it)."""
    first = {path.partition(".")[0] for part, _, path in (layer.partition(".") for layer in layers) if part == "denoiser"}
    return next((_BACKBONES[name] for name in sorted(first) if name in _BACKBONES), ("transformer", "lora_unet_"))


def spell(format: str, layer: str, factor: str, of: tuple[str, str] = ("transformer", "lora_unet_")) -> str:
    """The key of a layer's factor in a format. of: the `backbone` of all its layers. AdapterError if the format has no place
    for that part of a model."""
    part, _, path = layer.partition(".")
    prefix = WRITTEN[format].get(part)
    if part == "denoiser" and format in ("diffusers", "kohya"):
        prefix = f"{of[0]}." if format == "diffusers" else of[1]
    if prefix is None:
        raise AdapterError(f"The {format} format holds one network and has no place for the {part}; write it as kohya.")
    if format == "kohya":
        return f"{prefix}{path.replace('.', '_')}.{_KOHYA.get(factor, factor)}"
    return f"{prefix}{path}.{_DOTTED.get(factor, factor)}"
