"""Full fine-tuning: every weight of a model's denoiser trains, and what is exported is the whole model.

The loss is that of the other methods, with class pictures against forgetting (arXiv 2208.12242), noise, weights and Huber's
error as they have them. A pipeline of diffusers trains in diffusers' own network, and its export is a pipeline's folder that
diffusers opens; a model of ours is exported as our folder. Dropout stays off, as in the other methods.

Memory: weights, gradients and the optimiser's state in float32, 16 bytes a weight under AdamW; `gradient_checkpointing`,
`parallel: zero` or `fsdp2` and optimisers in 8 bits take less (docs/training.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from customization.base.config import CustomizationConfig
from customization.base.objective import CustomizationObjective
from customization.base.trainable_subset import TrainableSubset
from distill.networks.lora.targets import find_layers
from gen.models.options import DTYPES
from gen.models.saving import save_model


class FullConfig(CustomizationConfig):
    """layers: ends of the names of modules that train, with all that is in them, as in ["attn2", "to_q"]; all if empty.
    text_encoders: they train too, at `text_rate`. save_dtype: of the exported weights; None: float32, in which they train."""

    adapter: None = None
    layers: tuple[str, ...] = ()
    text_encoders: bool = False
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = None

    @model_validator(mode="after")
    def _whole(self) -> FullConfig:
        given = [name for name, value in (("tokens", self.tokens), ("text_adapter", self.text_adapter)) if value]
        if given:
            raise ValueError(f"full trains the model's own weights and has no place for {given[0]}; leave it out, or use lora")
        if self.format != "diffusers":
            raise ValueError(f"full saves the whole model, which is no adapter in the format {self.format}; leave format out")
        if self.dtype != "float32":
            raise ValueError(
                f"full keeps the weights that train in float32, not {self.dtype}; leave dtype out: `precision: bf16` of the "
                "run makes its products faster, and save_dtype its files smaller"
            )
        return self


def chosen(part: str, network: nn.Module, ends: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Parameters of a part by name, those in modules whose names end so. ValueError where an end fits none."""
    with_weights = {name.rpartition(".")[0] for name, _ in network.named_parameters()}
    modules = find_layers(network, ends, (), (nn.Module,), part.replace("_", " "), "layers") if ends else [""]
    below = tuple(f"{name}." if name else "" for name in modules)
    found = {name: value for name, value in network.named_parameters() if name.startswith(below)}
    if not found:
        raise ValueError(f"layers names {ends[0]!r}, which has no weights; name some of {', '.join(sorted(with_weights)[:5])}.")
    return found


class FullObjective(CustomizationObjective):
    config: FullConfig

    def attach(self) -> dict[str, nn.Parameter]:
        texts = [part for part in self.parts if part.startswith("text_encoder")] if self.config.text_encoders else []
        if self.config.text_encoders and not texts:
            raise ValueError(f"The model {self.generator.name!r} reads no text, so it has no text encoder to train.")
        trained: dict[str, nn.Parameter] = {}
        for part in ("denoiser", *texts):
            ends = self.config.layers if part == "denoiser" else ()
            for name, parameter in chosen(part, self.parts[part], ends).items():
                parameter.requires_grad_(True)
                trained[f"{part}.{name}"] = parameter  # the model's own: there is no second copy
        return trained

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """The model with its trained weights, as a pipeline's folder or ours."""
        network = models["adapter"]
        assert isinstance(network, TrainableSubset)
        dtype = None if self.config.save_dtype is None else DTYPES[self.config.save_dtype]
        with holding(self.parts, network.named):
            save_model(self.generator, folder, dtype, None, overwrite=True)


@contextmanager
def holding(parts: Mapping[str, nn.Module], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the networks have these values, "<part>.<name>" -> tensor, which an average of theirs may be."""
    own = {name: parts[name.partition(".")[0]].get_parameter(name.partition(".")[2]) for name in values}
    before = {name: parameter.data for name, parameter in own.items()}
    try:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.data = values[name].detach().to(parameter)
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = before[name]
