"""U-ViT as its authors publish it (arXiv 2209.12152): class-conditional, unconditional, and text to image.

The table of labels has a last row for "no label", except ImageNet 64's, which has exactly 1000 rows; `null_label` says so
where the count does not. Text to image has no row for "no text": the authors use the CLIP features of the empty prompt, which
`null_text` gives to `gen.models.formats.read_checkpoint`.
"""

from __future__ import annotations

from typing import Any

from gen.models.formats.format import Format, Settings, Shapes, check_attention, count_blocks, heads_for, ratio, shape_of, side

HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16}
CLIP_TOKENS = 77
IMAGENET = 1000

_block = [
    ("norm1.*", "norm1.*"),
    ("attn.qkv.*", "attn.qkv.*"),
    ("attn.proj.*", "attn.proj.*"),
    ("norm2.*", "norm2.*"),
    ("mlp.fc1.*", "mlp.fc1.*"),
    ("mlp.fc2.*", "mlp.fc2.*"),
]
TABLE = [
    ("pos_embed", "pos_embed"),
    ("patch_embed.proj.*", "patch_embed.*"),
    ("time_embed.0.*", "time_embed.0.*"),
    ("time_embed.2.*", "time_embed.2.*"),
    ("label_emb.weight", "label_embed.weight"),
    ("context_embed.*", "text_embed.*"),
    *((f"{at}.{a}", f"{at}.{b}") for at in ("in_blocks.{i}", "mid_block", "out_blocks.{i}") for a, b in _block),
    ("out_blocks.{i}.skip_linear.*", "out_blocks.{i}.skip_linear.*"),
    ("norm.*", "norm.*"),
    ("decoder_pred.*", "head.*"),
    ("final_layer.*", "final_conv.*"),
]


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    dim, channels, patch, _ = shape_of(shapes, "patch_embed.proj.weight", 4)
    half = count_blocks(shapes, "in_blocks")
    check_attention(shapes, "in_blocks.0.attn.qkv.weight", dim, 3)
    check_attention(shapes, "out_blocks.0.attn.qkv.weight", dim, 3)
    if count_blocks(shapes, "out_blocks") != half:
        raise ValueError(f"has {half} in_blocks and another number of out_blocks; they must be as many")
    out, rest = divmod(shape_of(shapes, "decoder_pred.weight", 2)[0], patch**2)
    if rest or not out:
        raise ValueError(f"has a decoder_pred that fills no patch of {patch} by {patch}")
    config: dict[str, Any] = {"type": "uvit", "patch": patch, "channels": channels, "dim": dim, "depth": 2 * half}
    config["heads"] = heads_for(dim, HEADS, settings)
    config["mlp_ratio"] = ratio(shape_of(shapes, "in_blocks.0.mlp.fc1.weight", 2)[0], dim)
    config["out_channels"] = None if out == channels else out
    config["final_conv"] = "final_layer.weight" in shapes
    config["qkv_bias"] = "in_blocks.0.attn.qkv.bias" in shapes
    config["time_mlp"] = "time_embed.0.weight" in shapes
    count = shape_of(shapes, "pos_embed", 3)[1] - 1
    if "label_emb.weight" in shapes:
        rows = shape_of(shapes, "label_emb.weight", 2)[0]
        null = settings.get("null_label")
        config["null_label"] = rows != IMAGENET if null is None else null
        config["num_classes"] = rows - config["null_label"]
        count -= 1
    if "context_embed.weight" in shapes:
        config["text_dim"] = shape_of(shapes, "context_embed.weight", 2)[1]
        config["text_tokens"] = settings.get("text_tokens") or CLIP_TOKENS
        count -= config["text_tokens"]
    config["size"] = patch * side(count, "pos_embed")
    return config


STORED = frozenset(("size", "patch", "channels", "dim", "depth", "heads", "mlp_ratio", "out_channels", "final_conv"))
STORED |= {"qkv_bias", "time_mlp", "num_classes", "null_label", "text_dim", "text_tokens", "zero_init"}

FORMAT = Format(
    name="uvit",
    description="U-ViT as its authors publish it",
    kind="uvit",
    signature=("patch_embed.proj.weight", "in_blocks.0.attn.qkv.weight", "decoder_pred.weight"),
    blocks=("in_blocks", "out_blocks"),
    table=TABLE,
    infer=infer,
    stored=STORED,
    absent=("null_tokens",),
)
