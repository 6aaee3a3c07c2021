"""Networks of text and patches for tests: diffusers' with random weights, and how each is called; our own, tiny."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samplers.denoiser import Condition

TEXT, WIDTH = 5, 12  # tokens and their width
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()


@dataclass(frozen=True)
class Family:
    """A family that our network and diffusers' share.

    diffusers: the class there. variants: name -> options of it. call(network, x, time, condition): diffusers' network on what
    ours takes. formats: (diffusers', the authors'); rest: options of `read_checkpoint` for the authors' file.
    guided: reads a guidance scale. masked: texts may be of unequal length. sizes: of latents (height, width).
    pipeline: of `tests.gen.pipelines` and the like.
    """

    diffusers: str
    variants: Mapping[str, Mapping[str, Any]]
    call: Callable[[Any, Tensor, Tensor, Condition], Tensor]
    formats: tuple[str, str]
    scale: float
    pooled: int = 0
    masked: bool = False
    sizes: tuple[tuple[int, int], ...] = ((8, 8), (12, 6), (4, 20))
    rest: Mapping[str, Any] = field(default_factory=dict)
    pipeline: str = ""
    guided: bool = False

    def build(self, variant: str, dtype: torch.dtype = torch.float32) -> Any:
        import diffusers

        network = getattr(diffusers, self.diffusers)(**self.variants[variant]).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                spread = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        return network.to(dtype)

    def null(self, pad: int = 0) -> dict[str, Any]:
        """Features of no text, as options of `read_checkpoint`."""
        generator = torch.Generator().manual_seed(4)
        options: dict[str, Any] = {"null_text": torch.randn(3 + pad, WIDTH, generator=generator), "null_length": 3}
        return options | ({"null_pooled": torch.randn(self.pooled, generator=generator)} if self.pooled else {})

    def inputs(
        self, size: tuple[int, int], dtype: torch.dtype = torch.float32, channels: int = 4
    ) -> tuple[Tensor, Tensor, Condition]:
        """x, time and condition of three pictures."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(3, channels, *size, generator=generator).to(dtype)
        tokens = torch.randn(3, TEXT, WIDTH, generator=generator).to(dtype)
        pooled = torch.randn(3, self.pooled, generator=generator).to(dtype) if self.pooled else None
        mask = MASK if self.masked else torch.ones(3, TEXT, dtype=torch.bool)
        time = torch.tensor([0.0, 0.375, 1.0], dtype=torch.promote_types(dtype, torch.float32)) * self.scale
        return x, time, Condition(tokens=tokens, mask=mask, pooled=pooled, extra=self.extra(dtype))

    def extra(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return (
            {"guidance": torch.tensor([1.0, 3.5, 7.25], dtype=torch.promote_types(dtype, torch.float32))} if self.guided else {}
        )


def call_sd3(network: Any, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    return network(x, condition.tokens, condition.pooled, time).sample


SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "caption_projection_dim": 16, "pooled_projection_dim": 6,
    "pos_embed_max_size": 12,
}  # fmt: skip
FLUX = {
    "patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "pooled_projection_dim": 6, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip


def call_flux(network: Any, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    from gen.models.bridge.families.flux import packed, positions, unpacked

    out = network(
        hidden_states=packed(x),
        timestep=time,
        pooled_projections=condition.pooled,
        encoder_hidden_states=condition.tokens,
        txt_ids=x.new_zeros(condition.tokens.shape[1], 3),
        img_ids=positions(x),
        guidance=condition.extra["guidance"] if network.config.guidance_embeds else None,
    )
    return unpacked(out.sample, x)


QWEN = {
    "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
Z_IMAGE = {
    "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": WIDTH,
    "axes_dims": [4, 6, 6], "axes_lens": [1024, 64, 64],
}  # fmt: skip


def call_qwen(network: Any, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    from gen.models.bridge.families.flux import packed, unpacked

    out = network(
        hidden_states=packed(x),
        timestep=time,
        encoder_hidden_states=condition.tokens,
        encoder_hidden_states_mask=condition.mask,
        img_shapes=[[(1, x.shape[2] // 2, x.shape[3] // 2)]] * len(x),
    )
    return unpacked(out.sample, x)


def call_z_image(network: Any, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    captions = [row[keep] for row, keep in zip(condition.tokens, condition.mask, strict=True)]
    return -torch.stack(network(list(x.unsqueeze(2)), 1 - time, captions, return_dict=False)[0])[:, :, 0]


FAMILIES = {
    "sd3": Family(
        "SD3Transformer2DModel",
        {
            "3": SD3,
            "3.5 large": SD3 | {"qk_norm": "rms_norm", "pos_embed_max_size": 10},
            "3.5 medium": SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1), "attention_head_dim": 16,
                                 "caption_projection_dim": 32},
        },
        call_sd3,
        ("diffusers-sd3", "sd3"),
        scale=1000.0,
        pooled=6,
        rest={"size": 8},
        pipeline="sd3",
    ),
    "flux": Family(
        "FluxTransformer2DModel",
        {"schnell": FLUX, "dev": FLUX | {"guidance_embeds": True}},
        call_flux,
        ("diffusers-flux", "flux"),
        scale=1.0,
        pooled=6,
        rest={"axes": (4, 4, 8)},
        pipeline="flux",
        guided=True,
    ),
    "qwen_image": Family(
        "QwenImageTransformer2DModel",
        {"published": QWEN},
        call_qwen,
        ("diffusers-qwen-image", "diffusers-qwen-image"),
        scale=1.0,
        masked=True,
        pipeline="qwen_image",
    ),
    "z_image": Family(
        "ZImageTransformer2DModel",
        {"published": Z_IMAGE, "no refiners": Z_IMAGE | {"n_refiner_layers": 0}},
        call_z_image,
        ("diffusers-z-image", "z-image"),
        scale=1.0,
        masked=True,
        rest={"axes": (4, 6, 6)},
        pipeline="z_image",
    ),
}  # fmt: skip
CASES = [(name, variant) for name, family in FAMILIES.items() for variant in family.variants]

TINY = {"size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 2, "heads": 2, "text_tokens": 6, "text_dim": 16}
# type -> the config of a tiny network of ours
OWN: dict[str, dict[str, Any]] = {
    "mmdit": {"type": "mmdit", **TINY, "depth": 3, "dual_blocks": 1, "pooled_text": True},
    "flux": {"type": "flux", **TINY, "single_depth": 2, "axes": [4, 4, 8], "pooled_text": True},
    "qwen_image": {"type": "qwen_image", **TINY, "axes": [4, 6, 6]},
    "z_image": {"type": "z_image", **TINY, "axes": [4, 6, 6], "refiner_depth": 1},
}
