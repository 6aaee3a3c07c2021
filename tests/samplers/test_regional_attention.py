"""Regions inside of attention: against attention written out, what one region says to another, and the plain picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gen.nn.registry import build
from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.guidance.cfg import ClassifierFree
from samplers.hooks import with_hook
from samplers.multi_model.regional_attention import AttentionRegion, RegionalAttention
from samplers.path import RectifiedFlow
from tests.gen.conftest import randomise

PATH = RectifiedFlow()
SIZES = {"type": "dit", "size": 8, "patch": 2, "channels": 4, "dim": 32, "heads": 2, "text_tokens": 8, "text_dim": 16}


def denoiser(depth: int = 2, kind: str = "dit") -> NetworkDenoiser:
    network = randomise(build({**SIZES, "type": kind, "depth": depth}), 1).eval().requires_grad_(False)
    return NetworkDenoiser(network, PATH, "x0", "1000t")


def text(seed: int, rows: int = 1, length: int = 5) -> Condition:
    tokens = torch.randn(rows, length, 16, generator=torch.Generator().manual_seed(seed))
    return Condition(tokens=tokens, mask=torch.ones(rows, length, dtype=torch.bool))


def box(left: int, right: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., left:right] = 1
    return mask


def noisy(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def raw(given, condition: Condition, context: Context | None = None) -> torch.Tensor:
    return given(noisy(len(condition.tokens)), PATH(0.6), condition, context or Context()).raw


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_box_of_all_with_the_same_prompt_is_the_plain_picture(scale):
    base, condition = denoiser(), text(1).map(lambda value: value.expand(2, *value.shape[1:]))
    regional = RegionalAttention(base, (AttentionRegion(box(0, 8), text(1)),))
    plain, made = (raw(ClassifierFree(one, scale), condition) for one in (base, regional))
    torch.testing.assert_close(made, plain, rtol=1e-5, atol=1e-5)


def test_each_part_attends_to_its_own_text():
    """Two boxes that overlap in a column of patches, and a column of none: attention to every prompt, mixed by hand."""
    base, own = denoiser(), text(1, rows=2)
    prompts = [text(2), text(3, length=7)]
    found: dict[tuple[int, int], torch.Tensor] = {}
    regions = (AttentionRegion(box(0, 4), prompts[0]), AttentionRegion(box(2, 6), prompts[1]))
    made = raw(RegionalAttention(base, regions), own)

    blocks = base.network.blocks

    def by_hand(site, q, k, v, mask, run):
        outs = [run(q, k, v, mask)]
        for number, prompt in enumerate(prompts):
            embedded = base.network.text_embed(prompt.tokens)
            key, value = (part.expand(2, -1, -1, -1) for part in blocks[site.index].cross.keys_values(embedded))
            outs.append(run(q, key, value, None))
            found[site.index, number] = outs[-1]
        column = torch.arange(16) % 4  # of patches: 0 first alone, 1 both, 2 second alone, 3 neither
        first, both, second = (column.view(1, -1, 1, 1) == n for n in (0, 1, 2))
        mixed = torch.where(first, outs[1], torch.where(second, outs[2], outs[0]))
        return torch.where(both, (outs[1] + outs[2]) / 2, mixed)

    torch.testing.assert_close(made, raw(base, own, with_hook(Context(), "cross", by_hand)), rtol=1e-4, atol=1e-5)
    assert len(found) == 4


def test_a_region_hears_nothing_of_the_others_text():
    """In a network of one block, whose patches meet before they read: the gradient of one part by another's prompt is 0."""
    base = denoiser(depth=1)
    prompts = [text(seed) for seed in (2, 3)]
    for prompt in prompts:
        prompt.tokens.requires_grad_(True)
    regions = tuple(AttentionRegion(mask, prompt) for mask, prompt in zip((box(0, 4), box(4, 8)), prompts, strict=True))
    made = raw(RegionalAttention(base, regions), text(1, rows=1))
    for part, (mine, other) in ((made[..., :4], (0, 1)), (made[..., 4:], (1, 0))):
        gradients = torch.autograd.grad(part.square().sum(), [prompts[mine].tokens, prompts[other].tokens], retain_graph=True)
        assert gradients[0].abs().max() > 1e-4 and not gradients[1].any()


def test_rows_without_a_condition_are_left_alone():
    base, condition = denoiser(), text(1, rows=2)
    regional = RegionalAttention(base, (AttentionRegion(box(0, 8), text(2)),))
    null = replace(condition.null())
    inside = Context().fork("null")
    assert torch.equal(regional(noisy(), PATH(0.6), null, inside).raw, base(noisy(), PATH(0.6), null, inside).raw)
    both = raw(ClassifierFree(regional, 0.0), condition)
    assert torch.equal(both, raw(ClassifierFree(base, 0.0), condition))


def test_wrong_regions_are_one_sentence():
    with pytest.raises(ValueError, match="There are no regions"):
        RegionalAttention(denoiser(), ())
    with pytest.raises(ValueError, match="Region lamp has no text"):
        RegionalAttention(denoiser(), (AttentionRegion(box(0, 8), Condition(), name="lamp"),))
    with pytest.raises(ValueError, match="works through the network's 'cross' hook"):
        raw(RegionalAttention(denoiser(kind="uvit"), (AttentionRegion(box(0, 8), text(2)),)), text(1, rows=2))
