"""AUTOMATIC1111's endpoints that make pictures: /sdapi/v1/txt2img and img2img, progress and interrupt.

What would change the picture and is not done here is refused in a sentence; what changes nothing is read over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request
from PIL import Image, ImageChops, ImageFilter
from pydantic import BaseModel, ConfigDict, Field

from gen.pipeline.infotext import to_infotext
from gen.serve.http.board import FinishedPicture, encode
from gen.serve.http.errors import AsciiJSON, BadRequest
from gen.serve.http.requests import PictureRequest
from gen.serve.http.service import Service, base64_of, client_of
from gen.serve.http.uploads import read_upload
from gen.serve.jobs import ServeJob
from samplers.registry import solver_info

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Txt2ImgRequest(BaseModel):
    """A request of the web UI's; further fields change nothing."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[str, Field(max_length=10_000)] = ""
    negative_prompt: Annotated[str, Field(max_length=10_000)] | None = ""
    seed: int | None = -1
    steps: int | None = None
    cfg_scale: Finite | None = None
    width: int | None = None
    height: int | None = None
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = 1
    n_iter: Annotated[int, Field(ge=1)] | None = 1
    eta: Finite | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool | None = True
    styles: list[Any] | None = None
    enable_hr: bool | None = False
    tiling: bool | None = False
    restore_faces: bool | None = False
    subseed_strength: Finite | None = 0
    script_name: str | None = None
    alwayson_scripts: dict[str, Any] | None = None


class Img2ImgRequest(Txt2ImgRequest):
    """The same with a picture. mask: white is made anew."""

    init_images: list[str] = Field(default_factory=list)
    mask: str | None = None
    mask_blur: Annotated[float, Field(ge=0, le=64, allow_inf_nan=False)] | None = 4
    inpainting_mask_invert: int | bool | None = 0
    denoising_strength: Finite | None = 0.75
    resize_mode: int | None = 0
    include_init_images: bool | None = False


class WebUIAnswer(BaseModel):
    """images: PNGs in base64. parameters: the request. info: JSON of what was made."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


def check_done_here(body: Txt2ImgRequest) -> None:
    """BadRequest for what would change the picture and is not done here."""
    names: dict[str, Any] = {
        "enable_hr": body.enable_hr,
        "tiling": body.tiling,
        "restore_faces": body.restore_faces,
        "styles": body.styles,
    }
    names |= {"subseed_strength": body.subseed_strength, "script_name": body.script_name}
    for name, value in names.items():
        if value:
            raise BadRequest(f"{name} is not done here; leave it out.", name, 422)
    for name, script in (body.alwayson_scripts or {}).items():
        given = script.get("args") if isinstance(script, Mapping) else script
        if given and not (isinstance(given, list) and all(one in (False, None, "", [], {}) for one in given)):
            raise BadRequest(f"The script {name!r:.80} is not there; leave it out of alwayson_scripts.", name, 422)


def asked_of(body: Txt2ImgRequest, model: str | None, pictures: Mapping[str, Any], strength: float | None) -> PictureRequest:
    """In our words."""
    check_done_here(body)
    arguments: dict[str, Any] = {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt or None,
        "seed": None if body.seed is None or body.seed < 0 else body.seed,
        "num_inference_steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "width": body.width,
        "height": body.height,
        "num_images_per_prompt": (body.batch_size or 1) * (body.n_iter or 1),
        "sampler": body.sampler_name or body.sampler_index or None,
        "schedule": body.scheduler if body.scheduler and body.scheduler.lower() != "automatic" else None,
        "strength": strength,
    }
    if body.eta is not None and arguments["sampler"] is not None and "eta" in solver_info(arguments["sampler"]).options:
        arguments["sampler_options"] = {"eta": body.eta}
    return PictureRequest(arguments, pictures, model, previews=1)


def info_of(made: list[FinishedPicture], body: Txt2ImgRequest) -> dict[str, Any]:
    """What the web UI says of pictures."""
    recipes = [picture.recipe for picture in made]
    first = recipes[0]
    return {
        "prompt": first.prompt,
        "all_prompts": [recipe.prompt for recipe in recipes],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [recipe.negative_prompt for recipe in recipes],
        "seed": first.seed,
        "all_seeds": [recipe.seed for recipe in recipes],
        "subseed": first.seed,
        "all_subseeds": [recipe.seed for recipe in recipes],
        "subseed_strength": 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": body.sampler_name or first.sampler,
        "cfg_scale": first.guidance_scale,
        "steps": first.num_inference_steps,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first.model.name,
        "sd_model_hash": (first.model.weights.get("denoiser") or "")[:10],
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first.start.strength if first.start else None,
        "extra_generation_params": {"Schedule type": first.schedule},
        "index_of_first_image": 0,
        "infotexts": [to_infotext(recipe) for recipe in recipes],
        "styles": [],
        "job_timestamp": "0",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
    }


class WebUISessions:
    """Which model a client has chosen by the web UI's options; the clients that chose last are remembered."""

    KEPT = 1000

    def __init__(self) -> None:
        self._chosen: dict[str, str] = {}

    def get(self, client: str) -> str | None:
        return self._chosen.get(client)

    def choose(self, client: str, model: str) -> None:
        self._chosen.pop(client, None)
        self._chosen[client] = model
        while len(self._chosen) > self.KEPT:
            del self._chosen[next(iter(self._chosen))]


def model_named(title: Any, service: Service) -> str:
    """The model of a title as /sd-models lists it. BadRequest for any other."""
    name = str(title).partition(" [")[0].removesuffix(".safetensors")
    if name not in service.models:
        raise BadRequest(f"There is no model {str(title)[:200]!r} here; there are {', '.join(service.models)}.", None, 422)
    return name


def router(service: Service, sessions: WebUISessions) -> APIRouter:
    api = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], default_response_class=AsciiJSON)

    def model_of(body: Txt2ImgRequest, request: Request) -> str | None:
        title = (body.override_settings or {}).get("sd_model_checkpoint")
        return sessions.get(client_of(request)) if title is None else model_named(title, service)

    async def made(body: Txt2ImgRequest, asked: PictureRequest, request: Request, kept: dict[str, Any]) -> Any:
        pictures, notes = await service.make(asked, request)
        if not pictures:  # interrupted before any
            return AsciiJSON({"images": [], "parameters": kept, "info": "{}"})
        info = json.dumps({**info_of(pictures, body), "notes": notes})
        images = [base64_of(picture.png) for picture in pictures] if body.send_images is not False else []
        return AsciiJSON({"images": images, "parameters": kept, "info": info})

    @api.post("/txt2img", response_model=None, responses={200: {"model": WebUIAnswer}})
    async def txt2img(body: Txt2ImgRequest, request: Request) -> Any:
        asked = asked_of(body, model_of(body, request), {}, None)
        return await made(body, asked, request, body.model_dump())

    @api.post("/img2img", response_model=None, responses={200: {"model": WebUIAnswer}})
    async def img2img(body: Img2ImgRequest, request: Request) -> Any:
        if not body.init_images:
            raise BadRequest("init_images is empty; send a picture in base64.", "init_images", 422)
        pixels = service.settings.max_pixels
        image = read_upload("init_images[0]", body.init_images[0], pixels)
        mask = None if body.mask is None else read_mask(body, pixels)
        if body.width and body.height and not body.resize_mode and body.width * body.height <= pixels:
            size = max(body.width, 1), max(body.height, 1)  # stretched, as the web UI does where nothing else is said
            image = image.resize(size, Image.Resampling.LANCZOS)
            mask = mask and mask.resize(size, Image.Resampling.LANCZOS)
        pictures = {"image": image} if mask is None else {"image": image, "mask": mask}
        asked = asked_of(body, model_of(body, request), pictures, body.denoising_strength)
        hidden = {"init_images", "mask"} if not body.include_init_images else set()
        return await made(body, asked, request, body.model_dump(exclude=hidden))

    def own_jobs(request: Request) -> list[ServeJob]:
        return [job for job in service.engine.jobs() if job.client == client_of(request)]

    @api.get("/progress")
    async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        jobs = own_jobs(request)
        job = jobs[0] if jobs else None
        preview = None if job is None or skip_current_image else job.preview
        state = {
            "skipped": False,
            "interrupted": bool(job and job.interrupt),
            "stopping_generation": False,
            "job": job.id if job else "",
            "job_count": len(jobs),
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": job.step if job else 0,
            "sampling_steps": job.steps * job.count if job else 0,
        }
        shown = None if preview is None else base64_of(encode(preview, None))
        done = job.progress if job else 0.0
        return {"progress": done, "eta_relative": 0.0, "state": state, "current_image": shown, "textinfo": None}

    @api.post("/interrupt")
    async def interrupt(request: Request) -> dict[str, Any]:
        for job in own_jobs(request):
            service.engine.interrupt(job)
        return {}

    @api.post("/skip")
    async def skip(request: Request) -> dict[str, Any]:
        for job in own_jobs(request)[:1]:
            service.engine.interrupt(job)
        return {}

    return api


def read_mask(body: Img2ImgRequest, pixels: int) -> Image.Image:
    """Our mask of the web UI's: turned round and blurred as it says."""
    mask = read_upload("mask", body.mask, pixels).convert("L")
    if body.inpainting_mask_invert:
        mask = ImageChops.invert(mask)
    return mask.filter(ImageFilter.GaussianBlur(body.mask_blur)) if body.mask_blur else mask
