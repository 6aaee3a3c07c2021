"""A diffusers network behind the interface of ours: (x, time, condition, context) -> raw.

x is (B, C, h, w) latents, time (B,) on the network's own clock, raw (B, C or 2 C, h, w). A family says how its network is
called; what is common is here: rows without a real token are unconditional, and read what the empty prompt gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.hook_layouts import has_hook, inside, shows
from gen.models.bridge.hooks import hooked
from gen.models.bridge.ip_adapter.attention import ImagePrompt
from gen.models.bridge.ip_adapter.file import IPAdapter
from gen.models.bridge.remembered import Remembering, remembered
from gen.models.bridge.routed import routing
from gen.nn.conditions import pad_tokens
from gen.nn.control import OpenedControl
from samplers.denoiser import Condition, Context


@dataclass(frozen=True)
class BridgedConfig:
    """channels: of the latents; patch: latent pixels per token, each way; num_classes: 0 for a network without labels."""

    channels: int
    patch: int = 1
    num_classes: int = 0


class BridgedNetwork(nn.Module):
    """Base of the families' adapters. A subclass gives `call(x, time, condition)`, where tokens and pooled are x's dtype."""

    bridged = True
    reads = ""  # beside text: "picture", one to edit (`extra["reference"]`), or "mask", one with a mask (`image`)
    most_pictures = 1  # that it reads at a time; those beside the first are `extra["reference_2"]` and so on
    controlled_by: tuple[str, ...] = ()  # the classes of control that it takes (`gen.models.bridge.control`)
    controls_read_prompt = False  # they read the prompt where the network reads a negative one (`control.PROMPT`)
    takes_image_prompts = False  # IP-Adapters (`gen.models.bridge.ip_adapter`)
    reads_null = True  # it is told what the empty prompt gives: `set_null`
    mixes_rows = False  # rows are computed together, so that they round by what is beside them
    crops = False  # pictures of another shape than the size they are read at are cut, not stretched
    attention_backend = "diffusers"  # or a name of `gen.nn.attention.BACKENDS`, which then computes it
    remembers: Mapping[str, Remembering] = {}  # parts whose results are the same for a whole run
    sample_rows: tuple[str, ...] = ()  # beginnings of modules that see the rows of every sample, one sample after another

    def __init__(self, network: nn.Module, config: BridgedConfig):
        super().__init__()
        self.network, self.config = network, config
        self.null: Condition | None = None
        self.controls: dict[str, OpenedControl] = {}  # no part of its weights; likewise those by their folders
        self.opened_controls: dict[str, OpenedControl] = {}
        self.image_prompts: dict[str, ImagePrompt] = {}  # likewise
        self.opened_ip_adapters: dict[tuple[str, str], IPAdapter] = {}

    @property
    def shows(self) -> str:
        """The hook by which it shows what is inside of it: block or map."""
        return shows(self.network)

    @property
    def takes_nag(self) -> bool:
        """Normalised attention guidance finds its places in it."""
        return has_hook(self.network, "text")

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        raise NotImplementedError

    def prepare(self, condition: Condition) -> Condition:
        """A condition as `call` takes it, made once for every prompt: on x's device, rows without a real token filled in."""
        return condition

    def place(self, condition: Condition, x: Tensor) -> Condition:
        """A prepared condition with what only the shape of x (B, C, h, w) decides, made once for a run."""
        return condition

    def set_null(self, null: Condition) -> None:
        """What the empty prompt gives (batch of 1)."""
        self.null = null

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context) -> Tensor:
        ready = context.memo("bridge condition", (condition,), lambda: self._ready(condition, x))
        ready = context.memo(f"bridge places {tuple(x.shape)}", (ready,), lambda: self.place(ready, x))
        patch = self.config.patch

        def keep(name: str, compute: Callable[[], Any]) -> Any:
            return context.memo(f"bridge {name}", (ready,), compute)

        with (
            routing(self.attention_backend),
            remembered(inside(self.network), self.remembers, keep, x.device),
            hooked(self.network, context, x.shape[2] // patch, x.shape[3] // patch),
        ):
            return self.call(x, time, ready)

    def _ready(self, condition: Condition, x: Tensor) -> Condition:
        condition = self._with_null(condition, len(x))
        return self.prepare(condition.map(lambda v: v.to(x.device, x.dtype) if v.is_floating_point() else v.to(x.device)))

    def _with_null(self, condition: Condition, batch: int) -> Condition:
        null = self.null
        if null is None or null.tokens is None:
            return condition
        if condition.tokens is None:
            extra = {**condition.extra, **null.extra}
            return replace(condition, tokens=null.tokens, mask=null.mask, pooled=null.pooled, extra=extra).map(
                lambda v: v if len(v) == batch else v.expand(batch, *v.shape[1:])
            )
        if condition.mask is None:
            return condition
        length = max(condition.tokens.shape[1], null.tokens.shape[1])
        condition, null = pad_tokens(condition, length), pad_tokens(null, length)
        tokens, mask, pooled = condition.tokens, condition.mask, condition.pooled
        assert tokens is not None and mask is not None
        real = mask.any(1, keepdim=True)
        null = null.map(lambda v: v.to(mask.device))
        assert null.tokens is not None and null.mask is not None
        if pooled is not None:
            assert null.pooled is not None
            pooled = torch.where(real, pooled, null.pooled.to(pooled))
        tokens = torch.where(real[..., None], tokens, null.tokens.to(tokens))
        extra = dict(condition.extra)
        for name, value in null.extra.items():
            extra[name] = torch.where(real.view(-1, *[1] * (value.ndim - 1)), extra[name], value.to(extra[name]))
        return replace(condition, tokens=tokens, mask=torch.where(real, mask, null.mask), pooled=pooled, extra=extra)


def setting(network: nn.Module, name: str, default: Any = None) -> Any:
    """A value of a diffusers network's config; None counts as absent."""
    config: Any = network.config
    value = config.get(name)
    return default if value is None else value
