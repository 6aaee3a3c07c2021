"""What weights in fewer bits cost and save: time of a step, memory of the weights, and error of the output, beside bfloat16.

    python -m tests.benchmarks.quantised [--width 1024] [--blocks 4] [--tokens 1024] [--repeats 5] [--threads 1]

A transformer of FLUX's kind with random weights. The schemes take turns within each repeat, and times are medians of ratios to
bfloat16's of the same repeat, so that a machine's other work falls on all alike. The numbers of docs/formats.md.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch

from gen.nn.backbones.fused import pack
from gen.nn.quantized import SCHEMES, quantize_network, stored_bytes


def network(width: int, blocks: int) -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=blocks // 2, num_single_layers=blocks, attention_head_dim=128,
            num_attention_heads=width // 128, joint_attention_dim=256, pooled_projection_dim=64, guidance_embeds=False,
        ).requires_grad_(False).eval()  # fmt: skip


def inputs(tokens: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, tokens, 64, generator=draw).to(dtype),
        "encoder_hidden_states": torch.randn(1, 128, 256, generator=draw).to(dtype),
        "pooled_projections": torch.randn(1, 64, generator=draw).to(dtype),
        "timestep": torch.tensor([0.5], dtype=dtype),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(128, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plain = network(given.width, given.blocks)
    expected = plain(**inputs(given.tokens, torch.float32), return_dict=False)[0]
    made = {"float32": plain, "bfloat16": copy.deepcopy(plain).to(torch.bfloat16)}
    made["bfloat16, packed"] = copy.deepcopy(made["bfloat16"])
    pack(made["bfloat16, packed"])
    for scheme in SCHEMES:
        made[scheme] = copy.deepcopy(plain)
        quantize_network(made[scheme], scheme)
        made[scheme].to(torch.bfloat16)
    times: dict[str, list[float]] = {name: [] for name in made}
    errors = {}
    with torch.inference_mode():
        for repeat in range(given.repeats + 1):
            for name, candidate in made.items():
                given_inputs = inputs(given.tokens, torch.float32 if name == "float32" else torch.bfloat16)
                start = time.perf_counter()
                out = candidate(**given_inputs, return_dict=False)[0]
                if repeat:
                    times[name].append(time.perf_counter() - start)
                errors[name] = ((out.float() - expected).norm() / expected.norm()).item()
    print(
        f"{given.width} wide, {given.blocks // 2} + {given.blocks} blocks, {given.tokens} tokens, {given.threads} thread(s)\n"
    )
    print("| weights | MB | step, of bfloat16's time | error of the output |\n|---|---|---|---|")
    for name, candidate in made.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(times[name], times["bfloat16"], strict=True))
        size = stored_bytes(candidate) * (2 if name.endswith("packed") else 1)
        print(f"| {name} | {size / 1e6:.0f} | {ratio:.2f} | {errors[name]:.4f} |")


if __name__ == "__main__":
    main()
