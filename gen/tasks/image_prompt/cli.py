"""Image prompts on the command line: `--image-prompt` and `--ip-adapter`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.lora import parse_lora

Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--image-prompt",
        metavar="FILE[:SCALE]",
        help="A picture as a prompt, for --ip-adapter; repeatable: one for each adapter, or all for the only one.",
    ),
]
Adapters = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="The IP-Adapter that reads it (safetensors); repeatable.")
]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|ID", help="The vision encoder of IP-Adapters. [default: the folder image_encoder near the file]"
    ),
]
Masks = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Where an --image-prompt counts (white); one for each.")]


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    image_prompt: Prompts = None
    ip_adapter: Adapters = None
    image_prompt_mask: Masks = None
    ip_adapter_encoder: Encoder = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return {
            "ip_adapter": self.ip_adapter or None,
            "ip_adapter_image": [parse_lora(one)[0] for one in self.image_prompt or ()] or None,
            "ip_adapter_mask": self.image_prompt_mask or None,
            "ip_adapter_encoder": self.ip_adapter_encoder,
        }


@dataclass(frozen=True)
class ImageOptions(ReplayOptions):
    """Of `fewstep image`: scales and levels too, which a recipe holds."""

    image_prompt_range: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="Log-SNR levels at which it acts.")
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        given = [parse_lora(one)[1] for one in self.image_prompt or ()]
        scales = [1.0 if scale is None else scale for scale in given]
        own = {"ip_adapter_scale": scales if any(scale != 1.0 for scale in scales) else None}
        return {**super().keywords(), **own, "ip_adapter_range": self.image_prompt_range}


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, ()
