"""What is done where memory runs out: the decoding is tried again, of fewer pictures and then in tiles.

Latents are (B, C, h, w), pictures (B, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALLEST = 16  # latent pixels on the side of a tile

# how libraries on a CPU, and drivers, say it in a RuntimeError of no class of its own
_WORDS = (
    "defaultcpuallocator",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "out_of_memory",
    "alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Does an error say that memory ran out, on whatever device?"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def free(device: torch.device) -> None:
    """Give back what the device's allocator keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def decoded_in_tiles(latents: Tensor, decode: Callable[[Tensor], Tensor], factor: int, side: int) -> Tensor:
    """`decode` of one picture after another, those larger than `side` pixels in tiles of that size which fade into one
    another."""
    from gen.models.tiling import tiled

    cells = max(SMALLEST, side // factor)
    if max(latents.shape[2:]) <= cells:
        return torch.cat([decode(latent[None]) for latent in latents])
    return torch.cat([tiled(latent[None], decode, cells, cells // 4, factor) for latent in latents])


def decoded(latents: Tensor, decode: Callable[[Tensor], Tensor], factor: int, tiled: Callable[[], None]) -> Tensor:
    """`decode` of latents, which makes them `factor` times larger: of all at once, else of one picture after another, else in
    ever smaller tiles that fade into one another. tiled: called before tiles are. Raises as decode does where none fits."""
    try:
        return decode(latents)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free(latents.device)  # after the traceback has let go of what it held
    if len(latents) > 1:
        return torch.cat([decoded(latent[None], decode, factor, tiled) for latent in latents])
    from gen.models.tiling import tiled as in_tiles

    side = max(latents.shape[2:])
    while side > SMALLEST:
        side = max(SMALLEST, side // 2)
        try:
            images = in_tiles(latents, decode, side, side // 4, factor)
        except Exception as error:
            if not is_out_of_memory(error) or side == SMALLEST:
                raise
        else:
            tiled()
            return images
        free(latents.device)
    return decode(latents)


def to_output_type(shown: Tensor, output_type: str) -> Any:
    """A finished batch (B, ...) as it is kept, off its device: PIL pictures as bytes (B, H, W, 3), else float32 on the CPU."""
    if output_type in ("latent", "pt"):
        return shown.cpu()
    shown = shown.permute(0, 2, 3, 1)
    return ((shown * 255).round().to(torch.uint8) if output_type == "pil" else shown).contiguous().cpu()


def set_tiny_decoder(model: Any, source: str | Path | None, decoder: str | None) -> None:
    """Give a model a tiny decoder for previews, and for pictures too where `decoder` is "tiny". ValueError for one that does
    not fit, and for models that decode nothing or by an autoencoder of ours."""
    from gen.models.bridge.tiny import open_tiny
    from gen.models.bridge.vae import BridgedAutoencoder

    if decoder not in (None, "tiny"):
        raise ValueError(f"decoder is {decoder!r:.60}; give 'tiny', or leave it out for the model's own.")
    if source is None:
        raise ValueError("decoder='tiny' needs a tiny decoder; give preview_decoder (--preview-decoder), such as TAESD.")
    autoencoder = model.autoencoder
    if not isinstance(autoencoder, BridgedAutoencoder):
        raise ValueError(f"The model {model.name!r} has no autoencoder of diffusers; leave preview_decoder out.")
    tiny = open_tiny(source, autoencoder.channels, autoencoder.factor)
    model.preview_decoder, model.decoder = tiny.to(model.device), decoder
    if decoder is not None:
        model.weights["decoder"] = tiny.digest
