"""Our own endpoints: /v1/pictures takes what a call of `Generator` takes as plain data; /v1/jobs looks at what was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from gen.serve.failures import said
from gen.serve.http.board import FinishedPicture, FollowedJob
from gen.serve.http.errors import AsciiJSON, BadRequest, answer, body_of
from gen.serve.http.fields import Number, Whole
from gen.serve.http.formats import ENDINGS, PNG, PictureFormat
from gen.serve.http.openai import sse
from gen.serve.http.requests import PictureRequest
from gen.serve.http.service import Service, base64_of, client_of
from gen.serve.http.uploads import read_pictures
from gen.serve.jobs import JobEvent


class PicturesRequest(BaseModel):
    """A call of `Generator`. All other fields are its keywords (docs/serve.md): prompt, seed, sampler, image (in base64), ...

    model: one of /v1/models; left out: the first, or whichever packaged model serves the call.
    method: image, panorama, outpaint, upscale, restore, ambiguous or layout.
    adapters: name -> weight, of /sdapi/v1/loras.
    wait: false: answer at once with a job to be asked for.
    stream: answer with server-sent events.
    previews: in a stream, a small picture after every so many steps.
    deadline: seconds.
    output_format: png, jpeg, webp or avif.
    quality: of the last three, 1 to 100; 90 if left out, and at 100 WebP keeps every pixel.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    method: Literal["image", "panorama", "outpaint", "upscale", "restore", "ambiguous", "layout"] = "image"
    adapters: dict[str, Number] | None = None
    wait: bool = True
    stream: bool = False
    previews: Annotated[Whole, Field(ge=0, le=1000)] = 0
    deadline: Annotated[Number, Field(gt=0)] | None = None
    output_format: str | None = None
    quality: Whole | None = None


class JobPicture(BaseModel):
    """index: in its job. format: png, jpeg, webp or avif. image: the file in base64. recipe: as `fewstep info --json`."""

    index: int
    seed: int
    format: str
    image: str
    recipe: dict[str, Any]


class JobAnswer(BaseModel):
    """A job.

    status: queued, loading, running, done, failed, cancelled or interrupted. progress: 0 to 1.
    notes: what was said of it, such as words that the model does not know.
    """

    id: str
    status: str
    progress: float
    error: str | None
    notes: list[str]
    pictures: list[JobPicture]


def item(picture: FinishedPicture) -> dict[str, Any]:
    recipe = picture.recipe.named_values("json")
    file = {"format": picture.format.name, "image": base64_of(picture.data)}
    return {"index": picture.index, "seed": picture.recipe.seed, **file, "recipe": recipe}


def describe(followed: FollowedJob) -> dict[str, Any]:
    job = followed.job
    is_over = followed.over.is_set()
    status = job.state if is_over or not job.is_over else "running"  # its last picture is being written
    error = said(job.error)[1] if job.error is not None and is_over else None
    made = [item(picture) for picture in followed.made]
    return {"id": job.id, "status": status, "progress": job.progress, "error": error, "notes": job.notes, "pictures": made}


async def described(followed: FollowedJob, status: int = 200, headers: Mapping[str, str] | None = None) -> AsciiJSON:
    """The answer about a job; large pictures are written into it in a thread, while others are answered."""
    return await run_in_threadpool(lambda: AsciiJSON(describe(followed), status, headers=headers))


def router(service: Service) -> APIRouter:
    api = APIRouter(prefix="/v1", tags=["fewstep"], default_response_class=AsciiJSON)

    @api.post("/pictures", response_model=None, responses={200: {"model": JobAnswer}, 202: {"model": JobAnswer}})
    async def pictures(body: PicturesRequest, request: Request) -> Any:
        format = PictureFormat.asked(body.output_format, body.quality)
        arguments, inputs = await run_in_threadpool(read_pictures, body.model_extra or {}, service.settings)
        previews = body.previews if body.stream else 0
        asked = PictureRequest(arguments, inputs, body.model, body.method, body.adapters, previews, body.deadline, format)
        followed = service.submit(asked, request)
        if body.stream:
            headers = {"Cache-Control": "no-cache", "Location": f"/v1/jobs/{followed.job.id}"}
            happening = service.board.stream(followed)
            return StreamingResponse(stream(followed, happening), media_type="text/event-stream", headers=headers)
        if not body.wait:
            return await described(followed, 202, {"Location": f"/v1/jobs/{followed.job.id}"})
        await service.board.result(followed, request)
        return await described(followed)

    def of_picture(finished: FinishedPicture) -> str:
        return sse("picture", item(finished))

    def of_step(event: JobEvent) -> str:
        shown = {} if event.preview is None else {"preview": base64_of(PNG.encode(event.preview))}
        return sse("step", {"index": event.index, "step": event.step, "steps": event.steps, **shown})

    async def stream(followed: FollowedJob, happening: AsyncIterator[JobEvent | FinishedPicture]) -> AsyncIterator[str]:
        yield sse("queued", {"id": followed.job.id})
        async for event in happening:
            if isinstance(event, FinishedPicture):
                yield await run_in_threadpool(of_picture, event)
            elif event.kind == "step":
                yield await run_in_threadpool(of_step, event)
            elif isinstance(event, JobEvent):
                error = followed.job.error
                more = {} if error is None else body_of("/v1", *said(error))
                yield sse(event.kind, {"id": followed.job.id, **more})

    def found(name: str, request: Request) -> FollowedJob:
        followed = service.board.find(name, client_of(request))
        if followed is None:
            raise BadRequest(f"There is no job {name[:40]!r} of yours; those that are over are kept for a while.", "id", 404)
        return followed

    @api.get("/jobs/{name}", response_model=None, responses={200: {"model": JobAnswer}})
    async def job(name: str, request: Request) -> Any:
        return await described(found(name, request))

    @api.delete("/jobs/{name}", response_model=None, responses={200: {"model": JobAnswer}})
    async def cancel(name: str, request: Request) -> Any:
        followed = found(name, request)
        if not followed.job.is_over:
            service.engine.cancel(followed.job)
            await followed.over.wait()
        return await described(followed)

    files: dict[int | str, Any] = {200: {"content": {f"image/{name}": {} for name in ENDINGS}}}

    @api.get("/jobs/{name}/{index}.{ending}", response_model=None, responses=files)
    async def picture(name: str, index: Annotated[Whole, Path()], ending: str, request: Request) -> Any:
        followed = found(name, request)
        if ending != followed.format.ending:
            return answer(request.url.path, 404, f"The pictures of this job end in .{followed.format.ending}.")
        if (made := followed.pictures.get(index)) is None:
            return answer(request.url.path, 404, f"The job has no picture {index} yet.")
        return Response(made.data, media_type=made.format.media_type)

    return api
