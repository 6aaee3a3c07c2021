"""What went wrong, as clients are told it: a status and a sentence, wherever the error came from."""

from __future__ import annotations

import logging
import re

from pydantic import ValidationError

from gen.io.errors import CheckpointError
from gen.models.decoding import is_out_of_memory
from gen.serve.jobs import ServeError

log = logging.getLogger("fewstep.serve")
LONGEST = 2000  # characters of an error
_LONG_WORD = re.compile(r"\S{200,}")
OURS = "The server failed; its log says more."
WRONG_KIND = "A value of the request is of a kind that its field does not take; docs/serve.md says what each takes."


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
