"""What goes wrong with the hub, in sentences, and what an id of it looks like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gen.io.weights import CheckpointError


def is_hub_id(name: str) -> bool:
    """Is this "owner/name"?"""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~")


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """What goes wrong with the hub inside, as one sentence (ValueError)."""
    try:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise ValueError("Models from the hub need the package huggingface_hub; install it, or give a folder.") from None
    try:
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
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{repository} is no folder here and the hub cannot be reached; check the name or the network."
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{repository} cannot be had from the hub: {reason.rstrip('.')}. Is it a folder's name?") from None
