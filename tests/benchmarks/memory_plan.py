"""Is the memory that a plan names what a run takes? A scaled pipeline of random weights, in processes of their own.

    python -m tests.benchmarks.memory_plan [--size 384] [--kinds unet dit] [--dtypes float32 bfloat16] [--quantize int8]

Measured is the peak of resident memory over what the process holds with all libraries loaded, from /proc (Linux). The
numbers of docs/pipelines.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

DECODER = {"block_out_channels": (64, 128, 128), "layers_per_block": 2}


def write(kind: str, folder: Path) -> None:
    """A pipeline of 150 or 350 MB: a U-Net of Stable Diffusion's kind, or FLUX's transformer."""
    import torch

    from tests.gen import pipelines

    def autoencoder(**options):
        from diffusers import AutoencoderKL

        types = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
        return AutoencoderKL(latent_channels=4, sample_size=512, **types, **DECODER, **options)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "unet":
            pipeline = pipelines.stable_diffusion()
            pipeline.unet = pipelines.unet(
                block_out_channels=(128, 256, 256), layers_per_block=2, norm_num_groups=32, attention_head_dim=8,
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            )  # fmt: skip
            pipeline.vae = autoencoder(scaling_factor=0.18215)
        else:
            from diffusers import FluxTransformer2DModel

            pipeline = pipelines.flux()
            pipeline.transformer = FluxTransformer2DModel(
                patch_size=1, in_channels=16, num_layers=2, num_single_layers=4, attention_head_dim=128, num_attention_heads=6,
                joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True,
            )  # fmt: skip
            options = {"use_quant_conv": False, "use_post_quant_conv": False}
            pipeline.vae = autoencoder(scaling_factor=0.3611, shift_factor=0.1159, **options)
        pipelines.save(pipeline, folder)


def resident(name: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("This system has no /proc/self/status.")


def measure(folder: Path, size: int, dtype: str, quantize: str | None) -> dict[str, int]:
    """In this process: peaks of opening and of a call, over what is held before."""
    import torch

    from gen.generator import Generator
    from gen.models.memory import plan
    from gen.models.options import DTYPES, ModelOptions

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    planned = plan(folder, DTYPES[dtype], height=size, width=size, options=ModelOptions(quantize=quantize))
    first = Generator.from_pretrained(folder, device="cpu", dtype=dtype, quantize=quantize)
    first("a cat", height=64, width=64, num_inference_steps=1, progress=False)  # what loads at first use is no part of a run
    del first
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    generator = Generator.from_pretrained(folder, device="cpu", dtype=dtype, quantize=quantize)
    opening, opened = resident("VmHWM"), resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    generator("a cat", height=size, width=size, num_inference_steps=2, output_type="pt", progress=False)
    peak, stage = planned.peak()
    measured = {"opening": opening - before, "weights": opened - before, "peak": resident("VmHWM") - before}
    return {**measured, "planned weights": sum(planned.weights.values()), "planned peak": peak, "stage": stage}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--kinds", nargs="+", default=["unet", "dit"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--quantize", nargs="*", default=[])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(Path(given.measure), given.size, given.dtypes[0], next(iter(given.quantize), None))))
        return
    print("| pipeline | dtype | weights MB, planned | opening MB | peak MB | planned | of measured |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds:
            write(kind, Path(folder) / kind)
            for dtype in given.dtypes:
                for quantize in (None, *given.quantize):
                    command = [sys.executable, "-m", "tests.benchmarks.memory_plan", "--measure", f"{folder}/{kind}"]
                    options = ["--size", str(given.size), "--dtypes", dtype, *(["--quantize", quantize] if quantize else [])]
                    # freed memory goes back to the system, so that what is held is what is counted
                    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "OMP_NUM_THREADS": "1"}
                    done = subprocess.run(command + options, capture_output=True, text=True, check=True, env=environment)
                    found = json.loads(done.stdout.splitlines()[-1])
                    mb = {name: f"{value / 1e6:.0f}" for name, value in found.items() if name != "stage"}
                    print(
                        f"| {kind} | {dtype}{f', {quantize}' if quantize else ''} | {mb['weights']}, {mb['planned weights']} | "
                        f"{mb['opening']} | {mb['peak']} | {mb['planned peak']} ({found['stage']}) | "
                        f"{found['planned peak'] / found['peak']:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
