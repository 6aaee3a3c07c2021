"""Where the run's hooks find their places in diffusers' networks: a closed table, by the class of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class BlockLayout:
    """Where hooks find their places.

    blocks: in the order they run.
    joint: a block works on text and image tokens, which it takes and returns apart.
    image_first: a joint block returns the image before the text; another works on one sequence in which the image comes first.
        Hooks see it last, as everywhere.
    without: hook -> why the network cannot have it.
    maps: the levels of a U-Net.
    patches(network, rows, columns): tokens of the image in a sequence.
    """

    blocks: Callable[[Any], list[nn.Module]]
    joint: bool = False
    without: Mapping[str, str] | None = None
    maps: Callable[[Any], list[nn.Module]] | None = None
    image_first: bool = False
    patches: Callable[[Any, int, int], int] = lambda network, rows, columns: rows * columns


def _unet_blocks(network: Any) -> list[nn.Module]:
    ways = [*network.down_blocks, *([] if network.mid_block is None else [network.mid_block]), *network.up_blocks]
    return [block for way in ways for block in way.modules() if type(block).__name__ == "BasicTransformerBlock"]


def _unet_maps(network: Any) -> list[nn.Module]:
    return [*network.down_blocks, *([] if network.mid_block is None else [network.mid_block])]


def _chain(network: Any) -> list[nn.Module]:
    return list(network.transformer_blocks)


def _both_chains(network: Any) -> list[nn.Module]:
    return [*network.transformer_blocks, *network.single_transformer_blocks]


TOGETHER = "its attention is over text and image together, and returns the two apart"
_NO_ATTENTION = dict.fromkeys(("attention", "heads", "cross"), TOGETHER)
LAYOUTS: dict[str, BlockLayout] = {
    "AuraFlowTransformer2DModel": BlockLayout(
        lambda network: [*network.joint_transformer_blocks, *network.single_transformer_blocks],
        joint=True,
        without=_NO_ATTENTION,
    ),
    "ChromaTransformer2DModel": BlockLayout(_both_chains, joint=True, without=_NO_ATTENTION),
    "UNet2DConditionModel": BlockLayout(
        _unet_blocks,
        without={"block": "a U-Net's blocks change the size of the picture and are joined by skips"},
        maps=_unet_maps,
    ),
    "CogView4Transformer2DModel": BlockLayout(_chain, joint=True, image_first=True, without=_NO_ATTENTION),
    "DiTTransformer2DModel": BlockLayout(_chain),
    "Lumina2Transformer2DModel": BlockLayout(lambda network: list(network.layers), without=_NO_ATTENTION),
    "HiDreamImageTransformer2DModel": BlockLayout(
        lambda network: [*network.double_stream_blocks, *network.single_stream_blocks],
        joint=True,
        image_first=True,
        patches=lambda network, rows, columns: rows * columns if rows == columns else network.max_seq,
        without={**_NO_ATTENTION, "text": "its attention projects text and image each in its own way"},
    ),
    "PixArtTransformer2DModel": BlockLayout(_chain),
    "SanaTransformer2DModel": BlockLayout(
        _chain, without={"heads": "Sana's attention is linear: it has no softmax over patches"}
    ),
    "SD3Transformer2DModel": BlockLayout(_chain, joint=True, without=_NO_ATTENTION),
    "FluxTransformer2DModel": BlockLayout(_both_chains, joint=True, without=_NO_ATTENTION),
    "Flux2Transformer2DModel": BlockLayout(
        _both_chains,
        joint=True,
        without={**_NO_ATTENTION, "text": "most of its blocks project attention and the rest of the block in one layer"},
    ),
    "Krea2Transformer2DModel": BlockLayout(_chain, without=_NO_ATTENTION),
    "QwenImage21Transformer2DModel": BlockLayout(
        _chain, without={**_NO_ATTENTION, "text": "prompts of other lengths go through it one after another"}
    ),
    "QwenImageTransformer2DModel": BlockLayout(_chain, joint=True, without=_NO_ATTENTION),
    "ZImageTransformer2DModel": BlockLayout(lambda network: list(network.layers), image_first=True, without=_NO_ATTENTION),
}
NEEDED_BY = {
    "block": "Caches of blocks and skipped layers",
    "attention": "Caches of attention and negative token merging",
    "heads": "Perturbed attention and references",
    "cross": "Suppression across tokens",
    "text": "Normalised attention guidance",
    "map": "Discriminators of maps",
}
INSTEAD = {
    "block": "the caches reuse, easy or pyramid",
    "attention": "the caches reuse or easy, or other guidance",
    "heads": "other guidance",
    "cross": "the correction of the prompt alone",
    "text": "other guidance",
    "map": "those of tokens",
}


def inside(network: Any) -> nn.Module:
    """The network itself, without what torch.compile puts around it."""
    return getattr(network, "_orig_mod", network)


def layout_of(network: nn.Module) -> BlockLayout | None:
    """Where hooks find their places in a network, its class or one that it inherits from being known; None where none is."""
    return next((LAYOUTS[kind.__name__] for kind in type(inside(network)).__mro__ if kind.__name__ in LAYOUTS), None)


def has_hook(network: nn.Module, name: str) -> bool:
    """Has a network of diffusers places for a hook, as far as its class tells?"""
    layout = layout_of(network)
    return layout is not None and name not in (layout.without or {})


def shows(network: nn.Module) -> str:
    """The hook by which a diffusers network shows what is inside of it: block, or map where it has levels instead."""
    layout = layout_of(network)
    return "map" if layout is not None and layout.maps is not None else "block"
