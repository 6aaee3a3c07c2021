"""`python -m tests.benchmarks.settings`: which settings keep a picture, on the default model at its own defaults.

One thing is changed at a time: every solver, grid, guidance rule (modifiers around cfg, with their usual options), cache and
size, and the energies at their usual strength. The same prompts and seeds each time, scored by the shipped evaluation network:
the share whose label is among its first five answers, and the mean cosine with the label. A row far below the first one is a
setting that destroys pictures. Prints a table, writes settings.json and a sheet per axis into --out. `--axes` and `--only`
choose; `--prompts` says how many everyday labels are drawn, `--steps` in how many steps.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.emoji.captions import read_common
from distill.eval.model_scores import choose_labels
from distill.networks.evaluator.network import load_evaluator
from gen.cli.show import table
from gen.generator import Generator
from samplers.cache.registry import CACHES
from samplers.guidance.registry import GUIDANCE
from samplers.registry import grid_names, solver_names
from tests.benchmarks.models import new_file
from tests.benchmarks.sheet import sheet

Case = tuple[str, dict[str, Any]]
SIZES = ((64, 64), (96, 96), (128, 96), (160, 128), (192, 192), (256, 256))
LAYERS = tuple(range(9))


def cases(axis: str) -> Iterator[Case]:
    """(name, what a call is told) of every setting of an axis."""
    if axis == "solver":
        yield from ((name, {"sampler": name}) for name in solver_names())
    elif axis == "grid":
        yield from ((name, {"schedule": name}) for name in grid_names() if name != "table")
    elif axis == "guidance":
        for name, info in GUIDANCE.items():
            if name not in ("embedded", "autoguidance"):
                rule = f"cfg + {name}" if info.modifier else name
                yield rule, {"guidance": rule}
                if not info.modifier and name != "cfg":
                    yield from ((f"{name} + {m}", {"guidance": f"{name} + {m}"}) for m, i in GUIDANCE.items() if i.modifier)
    elif axis == "scale":
        yield from ((f"cfg {scale:g}", {"guidance_scale": scale}) for scale in (1.0, 2.0, 3.0, 7.5, 10.0, 15.0))
    elif axis == "layers":
        for name in ("pag", "slg", "seg"):
            yield from ((f"{name} {i}", {"guidance": name, "guidance_options": {"layers": (i,)}}) for i in LAYERS)
    elif axis == "cache":
        yield from ((name, {"cache": name}) for name in CACHES)
    elif axis == "size":
        yield from ((f"{w}x{h}", {"width": w, "height": h}) for w, h in SIZES)
    elif axis == "energy":
        for colour in ("red", "blue", "green"):
            yield f"colour={colour}", {"guide": "colour", "guide_options": {"colour": colour}}
        yield "brightness", {"guide": "brightness"}
        yield "composition", {"guide": "composition", "guide_options": {"x": 0.35}}


AXES = ("solver", "grid", "guidance", "scale", "layers", "cache", "size", "energy")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.settings", description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--only", nargs="+", help="names of settings; all if left out")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, help="of every run; the model's own number if left out")
    parser.add_argument("--out", type=Path, default=Path("outputs/settings"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    report = new_file(str(given.out / "settings.json"))

    generator, judge = Generator.from_pretrained("default"), load_evaluator()
    steps = {} if given.steps is None else {"num_inference_steps": given.steps}
    labels = choose_labels(str(given.prompts), judge.labels, list(read_common()))
    index = torch.tensor([judge.labels.index(label) for label in labels])
    rows: list[dict[str, Any]] = []

    def run(axis: str, name: str, call: dict[str, Any]) -> Tensor | None:
        """The pictures (N, 3, H, W) in [0, 1], and a row of the report; None where the call is refused."""
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                images = generator(labels, seed=0, progress=False, output_type="pt", **steps, **call).images.float()
            except ValueError as error:
                rows.append({"axis": axis, "setting": name, "refused": str(error)})
                return None
        cosines = judge.classify(images * 2 - 1)
        among = (cosines.topk(5).indices == index[:, None]).any(1).float().mean()
        rows.append({
            "axis": axis, "setting": name, "top5": float(among), "cosine": float(cosines.gather(1, index[:, None]).mean()),
            "seconds": (time.perf_counter() - start) / len(labels),
        })  # fmt: skip
        return F.interpolate(images, 128, mode="area") if images.shape[-2:] != (128, 128) else images

    with torch.no_grad():
        first = run("default", "default", {})
        for axis in given.axes:
            pictures = {"default": first}
            for name, call in cases(axis):
                if given.only and name not in given.only:
                    continue
                made = run(axis, name, call)
                print(json.dumps(rows[-1]), flush=True)
                pictures |= {} if made is None else {name: made}
            sheet(pictures, labels, given.out / f"{axis}.png")
    columns = ["axis", "setting", "top-5", "cosine", "s a picture"]
    body = [
        [r["axis"], r["setting"], *([r["refused"], "", ""] if "refused" in r else
         [f"{r['top5']:.2f}", f"{r['cosine']:.3f}", f"{r['seconds']:.2f}"])]
        for r in rows
    ]  # fmt: skip
    print(table(columns, body))
    report.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
