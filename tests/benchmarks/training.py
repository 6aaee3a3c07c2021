"""`python -m tests.benchmarks.training`: one training step of DiT and U-ViT, ours against diffusers' network of the same size.

A step is a flow-matching loss under bfloat16 autocast (or in float32), its gradients, their clipping, and AdamW: ours as the
trainer does it (objective, counter-based draws, fused optimiser, memory that the process keeps), the other as the training
scripts around diffusers write it. Each has a process of its own, as it would, and they take turns, so that a slow moment of the
machine hits both. The share is of the matrix-product rate that this machine reaches in the same number format, a step counting
three evaluations' operations.

Prints each row as it is measured and a table at the end; writes training.json. `--compile` adds rows with both networks under
torch.compile. `--smoke` runs the smallest sizes once, to see that everything works.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config import OptimizerConfig
from distill.objectives.diffusion import DiffusionConfig, DiffusionObjective
from distill.optim.optimizer import Optimizer
from distill.optim.precision import autocast
from distill.parallel.host_memory import keep_freed_memory
from distill.types import Batch, Draws, Phase
from gen.nn.backbones.cost import cost
from gen.nn.backbones.presets import build_preset
from gen.nn.backbones.uvit import UViT
from tests.benchmarks.models import DTYPES, add_arguments, diffusers_twin, peak_rate, report

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
# name -> (preset, changes)
CASES: dict[str, tuple[str, dict]] = {
    "DiT-S/2, 256 tokens": ("dit-s-2", {}),
    "DiT-B/2, 256 tokens": ("dit-b-2", {}),
    "U-ViT-S/2, 256 tokens": ("uvit-s-2-cifar10", {"num_classes": 1000, "channels": 4}),
    "U-ViT-M/2, 256 tokens": ("uvit-m-4-imagenet64", {"patch": 2, "size": 32, "channels": 4}),
}
WARM = 2  # steps of each before the first that counts
SMALL = {"dim": 96, "depth": 3, "heads": 4, "size": 8}


class UViTTwin(nn.Module):
    """A U-ViT around diffusers' U-shaped transformer: tokens for time, label and patches, long skips, a linear head. diffusers
    has a norm after every skip besides."""

    def __init__(self, net: nn.Module):
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps
        from diffusers.pipelines.deprecated.unidiffuser.modeling_uvit import UTransformer2DModel

        c = net.config
        self.config = c
        self.embed = nn.Conv2d(c.channels, c.dim, c.patch, stride=c.patch)
        self.waves = Timesteps(c.dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(c.dim, c.dim) if c.time_mlp else nn.Identity()
        self.label = nn.Embedding(c.num_classes + 1, c.dim)
        self.positions = nn.Parameter(torch.randn(1, 2 + c.grid**2, c.dim) * 0.02)
        self.trunk = UTransformer2DModel(
            num_attention_heads=c.heads, attention_head_dim=c.dim // c.heads, in_channels=c.channels, num_layers=c.depth,
            sample_size=c.size, patch_size=c.patch, activation_fn="gelu", attention_bias=c.qkv_bias, block_type="transformer",
            pre_layer_norm=True, norm_type="layer_norm",
        )  # fmt: skip
        del self.trunk.pos_embed  # its patches are embedded here
        self.head = nn.Linear(c.dim, c.patch**2 * c.channels)
        self.final = nn.Conv2d(c.channels, c.channels, 3, padding=1) if c.final_conv else nn.Identity()

    def forward(self, x: Tensor, times: Tensor, label: Tensor) -> Tensor:
        c = self.config
        tokens = [self.time(self.waves(times))[:, None], self.label(label)[:, None], self.embed(x).flatten(2).mT]
        h = torch.cat(tokens, 1) + self.positions
        h = self.trunk(h, return_dict=False, hidden_states_is_embedding=True, unpatchify=False)[0]
        h = self.head(h[:, 2:]).unflatten(1, (c.grid, c.grid)).unflatten(3, (c.patch, c.patch, c.channels))
        return self.final(torch.einsum("bhwpqc->bchpwq", h).reshape(x.shape))


def our_step(net: nn.Module, data: Tensor, labels: Tensor, precision: str) -> Callable[[], Tensor]:
    """A step as the trainer makes it."""
    objective = DiffusionObjective(DiffusionConfig(prediction="flow", time={"type": "uniform"}), net)
    optimizer, step = Optimizer(net, OptimizerConfig()), iter(range(1 << 60))
    net.train().requires_grad_(True)

    def run() -> Tensor:
        number = next(step)
        index = torch.arange(number * len(data), (number + 1) * len(data))
        batch, phase = Batch(index=index, latents=data, labels=labels), Phase("denoiser", "denoiser")
        optimizer.zero_grad()
        with autocast(data.device, precision):
            loss, _ = objective.loss(phase, {"denoiser": net}, batch, Draws(0, index, phase.name), number)
        loss.backward()
        optimizer.clip_gradients()
        optimizer.step(1.0)
        return loss.detach()

    return run


def their_step(twin: nn.Module, data: Tensor, labels: Tensor, precision: str) -> Callable[[], Tensor]:
    """The step of a training script."""
    twin.train().requires_grad_(True)
    parameters = [p for p in twin.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    generator, channels = torch.Generator().manual_seed(0), data.shape[1]

    def run() -> Tensor:
        noise, time = torch.randn(data.shape, generator=generator), torch.rand(len(data), generator=generator)
        t = time[:, None, None, None]
        with autocast(data.device, precision):
            out = twin((1 - t) * data + t * noise, 1000 * time, labels)
            out = getattr(out, "sample", out)
            loss = F.mse_loss(out[:, :channels].float(), noise - data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run


def step_of(library: str, case: str, dtype_name: str, batch: int, smoke: bool, compiled: bool) -> Callable[[], Tensor]:
    net = make(case, smoke)
    c = net.config
    data = torch.randn(batch, c.channels, c.size, c.size)
    labels = torch.arange(batch) % c.num_classes
    if library == "ours":
        keep_freed_memory()
        step = our_step
    else:
        net, step = twin_of(net), their_step
    if compiled:
        net.compile()
    return step(net, data, labels, PRECISIONS[dtype_name])


def make(case: str, smoke: bool) -> nn.Module:
    preset, changes = CASES[case]
    torch.manual_seed(0)
    return build_preset(preset, **(changes | (SMALL if smoke else {})))


def twin_of(net: nn.Module) -> nn.Module:
    return UViTTwin(net) if isinstance(net, UViT) else diffusers_twin(net)


def serve(pipe: Connection, threads: int, *what) -> None:
    """A process of one library: the seconds of a step for every message, until there is none."""
    torch.set_num_threads(threads)
    step = step_of(*what)
    while pipe.recv():
        start = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - start)


class Library:
    """A process that makes one step when it is called, and returns its seconds."""

    def __init__(self, *what) -> None:
        context = get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there, torch.get_num_threads(), *what), daemon=True)
        self.process.start()
        there.close()  # so that the end of the process is the end of what it says

    def __call__(self) -> float:
        self.pipe.send(True)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(False)
        self.process.join()


def measure(case: str, dtype_name: str, batch: int, repeats: int, smoke: bool, compiled: bool = False) -> dict:
    both = {name: Library(name, case, dtype_name, batch, smoke, compiled) for name in ("ours", "diffusers")}
    turns = [{name: library() for name, library in both.items()} for _ in range(WARM + repeats)][WARM:]
    for library in both.values():
        library.close()
    net = make(case, smoke)
    seconds = {name: statistics.median(turn[name] for turn in turns) for name in both}
    gflops, rate = 3 * batch * cost(net.config).flops / 1e9, peak_rate(DTYPES[dtype_name])
    return {
        "model": case,
        "precision": dtype_name + (", compiled" if compiled else ""),
        "parameters, ours / theirs (M)": " / ".join(
            f"{sum(p.numel() for p in n.parameters()) / 1e6:.1f}" for n in (net, twin_of(net))
        ),
        "ours (samples/s)": round(batch / seconds["ours"], 1),
        "diffusers (samples/s)": round(batch / seconds["diffusers"], 1),
        "speed-up": round(statistics.median(turn["diffusers"] / turn["ours"] for turn in turns), 2),
        "of peak, ours": f"{gflops / seconds['ours'] / rate:.0%}",
        "of peak, diffusers": f"{gflops / seconds['diffusers'] / rate:.0%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, 5, "training.json")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="rows with both networks under torch.compile, too")
    given = parser.parse_args()
    batch, repeats = (2, 1) if given.smoke else (given.batch, given.repeats)
    cases = {f"{case}{way}": (case, bool(way)) for case in CASES for way in ("", " compiled") if given.compile or not way}
    report(given, cases, lambda name, dtype: measure(cases[name][0], dtype, batch, repeats, given.smoke, cases[name][1]))


if __name__ == "__main__":
    main()
