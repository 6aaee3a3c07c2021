"""The names that published networks have outside of diffusers, against diffusers' own conversion of whole checkpoints.

A made-up checkpoint by the names of `gen.adapters.originals`, every row of it with a number of its own, goes through diffusers'
converter; each number must arrive in the module and row where our table sends it.
"""

from __future__ import annotations

import pytest
import torch

from gen.adapters.resolve import Index
from tests.gen.lora import OTHER

diffusers = pytest.importorskip("diffusers")
from diffusers.loaders import single_file_utils as convert  # noqa: E402

OWN = (
    "joint_transformer_blocks",
    "transformer_blocks",
    "single_transformer_blocks",
    "down_blocks",
    "mid_block",
    "up_blocks",
)  # fused, but diffusers' names
UNET = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2}
SDXL = {
    "block_out_channels": (8, 16, 24),
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 56,
    "use_linear_projection": True,
}


# of one name everywhere
SAME = {"context_embedder", "distilled_guidance_layer.in_proj", "distilled_guidance_layer.out_proj", "x_embedder"}


class Checkpoint(dict):
    """Gives zeros for what a converter asks for beside the weights that are tested."""

    def pop(self, key, *default):
        return super().pop(key, torch.zeros(2))


def unet(checkpoint, network):
    checkpoint = {f"model.diffusion_model.{key}": value for key, value in checkpoint.items()}
    return convert.convert_ldm_unet_checkpoint(checkpoint, dict(network.config))


CASES = {
    "Stable Diffusion": ("UNet2DConditionModel", UNET, unet, ""),
    "SDXL": ("UNet2DConditionModel", SDXL, unet, ""),
    "Flux": (
        "FluxTransformer2DModel",
        {"num_layers": 2, "num_single_layers": 2, "guidance_embeds": True},  # the converter knows its one width
        lambda checkpoint, network: convert.convert_flux_transformer_checkpoint_to_diffusers(checkpoint),
        "lora",  # XLabs' names
    ),
    "AuraFlow": (
        "AuraFlowTransformer2DModel",
        {"num_mmdit_layers": 2, "num_single_dit_layers": 2, "attention_head_dim": 4, "num_attention_heads": 2,
         "joint_attention_dim": 8, "caption_projection_dim": 8},
        lambda checkpoint, network: convert.convert_auraflow_transformer_checkpoint_to_diffusers(checkpoint),
        "",
    ),
    "Chroma": (
        "ChromaTransformer2DModel",
        {"num_layers": 2, "num_single_layers": 2, "approximator_layers": 2},
        lambda checkpoint, network: convert.convert_chroma_transformer_checkpoint_to_diffusers(checkpoint),
        "lora",
    ),
    "Lumina 2": (
        "Lumina2Transformer2DModel",
        {"num_layers": 2},  # the converter knows its one width, and two refiners
        lambda checkpoint, network: convert.convert_lumina2_to_diffusers(checkpoint),
        "attn.",  # diffusers' names, fused
    ),
    "SD3": (
        "SD3Transformer2DModel",
        {"num_layers": 3, "dual_attention_layers": (0, 1), "caption_projection_dim": 1152, "qk_norm": "rms_norm"},
        lambda checkpoint, network: convert.convert_sd3_transformer_checkpoint_to_diffusers(checkpoint),
        "",
    ),
    "Sana": (
        "SanaTransformer2DModel",
        {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 4, "num_cross_attention_heads": 2,
         "cross_attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": 16},
        lambda checkpoint, network: convert.convert_sana_transformer_to_diffusers(checkpoint),
        "cross.",  # ours
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_row_arrives_where_diffusers_puts_it(case):
    kind, config, converter, skipped = CASES[case]
    with torch.device("meta"):
        network = getattr(diffusers, kind)(**config)
    index = Index(network)
    names = {
        name: targets
        for name, targets in index.targets.items()
        if name not in index.modules and not (skipped and skipped in name) and name.partition(".")[0] not in OWN
    }
    numbered = {name: names.pop(name) for name in [name for name in names if OTHER.search(name)]}
    for name, targets in numbered.items():  # OMI's: a fused projection's parts in their order
        whole, _, k = name.rpartition(".")
        assert [t.module for t in targets] == [names[whole][0 if k == "proj" else int(k)].module]
    checkpoint, numbers, number = Checkpoint(), {}, 0.0
    for name, targets in names.items():
        module = index.modules[targets[0].module]
        rows = max((target.cut[1] for target in targets if target.cut), default=module.weight.shape[0])
        tail = (1, 1, 1) if isinstance(module, torch.nn.Conv2d) else () if module.weight.ndim == 1 else (1,)
        numbers[name] = number + torch.arange(rows, dtype=torch.float64)
        number += rows
        checkpoint[f"{name}.weight"] = numbers[name].reshape(-1, *tail)
        checkpoint[f"{name}.bias"] = torch.zeros(rows)
    checkpoint["context_embedder.weight"] = torch.zeros(1152, 1)
    converted = converter(checkpoint, network)
    seen = SAME & set(index.modules)
    for name, targets in names.items():
        for target in targets:
            found = converted[f"{target.module}.weight"].flatten()
            found = found[slice(*target.rows)] if target.rows else found
            assert torch.equal(found, numbers[name][slice(*target.cut)] if target.cut else numbers[name]), (name, target)
            seen.add(target.module)
    weights = {name for name, module in index.modules.items() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)}
    assert weights - seen == set(), "layers without a published name"
