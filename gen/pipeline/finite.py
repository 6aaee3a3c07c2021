"""What is said where numbers stop being numbers: no picture is made of NaN, and the sentence names where it began.

Every stage of a run (network, guidance, what is around it) is watched by flags that stay on the device, so that watching costs
no synchronisation. They are read once per batch, and only where its latents are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gen.nn.batch_invariance import without_mode
from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper

if TYPE_CHECKING:
    from gen.models.model import Model
    from gen.pipeline.types import SamplingBatch


def finite(*tensors: Tensor | None) -> Tensor:
    """One bool on the device: is everything a number?"""
    checks = [tensor.detach().isfinite().all() for tensor in tensors if tensor is not None and tensor.is_floating_point()]
    return torch.stack(checks).all() if checks else torch.tensor(True)


@dataclass
class Watch:
    """Which stages turned numbers into NaN or infinities, by name, from the network outwards. outside: what lies around them,
    which is not watched, as some of it must know the other."""

    flags: dict[str, Tensor] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)

    def stage(self, name: str, denoiser: Denoiser) -> Denoiser:
        """The denoiser, watched."""
        return Watched(denoiser, name, self)

    def note(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        with without_mode():
            broken = finite(inputs) & ~finite(outputs)
            before = self.flags.get(name)
            self.flags[name] = broken if before is None else before | broken

    def culprits(self) -> list[str]:
        """The names of the stages that broke; reading them waits for the device."""
        return [name for name, broken in self.flags.items() if bool(broken)]


@dataclass(frozen=True)
class Watched(DenoiserWrapper):
    """A denoiser whose outputs of finite inputs are looked at."""

    denoiser: Denoiser
    name: str
    watch: Watch

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        prediction = self.denoiser(x, level, condition, context)
        self.watch.note(self.name, x, prediction.raw)
        return prediction


def check_begin(batch: SamplingBatch, x: Tensor) -> None:
    """ValueError where a run would begin with something else than numbers: its texts or its first latents."""
    model = batch.model
    texts = [
        text
        for condition in (batch.condition, batch.negative)
        if condition is not None
        for text in (condition.tokens, condition.pooled)
    ]
    if not bool(finite(*texts)):
        raise ValueError(
            "The text encoder makes NaN or infinite features of the prompt"
            f"{_within(model.text_encoder, 'text_encoder') or _adapters(model, batch) or ''}; {_REMEDY}"
        )
    if not bool(finite(x)):
        raise ValueError(
            "The latents that the run begins with hold NaN or infinite values"
            f"{_within(model.autoencoder, 'autoencoder') or ', though the picture does not'}; {_REMEDY}"
        )


def check_end(batch: SamplingBatch, watch: Watch, latents: Tensor, sampler: str) -> None:
    """ValueError where a run ends in something else than numbers; it names where they were lost."""
    if bool(finite(latents)):
        return
    model, culprits = batch.model, watch.culprits()
    seeds = [item.seed for item, latent in zip(batch.items, latents, strict=False) if not bool(finite(latent))]
    which = f"The picture of seed {seeds[0]}" if seeds else "The picture"
    cause = _adapters(model, batch) or _within(model.network, "denoiser")
    where = culprits[0] if culprits else " or the ".join([*watch.outside, f"sampler {sampler!r}"])
    raise ValueError(f"{which} came to NaN or infinite values in the {where}{cause or ''}; {_REMEDY}")


def check_shown(model: Model, images: Tensor) -> None:
    """ValueError where the decoder made something else than numbers."""
    if not bool(finite(images)):
        cause = _within(model.autoencoder, "autoencoder")
        raise ValueError(f"The picture came to NaN or infinite values in the decoder{cause or ''}; {_REMEDY}")


_REMEDY = "no picture was made. Take that out or mend it, or use dtype float32 where numbers grow too large."


def _within(network: nn.Module | None, part: str) -> str | None:
    """The first weight of a network that is not finite, in words."""
    named: Iterable[tuple[str, Tensor]] = [] if network is None else [*network.named_parameters(), *network.named_buffers()]
    for name, value in named:
        if not bool(finite(value)):
            return f": the {part}'s weight {name!r} holds them"
    return None


def _adapters(model: Model, batch: SamplingBatch) -> str | None:
    """The first adapter in force that is not finite, in words."""
    loaded = model.loaded_adapters.loaded if model.loaded_adapters is not None else {}
    for name in batch.settings.adapters:
        for layer, delta in loaded[name].layers.items() if name in loaded else ():
            if not bool(finite(*delta.factors.values())):
                return f": the adapter {name!r} holds them in {layer!r}"
    return None


@dataclass(frozen=True)
class CheckedEnergy:
    """An energy whose values must be numbers; minus infinity, of what cannot be, is one."""

    energy: Callable[..., Tensor]
    name: str

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "energy"), name)

    def __call__(self, x0: Tensor, condition: Condition) -> Tensor:
        value = self.energy(x0, condition)
        if isinstance(value, Tensor) and bool(finite(x0)) and bool(value.detach().isnan().any()):
            raise ValueError(f"The energy {self.name!r} is NaN for a picture without NaN; {_REMEDY}")
        return value
