"""`Generator.panorama`, `outpaint` and `upscale`: pictures larger than the model's own, painted around or made larger.

All take what a call takes, and these:
window: pixels of a window, one number or height and width, by default the size the model knows.
stride: from one window to the next.
weights: how a window counts from its middle to its edge (flat, linear, cosine, gaussian).
shift_from: a log-SNR, from which on windows lie elsewhere at every step (`samplers.canvas.shifted`), -20 being all steps.
window_batch: rows per network call, at most, halved by itself when memory runs out.
group: a process group of torch.distributed, over which windows are spread: every process makes the same call, with the same
seed, and gets the same pictures.
Recipes replay, given the picture that they began with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gen.io.images import read_picture
from gen.io.validators import check_float, check_int, check_size, check_texts
from gen.pipeline.output import Output
from gen.pipeline.types import Caller
from gen.tasks.canvas.options import CanvasArguments, CanvasRecord
from gen.tasks.canvas.task import RuntimeObjects, made_size, make_record, starting_pictures

Sides = int | tuple[int, int]


def panorama(
    generator: Caller,
    prompt: str | Sequence[str] | None = None,
    width: int | None = None,
    height: int | None = None,
    *,
    window: Sides | None = None,
    stride: Sides | None = None,
    weights: str = "linear",
    shift_from: float | None = None,
    circular: bool | str = False,
    window_batch: int = 8,
    group: Any = None,
    sync: float = 0.0,
    sync_distance: str | Callable[[Tensor, Tensor], Tensor] = "latent",
    **call: Any,
) -> Output:
    """A picture of any size from windows (MultiDiffusion): by default four windows wide and one tall.

    prompt: several are spread along the width.
    circular: True or "horizontal": the right edge goes on at the left one; "vertical", "both".
    sync: the strength of SyncDiffusion, which brings windows closer to the middle one, by the sync_distance "latent" or
        "pictures" (mean and spread of the channels), "lpips:FILE" (`gen.tasks.energies.lpips`; 20 is its published strength),
        or a function of pictures (N, 3, H, W) in [0, 1], twice -> (N,); 0 is none.
    """
    prompts = [] if prompt is None or isinstance(prompt, str) else check_texts("prompt", prompt)
    if len(prompts) == 1:
        prompt = prompts.pop()
    size = generator.config.sample_size if call.get("latents") is None else None  # which have one of their own
    record, runtime = make_record(
        generator, "panorama", window, stride, weights, circular, window_batch, prompts, sync, sync_distance,
        shift_from=shift_from, group=group, cache=call.get("cache"),
    )  # fmt: skip
    return generator(
        " | ".join(prompts) if prompts else prompt,
        width=4 * size if size and width is None else width,
        height=size if height is None else height,
        **call,
        _task_args={"canvas": CanvasArguments(record, runtime)},
    )


def outpaint(
    generator: Caller,
    image: Any,
    prompt: str | None = None,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    recurrence: int = 1,
    window: Sides | None = None,
    stride: Sides | None = None,
    weights: str = "linear",
    shift_from: float | None = None,
    window_batch: int = 8,
    group: Any = None,
    **call: Any,
) -> Output:
    """A picture with so many pixels more on each side, itself kept to the pixel. image: file, PIL, array or tensor.

    recurrence: every step so many times, with noise added back in between, so that what is painted fits what is there.
    """
    picture = read_picture("image", image, "RGB")
    names = ("left", "top", "right", "bottom")
    extend = tuple(check_int(n, v, 0, 16_384) for n, v in zip(names, (left, top, right, bottom), strict=True))
    if not any(extend):
        raise ValueError("Nothing is to be painted around the picture; give left, right, top or bottom in pixels.")
    shown = picture.shape[2] + top + bottom, picture.shape[3] + left + right
    more: Any = {
        "recurrence": recurrence,
        "extend": extend,
        "shift_from": shift_from,
        "group": group,
        "cache": call.get("cache"),
    }
    record = make_record(generator, "outpaint", window, stride, weights, False, window_batch, **more)
    return _around(generator, picture, prompt, *record, shown, call)


def upscale(
    generator: Caller,
    image: Any,
    prompt: str | None = None,
    *,
    scale: float = 2.0,
    strength: float = 0.4,
    window: Sides | None = None,
    stride: Sides | None = None,
    weights: str = "linear",
    shift_from: float | None = None,
    window_batch: int = 8,
    group: Any = None,
    **call: Any,
) -> Output:
    """A picture `scale` times as large: enlarged, noised to `strength`, denoised in windows. image: as in `outpaint`."""
    picture = read_picture("image", image, "RGB")
    scale = check_float("scale", scale, 1, 16)
    shown = round(picture.shape[2] * scale), round(picture.shape[3] * scale)
    more: Any = {"shift_from": shift_from, "group": group, "cache": call.get("cache")}
    record = make_record(generator, "upscale", window, stride, weights, False, window_batch, **more)
    return _around(generator, picture, prompt, *record, shown, {"strength": strength, **call})


def _around(
    generator: Caller,
    picture: Tensor,
    prompt: str | None,
    record: CanvasRecord,
    runtime: RuntimeObjects,
    shown: tuple[int, int],
    call: dict,
) -> Output:
    for name in ("height", "width", "mask", "latents"):
        if call.get(name) is not None:
            raise ValueError(f"{name} is given by the picture itself here; leave it out.")
    check_size(*shown, 1, 1)  # not too large
    made = made_size(generator, record, *shown)
    image, mask = starting_pictures(record, picture, shown, made)
    call |= {"height": made[0], "width": made[1], "image": image, "mask": mask}
    canvas = CanvasArguments(record, runtime, shown if shown != made else None)
    return generator(prompt, **call, _task_args={"canvas": canvas})
