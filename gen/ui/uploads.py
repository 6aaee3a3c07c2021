"""The box that takes pictures: what each file must be, and a sentence for one that is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from nicegui import ui

from gen.calls.errors import sentence
from gen.io.errors import printable
from gen.ui.gallery import MOST_GIVEN

if TYPE_CHECKING:
    from gen.ui.page import Page

MOST_AT_ONCE = 100
# files themselves cannot be sent with an event: why each was refused, and its name
_REFUSED = "(files) => emit(files.map((one) => [one.failedPropValidation, one.file.name]))"


def picture_upload(page: Page, label: str, taken: Callable[[str, bytes], Awaitable[Any]], *, several: bool = False) -> Any:
    """A box to drop pictures on, with a button that chooses files.

    taken: gets the name and the bytes of each; what it raises is said on the page.
    """

    async def given(event: Any) -> None:
        try:
            await taken(event.file.name, await event.file.read())
        except Exception as error:
            page.say(sentence(error), "negative")
        box.reset()

    box = ui.upload(label=label, auto_upload=True, multiple=several, max_file_size=MOST_GIVEN, on_upload=given)
    if several:
        box.props(f"max-files={MOST_AT_ONCE}")
    box.on("rejected", lambda event: page.say(refusal_words(event.args), "negative"), js_handler=_REFUSED)
    return box.props('flat bordered accept="image/*"').classes("fs-upload")


def refusal_words(refused: Any) -> str:
    """Why a browser did not send files, in a sentence. refused: (reason, name) of each; of Quasar's uploader."""
    reason, name = next(iter(refused), ("", ""))
    shown = printable(str(name)[:80]) or "That file"
    if reason == "accept":
        return f"{shown} is no picture; give a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF."
    if reason == "max-file-size":
        return f"{shown} has more than {MOST_GIVEN >> 20} MiB; give a smaller one."
    if reason == "max-files":
        return f"At most {MOST_AT_ONCE} pictures are taken at once; give the others after them."
    return f"{shown} was given already, or cannot be read; give another one."
