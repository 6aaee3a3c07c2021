"""Errors as each kind of client reads them: OpenAI's object on /v1, `detail` elsewhere. A sentence, never a stack trace."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from gen.io.errors import CheckpointError
from gen.models.decoding import is_out_of_memory
from gen.serve.jobs import ServeError

log = logging.getLogger("fewstep.serve")
LONGEST = 2000  # characters of an error
_LONG_WORD = re.compile(r"\S{200,}")
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 429: "rate_limit_exceeded"}
OURS = "The server failed; its log says more."
WRONG_KIND = "A value of the request is of a kind that its field does not take; docs/serve.md says what each takes."


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
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError | ValidationError):
        return 400, cut(str(error))
    log.error("A request failed", exc_info=error)
    if isinstance(error, TypeError | ValidationError | UnicodeError):  # a value that no check knew
        return 400, WRONG_KIND
    return 500, OURS


def cut(text: str) -> str:
    """A sentence of a length that can be read: what a client sent is in it, however long that was."""
    text = _LONG_WORD.sub(lambda word: word[0][:60] + "...", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


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
