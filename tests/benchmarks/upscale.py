"""How well held-out drawings are made four times as large: by filters, by the default model's `upscale`, by an upsampler.

Each drawing of 128 pixels is averaged to 32, in 8 bits, and enlarged again. Printed are its signal to noise (PSNR in dB, higher
is nearer), the energy of edges (squares of first differences, as a share of the drawing's own: 1 is as sharp), and how far
apart the evaluation network's features are (1 - cosine, lower is nearer).

    python -m tests.benchmarks.upscale --count 32 --sheet sheet.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from distill.data.emoji.data import EmojiConfig, EmojiData
from distill.networks.features import load_features
from distill.types import pictures_of
from gen import Generator
from gen.cli.show import table

FACTOR = 4
Enlarge = Callable[[Tensor], Tensor]  # (3, h, w) in [0, 1] -> (3, 4 h, 4 w)


def by_filter(filter: Image.Resampling) -> Enlarge:
    """One of Pillow's."""

    def enlarge(small: Tensor) -> Tensor:
        pixels = (small.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        size = small.shape[2] * FACTOR, small.shape[1] * FACTOR
        shown = torch.frombuffer(bytearray(Image.fromarray(pixels).resize(size, filter).tobytes()), dtype=torch.uint8)
        return shown.view(size[1], size[0], 3).permute(2, 0, 1) / 255

    return enlarge


def by_model(model: Generator, **call: object) -> Enlarge:
    return lambda small: model.upscale(small, scale=FACTOR, seed=0, output_type="pt", progress=False, **call).images[0]


def ways(upsampler: str) -> dict[str, Enlarge]:
    """What is compared, by name."""
    default = Generator.from_pretrained("default", device="cpu", dtype="float32")
    trained = Generator.from_pretrained(upsampler, device="cpu", dtype="float32")
    made: dict[str, Enlarge] = {
        "bicubic": by_filter(Image.Resampling.BICUBIC),
        "Lanczos": by_filter(Image.Resampling.LANCZOS),
        "default, strength 0.4": by_model(default),
    }
    for steps in (1, 2, 4):
        made[f"upsampler, {steps} step{'s' * (steps > 1)}"] = by_model(trained, num_inference_steps=steps)
    made["upsampler, noise 0.1"] = by_model(trained, noise_level=0.1)
    return made


def edges(pictures: Tensor) -> Tensor:
    """Squares of first differences, (B,)."""
    return sum(pictures.diff(dim=axis).square().mean((1, 2, 3)) for axis in (-1, -2))  # type: ignore[return-value]


def measured(true: Tensor, made: Mapping[str, Tensor]) -> list[list[str]]:
    """A row for each way: PSNR, energy of edges, distance of features, means over pictures (B, 3, H, W) in [0, 1]."""
    features = load_features("evaluator")
    own, rows = features(2 * true - 1), []
    for name, pictures in made.items():
        psnr = -10 * (pictures - true).square().mean((1, 2, 3)).log10()
        share = edges(pictures).mean() / edges(true).mean()
        distance = 1 - F.cosine_similarity(features(2 * pictures - 1), own)
        rows.append([name, f"{psnr.mean():.2f}", f"{share:.2f}", f"{distance.mean():.4f}"])
    return rows


def sheet(columns: list[Tensor]) -> Image.Image:
    """Pictures (B, 3, H, W) in columns, a row for each."""
    rows = [torch.cat([F.pad(column[row], (0, 6, 0, 6), value=1.0) for column in columns], 2) for row in range(len(columns[0]))]
    return Image.fromarray((torch.cat(rows, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="upscale", help="the upsampler")
    options.add_argument("--count", type=int, default=32, help="drawings")
    options.add_argument("--sheet", type=Path, help="six drawings: small, bicubic, default model, upsampler, true")
    asked = options.parse_args()
    data = EmojiData(EmojiConfig(split="held_out", drop_caption=0.0), seed=0)
    true = (pictures_of(data.batch(range(asked.count))) + 1) / 2
    small = (F.avg_pool2d(true, FACTOR) * 255).round() / 255
    made = {name: torch.stack([enlarge(one) for one in small]) for name, enlarge in ways(asked.model).items()}
    print(table(["enlarged by", "PSNR", "edges", "features apart"], measured(true, made)))
    if asked.sheet:
        shown = ["bicubic", "default, strength 0.4", "upsampler, 1 step"]
        columns = [F.interpolate(small, scale_factor=FACTOR, mode="nearest"), *(made[name] for name in shown), true]
        sheet([column[:6] for column in columns]).save(asked.sheet, optimize=True)


if __name__ == "__main__":
    main()
