"""Published sizes of the backbones, as one table: name -> the config that `gen.nn.registry.build` takes.

Names say architecture, size, patch and what they were made for. Counts of parameters and operations: `gen.nn.backbones.cost`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from samplers.lookup import nearest

Row = dict[str, Any]
PIXELS_32, PIXELS_64 = {"size": 32, "channels": 3}, {"size": 64, "channels": 3}
LATENT_256, LATENT_512, LATENT_1024 = ({"size": size, "channels": 4} for size in (32, 64, 128))
CLASSES = {"num_classes": 1000}
CLIP_L, CLIP_H = {"text_tokens": 77, "text_dim": 768}, {"text_tokens": 77, "text_dim": 1024}


def _uvit() -> dict[str, Row]:
    """arXiv 2209.12152, Table 1 and appendix; text-to-image ones of 0.4 to 7.5 billion parameters: arXiv 2412.12391."""
    small, deep = {"dim": 512, "depth": 12, "heads": 8}, {"dim": 512, "depth": 16, "heads": 8}
    medium, large = {"dim": 768, "depth": 16, "heads": 12}, {"dim": 1024, "depth": 20, "heads": 16}
    huge = {"dim": 1152, "depth": 28, "heads": 16, "final_conv": False}
    rows = {
        "uvit-s-2-cifar10": small | PIXELS_32 | {"patch": 2},
        "uvit-s-4-celeba": small | PIXELS_64 | {"patch": 4},
        "uvit-m-4-imagenet64": medium | PIXELS_64 | {"patch": 4, "null_label": False} | CLASSES,
        "uvit-l-4-imagenet64": large | PIXELS_64 | {"patch": 4, "null_label": False} | CLASSES,
        "uvit-l-2-imagenet256": large | LATENT_256 | {"patch": 2} | CLASSES,
        "uvit-h-2-imagenet256": huge | LATENT_256 | {"patch": 2} | CLASSES,
        "uvit-l-4-imagenet512": large | LATENT_512 | {"patch": 4} | CLASSES,
        "uvit-h-4-imagenet512": huge | LATENT_512 | {"patch": 4} | CLASSES,
        "uvit-s-2-mscoco": small | LATENT_256 | {"patch": 2} | CLIP_L,
        "uvit-s-deep-2-mscoco": deep | LATENT_256 | {"patch": 2} | CLIP_L,
    }
    scaled = {1024: (28, 42), 1536: (42,), 2048: (28, 42, 56, 80), 2560: (42, 56), 3072: (42, 60)}
    for dim, depths in scaled.items():
        for depth in depths:
            rows[f"uvit-h{dim}-d{depth}"] = {"dim": dim, "depth": depth, "heads": 16, "patch": 2} | LATENT_256 | CLIP_H
    return {name: {"type": "uvit"} | row for name, row in rows.items()}


def _dit() -> dict[str, Row]:
    """arXiv 2212.09748, Table 1, on 256-pixel latents, and XL/2 on 512."""
    sizes = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
    rows = {
        f"dit-{name}-{patch}": {"dim": dim, "depth": depth, "heads": heads, "patch": patch} | LATENT_256
        for name, (dim, depth, heads) in sizes.items()
        for patch in (2, 4, 8)
    }
    rows["dit-xl-2-512"] = rows["dit-xl-2"] | LATENT_512
    return {name: {"type": "dit"} | row | CLASSES | {"learned_variance": True} for name, row in rows.items()}


def _pixart() -> dict[str, Row]:
    """PixArt-alpha, arXiv 2310.00426."""
    common: Row = {"type": "dit", "dim": 1152, "depth": 28, "heads": 16, "patch": 2, "modulation": "adaln_single"}
    common |= {"learned_variance": True, "text_tokens": 120, "text_dim": 4096}
    return {
        "pixart-alpha-256": common | LATENT_256 | {"position_scale": 1.0},
        "pixart-alpha-512": common | LATENT_512 | {"position_scale": 1.0},
        "pixart-alpha-1024": common | LATENT_1024 | {"position_scale": 2.0, "size_conditions": True},
    }


def _dimr() -> dict[str, Row]:
    """DiMR, arXiv 2406.09416: two resolutions, 16 x 16 and 32 x 32 on 256-pixel latents."""
    rows = {}
    for name, dim, depths in (("xl", 960, (39, 20)), ("g", 1152, (57, 29))):
        coarse = {"kind": "transformer", "dim": dim, "hidden": 2 * dim, "depth": depths[0], "heads": 16, "patch": 2}
        fine = {"kind": "convnext", "dim": dim // 2, "hidden": dim, "depth": depths[1], "kernel": 7, "patch": 1}
        rows[f"dimr-{name}-2r"] = {"type": "dimr", **LATENT_256, **CLASSES, "stages": [coarse, fine]}
    return rows


LATENT_16 = {"size": 128, "channels": 16, "patch": 2, "padded_text": False}


def _mmdit() -> dict[str, Row]:
    """Stable Diffusion 3 (arXiv 2403.03206) and 3.5, with 77 tokens of CLIP and 256 of T5."""
    common: Row = {"type": "mmdit", **LATENT_16, "text_tokens": 333, "text_dim": 4096, "pooled_dim": 2048}
    medium: Row = {"dim": 1536, "depth": 24, "heads": 24}
    return {
        "sd3-medium": common | medium | {"qk_norm": "none", "position_grid": 192},
        "sd3.5-medium": common | medium | {"dual_blocks": 13, "position_grid": 384},
        "sd3.5-large": common | {"dim": 2432, "depth": 38, "heads": 38, "position_grid": 192},
    }


def _flux() -> dict[str, Row]:
    """FLUX.1, dev and schnell, of 12 billion parameters."""
    common: Row = {"type": "flux", **LATENT_16, "dim": 3072, "depth": 19, "single_depth": 38, "heads": 24}
    common |= {"text_dim": 4096, "pooled_dim": 768}
    return {
        "flux.1-dev": common | {"text_tokens": 512, "scalars": ["guidance"], "usual_guidance": 3.5},
        "flux.1-schnell": common | {"text_tokens": 256},
    }


# read by language models: Qwen-Image (arXiv 2508.02324) of 20 billion parameters, Z-Image (arXiv 2511.22699) of 6
_READ: Row = {**LATENT_16, "text_tokens": 512}
LANGUAGE: dict[str, Row] = {
    "qwen-image": {"type": "qwen_image", **_READ, "text_dim": 3584, "dim": 3072, "depth": 60, "heads": 24},
    "z-image": {"type": "z_image", **_READ, "text_dim": 2560, "dim": 3840, "depth": 30, "heads": 30},
}

PRESETS: dict[str, Row] = {**_uvit(), **_dit(), **_pixart(), **_dimr(), **_mmdit(), **_flux(), **LANGUAGE}


def preset(name: str, **changes: Any) -> Row:
    """The config of a published size with changes: preset("dit-b-2", size=64, learned_variance=False)."""
    if name not in PRESETS:
        near = nearest(name, PRESETS)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"Unknown model size {name!r}.{hint} `fewstep models` lists them: {', '.join(PRESETS)}.")
    return PRESETS[name] | changes


def build_preset(name: str, **changes: Any) -> nn.Module:
    """A network of a published size with fresh weights. Under `torch.device("meta")` it takes no memory."""
    from gen.nn.registry import build

    return build(preset(name, **changes))
