"""What a user says of a model beside its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# keywords that belong to opening a model, not to calling it
OPENING = (
    *("device", "dtype", "revision", "vae", "text_encoder", "native", "variant", "quantize", "offload", "vae_tile"),
    *("preview_decoder", "decoder", "model_options"),
)


@dataclass(frozen=True)
class ModelOptions:
    """What is said of a model beside its name: see `Generator.from_pretrained`."""

    vae: str | Path | None = None
    text_encoder: str | Path | None = None
    native: bool | None = None
    variant: str | None = None
    quantize: str | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
