"""The error of data that cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """A package or archive that cannot be used; the message names the file and says why."""
