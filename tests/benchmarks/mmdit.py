"""`python -m tests.benchmarks.mmdit`: networks of text and patches, ours against diffusers on the same weights, in ratios.

Batch 2, as one picture under guidance, of 256 and of 1024 patches, at a quarter of a published width and with few blocks. Both
run in one process and in turns, so that a slow moment of the machine hits both; a ratio is diffusers' median time over ours.
The text of a run is read once by ours and in every step by diffusers, as they are used. `--smoke` runs small sizes once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch

from gen.cli.show import table
from gen.models.formats import read_checkpoint
from gen.nn.backbones.fused import pack
from samplers.denoiser import Condition, Context
from tests.gen.joint import FAMILIES, Family

BATCH, WIDTH, TEXT, POOLED = 2, 1024, 128, 768
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def options(name: str, heads: int, head: int, depth: int) -> dict[str, Any]:
    """diffusers' config of a family at a size."""
    dim, joint = heads * head, {"num_layers": depth, "num_attention_heads": heads, "attention_head_dim": head}
    joint |= {"joint_attention_dim": WIDTH}
    axes = (head // 8, head * 7 // 16, head * 7 // 16)
    if name == "sd3":
        sd3 = {"in_channels": 16, "sample_size": 64, "caption_projection_dim": dim, "pooled_projection_dim": POOLED}
        return {**joint, **sd3, "pos_embed_max_size": 64, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
    if name == "flux":
        return {**joint, "in_channels": 64, "num_single_layers": depth, "pooled_projection_dim": POOLED, "axes_dims_rope": axes}
    if name == "qwen_image":
        return {**joint, "in_channels": 64, "out_channels": 16, "axes_dims_rope": axes}
    z_image = {"in_channels": 16, "dim": dim, "n_heads": heads, "n_kv_heads": heads, "n_layers": depth, "n_refiner_layers": 1}
    return {**z_image, "cap_feat_dim": WIDTH, "axes_dims": [head // 4, head * 3 // 8, head * 3 // 8]}


def measure(name: str, family: Family, dtype: torch.dtype, side: int, repeats: int, smoke: bool) -> list[str]:
    """A row: the case, both medians in milliseconds, the ratio of the times, and how far the outputs are apart."""
    size = options(name, 2, 32, 2) if smoke else options(name, 12, 64, 4)
    theirs = replace(family, variants={"": size}).build("", dtype)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = read_checkpoint(folder, dtype=dtype, null_text=torch.zeros(1, WIDTH), null_length=1, **_pooled(family))
    pack(ours)  # as `Generator` does
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 16, side, side, generator=draw).to(dtype)
    tokens = torch.randn(BATCH, TEXT, WIDTH, generator=draw).to(dtype)
    pooled = torch.randn(BATCH, POOLED, generator=draw).to(dtype) if family.pooled else None
    condition = Condition(tokens=tokens, mask=torch.ones(BATCH, TEXT, dtype=torch.bool), pooled=pooled)
    unmasked = replace(condition, mask=None) if name == "qwen_image" else condition  # as the bridge calls it
    times, context = torch.full((BATCH,), 0.5 * family.scale), Context()
    runs = {"ours": lambda: ours(x, times, condition, context), "diffusers": lambda: family.call(theirs, x, times, unmasked)}
    seconds: dict[str, list[float]] = {library: [] for library in runs}
    with torch.inference_mode():
        first, second = (run().float() for run in runs.values())
        apart = float((first - second).norm() / second.norm())
        if apart > (0.1 if dtype == torch.bfloat16 else 1e-4):
            raise RuntimeError(f"{name} in {dtype}: the outputs differ by {apart:.1e}, so times mean nothing.")
        for _ in range(repeats):
            for library, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[library].append(time.perf_counter() - start)
    mine, other = (statistics.median(values) for values in seconds.values())
    case = f"{name}, {(side // 2) ** 2} patches, {str(dtype).removeprefix('torch.')}"
    return [case, f"{1e3 * mine:.1f}", f"{1e3 * other:.1f}", f"{other / mine:.2f}", f"{apart:.1e}"]


def _pooled(family: Family) -> dict[str, Any]:
    return {"null_pooled": torch.zeros(POOLED)} if family.pooled else {}


def main() -> int:
    parser = argparse.ArgumentParser(description="Networks of text and patches beside diffusers'.")
    parser.add_argument("--smoke", action="store_true", help="small sizes, once")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", help="a family: " + ", ".join(FAMILIES))
    given = parser.parse_args()
    rows = []
    for name, family in FAMILIES.items():
        if given.only in (None, name):
            for dtype in DTYPES.values():
                for side in (16,) if given.smoke else (32, 64):
                    rows.append(measure(name, family, dtype, side, 1 if given.smoke else given.repeats, given.smoke))
                    print("  ".join(rows[-1]), flush=True)
    print(table(("case", "ours, ms", "diffusers, ms", "ratio", "apart"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
