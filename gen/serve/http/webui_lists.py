"""What clients of AUTOMATIC1111's web UI look up: models, samplers, LoRAs, options, and what is in a PNG."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from PIL import PngImagePlugin
from pydantic import BaseModel, Field

from gen.models.control_names import NAMED
from gen.pipeline.exif import QUALITY
from gen.pipeline.infotext import SAMPLERS, SCHEDULES, from_infotext
from gen.pipeline.png import MAX_TEXT
from gen.serve.http.errors import AsciiJSON
from gen.serve.http.service import Service, client_of
from gen.serve.http.uploads import decode_base64, open_upload
from gen.serve.http.webui_options import WebUISessions
from samplers.registry import grid_names, solver_names

EMPTY = (
    *("upscalers", "latent-upscale-modes", "sd-vae", "sd-modules", "hypernetworks", "face-restorers", "realesrgan-models"),
    *("prompt-styles", "extensions", "script-info"),
)


class PngInfoRequest(BaseModel):
    """image: a picture in base64."""

    image: Annotated[str, Field(max_length=100_000_000)]


def chunks_of(data: bytes, max_pixels: int) -> dict[str, str]:
    """The text chunks of a PNG; none of other pictures."""
    image = open_upload("image", data, max_pixels)
    texts = getattr(image, "text", None) if isinstance(image, PngImagePlugin.PngImageFile) else None
    return {str(name): str(value)[:MAX_TEXT] for name, value in (texts or {}).items()}


def router(service: Service, sessions: WebUISessions) -> APIRouter:
    api = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], default_response_class=AsciiJSON)

    def title(name: str) -> dict[str, Any]:
        return {
            "title": name, "model_name": name, "hash": None, "sha256": None, "filename": f"{name}.safetensors", "config": None,
        }  # fmt: skip

    @api.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        return [title(name) for name in service.models]

    @api.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        labels = [(SAMPLERS.get(name, name), name) for name in solver_names()]
        return [{"name": label, "aliases": [name], "options": {}} for label, name in labels]

    @api.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        more = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
        return [{"name": name, "label": SCHEDULES.get(name, name), **more} for name in grid_names()]

    @api.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        names = sorted(service.engine.adapters)
        return [{"name": name, "alias": name, "path": f"{name}.safetensors", "metadata": {}} for name in names]

    @api.get("/options")
    async def options(request: Request) -> dict[str, Any]:
        chosen = sessions.options(client_of(request))
        return {
            "sd_model_checkpoint": chosen.checkpoint, "sd_checkpoint_hash": "", "sd_vae": "Automatic",
            "samples_format": chosen.format.ending, "jpeg_quality": chosen.format.quality or QUALITY,
            "CLIP_stop_at_last_layers": chosen.clip_layers, "live_previews_enable": True,
        }  # fmt: skip

    @api.post("/options")
    async def set_options(body: dict[str, Any], request: Request) -> None:
        sessions.choose(client_of(request), body)

    @api.post("/png-info")
    async def png_info(body: PngInfoRequest) -> dict[str, Any]:
        texts = await run_in_threadpool(lambda: chunks_of(decode_base64("image", body.image), service.settings.max_pixels))
        info = texts.pop("parameters", "")
        return {"info": info, "items": texts, "parameters": await run_in_threadpool(from_infotext, info) if info else {}}

    @api.get("/scripts")
    async def scripts() -> dict[str, Any]:
        return {"txt2img": [], "img2img": []}

    @api.get("/embeddings")
    async def embeddings() -> dict[str, Any]:
        return {"loaded": {}, "skipped": {}}

    @api.get("/cmd-flags")
    async def flags() -> dict[str, Any]:
        return {}

    @api.get("/memory")
    async def memory() -> dict[str, Any]:
        return {"ram": {"used": service.engine.numbers().model_bytes}, "cuda": {}}

    @api.post("/refresh-checkpoints")
    async def refresh() -> None:
        return None

    @api.post("/refresh-loras")
    async def refresh_loras() -> None:
        return None

    def nothing(name: str) -> None:
        @api.get(f"/{name}", name=name)
        async def empty() -> list[Any]:
            return []

    for name in EMPTY:
        nothing(name)
    return api


def controlnet_router(service: Service) -> APIRouter:
    """What clients of the extension controlnet look up."""
    api = APIRouter(tags=["AUTOMATIC1111"], default_response_class=AsciiJSON)

    @api.get("/controlnet/model_list")
    async def controlnets() -> dict[str, Any]:
        return {"model_list": list(dict.fromkeys((*NAMED, *service.settings.controlnets)))}

    @api.get("/controlnet/module_list")
    async def preprocessors() -> dict[str, Any]:
        return {"module_list": ["none"], "module_detail": {}}

    @api.get("/controlnet/version")
    async def controlnet_version() -> dict[str, Any]:
        return {"version": 2}

    return api
