"""OpenAI's image endpoints: /v1/images/generations, /v1/images/edits and /v1/models, with events as they stream them.

Beside OpenAI's fields a request may have ours (seed, steps, sampler, ...), as clients send them with `extra_body`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from gen.calls.keywords import FOLDERS, PICTURES, keywords_of
from gen.calls.kinds import KINDS, TEXT, TEXTS, shown
from gen.serve.failures import said
from gen.serve.http.board import FinishedPicture
from gen.serve.http.errors import AsciiJSON, BadRequest, answer, body_of
from gen.serve.http.fields import Number, Prompt, Whole, check_known, describe_validation
from gen.serve.http.formats import PNG, PictureFormat
from gen.serve.http.requests import PictureRequest
from gen.serve.http.service import Service, base64_of, read_size
from gen.serve.http.uploads import edited_where, keep_upload
from gen.serve.jobs import JobEvent
from gen.serve.sent import SentPicture

MAX_PARTIAL = 3
UNREAD = ("quality", "style", "moderation", "user", "input_fidelity")  # OpenAI's fields that change nothing here
IGNORED = f"{', '.join(UNREAD)} and background (opaque or auto) are read and change nothing"
# keywords of a call that need no field of their own: a request may have them beside OpenAI's
KEYWORDS = tuple(name for name in keywords_of("image") if name not in (*PICTURES, *FOLDERS, "regions", "layout"))


class ImagesRequest(BaseModel):
    """A request of OpenAI's. Beside its fields it may have any keyword of a call that is no picture (`gen.calls.kinds`)."""

    model_config = ConfigDict(extra="allow")

    prompt: Prompt
    model: str | None = None
    n: Annotated[Whole, Field(ge=1)] | None = 1
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: str | None = None
    output_compression: Whole | None = None
    background: str | None = None
    stream: bool | None = False
    partial_images: Annotated[Whole, Field(ge=0, le=MAX_PARTIAL)] | None = None
    steps: Whole | None = None
    adapters: dict[str, Number] | None = None


class ImageItem(BaseModel):
    """A picture: a file in base64, or as a data: URL."""

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


def asked_of(body: ImagesRequest, pictures: Mapping[str, Any]) -> PictureRequest:
    """In our words; BadRequest for what is not done here."""
    if body.background not in (None, "auto", "opaque"):
        said = f'background is {shown(body.background)}; leave it out, and for a picture with alpha send "transparent": true.'
        raise BadRequest(said, "background")
    more = {name: value for name, value in (body.model_extra or {}).items() if value is not None and name not in UNREAD}
    check_known(more, (*KEYWORDS, *ImagesRequest.model_fields, *UNREAD))
    if "strength" in more and not pictures:
        raise BadRequest("strength belongs to edits; send the picture to /v1/images/edits.", "strength")
    for own, theirs in (("num_inference_steps", "steps"), ("num_images_per_prompt", "n")):
        if (value := getattr(body, theirs)) is not None:
            more.setdefault(own, value)
    if (size := read_size(body.size)) is not None:
        more |= {"width": size[0], "height": size[1]}
    return PictureRequest(
        {**more, "prompt": body.prompt},
        pictures,
        body.model,
        adapters=body.adapters,
        previews=1 if body.stream else 0,
        format=PictureFormat.asked(body.output_format, body.output_compression, "output_compression"),
    )


def usage() -> dict[str, Any]:
    """OpenAI counts tokens; here are none."""
    details = {"image_tokens": 0, "text_tokens": 0}
    return {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": details}


def size_of_picture(picture: FinishedPicture) -> str:
    return f"{picture.recipe.width}x{picture.recipe.height}"


def completed(body: ImagesRequest, asked: PictureRequest, made: list[FinishedPicture], notes: list[str]) -> dict[str, Any]:
    if not made:
        raise BadRequest("The job was interrupted before it had a picture; ask again.", status=409)
    items = []
    for picture in made:
        text = base64_of(picture.data)
        as_url = body.response_format == "url"
        item = {"url": f"data:{picture.format.media_type};base64,{text}"} if as_url else {"b64_json": text}
        items.append({**item, "seed": picture.recipe.seed})
    common = {"created": int(time.time()), **said_of(asked.format)}
    return {**common, "size": size_of_picture(made[0]), "data": items, "usage": usage(), "notes": notes}


def said_of(format: PictureFormat) -> dict[str, Any]:
    """What every answer says of its pictures."""
    return {"background": "opaque", "output_format": format.name, "quality": "auto"}


async def events(
    service: Service, request: Request, body: ImagesRequest, asked: PictureRequest, kind: str
) -> StreamingResponse:
    """Server-sent events: partial pictures, then every finished one. What is refused at once is an ordinary error."""
    followed = service.submit(asked, request)
    happening = service.board.stream(followed)
    wanted = body.partial_images or 0
    sent: dict[int, int] = {}
    size = read_size(body.size)

    def finished(picture: FinishedPicture) -> str:
        said = {"created_at": int(time.time()), **said_of(asked.format), "size": size_of_picture(picture), "usage": usage()}
        return sse(f"{kind}.completed", {"b64_json": base64_of(picture.data), **said})

    def partly(preview: Image.Image, number: int) -> str:
        larger = enlarged(preview, size)
        said = {"created_at": int(time.time()), **said_of(PNG), "size": f"{larger.width}x{larger.height}"}
        own = {"b64_json": base64_of(PNG.encode(larger)), **said, "partial_image_index": number}
        return sse(f"{kind}.partial_image", own)

    async def stream() -> AsyncIterator[str]:
        async for event in happening:
            if isinstance(event, FinishedPicture):
                yield await run_in_threadpool(finished, event)
            elif event.preview is not None and sent.get(event.index, 0) < wanted and event.step < event.steps:
                number = sent.get(event.index, 0)
                if event.step * (wanted + 1) < (number + 1) * event.steps:
                    continue
                sent[event.index] = number + 1
                yield await run_in_threadpool(partly, event.preview, number)
            elif isinstance(event, JobEvent) and event.kind in ("failed", "cancelled"):
                status, message = said(event.error or followed.job.error or BadRequest("The job was cancelled."))
                yield sse("error", body_of("/v1", status, message))

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def sse(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data}, ensure_ascii=True)}\n\n"


def enlarged(preview: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """A preview, which has a pixel for each latent, at its picture's size, or eight times as large where that is not known."""
    return preview.resize(size or (preview.width * 8, preview.height * 8), Image.Resampling.BICUBIC)


def edited_pictures(files: Mapping[str, list[bytes]], max_pixels: int) -> dict[str, Any]:
    """What is edited, and where."""
    images = [keep_upload("image", data, max_pixels) for data in files.get("image", [])]
    if not images:
        raise BadRequest("image is missing; send a picture.", "image")
    name = "mask" if files.get("mask") else "image"  # the picture itself where no mask was sent
    data = files[name][0]
    mask = edited_where(name, max_pixels, data)
    anywhere = mask.getextrema() != (0, 0)
    kept = {"mask": SentPicture(data, partial(edited_where, name, max_pixels), mask.size)} if anywhere else {}
    return {"image": images[0] if len(images) == 1 else images, **kept}


def router(service: Service) -> APIRouter:
    api = APIRouter(prefix="/v1", tags=["OpenAI"], default_response_class=AsciiJSON)

    async def answered(body: ImagesRequest, asked: PictureRequest, request: Request) -> AsciiJSON:
        made, notes = await service.make(asked, request)
        return await run_in_threadpool(lambda: AsciiJSON(completed(body, asked, made, notes)))  # large pictures take a while

    @api.post("/images/generations", response_model=None, responses={200: {"model": ImagesAnswer}}, description=IGNORED)
    async def generations(body: ImagesRequest, request: Request) -> Any:
        asked = asked_of(body, {})
        if body.stream:
            return await events(service, request, body, asked, "image_generation")
        return await answered(body, asked, request)

    @api.post(
        "/images/edits",
        response_model=None,
        responses={200: {"model": ImagesAnswer}},
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": EDIT_SCHEMA}}}},
    )
    async def edits(request: Request) -> Any:
        async with request.form(max_files=service.settings.max_inputs, max_fields=64) as form:
            body, files = await read_form(form.multi_items())
        asked = asked_of(body, await run_in_threadpool(edited_pictures, files, service.settings.max_pixels))
        if body.stream:
            return await events(service, request, body, asked, "image_edit")
        return await answered(body, asked, request)

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
            check_known([name], ("image", "mask"))
            files.setdefault(name, []).append(await value.read())
        elif name in ("image", "mask"):
            raise BadRequest(f"{name} is a text; send a file.", name)
        elif value or name == "prompt":
            fields[name] = value_of_form(name, value)
    try:
        return ImagesRequest(**fields), files
    except ValidationError as error:
        message, where = describe_validation([{**one, "loc": ("body", *one["loc"])} for one in error.errors()], fields)
        raise BadRequest(message, where) from None


def value_of_form(name: str, text: str) -> Any:
    """The value that a form says as text: what is no text is written as JSON there."""
    if (name in ImagesRequest.model_fields and name != "adapters") or KINDS.get(name, TEXT) in (TEXT, TEXTS):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
