"""Where text enters a network, and what its layers see there of a prompt.

cross-attention to text       the layers that make keys and values, in every block
text among the patches        the layer that brings the text encoder's tokens to the network's width: what the blocks see
(U-ViT, MMDiT, FLUX, ...)     later depends on the picture too
a pooled text                 the last layer of what makes of it a share of the modulation
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from customization.merge.inputs import watch_inputs
from gen.adapters.apply import inner
from gen.generator import Generator
from gen.nn.conditions import with_picture_size
from samplers.denoiser import Context
from samplers.lookup import nearest

# ends of the names of linear layers: ours, and diffusers'
KEYS_VALUES = ("cross.kv", "attn2.to_k", "attn2.to_v")
EMBEDDERS = ("text_embed", "text_embed.1", "text_embed.fc2", "context_embedder", "txt_in", "caption_projection.linear_2")
POOLED = ("pooled_embed.fc2", "pooled_embed.2", "text_embedder.linear_2", "add_embedding.linear_2")


def linears(network: nn.Module, ends: Sequence[str]) -> list[str]:
    """The names of a network's linear layers that end in one of these."""
    return [
        name
        for name, module in inner(network).named_modules()
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{end}") for end in ends)
    ]


def reading_layers(network: nn.Module, targets: Sequence[str] = ()) -> list[str]:
    """The layers where text enters; targets: ends of names, instead of those. ValueError where there are none."""
    if targets:
        layers = linears(network, targets)
        if not layers:
            every = linears(network, [name.rpartition(".")[2] for name, _ in inner(network).named_modules()])
            near = nearest(targets[0], every)
            hint = f"; did you mean {near!r}?" if near else "."
            raise ValueError(f"No linear layer of the denoiser ends in {', '.join(targets)}{hint}")
        return layers
    entered = linears(network, KEYS_VALUES) or linears(network, EMBEDDERS)
    if not entered:
        raise ValueError(
            "The denoiser has no layer that is known to read text; name some by the ends of their names (--target), or use "
            "--method ssgu, which looks at every layer."
        )
    return entered + linears(network, POOLED)


class PromptRows:
    """What layers of a model's denoiser see of prompts, read with the text encoder as it is.

    layers: names of linear layers (`reading_layers`); those that turn out to see the picture too are left out, and ValueError
    if none is left.
    """

    def __init__(self, model: Generator, layers: Sequence[str]):
        if model.text_encoder is None:
            raise ValueError(f"The model {model.name!r} reads no text, so there are no words for it to forget.")
        self.model = model
        channels, side = int(model.network.config.channels), model.config.sample_size // model.factor
        random = torch.Generator().manual_seed(0)
        self.noises = [torch.randn(1, channels, side, side, generator=random).to(model.device) for _ in range(2)]
        one, other = (self._seen("a picture", layers, noise) for noise in self.noises)
        self.layers = [n for n in layers if n in one and one[n].shape == other[n].shape and torch.allclose(one[n], other[n])]
        if not self.layers:
            raise ValueError(f"What {', '.join(layers[:3])} see depends on the picture, not on the text alone; name others.")

    def __call__(self, prompt: str) -> dict[str, Tensor]:
        """Layer -> rows (n, in) in float64, one a real token of the prompt; one row of a pooled text."""
        return self._seen(prompt, self.layers, self.noises[0])

    @torch.no_grad()
    def _seen(self, prompt: str, layers: Sequence[str], noise: Tensor) -> dict[str, Tensor]:
        model, side = self.model, self.model.config.sample_size
        with warnings.catch_warnings():  # the prompts are ours, most of them, and what is unknown in them says nothing
            warnings.filterwarnings("ignore", message="The text encoder does not know")
            condition = with_picture_size(model.encode_prompt([prompt]), model, 1, (side, side))
        path: Any = model.denoiser.path
        rows: dict[str, Tensor] = {}

        def see(name: str, seen: Tensor) -> None:
            rows[name] = seen.cpu()

        with watch_inputs(model.network, layers, see):
            model.denoiser(noise, path.at_logsnr(0.0), condition, Context())
        count = 0 if condition.mask is None else int(condition.mask.sum())  # 0: none, or the unconditional text
        return {name: seen[:count] if 0 < count < len(seen) else seen for name, seen in rows.items()}
