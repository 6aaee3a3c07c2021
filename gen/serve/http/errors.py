"""Errors as each kind of client reads them: OpenAI's object on /v1, `detail` elsewhere. A sentence, never a stack trace."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from gen.io.errors import CheckpointError
from gen.models.decoding import is_out_of_memory
from gen.serve.jobs import ServeError

log = logging.getLogger("fewstep.serve")
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 429: "rate_limit_exceeded"}
OURS = "The server failed; its log says more."


class AsciiJSON(JSONResponse):
    """JSON in ASCII, so that whatever text a client sent can be sent back."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


class BadRequest(ServeError):
    """What a client sent cannot be; param: where."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


def said(error: BaseException) -> tuple[int, str]:
    """(status, sentence) of what went wrong."""
    if isinstance(error, ServeError):
        return error.status, str(error)
    if is_out_of_memory(error):
        return 503, "Memory ran out; ask for fewer or smaller pictures."
    if isinstance(error, CheckpointError | OSError):
        log.error("A file of the server cannot be used: %s", error)
        return 500, OURS
    if isinstance(error, ValueError | TypeError) and not isinstance(error, UnicodeError):
        return 400, str(error)[:2000]
    log.error("A request failed", exc_info=error)
    return 500, OURS


def body_of(path: str, status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an answer to a path."""
    if not path.startswith("/v1"):
        return {"detail": message}
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": _CODES.get(status)}}


def answer(
    path: str, status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> AsciiJSON:
    return AsciiJSON(body_of(path, status, message, param), status, headers=None if headers is None else dict(headers))


def answer_error(path: str, error: BaseException) -> AsciiJSON:
    status, message = said(error)
    headers = {}
    if (seconds := getattr(error, "retry_after", None)) is not None:
        headers["Retry-After"] = str(seconds)
    return answer(path, status, message, getattr(error, "param", None), headers)


def describe_validation(errors: list[Any]) -> tuple[str, str | None]:
    """(sentence, where) of the first thing that a model of pydantic refuses."""
    first = errors[0]
    where = ".".join(str(part) for part in first.get("loc", ())[1:]) or None
    if first.get("type") == "json_invalid":
        return "The body is not JSON; send an object as application/json.", None
    if first.get("type") == "missing":
        return f"{where or 'The body'} is missing; send it.", where
    message = str(first.get("msg", "it is not valid")).removeprefix("Value error, ").rstrip(".")
    return f"{where or 'The body'} is not valid: {message[:1].lower() + message[1:]}.", where


def add_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        message, where = describe_validation(list(error.errors()))
        status = 400 if request.url.path.startswith("/v1") else 422
        return answer(request.url.path, status, message[:2000], where)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        text = str(error.detail)
        if error.status_code == 404 and text == "Not Found":
            text = f"There is no {request.url.path[:200]!r} here; /openapi.json lists what there is."
        elif error.status_code == 405:
            text = f"{request.url.path[:200]!r} does not take {request.method[:20]}."
        elif error.status_code == 400:
            text = "The body cannot be read; send it as /openapi.json says."
        return answer(request.url.path, error.status_code, text, headers=error.headers)

    @app.exception_handler(ServeError)
    async def served(request: Request, error: ServeError) -> JSONResponse:
        return answer_error(request.url.path, error)

    @app.exception_handler(ValueError)
    async def wrong(request: Request, error: ValueError) -> JSONResponse:
        return answer_error(request.url.path, error)
