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
from gen.tasks.enlarge.task import enlarges, make_enlargement, passes_for, sizes_of, window_of, with_one_seed

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
    if getattr(getattr(generator, "network", None), "reads_anchor", False):
        given: dict[str, Any] = {
            "recurrence": recurrence != 1,
            "weights": weights != "linear",
            "window_batch": window_batch != 8,
        }
        given |= {"window": window, "stride": stride, "shift_from": shift_from, "group": group}
        if other := next((name for name, value in given.items() if value is not None and value is not False), None):
            raise ValueError(f"This model paints around a picture in one pass, without windows; leave {other} out.")
        from gen.tasks.positional_query.task import paint_around

        return paint_around(generator, picture, prompt, extend, **call)  # type: ignore[arg-type]
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
    scale: float | None = None,
    strength: float | None = None,
    noise_level: float | None = None,
    low: Caller | None = None,
    window: Sides | None = None,
    stride: Sides | None = None,
    weights: str = "linear",
    shift_from: float | None = None,
    window_batch: int = 8,
    group: Any = None,
    **call: Any,
) -> Output:
    """A picture `scale` times as large. image: as in `outpaint`.

    By a model that was trained to enlarge ("upscale", or an upsampler of your own): drawn from noise, beside which the network
    reads the picture; noise_level is how much noise is put on that first, so that its faults are not taken for detail (the
    least that the network knows, if None). scale: the network's own factor, if None.

    low: a model that draws the picture first, of which `image` is then the prompt: a cascade of two models. Its picture is of
    the same seed; draw it yourself to keep it, as a replay needs it.

    By any other model: enlarged (2 times, if None), noised to `strength` (0.4), denoised in windows.
    """
    if low is not None:
        subject = {"class_labels" if low.text_encoder is None else "prompt": image}
        call = with_one_seed(call)
        drawn = low(**subject, seed=call["seed"], progress=call.get("progress", True))
        image, prompt = drawn.images[0], prompt or (image if generator.text_encoder is not None else None)
    if enlarges(generator):
        if strength is not None:
            raise ValueError("This model draws from noise; leave strength out, and see noise_level.")
        windows = {"window": window, "stride": stride, "weights": weights, "shift_from": shift_from}
        windows |= {"window_batch": window_batch, "group": group}
        return _enlarged(generator, image, prompt, scale, noise_level, windows, call)
    if noise_level is not None:
        raise ValueError(
            "noise_level was given, and the model was not trained to enlarge pictures; leave it out, or give one that was, "
            'such as the packaged "upscale".'
        )
    picture = read_picture("image", image, "RGB")
    scale = check_float("scale", 2.0 if scale is None else scale, 1, 16)
    shown = round(picture.shape[2] * scale), round(picture.shape[3] * scale)
    more: Any = {"shift_from": shift_from, "group": group, "cache": call.get("cache")}
    record = make_record(generator, "upscale", window, stride, weights, False, window_batch, **more)
    return _around(generator, picture, prompt, *record, shown, {"strength": 0.4 if strength is None else strength, **call})


def _enlarged(
    generator: Caller, image: Any, prompt: str | None, scale: float | None, noise_level: object, windows: dict, call: dict
) -> Output:
    """By a network that reads what it enlarges. windows: what `make_record` takes."""
    for name in ("height", "width", "mask", "latents"):
        if call.get(name) is not None:
            raise ValueError(f"{name} is given by the picture itself here; leave it out.")
    config = sizes_of(generator)
    scale = config.factor if scale is None else check_float("scale", scale, 1, 16)
    if passes_for(scale, config.factor) > 1:
        call = with_one_seed(call)
        for name, given in {"prompt": prompt, "class_labels": call.get("class_labels")}.items():
            if isinstance(given, list | tuple) and len(given) > 1:
                raise ValueError(f"Passes one after another are of one picture, and {name} has {len(given)}; give one of them.")
    kept = ("num_inference_steps", "seed", "class_labels", "_check_only")
    earlier = {"prompt": prompt, **{name: call[name] for name in kept if name in call}}
    args, made = make_enlargement(generator, image, scale, noise_level, earlier)
    window, stride = window_of(config, made)
    if windows["window"] is None:
        windows["window"] = window
        windows["stride"] = stride if windows["stride"] is None else windows["stride"]
    record, runtime = make_record(generator, "upscale", circular=False, cache=call.get("cache"), **windows)
    call |= {"height": made[0], "width": made[1]}
    tasks = {"canvas": CanvasArguments(record, runtime, args.size), "enlargement": args}
    return generator(prompt, **call, _task_args=tasks)


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
