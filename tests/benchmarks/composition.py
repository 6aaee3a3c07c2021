"""`python -m tests.benchmarks.composition`: a composite of N adapters as one batched forward, against N passes.

The default model's network and a DiT, one picture under guidance (2 rows), rank-16 LoRAs on every linear layer of the blocks.
Both ways run in one process, in turns. Also: what it takes to switch adapters among fifty, and the share of a batched call
that the adapters themselves take. `--profile` says what a batched call's time goes to. Times are the processor's own on a CPU,
which other work on the machine changes less than the wall's (`--clock wall`; with several threads they are of all threads).
Prints tables; writes composition.json. `--smoke` runs the smallest size once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from gen.adapters import Adapter, Adapters, Delta
from gen.adapters.apply import _Hook
from gen.cli.show import table
from gen.generator import Generator
from gen.models.options import DTYPES
from gen.nn.backbones.fused import pack
from gen.nn.backbones.presets import build_preset
from samplers.composition import Composite, Switch
from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.path import RectifiedFlow
from tests.benchmarks.models import new_file

RANK, ROWS, LOADED = 16, 2, 50
CASES = ("default", "dit-b-2", "dit-l-2")


def network_of(case: str, device: str, dtype: torch.dtype, small: bool) -> nn.Module:
    if case == "default":
        return Generator.from_pretrained("default", device, dtype).network
    changes = {"dim": 96, "depth": 2, "heads": 4, "size": 8} if small else {}
    return build_preset(case, **changes).to(device, dtype).eval()


def loaded(network: nn.Module, count: int) -> Adapters:
    """A network with `count` LoRAs on the linear layers of its blocks."""
    adapters = Adapters(network)
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear) and any(p.isdigit() for p in n.split("."))}
    shared = {
        f"denoiser.{n}": Delta(
            {"down": torch.randn(RANK, m.in_features) / m.in_features, "up": torch.randn(m.out_features, RANK)}
        )
        for n, m in layers.items()
    }
    for i in range(count):
        adapters.load(Adapter(str(i), shared))
    return adapters


@dataclass(frozen=True)
class Clock:
    """Seconds of a call, by the wall or by the processor."""

    device: str
    now: Callable[[], float]

    def __call__(self, call: Callable[[], object]) -> float:
        self.wait()
        start = self.now()
        call()
        self.wait()
        return self.now() - start

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def paired(ways: Mapping[str, Callable[[], object]], repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each way, in turns, after one call of each."""
    for call in ways.values():
        call()
    return {
        name: times
        for name, *times in zip(ways, *([clock(call) for call in ways.values()] for _ in range(repeats)), strict=True)
    }


PARTS = {"aten::linear": "matmuls", "aten::conv2d": "matmuls", "aten::scaled_dot_product_attention": "attention"}


def profiled(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Shares of a call's time in the network's own matrix products, in its attention, in adapters (their hooks, whole), and in
    the rest."""
    plain = _Hook.__call__

    def marked(self, *args):
        with torch.profiler.record_function("adapters"):
            return plain(self, *args)

    _Hook.__call__ = marked  # type: ignore[method-assign]
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            for _ in range(repeats):
                with torch.profiler.record_function("call"):
                    call()
    finally:
        _Hook.__call__ = plain  # type: ignore[method-assign]
    names = {**PARTS, "adapters": "adapters"}
    spent = dict.fromkeys(("matmuls", "attention", "adapters"), 0.0)
    whole = sum(event.cpu_time_total for event in found.events() if event.name == "call")
    for event in found.events():
        above, parent = [], event.cpu_parent
        while parent is not None:
            above.append(parent.name)
            parent = parent.cpu_parent
        if event.name in names and not names.keys() & set(above):
            spent[names[event.name]] += event.cpu_time_total
    return {**{name: time / whole for name, time in spent.items()}, "rest": 1 - sum(spent.values()) / whole}


@torch.inference_mode()
def measure(
    case: str, counts: tuple[int, ...], repeats: int, clock: Clock, dtype: torch.dtype, small: bool, profile: bool
) -> list[dict]:
    device = clock.device
    net = network_of(case, device, dtype, small)
    loaded(net, max(counts))
    pack(net)
    config = net.config
    flow = RectifiedFlow()
    denoiser, level = NetworkDenoiser(net, flow, "flow", "1000t", dtype=dtype), flow(0.5)
    x = torch.randn(ROWS, config.channels, config.size, config.size, device=device)
    condition = Condition()
    if config.text_dim:
        tokens = torch.randn(ROWS, min(config.text_tokens, 16), config.text_dim, device=device, dtype=dtype)
        condition = Condition(tokens=tokens, mask=torch.ones(tokens.shape[:2], dtype=torch.bool, device=device))
    elif config.num_classes:
        condition = Condition(label=torch.zeros(ROWS, dtype=torch.long, device=device))
    return [_row(case, count, denoiser, (x, level, condition), repeats, clock, profile) for count in counts]


def _row(case: str, count: int, denoiser: NetworkDenoiser, inputs: tuple, repeats: int, clock: Clock, profile: bool) -> dict:
    x, level, condition = inputs
    weights = {str(i): 0.8 for i in range(count)}
    context, composite = Context(adapters=weights), Composite(denoiser)
    each = [replace(context, adapters={name: weight}) for name, weight in weights.items()]
    wide, repeated = torch.cat([x] * count), condition.cat([condition] * (count - 1))
    seconds = paired(
        {
            "batched": lambda: composite(x, level, condition, context),
            "passes": lambda: [denoiser(x, level, condition, one) for one in each],
            "no adapters, batched": lambda: denoiser(wide, level, repeated, Context()),
            "one adapter": lambda: denoiser(x, level, condition, each[0]),
        },
        repeats,
        clock,
    )
    pairs = [b / a for a, b in zip(seconds["batched"], seconds["passes"], strict=True)]
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    shares = profiled(lambda: composite(x, level, condition, context), max(1, repeats // 2)) if profile else {}
    return {
        "model": case,
        "N": count,
        "batched (ms)": round(middle["batched"] * 1e3, 2),
        "N passes (ms)": round(middle["passes"] * 1e3, 2),
        "speed-up": round(statistics.median(pairs), 2),
        "one adapter (ms)": round(middle["one adapter"] * 1e3, 2),
        "adapters' share": f"{1 - middle['no adapters, batched'] / middle['batched']:.0%}",
        **({n: f"{share:.0%}" for n, share in shares.items()}),
    }


@torch.inference_mode()
def switching(clock: Clock, dtype: torch.dtype, repeats: int, small: bool) -> dict:
    """Milliseconds of choosing another adapter, with fifty loaded, and of calls that switch against calls that do not."""
    device = clock.device
    net = network_of("dit-b-2", device, dtype, small)
    loaded(net, LOADED)
    flow = RectifiedFlow()
    turns = tuple((-9.0 + i, str(i)) for i in range(10))
    switch = Switch(NetworkDenoiser(net, flow, "flow", "1000t", dtype=dtype), turns)
    x = torch.randn(1, net.config.channels, net.config.size, net.config.size, device=device)
    condition = Condition(label=torch.zeros(1, dtype=torch.long, device=device))
    context = Context(adapters={str(i): 1.0 for i in range(10)})
    levels = [flow.at_logsnr(-9.0 + i) for i in range(10)]

    class Nothing:  # what is left of a call without its network
        path = flow

        def __call__(self, x, level, condition, context):
            return None

    choosing = replace(switch, denoiser=Nothing())
    ways = {
        "choose": lambda: [choosing(x, level, condition, context) for level in levels],
        "switched": lambda: [switch(x, level, condition, context) for level in levels],
        "same": lambda: [switch(x, levels[0], condition, context) for _ in levels],
    }
    middle = {name: statistics.median(times) / len(levels) * 1e3 for name, times in paired(ways, repeats, clock).items()}
    return {
        "loaded": LOADED,
        "choosing (ms)": round(middle["choose"], 4),
        "call after a switch (ms)": round(middle["switched"], 2),
        "call without (ms)": round(middle["same"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--clock", choices=("cpu", "wall"), help="of the times; cpu on a CPU if left out")
    parser.add_argument("--profile", action="store_true", help="what a batched call's time goes to")
    parser.add_argument("--counts", type=int, nargs="+", default=(2, 4, 8), help="N")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, once")
    parser.add_argument("--output", type=new_file, default=Path("composition.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    counts, repeats = ((2,), 1) if given.smoke else (tuple(given.counts), given.repeats)
    cases = [case for case in CASES if given.only in case] if not given.smoke else ["dit-b-2"]
    if not cases:
        raise SystemExit(f"No case has {given.only!r} in its name: {', '.join(CASES)}.")
    dtype, by = DTYPES[given.dtype], given.clock or ("cpu" if given.device == "cpu" else "wall")
    clock = Clock(given.device, time.process_time if by == "cpu" else time.perf_counter)
    rows = [row for case in cases for row in measure(case, counts, repeats, clock, dtype, given.smoke, given.profile)]
    turns = switching(clock, dtype, repeats, given.smoke)
    for found in (rows, [turns]):
        print(table(tuple(found[0]), [[str(value) for value in row.values()] for row in found]))
    told = {"device": given.device, "clock": by, "dtype": given.dtype, "threads": given.threads, "torch": torch.__version__}
    given.output.write_text(json.dumps({**told, "rows": rows, "switching": turns}, indent=2) + "\n")


if __name__ == "__main__":
    main()
