"""The model card: README.md of a saved model, as hubs show it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from gen.models.model import Model

LOAD = {
    "fewstep": """```python
from gen import Generator

generator = Generator.from_pretrained("{folder}")
generator({subject}, seed=7).images[0].save("picture.png")
```
""",
    "diffusers": """```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}")
```

fewstep opens it too: `Generator.from_pretrained("{folder}")`.
""",
}


def model_card(model: Model, folder: str, format: str) -> str:
    """What the model is, how it is sampled by default, how to load it. The licence is left to whoever publishes it."""
    text = model.text_encoder is not None
    tag = "text-to-image" if text else "unconditional-image-generation"
    subject = '"a red heart"' if text else "class_labels=[0]" if model.classes else ""
    size = model.config.sample_size
    reads = "text" if text else f"one of {model.classes} classes" if model.classes else "nothing: it is unconditional"
    lines = [
        "---",
        f"library_name: {format}",
        "license:  # under which licence others may use this model",
        f"pipeline_tag: {tag}",
        "tags:",
        "- fewstep",
        "---",
        "",
        f"# {folder}",
        "",
        f"A diffusion model that makes pictures of {size} x {size} pixels by default. It reads {reads}.",
        "",
        *table(("part", "network", "parameters"), parts_of(model)),
        "",
        "## Load",
        "",
        LOAD[format].format(folder=folder, subject=subject).replace("(, ", "("),
        "## Sampling",
        "",
        *table(("setting", "default"), defaults_of(model)),
        "",
        f"It predicts {model.config.prediction} on a path of type {model.config.path.type}.",
        "",
    ]
    return "\n".join(lines)


def parts_of(model: Model) -> list[tuple[str, str, str]]:
    parts = {"denoiser": model.network, "autoencoder": model.autoencoder, "text encoder": model.text_encoder}
    return [(name, _kind(part), f"{_count(part) / 1e6:.1f} M") for name, part in parts.items() if part is not None]


def defaults_of(model: Model) -> list[tuple[str, str]]:
    values = model.config.defaults.model_dump(exclude_none=True)
    return [(name, f"`{value}`") for name, value in values.items() if value not in ({}, ())]


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def _kind(part: nn.Module) -> str:
    """The class of the network inside an adapter of ours."""
    for name in ("network", "vae"):
        inner = getattr(part, name, None)
        if isinstance(inner, nn.Module):
            return type(inner).__name__
    encoders = [type(module).__name__ for name, module in part.named_modules() if name.rpartition(".")[2] == "encoder"]
    known: Any = [name for name in encoders if name.endswith("Model")]
    return " + ".join(known or encoders[:1] or [type(part).__name__])


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
