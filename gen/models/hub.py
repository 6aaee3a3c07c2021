"""What goes wrong with the hub, in sentences, and what an id of it looks like."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from urllib.parse import urlsplit
from urllib.request import getproxies

from gen.io.weights import CheckpointError


def is_hub_id(name: str) -> bool:
    """Is this "owner/name"?"""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~")


TIMEOUT = 5.0  # seconds in which the hub must answer at all


def reachable() -> bool:
    """Does the hub's host answer? Asked once and briefly, where huggingface_hub would try for most of a minute. Behind a proxy,
    and where huggingface_hub is told to stay offline, nothing is asked, and it is left to that."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies().get(address.scheme):
        return True
    try:
        place = (address.hostname or "", address.port or (80 if address.scheme == "http" else 443))
        socket.create_connection(place, timeout=TIMEOUT).close()
    except OSError:
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """With huggingface_hub told that the hub cannot be reached, so that it looks in its cache and nowhere else."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """What goes wrong with the hub inside, as one sentence (ValueError). Where the hub does not answer, what is inside finds
    only what was fetched before."""
    try:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise ValueError("Models from the hub need the package huggingface_hub; install it, or give a folder.") from None
    try:
        with nullcontext() if reachable() else _offline():
            yield
    except CheckpointError as error:
        raise ValueError(f"{repository} on the hub is not a model that fewstep can open: {error}") from None
    except HFValidationError:
        raise ValueError(f"{repository!r} is neither a folder nor a valid hub id (owner/name).") from None
    except GatedRepoError:
        raise ValueError(
            f"{repository} is gated: accept its licence at https://huggingface.co/{repository}, then log in with that account "
            "(`hf auth login`, or a token in HF_TOKEN)."
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"{repository} is no folder here, and the hub has no such repository, or a private one: check the name, or log in "
            "(`hf auth login`, or a token in HF_TOKEN)."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ValueError(
            f"{repository} is no folder here and the hub cannot be reached; check the name or the network."
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{repository} cannot be had from the hub: {reason.rstrip('.')}. Is it a folder's name?") from None
