"""AUTOMATIC1111's endpoints that make pictures: /sdapi/v1/txt2img and img2img, progress and interrupt."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from gen.pipeline.infotext import to_infotext
from gen.serve.http.board import FinishedPicture
from gen.serve.http.errors import AsciiJSON
from gen.serve.http.formats import PNG
from gen.serve.http.requests import PictureRequest
from gen.serve.http.service import Service, base64_of, client_of
from gen.serve.http.webui_options import WebUIOptions, WebUISessions
from gen.serve.http.webui_request import Img2ImgRequest, Txt2ImgRequest, asked_of, starting_pictures
from gen.serve.jobs import ServeJob


class WebUIAnswer(BaseModel):
    """images: files in base64. parameters: the request. info: JSON of what was made."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


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


def router(service: Service, sessions: WebUISessions) -> APIRouter:
    api = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], default_response_class=AsciiJSON)

    def options_of(body: Txt2ImgRequest, request: Request) -> WebUIOptions:
        client, settings = client_of(request), body.override_settings or {}
        if body.override_settings_restore_afterwards is False:
            sessions.choose(client, settings)
        return sessions.options(client, settings)

    async def made(body: Txt2ImgRequest, asked: PictureRequest, request: Request, kept: dict[str, Any]) -> Any:
        pictures, notes = await service.make(asked, request)
        if not pictures:  # interrupted before any
            return AsciiJSON({"images": [], "parameters": kept, "info": "{}"})
        info = json.dumps({**info_of(pictures, body), "notes": notes})

        def answer() -> AsciiJSON:
            images = [base64_of(picture.data) for picture in pictures] if body.send_images is not False else []
            return AsciiJSON({"images": images, "parameters": kept, "info": info})

        return await run_in_threadpool(answer)  # large pictures take a while

    @api.post("/txt2img", response_model=None, responses={200: {"model": WebUIAnswer}})
    async def txt2img(body: Txt2ImgRequest, request: Request) -> Any:
        asked = await run_in_threadpool(asked_of, body, options_of(body, request), {}, service.settings)
        return await made(body, asked, request, body.model_dump())

    @api.post("/img2img", response_model=None, responses={200: {"model": WebUIAnswer}})
    async def img2img(body: Img2ImgRequest, request: Request) -> Any:
        pictures = await run_in_threadpool(starting_pictures, body, service.settings)
        asked = await run_in_threadpool(asked_of, body, options_of(body, request), pictures, service.settings)
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
        shown = None if preview is None else await run_in_threadpool(lambda: base64_of(PNG.encode(preview)))
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
