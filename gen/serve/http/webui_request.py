"""Requests of AUTOMATIC1111's web UI, and what they ask for in our words.

What would change the picture and is not done here is refused in a sentence; what changes nothing is read over.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from PIL import Image, ImageChops, ImageFilter
from pydantic import BaseModel, ConfigDict, Field

from gen.calls.kinds import NUMBER, TEXT, ValueKind, check_kind_of, shown
from gen.pipeline.infotext import SAMPLERS, SCHEDULES
from gen.serve.http.errors import BadRequest
from gen.serve.http.fields import Number, Prompt, Whole
from gen.serve.http.requests import PictureRequest
from gen.serve.http.settings import ServerSettings
from gen.serve.http.uploads import decode_base64, read_as, read_upload
from gen.serve.http.webui_options import WebUIOptions
from gen.serve.sent import SentPicture
from samplers.lookup import nearest
from samplers.registry import grid_info, grid_names, parse_sampler, solver_info, solver_names

NO_UPSCALER = ("", "none", "lanczos", "nearest")  # of hires fix: the picture is enlarged by arithmetic


class Txt2ImgRequest(BaseModel):
    """A request of the web UI's; further fields change nothing."""

    model_config = ConfigDict(extra="ignore")

    prompt: Prompt = ""
    negative_prompt: Prompt | None = ""
    seed: Whole | None = -1
    subseed: Whole | None = -1
    subseed_strength: Number | None = 0
    steps: Whole | None = None
    cfg_scale: Number | None = None
    width: Whole | None = None
    height: Whole | None = None
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: Annotated[Whole, Field(ge=1)] | None = 1
    n_iter: Annotated[Whole, Field(ge=1)] | None = 1
    eta: Number | None = None
    enable_hr: bool | None = False
    hr_scale: Number | None = 2
    hr_upscaler: str | None = None
    hr_second_pass_steps: Whole | None = 0
    hr_resize_x: Whole | None = 0
    hr_resize_y: Whole | None = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""
    denoising_strength: Number | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool | None = True
    send_images: bool | None = True
    styles: list[Any] | None = None
    tiling: bool | None = False
    restore_faces: bool | None = False
    s_churn: Number | None = 0
    seed_resize_from_h: Whole | None = 0
    seed_resize_from_w: Whole | None = 0
    script_name: str | None = None
    alwayson_scripts: dict[str, Any] | None = None


class Img2ImgRequest(Txt2ImgRequest):
    """The same with a picture. mask: white is made anew."""

    init_images: list[str] = Field(default_factory=list)
    mask: str | None = None
    mask_blur: Annotated[Number, Field(ge=0, le=64)] | None = 4
    inpainting_mask_invert: bool | None = False
    resize_mode: Whole | None = 0
    include_init_images: bool | None = False


NOT_DONE = ("tiling", "restore_faces", "styles", "script_name", "s_churn", "seed_resize_from_h", "seed_resize_from_w")


def asked_of(
    body: Txt2ImgRequest, options: WebUIOptions, pictures: Mapping[str, Any], settings: ServerSettings
) -> PictureRequest:
    """In our words."""
    for name in NOT_DONE:
        if getattr(body, name):
            raise BadRequest(f"{name} is not done here; leave it out.", name, 422)
    sampler = _sampler(body.sampler_name or body.sampler_index)
    arguments: dict[str, Any] = {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt or None,
        "seed": None if body.seed is None or body.seed < 0 else body.seed,
        "num_inference_steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "width": body.width,
        "height": body.height,
        "num_images_per_prompt": (body.batch_size or 1) * (body.n_iter or 1),
        "sampler": sampler,
        "schedule": _schedule(body.scheduler),
        "clip_skip": options.clip_layers - 1 or None,
        **_hires(body),
    }
    if body.subseed_strength:
        seed = None if body.subseed is None or body.subseed < 0 else body.subseed
        arguments |= {"variation_seed": seed, "variation_strength": body.subseed_strength}
    if "image" in pictures:
        arguments["strength"] = 0.75 if body.denoising_strength is None else body.denoising_strength
    if body.eta is not None and sampler is not None and "eta" in solver_info(parse_sampler(sampler)[0]).options:
        arguments["sampler_options"] = {"eta": body.eta}
    followed = _controlnet(body, settings)
    pictures = {**pictures, **({"control": followed.pop("control")} if followed else {})}
    return PictureRequest({**arguments, **followed}, pictures, options.checkpoint, previews=1, format=options.format)


def _sampler(label: str | None) -> str | None:
    if not label:
        return None
    try:
        parse_sampler(label)
    except ValueError:
        labels = [SAMPLERS.get(name, name) for name in solver_names()]
        raise _unknown("sampler", label, labels, SAMPLERS.values()) from None
    return label


def _schedule(label: str | None) -> str | None:
    if not label or label.lower() == "automatic":
        return None
    try:
        return grid_info(label).name
    except ValueError:
        labels = [SCHEDULES.get(name, name) for name in grid_names()]
        raise _unknown("scheduler", label, labels, [one for one in SCHEDULES.values() if one in labels]) from None


def _unknown(kind: str, label: str, labels: list[str], listed: Any) -> BadRequest:
    """In the names that the web UI has; what else there is stands in the endpoint's list."""
    near = nearest(label, labels)
    hint = f" Did you mean {near!r}?" if near else ""
    known = ", ".join(dict.fromkeys(listed))
    return BadRequest(f"There is no {kind} {shown(label)}; there are {known}, and more at /sdapi/v1/{kind}s.{hint}", kind, 422)


def _hires(body: Txt2ImgRequest) -> dict[str, Any]:
    """Hires fix, as our second pass."""
    if not body.enable_hr:
        return {}
    same = ("", "use same sampler", "use same checkpoint", "use same scheduler", "none")
    own = {"hr_prompt": body.prompt, "hr_negative_prompt": body.negative_prompt}
    for name in ("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt"):
        value = getattr(body, name) or ""
        if value.lower() not in same and value != own.get(name):
            raise BadRequest(f"{name} is not done here: the second pass has what the first has; leave it out.", name, 422)
    upscaler = (body.hr_upscaler or "").lower()
    if upscaler not in NO_UPSCALER and not upscaler.startswith("latent"):
        raise BadRequest(f"hr_upscaler is {shown(body.hr_upscaler)}; give Latent or Lanczos.", "hr_upscaler", 422)
    scale = body.hr_scale
    if body.hr_resize_x or body.hr_resize_y:
        wide, tall = body.hr_resize_x or 0, body.hr_resize_y or 0
        if not body.width or not body.height or wide * body.height != tall * body.width:
            raise BadRequest("hr_resize_x and hr_resize_y change the picture's shape; give hr_scale.", "hr_resize_x", 422)
        scale = wide / body.width
    return {
        "hires": scale,
        "hires_steps": body.hr_second_pass_steps or None,
        "hires_strength": body.denoising_strength,
        "hires_upscaler": "latent" if upscaler.startswith("latent") else "picture",
    }


_UNIT: dict[str, ValueKind] = {"model": TEXT, "weight": NUMBER}  # of the fields of a unit, those that are handed on


def _controlnet(body: Txt2ImgRequest, settings: ServerSettings) -> dict[str, Any]:
    """The units of the extension controlnet as our keywords; scripts that do anything else are refused."""
    found: dict[str, list[Any]] = {"control": [], "controlnet": [], "control_weight": []}
    for name, script in (body.alwayson_scripts or {}).items():
        given = script.get("args") if isinstance(script, Mapping) else script
        if name.lower() == "controlnet" and isinstance(given, list):
            for unit in given[: settings.max_inputs + 1]:
                _add_unit(unit, found, settings)
        elif given and not (isinstance(given, list) and all(one in (False, None, "", [], {}) for one in given)):
            raise BadRequest(f"The script {shown(name)} is not there; leave it out of alwayson_scripts.", name[:100], 422)
    if len(found["control"]) > settings.max_inputs:
        raise BadRequest(f"A request holds at most {settings.max_inputs} pictures; send fewer.", "controlnet", 422)
    return found if found["control"] else {}


def _add_unit(unit: Any, found: dict[str, list[Any]], settings: ServerSettings) -> None:
    if unit in (False, None, "", [], {}):
        return
    if not isinstance(unit, Mapping):
        raise BadRequest(f"A unit of controlnet is {shown(unit)}; give an object.", "controlnet", 422)
    if unit.get("enabled") is False:
        return
    values = {"model": unit.get("model"), "weight": 1.0 if unit.get("weight") is None else unit["weight"]}
    for name, kind in _UNIT.items():
        check_kind_of(f"controlnet.{name}", values[name], kind)
    usual = {"module": ("none", "", None), "control_mode": ("Balanced", 0, None), "mask": ("", None),
             "guidance_start": (0, None), "guidance_end": (1, None)}  # fmt: skip
    for name, allowed in usual.items():
        if (value := unit.get(name)) not in allowed and value is not False:
            raise BadRequest(f"controlnet.{name} is {shown(value)}, which is not done here; leave it out.", "controlnet", 422)
    picture = unit.get("image") or unit.get("input_image")
    found["control"].append(read_upload("controlnet.image", picture, settings.max_pixels))
    found["controlnet"].append(str(values["model"]).partition(" [")[0])
    found["control_weight"].append(values["weight"])


def starting_pictures(body: Img2ImgRequest, settings: ServerSettings) -> dict[str, Any]:
    """The picture and mask of an edit."""
    if not body.init_images:
        raise BadRequest("init_images is empty; send a picture in base64.", "init_images", 422)
    pixels, size = settings.max_pixels, None
    if body.width and body.height and not body.resize_mode and body.width * body.height <= pixels:
        size = max(body.width, 1), max(body.height, 1)  # stretched, as the web UI does where nothing else is said
    data = decode_base64("init_images[0]", body.init_images[0])
    found = {"image": SentPicture.checked(data, partial(_read_image, size, pixels))}
    if body.mask is not None:
        read = partial(_read_mask, size, pixels, bool(body.inpainting_mask_invert), body.mask_blur or 0)
        found["mask"] = SentPicture.checked(decode_base64("mask", body.mask), read)
    return found


def _stretched(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    return image if size is None else image.resize(size, Image.Resampling.LANCZOS)


def _read_image(size: tuple[int, int] | None, pixels: int, data: bytes) -> Image.Image:
    return _stretched(read_as("init_images[0]", pixels, data), size)


def _read_mask(size: tuple[int, int] | None, pixels: int, turned: bool, blur: float, data: bytes) -> Image.Image:
    """Our mask of the web UI's: turned round and blurred as it says."""
    mask = read_as("mask", pixels, data).convert("L")
    if turned:
        mask = ImageChops.invert(mask)
    return _stretched(mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask, size)
