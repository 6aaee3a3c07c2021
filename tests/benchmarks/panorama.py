"""`python -m tests.benchmarks.panorama`: panoramas, ours against diffusers' StableDiffusionPanoramaPipeline.

The same small Stable Diffusion with random weights, windows, stride, steps, guidance and noise; decoding is left out. Both in
one process, in turns. diffusers takes windows one at a time unless told otherwise (`view_batch_size`); both ways are timed.
Where the stride divides the width the two must agree. Prints a table; `--smoke` runs the smallest size once.

`--seams` draws panoramas with the default model instead and measures whether windows leave marks: the mean step in brightness
across window borders over that beside them, 1 without seams.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gen.commands.show import table
from gen.generator import Generator
from samplers.registry import get_grid
from tests.gen import pipelines

PROMPT = "a cat, 3 red dogs on the moon."
TEXTURED = ("a forest", "a bowl of soup", "a rainbow", "a map")  # for seams: pictures without empty backgrounds


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


def seam_statistic(images: Tensor, borders: Sequence[int], phase: int) -> float:
    """Of pictures (B, 3, H, W): the mean |step| between a column and the one before, at `borders` over beside them.

    Beside are the columns two and three times `phase` (pixels of the decoder's grid) to either side: the decoder's own steps
    count on both sides then, and so does what a picture shows there, objects standing in the middle of windows.
    """
    step = (images[..., 1:] - images[..., :-1]).abs().mean((0, 1, 2))
    beside = [x + d * phase for x in borders for d in (-3, -2, 2, 3) if 0 < x + d * phase < images.shape[-1]]
    inner = [x for x in beside if x not in borders]
    return (step[[x - 1 for x in borders]].mean() / step[[x - 1 for x in inner]].mean()).item()


def seams(pictures: int, steps: int, stride: int) -> list[dict]:
    generator, rows = Generator.from_pretrained(), []
    window, width = generator.config.sample_size, 4 * generator.config.sample_size
    borders = sorted({e for left in range(0, width - window + 1, stride) for e in (left, left + window)} - {0, width})
    for weights in ("flat", "linear", "cosine", "gaussian"):
        call = {"weights": weights, "stride": stride, "num_inference_steps": steps, "progress": False, "output_type": "pt"}
        images = [generator.panorama(TEXTURED[n % len(TEXTURED)], seed=n, **call).images for n in range(pictures)]
        found = seam_statistic(torch.cat(images), borders, generator.factor)
        rows.append({"weights": weights, "pictures": pictures, "border / beside": f"{found:.3f}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seams", action="store_true", help="measure seams of the default model's panoramas")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--stride", type=int, default=64, help="pixels, for --seams")
    parser.add_argument("--smoke", action="store_true", help="the smallest size, once")
    given = parser.parse_args()
    if given.seams:
        rows = seams(1 if given.smoke else given.pictures, 2 if given.smoke else given.steps, given.stride)
    elif given.smoke:
        rows = against_diffusers((24,), 16, 4, 2, 1)
    else:
        rows = against_diffusers((64, 128), 16, 4, given.steps, given.repeats)
    print(table(tuple(rows[0]), [[str(value) for value in row.values()] for row in rows]))


if __name__ == "__main__":
    main()
