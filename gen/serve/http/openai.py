"""OpenAI's image endpoints: /v1/images/generations, /v1/images/edits and /v1/models, with events as they stream them.

Beside OpenAI's fields a request may have ours (seed, steps, sampler, ...), as clients send them with `extra_body`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from gen.io.images import alpha
from gen.serve.http.board import FinishedPicture, encode
from gen.serve.http.errors import AsciiJSON, BadRequest, answer, body_of, describe_validation, said
from gen.serve.http.requests import PictureRequest
from gen.serve.http.service import Service, base64_of, read_size
from gen.serve.http.uploads import open_upload
from gen.serve.jobs import JobEvent

MAX_PARTIAL = 3
IGNORED = "quality, style, background (opaque or auto), moderation and user are read and change nothing"
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ImagesRequest(BaseModel):
    """A request of OpenAI's, with our own settings beside; what else clients send changes nothing."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[str, Field(max_length=10_000)]
    model: str | None = None
    n: Annotated[int, Field(ge=1)] = 1
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: str | None = None
    background: str | None = None
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL)] | None = None
    seed: int | None = None
    negative_prompt: Annotated[str, Field(max_length=10_000)] | None = None
    num_inference_steps: int | None = None
    steps: int | None = None
    guidance_scale: Finite | None = None
    sampler: str | None = None
    sampler_options: dict[str, Any] | None = None
    schedule: str | None = None
    schedule_options: dict[str, Any] | None = None
    guidance: str | None = None
    guidance_options: dict[str, Any] | None = None
    cache: str | None = None
    cache_options: dict[str, Any] | None = None
    strength: Finite | None = None
    adapters: dict[str, Finite] | None = None


class ImageItem(BaseModel):
    """A picture: a PNG in base64, or as a data: URL."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class ImagesAnswer(BaseModel):
    """The answer to `ImagesRequest`."""

    created: int
    background: str
    output_format: str
    size: str
    data: list[ImageItem]
    usage: dict[str, Any]
    notes: list[str]


def asked_of(body: ImagesRequest, pictures: Mapping[str, Any], *, is_edit: bool) -> PictureRequest:
    """In our words; BadRequest for what is not done here."""
    if body.output_format not in (None, "png"):
        raise BadRequest(f"output_format is {body.output_format[:40]!r}; pictures are PNG here.", "output_format")
    if body.background not in (None, "auto", "opaque"):
        raise BadRequest(f"background is {body.background[:40]!r}; pictures are opaque here.", "background")
    own: tuple[str, ...] = (
        "negative_prompt",
        "guidance_scale",
        "sampler",
        "sampler_options",
        "schedule",
        "schedule_options",
        "guidance",
    )
    own = (*own, "guidance_options", "cache", "cache_options", "seed", "prompt", "strength")
    arguments: dict[str, Any] = {name: getattr(body, name) for name in own}
    arguments |= {"num_inference_steps": body.num_inference_steps or body.steps, "num_images_per_prompt": body.n}
    if (size := read_size(body.size)) is not None:
        arguments |= {"width": size[0], "height": size[1]}
    if not is_edit and body.strength is not None:
        raise BadRequest("strength belongs to edits; send the picture to /v1/images/edits.", "strength")
    return PictureRequest(arguments, pictures, body.model, adapters=body.adapters, previews=1 if body.stream else 0)


def usage() -> dict[str, Any]:
    """OpenAI counts tokens; here are none."""
    details = {"image_tokens": 0, "text_tokens": 0}
    return {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": details}


def size_of_picture(picture: FinishedPicture) -> str:
    return f"{picture.recipe.width}x{picture.recipe.height}"


def completed(body: ImagesRequest, made: list[FinishedPicture], notes: list[str]) -> dict[str, Any]:
    if not made:
        raise BadRequest("The job was interrupted before it had a picture; ask again.", status=409)
    items = []
    for picture in made:
        text = base64_of(picture.png)
        item = {"url": f"data:image/png;base64,{text}"} if body.response_format == "url" else {"b64_json": text}
        items.append({**item, "seed": picture.recipe.seed})
    common = {"created": int(time.time()), "background": "opaque", "output_format": "png", "quality": "auto"}
    return {**common, "size": size_of_picture(made[0]), "data": items, "usage": usage(), "notes": notes}


async def events(
    service: Service, request: Request, body: ImagesRequest, asked: PictureRequest, kind: str
) -> StreamingResponse:
    """Server-sent events: partial pictures, then every finished one. What is refused at once is an ordinary error."""
    followed = service.submit(asked, request)
    happening = service.board.stream(followed)
    wanted = body.partial_images or 0
    sent: dict[int, int] = {}
    size = read_size(body.size)

    async def stream() -> AsyncIterator[str]:
        async for event in happening:
            common = {"created_at": int(time.time()), "background": "opaque", "output_format": "png", "quality": "auto"}
            if isinstance(event, FinishedPicture):
                text = base64_of(event.png)
                yield sse(f"{kind}.completed", {"b64_json": text, **common, "size": size_of_picture(event), "usage": usage()})
            elif event.preview is not None and sent.get(event.index, 0) < wanted and event.step < event.steps:
                number = sent.get(event.index, 0)
                if event.step * (wanted + 1) < (number + 1) * event.steps:
                    continue
                sent[event.index] = number + 1
                shown = enlarged(event.preview, size)
                partial = {"b64_json": base64_of(encode(shown, None)), **common, "size": f"{shown.width}x{shown.height}"}
                yield sse(f"{kind}.partial_image", {**partial, "partial_image_index": number})
            elif isinstance(event, JobEvent) and event.kind in ("failed", "cancelled"):
                status, message = said(event.error or followed.job.error or BadRequest("The job was cancelled."))
                yield sse("error", body_of("/v1", status, message))

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def sse(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data}, ensure_ascii=True)}\n\n"


def enlarged(preview: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """A preview, which has a pixel for each latent, at its picture's size, or eight times as large where that is not known."""
    return preview.resize(size or (preview.width * 8, preview.height * 8), Image.Resampling.BICUBIC)


def edited_where(image: Image.Image, mask: Image.Image | None) -> Image.Image | None:
    """Our mask (white: made anew) of OpenAI's, whose transparent parts are edited; of the picture itself without a mask."""
    opacity = alpha(image if mask is None else mask)
    if mask is not None and opacity is None:
        raise BadRequest("mask has no transparency; what is transparent in it is made anew.", "mask")
    if opacity is None or opacity.getextrema() == (255, 255):
        return None
    return opacity.point(lambda value: 255 - value)


def router(service: Service) -> APIRouter:
    api = APIRouter(prefix="/v1", tags=["OpenAI"], default_response_class=AsciiJSON)

    @api.post("/images/generations", response_model=None, responses={200: {"model": ImagesAnswer}}, description=IGNORED)
    async def generations(body: ImagesRequest, request: Request) -> Any:
        asked = asked_of(body, {}, is_edit=False)
        if body.stream:
            return await events(service, request, body, asked, "image_generation")
        return AsciiJSON(completed(body, *await service.make(asked, request)))

    @api.post(
        "/images/edits",
        response_model=None,
        responses={200: {"model": ImagesAnswer}},
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": EDIT_SCHEMA}}}},
    )
    async def edits(request: Request) -> Any:
        async with request.form(max_files=service.settings.max_inputs, max_fields=64) as form:
            body, files = await read_form(form.multi_items())
        images = [open_upload("image", data, service.settings.max_pixels) for data in files.get("image", [])]
        if not images:
            raise BadRequest("image is missing; send a picture.", "image")
        masks = [open_upload("mask", data, service.settings.max_pixels) for data in files.get("mask", [])]
        mask = edited_where(images[0], masks[0] if masks else None)
        pictures: dict[str, Any] = {"image": images[0] if len(images) == 1 else images}
        pictures |= {} if mask is None else {"mask": mask}
        asked = asked_of(body, pictures, is_edit=True)
        if body.stream:
            return await events(service, request, body, asked, "image_edit")
        return AsciiJSON(completed(body, *await service.make(asked, request)))

    @api.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in service.models]}

    @api.get("/models/{name:path}", response_model=None)
    async def one_model(name: str, request: Request) -> Any:
        if name not in service.models:
            message = f"There is no model {name[:200]!r} here; there are {', '.join(service.models)}."
            return answer(request.url.path, 404, message, "model")
        return model(name)

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": service.created, "owned_by": "fewstep"}

    return api


EDIT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["image", "prompt"],
    "properties": {
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "mask": {"type": "string", "format": "binary", "description": "What is transparent in it is made anew."},
        **{name: {"type": "string"} for name in ("prompt", "model", "size", "negative_prompt", "sampler", "response_format")},
        **{name: {"type": "integer"} for name in ("n", "seed", "num_inference_steps", "partial_images")},
        **{name: {"type": "number"} for name in ("strength", "guidance_scale")},
        "stream": {"type": "boolean"},
    },
}


async def read_form(items: list[tuple[str, Any]]) -> tuple[ImagesRequest, dict[str, list[bytes]]]:
    """The fields and files of a form; clients write several files as image[]."""
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    for name, value in items:
        name = name.removesuffix("[]")
        if isinstance(value, UploadFile):
            files.setdefault(name, []).append(await value.read())
        elif name in ImagesRequest.model_fields:
            fields[name] = value or None if name != "prompt" else value
        elif name in ("image", "mask"):
            raise BadRequest(f"{name} is a text; send a file.", name)
    try:
        return ImagesRequest(**fields), files
    except ValidationError as error:
        message, where = describe_validation([{**one, "loc": ("body", *one["loc"])} for one in error.errors()])
        raise BadRequest(message, where) from None
