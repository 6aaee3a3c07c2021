"""Errors as each kind of client reads them: OpenAI's object on /v1, `detail` elsewhere. A sentence, never a stack trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from gen.serve.failures import said
from gen.serve.jobs import ServeError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 429: "rate_limit_exceeded"}


class AsciiJSON(JSONResponse):
    """JSON in ASCII, so that whatever text a client sent can be sent back."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


class BadRequest(ServeError):
    """What a client sent cannot be; param: where."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


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
