"""Names of files for what calls make."""

from __future__ import annotations

import re


def slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")
    return words.encode()[:60].decode(errors="ignore").strip("-") or "image"
