"""`python -m tests.benchmarks.models`: PixArt and DiT forward, ours against diffusers on the same weights.

Batch 2, as one image under guidance. Both libraries in one process, in turns, so that a slow moment of the machine hits both.
The text of a run is read once by ours (its keys and values are kept), in every step by diffusers; both are timed as they are
used. Shares are of the matrix-product rate that this machine reaches in the same dtype.

Prints each row as it is measured and a table at the end; writes models.json. `--smoke` runs the smallest sizes once, to see
that everything works.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.cli.show import table
from gen.nn.backbones.cost import cost
from gen.nn.backbones.fused import pack
from gen.nn.backbones.presets import build_preset
from samplers.denoiser import Condition, Context

BATCH, REAL = 2, 20  # rows, and how many of the T5 tokens a usual prompt has
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# name -> (preset, changes)
CASES: dict[str, tuple[str, dict]] = {
    "DiT-B/2, 256 tokens": ("dit-b-2", {}),
    "DiT-XL/2, 256 tokens": ("dit-xl-2", {}),
    "PixArt-alpha, 256 tokens": ("pixart-alpha-256", {}),
    "PixArt-alpha, 1024 tokens": ("pixart-alpha-512", {}),
    "PixArt-Sigma's text, 256 tokens": ("pixart-alpha-256", {"text_tokens": 300}),
}
SMALL = {"dim": 96, "depth": 2, "heads": 4, "size": 8}


def diffusers_twin(net: nn.Module) -> nn.Module:
    """diffusers' network of the same shape with the same weights."""
    import diffusers

    c = net.config
    shape = {"num_attention_heads": c.heads, "attention_head_dim": c.dim // c.heads, "in_channels": c.channels}
    shape |= {"out_channels": 2 * c.channels, "num_layers": c.depth, "sample_size": c.size, "patch_size": c.patch}
    if c.text_dim:
        twin = diffusers.PixArtTransformer2DModel(**shape, cross_attention_dim=c.dim, caption_channels=c.text_dim,
            interpolation_scale=c.position_scale, use_additional_conditions=False)  # fmt: skip
    else:
        twin = diffusers.DiTTransformer2DModel(**shape, num_embeds_ada_norm=c.num_classes, norm_eps=1e-6)
        for block in twin.transformer_blocks:  # the paper's frequencies
            block.norm1.emb.time_proj.downscale_freq_shift = 0
    own = net.state_dict()
    names = {"pos_embed.proj": "patch_embed", "proj_out": "head", "adaln_single.linear": "shared_modulation"}
    names |= {"proj_out_1": "final_modulation", "proj_out_2": "head"}
    for i, j in ((1, 0), (2, 2)):
        names[f"adaln_single.emb.timestep_embedder.linear_{i}"] = f"time_embed.{j}"
        names[f"caption_projection.linear_{i}"] = f"text_embed.fc{i}"
    tensors: dict[str, Tensor] = {"scale_shift_table": own.get("final_table")}
    for n in range(c.depth):
        here, there = f"blocks.{n}", f"transformer_blocks.{n}"
        names |= {f"{there}.attn1.to_out.0": f"{here}.attn.proj", f"{there}.attn2.to_out.0": f"{here}.cross.proj"}
        names |= {f"{there}.attn2.to_q": f"{here}.cross.q", f"{there}.norm1.linear": f"{here}.modulation"}
        names |= {f"{there}.ff.net.0.proj": f"{here}.mlp.fc1", f"{there}.ff.net.2": f"{here}.mlp.fc2"}
        for i, j in ((1, 0), (2, 2)):
            names[f"{there}.norm1.emb.timestep_embedder.linear_{i}"] = f"time_embed.{j}"
        tensors |= {f"{there}.scale_shift_table": own.get(f"{here}.table")}
        tensors |= {f"{there}.norm1.emb.class_embedder.embedding_table.weight": own.get("label_embed.weight")}
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", own[f"{here}.attn.qkv.{kind}"].chunk(3), strict=True):
                tensors[f"{there}.attn1.to_{name}.{kind}"] = part
            if c.text_dim:
                for name, part in zip("kv", own[f"{here}.cross.kv.{kind}"].chunk(2), strict=True):
                    tensors[f"{there}.attn2.to_{name}.{kind}"] = part
    tensors |= {f"{a}.{kind}": own.get(f"{b}.{kind}") for a, b in names.items() for kind in ("weight", "bias")}
    expected = twin.state_dict()
    tensors = {name: value for name, value in tensors.items() if value is not None and name in expected}
    missing = set(expected) - set(tensors) - {"pos_embed.pos_embed"}
    if missing:
        raise RuntimeError(f"No weights for {sorted(missing)[:3]} of diffusers' network.")
    twin.load_state_dict(tensors, strict=False)
    return twin.eval()


def contestants(net: nn.Module, twin: nn.Module, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """library -> one evaluation of a batch inside a run."""
    c, draw = net.config, torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, c.channels, c.size, c.size, generator=draw).to(dtype)
    times = torch.tensor([500.0] * BATCH)
    context = Context()
    if not c.text_dim:
        label = torch.tensor([1, c.num_classes])
        condition = Condition(label=torch.tensor([1, -1]))
        return {"ours": lambda: net(x, times, condition, context), "diffusers": lambda: twin(x, times, label).sample}
    tokens = torch.randn(BATCH, c.text_tokens, c.text_dim, generator=draw).to(dtype)
    mask = torch.arange(c.text_tokens) < torch.tensor([min(REAL, c.text_tokens), min(REAL, c.text_tokens) // 2])[:, None]
    condition, added = Condition(tokens=tokens, mask=mask), {"resolution": None, "aspect_ratio": None}
    return {
        "ours": lambda: net(x, times, condition, context),
        "diffusers": lambda: twin(x, tokens, times, added, encoder_attention_mask=mask.to(dtype)).sample,
    }


def timed(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call but the first, the libraries in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in times.items()}


def peak_rate(dtype: torch.dtype, size: int = 1024, repeats: int = 8) -> float:
    """GFLOP/s of the fastest square matrix product of this size: what the machine can do."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def measure(case: str, dtype_name: str, repeats: int, smoke: bool) -> dict:
    preset, changes = CASES[case]
    torch.manual_seed(0)
    net = build_preset(preset, **(changes | (SMALL if smoke else {}))).eval().requires_grad_(False)
    for parameter in net.parameters():
        if not parameter.any():  # fresh networks begin at zero, which some kernels are quicker with
            parameter.normal_(std=0.02)
    dtype = DTYPES[dtype_name]
    twin = diffusers_twin(net).to(dtype)
    net = net.to(dtype)
    pack(net)  # as `Generator` does
    with torch.inference_mode():
        runs = contestants(net, twin, dtype)
        ours, theirs = runs["ours"]().float(), runs["diffusers"]().float()
        difference = float((ours - theirs).norm() / theirs.norm())
        if difference > (0.05 if dtype == torch.bfloat16 else 1e-3):
            raise RuntimeError(f"{case} in {dtype_name}: the networks differ by {difference:.1e}, so times mean nothing.")
        times, rate = timed(runs, repeats), peak_rate(dtype)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    gflops = BATCH * cost(net.config).flops / 1e9
    pairs = [b / a for a, b in zip(times["ours"], times["diffusers"], strict=True)]
    return {
        "model": case,
        "dtype": dtype_name,
        "ours (ms)": round(seconds["ours"] * 1e3, 1),
        "diffusers (ms)": round(seconds["diffusers"] * 1e3, 1),
        "speed-up": round(statistics.median(pairs), 2),
        "GFLOP/s": round(gflops / seconds["ours"], 1),
        "of peak": f"{gflops / seconds['ours'] / rate:.0%}",
        "difference": f"{difference:.0e}",
        "peak memory so far (MiB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def new_file(text: str) -> Path:
    """A file to write when all is measured; argparse's error, before anything is, where it could not be."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written; give a file's name in a folder that exists")
    return path


def add_arguments(parser: argparse.ArgumentParser, repeats: int, output: str) -> None:
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="[default: both]")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, once")
    parser.add_argument("--output", type=new_file, default=Path(output))


def report(given: argparse.Namespace, cases: Collection[str], measure: Callable[[str, str], dict]) -> None:
    """Measure the cases asked for, in each dtype; say and write each as it is done, and print a table of all."""
    torch.set_num_threads(given.threads)
    chosen = [(case, dtype) for case in cases if given.only in case for dtype in given.dtype or DTYPES]
    if not chosen:
        raise SystemExit(f"No case has {given.only!r} in its name: {', '.join(cases)}.")
    rows = []
    for case, dtype in chosen:
        rows.append(measure(case, dtype))
        print(", ".join(f"{name}: {value}" for name, value in rows[-1].items()), file=sys.stderr, flush=True)
        told = {"threads": given.threads, "torch": torch.__version__, "rows": rows}
        given.output.write_text(json.dumps(told, indent=2) + "\n")
    print(table(tuple(rows[0]), [[str(value) for value in row.values()] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, 10, "models.json")
    given = parser.parse_args()
    repeats = 1 if given.smoke else given.repeats
    report(given, CASES, lambda case, dtype: measure(case, dtype, repeats, given.smoke))


if __name__ == "__main__":
    main()
