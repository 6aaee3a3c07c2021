"""`python -m tests.benchmarks.panorama`: panoramas, ours against diffusers' StableDiffusionPanoramaPipeline.

The same small Stable Diffusion with random weights, windows, stride, steps, guidance and noise; decoding is left out. Both in
one process, in turns. diffusers takes windows one at a time unless told otherwise (`view_batch_size`); both ways are timed.
Where the stride divides the width the two must agree. Prints a table; `--smoke` runs the smallest size once.

`--seams` draws panoramas with the default model instead and measures whether windows leave marks: the mean step in brightness
across the borders of a lattice of windows over that elsewhere, 1 without seams, and the same midway between borders. `--sync`
measures how far windows of one picture are apart with SyncDiffusion and without, at as many evaluations.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gen.cli.show import table
from gen.generator import Generator
from samplers.registry import get_grid
from tests.gen import pipelines

PROMPT = "a cat, 3 red dogs on the moon."
TEXTURED = ("a forest", "red apples", "a garden of flowers", "a city at night")  # for seams: pictures that fill the canvas
SUBJECTS = ("a heart", "a car", "a flower", "a bird")  # for distances: of no particular colour


def diffusers_panorama(pipeline, window: int, stride: int):
    """The pipeline's panorama on the same parts. Its windows are 64 latent pixels of 8 pixels each, whatever the model's are;
    here they are what is asked for."""
    from diffusers import StableDiffusionPanoramaPipeline

    parts = {k: v for k, v in pipeline.components.items() if k != "image_encoder"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        panorama = StableDiffusionPanoramaPipeline(**parts, requires_safety_checker=False)
    panorama.set_progress_bar_config(disable=True)
    views, scale = type(panorama).get_views, 8 // panorama.vae_scale_factor

    def get_views(height: int, width: int, circular_padding: bool = False):
        return views(panorama, height * scale, width * scale, window, stride, circular_padding)

    panorama.get_views = get_views
    return panorama


def theirs(panorama, noise: Tensor, steps: int, scale: float, circular: bool = False, together: int = 1) -> Tensor:
    """Latents from unit noise (1, C, h, w)."""
    factor = panorama.vae_scale_factor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return panorama(
            PROMPT,
            height=noise.shape[2] * factor,
            width=noise.shape[3] * factor,
            num_inference_steps=steps,
            guidance_scale=scale,
            view_batch_size=together,
            circular_padding=circular,
            latents=noise.clone(),
            output_type="latent",
        ).images


def ours(
    generator: Generator,
    noise: Tensor,
    window: int,
    stride: int,
    steps: int,
    scale: float,
    circular: bool = False,
    rows: int = 8,
) -> Tensor:
    """The same of ours. The pipeline takes the noise as it is; ours is scaled by the first level's sigma."""
    defaults, factor = generator.config.defaults, generator.factor
    first = get_grid(defaults.schedule, generator.denoiser.path, steps, **defaults.schedule_options)[0]
    return generator.panorama(
        PROMPT,
        latents=noise / first.sigma,
        window=window * factor,
        stride=stride * factor,
        weights="flat",
        circular=circular,
        window_batch=rows,
        num_inference_steps=steps,
        guidance_scale=scale,
        output_type="latent",
        progress=False,
    ).images


def timed(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Median seconds of every run but the first, in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def against_diffusers(widths: Sequence[int], window: int, stride: int, steps: int, repeats: int) -> list[dict]:
    pipeline = pipelines.stable_diffusion()
    channels = {"block_out_channels": (32, 64), "norm_num_groups": 8, "attention_head_dim": 4}
    pipeline.unet = pipelines.unet(**channels)
    with tempfile.TemporaryDirectory() as folder:
        generator = Generator.from_pretrained(pipelines.save(pipeline, Path(folder) / "sd"), "cpu", "float32", native=False)
    panorama, rows = diffusers_panorama(pipeline, window, stride), []
    for width in widths:
        noise = torch.randn(1, 4, window, width, generator=torch.Generator().manual_seed(0))
        views = (width - window) // stride + 1
        runs = {
            "ours": lambda noise=noise: ours(generator, noise, window, stride, steps, 5.0),
            "one": lambda noise=noise: theirs(panorama, noise, steps, 5.0),
            "eight": lambda noise=noise: theirs(panorama, noise, steps, 5.0, together=8),
        }
        difference = (runs["ours"]() - runs["one"]()).abs().max().item()
        seconds = timed(runs, repeats)
        rows.append(
            {
                "windows": views,
                "ours (s)": f"{seconds['ours']:.2f}",
                "diffusers (s)": f"{seconds['one']:.2f}",
                "8 views at once (s)": f"{seconds['eight']:.2f}",
                "speed-up": f"{seconds['one'] / seconds['ours']:.2f}",
                "over 8 at once": f"{seconds['eight'] / seconds['ours']:.2f}",
                "difference": f"{difference:.0e}",
            }
        )
    return rows


def steps_of(images: Tensor) -> Tensor:
    """Of pictures (B, 3, H, W): the mean |step in brightness| from every column to the next, (B, W - 1)."""
    return images.mean(1).diff(dim=-1).abs().mean(1)


def seam_statistic(steps: Tensor, borders: Sequence[int], phase: int) -> tuple[float, float]:
    """Of `steps_of` pictures: (the mean step into the columns `borders` over that into all others, its standard error).

    Others are those that have the borders' place in the decoder's blocks of `phase` pixels, whose own edges count on both
    sides then. The error is the jackknife's, over pictures.
    """
    inside = set(range(phase, steps.shape[1] + 1 - phase, phase)) - set(borders)
    across, beside = (steps[:, [x - 1 for x in sorted(columns)]].mean(1) for columns in (borders, inside))
    count = len(steps)
    if count == 1:
        return (across / beside).item(), float("nan")
    left_out = (across.sum() - across) / (beside.sum() - beside)
    error = ((count - 1) / count * (left_out - left_out.mean()).square().sum()).sqrt()
    return (across.sum() / beside.sum()).item(), error.item()


def seams(pictures: int, steps: int, stride: int, scale: float) -> Iterator[dict]:
    generator = Generator.from_pretrained()
    window, width = generator.config.sample_size, 4 * generator.config.sample_size
    borders = sorted({e for left in range(0, width - window + 1, stride) for e in (left, left + window)} - {0, width})
    between = [x - stride // 2 for x in borders]
    for shifted, weights in ((False, "flat"), (False, "linear"), (False, "cosine"), (True, "flat"), (True, "linear")):
        call = {"stride": stride, "num_inference_steps": steps, "progress": False, "output_type": "pt"}
        call |= {"guidance_scale": scale, "weights": weights, "shift_from": -20 if shifted else None}
        images = [generator.panorama(TEXTURED[n // 2 % len(TEXTURED)], seed=100 + n, **call).images for n in range(pictures)]
        found = {
            name: "{:.2f} +- {:.2f}".format(*seam_statistic(steps_of(torch.cat(images)), columns, generator.factor))
            for name, columns in (("at borders", borders), ("midway between", between))
        }
        yield {"windows": "shifted" if shifted else "fixed", "weights": weights, "pictures": pictures, **found}


def spread_of(features: Tensor) -> float:
    """How far the windows of pictures (B, windows, D) are apart: their mean squared distance, two and two."""
    count = features.shape[1]
    return (features.var(1, correction=1).sum(-1) * 2).mean().item() if count > 1 else 0.0


def styles(images: Tensor) -> Tensor:
    """The mean and spread of the channels of pictures (N, 3, H, W): (N, 6)."""
    return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)


def sync(pictures: int, steps: int, stride: int, weights: Sequence[float]) -> Iterator[dict]:
    """Distances between the windows of one picture that do not overlap, with MultiDiffusion and SyncDiffusion at as many
    evaluations, or fewer of the latter's."""
    from distill.networks.features import load_features

    generator, evaluator = Generator.from_pretrained(), load_features("evaluator")
    window = generator.config.sample_size
    width = 3 * window
    count = -(-(width - window) // stride) + 1
    more = -(-steps * (2 * count - 1) // count)  # steps of MultiDiffusion for no fewer evaluations
    for weight in weights:
        call = {"width": width, "stride": stride, "progress": False, "output_type": "pt", "sync": weight}
        made = [
            generator.panorama(SUBJECTS[n % len(SUBJECTS)], seed=n, num_inference_steps=steps if weight else more, **call)
            for n in range(pictures)
        ]
        apart = torch.cat([one.images for one in made]).unfold(3, window, window).permute(0, 3, 1, 2, 4)
        rows = apart.flatten(0, 1)
        seen = evaluator(2 * rows - 1).unflatten(0, apart.shape[:2])
        yield {
            "sync": f"{weight:g}" if weight else "MultiDiffusion",
            "evaluations": f"{made[0].nfe:g}",
            "style distance": f"{spread_of(styles(rows).unflatten(0, apart.shape[:2])):.4f}",
            "feature distance": f"{spread_of(seen):.4f}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seams", action="store_true", help="measure seams of the default model's panoramas")
    parser.add_argument("--sync", action="store_true", help="measure distances between windows with SyncDiffusion")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1, 0.3, 1.0], help="strengths of --sync")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--stride", type=int, default=64, help="pixels, for --seams and --sync")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="of --seams; 1 is none")
    parser.add_argument("--smoke", action="store_true", help="the smallest size, once")
    given = parser.parse_args()
    pictures, steps = (1, 2) if given.smoke else (given.pictures, given.steps)
    if given.seams:
        rows = list(seams(pictures, steps, given.stride, given.guidance_scale))
    elif given.sync:
        rows = list(sync(pictures, steps, given.stride, [0.0, *given.weights]))
    elif given.smoke:
        rows = against_diffusers((24,), 16, 4, 2, 1)
    else:
        rows = against_diffusers((64, 128), 16, 4, given.steps, given.repeats)
    print(table(tuple(rows[0]), [[str(value) for value in row.values()] for row in rows]))


if __name__ == "__main__":
    main()
