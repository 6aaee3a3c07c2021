"""Names of hosts as requests and options have them: whoever checks a `Host` header reads it here."""

from __future__ import annotations

import re

LOOPBACK = ("localhost", "127.0.0.1", "::1")  # names of this machine that lead to no other
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]@/]*))(?::[0-9]{0,5})?")


def host_name(value: str) -> str:
    """The name in a Host header, in lower case and without its port; "" for a header that holds anything else."""
    match = _HOST.fullmatch(value.strip().lower())
    return "" if match is None else match[1] or match[2] or ""
