"""Positional queries: positions checked exactly, what the network adds, outpainting by it, its training."""

from __future__ import annotations

import pytest
import torch

from distill.objectives.positional_query import PositionalQueryObjective, PositionalQueryObjectiveConfig, views
from distill.types import Batch, Draws, Phase
from gen.generator import Generator
from gen.models.folder import write_model
from gen.nn.backbones.dit import sincos_positions
from gen.nn.backbones.positional_query import asks, query_positions, relative_window
from gen.nn.registry import build
from gen.pipeline.recipe import Recipe
from samplers.denoiser import Condition, Context
from tests.gen.conftest import CONFIG, randomise, tiny_autoencoder, tiny_text_encoder

TEXT = {"text_tokens": 8, "text_dim": 16}
SIZES = {"size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 3, "heads": 2}
SAME = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
PICTURE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
CALL = {"seed": 1, "num_inference_steps": 2, "progress": False, "output_type": "pt"}


def network(backbone: str = "dit", **sizes):
    return randomise(build({"type": "positional_query", "backbone": backbone, "sizes": {**SIZES, **sizes}}), 1).eval()


def sincos_grid(rows: int, columns: int, dim: int = 32, top: float = 0, left: float = 0, step: float = 1):
    """Written out, patch by patch."""

    def one(place: float) -> list[float]:
        angles = [place * 10000 ** (-i / (dim // 4)) for i in range(dim // 4)]
        return [*(torch.tensor(a, dtype=torch.float64).sin().item() for a in angles),
                *(torch.tensor(a, dtype=torch.float64).cos().item() for a in angles)]  # fmt: skip

    return [[one(left + step * j) + one(top + step * i) for i in range(rows) for j in range(columns)]]


def test_positions_move_and_scale_with_the_window():
    """A window one patch further has positions one further; one of another scale has its step; both as the whole picture's."""
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(query_positions(SAME, 4, 4, 32), sincos_positions(4, 4, 32, 4, 1.0), **exact)
    moved = query_positions(torch.tensor([[0.25, -0.5, 1.0, 1.0]]), 4, 4, 32)
    torch.testing.assert_close(moved, torch.tensor(sincos_grid(4, 4, top=1, left=-2), dtype=torch.float64), **exact)
    larger = query_positions(torch.tensor([[-1.0, -1.0, 3.0, 3.0]]), 4, 4, 32)
    torch.testing.assert_close(larger, torch.tensor(sincos_grid(4, 4, top=-4, left=-4, step=3), dtype=torch.float64), **exact)
    # where the two overlap, the larger view's patches stand at the anchor's positions
    # the corner of an anchor's own grid of 12, seen from a window that begins a third of it outside
    third = torch.tensor([[-1 / 3, -1 / 3, 1.0, 1.0]], dtype=torch.float64)
    corner = torch.tensor(sincos_grid(1, 1, top=-4, left=-4)[0][0], dtype=torch.float64)
    torch.testing.assert_close(query_positions(third, 12, 12, 32)[0, 0], corner, **exact)


def test_windows_are_relative():
    """They do not change where the plane is moved or scaled; a window of a window is their composition."""
    anchor, target = torch.tensor([[3.0, 5.0, 4.0, 2.0]]), torch.tensor([[1.0, 5.0, 8.0, 6.0]])
    found = relative_window(target, anchor)
    torch.testing.assert_close(found, torch.tensor([[-0.5, 0.0, 2.0, 3.0]]))
    moved = [2.5 * (box + torch.tensor([[7.0, -3.0, 0.0, 0.0]])) for box in (target, anchor)]
    torch.testing.assert_close(relative_window(*moved), found)
    torch.testing.assert_close(relative_window(anchor, anchor), SAME)


@pytest.mark.parametrize("backbone", ["dit", "uvit"])
def test_the_network_sees_anchor_and_place(backbone):
    """Without either it is refused; without a condition no anchor is seen; a fresh query adds nothing."""
    made = network(backbone)
    x, time = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((2,), 300.0)
    anchor = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="fewstep outpaint"):
        made(x, time, Condition())
    with torch.no_grad():
        outputs = [
            made(x, time, Condition(extra=asks(picture, window.expand(2, 4))), Context())
            for picture in (anchor, anchor + 1)
            for window in (SAME, torch.tensor([[0.25, 0.0, 1.0, 1.0]]))
        ]
        assert all((a - b).abs().max() > 1e-5 for i, a in enumerate(outputs) for b in outputs[:i])
        null = [made(x, time, Condition(extra=asks(p, SAME.expand(2, 4))).null(), Context()) for p in (anchor, anchor + 1)]
        assert torch.equal(*null)
        torch.nn.init.zeros_(made.cross.proj.weight)
        torch.nn.init.zeros_(made.cross.proj.bias)
        torch.testing.assert_close(
            made(x, time, Condition(extra=asks(anchor, SAME.expand(2, 4))).null()), made.base(x, time, Condition())
        )


def test_outpainting_keeps_the_picture_and_replays(tmp_path):
    """Any factor, at any place, in one pass of the model's own size."""
    write_model(tmp_path, CONFIG, network(**TEXT), tiny_autoencoder(), tiny_text_encoder())
    generator = Generator.from_pretrained(tmp_path, device="cpu", dtype="float32")
    for sides in ({"left": 32}, {"top": 5, "bottom": 90, "left": 17, "right": 33}):
        made = generator.outpaint(PICTURE, "a cat", **sides, **CALL, num_images_per_prompt=2)
        top, left = sides.get("top", 0), sides.get("left", 0)
        assert made.images.shape[2:] == (32 + top + sides.get("bottom", 0), 32 + left + sides.get("right", 0))
        assert torch.equal(made.images[1, :, top : top + 32, left : left + 32], PICTURE)
        recipe = Recipe.from_json(made.recipes[1].to_json())
        assert torch.equal(generator.replay(recipe, "pt", progress=False, image=PICTURE).images[0], made.images[1])
    other = generator.outpaint(1 - PICTURE, "a cat", left=32, **CALL).images
    assert not torch.equal(other[..., :32], generator.outpaint(PICTURE, "a cat", left=32, **CALL).images[..., :32])
    for given, message in ((None, "give it as image"), (1 - PICTURE, "its sha256 differs")):
        with pytest.raises(ValueError, match=message):
            generator.replay(recipe, "pt", progress=False, image=given)
    for name, value in {"window": 32, "weights": "gaussian", "window_batch": 2, "shift_from": 0.0}.items():
        with pytest.raises(ValueError, match=f"leave {name} out"):
            generator.outpaint(PICTURE, left=32, **{name: value}, **CALL)
    with pytest.raises(ValueError, match="fewstep outpaint"):
        generator("a cat", **CALL)


def objective(**config) -> PositionalQueryObjective:
    settings = PositionalQueryObjectiveConfig(prediction="x0", **config)
    return PositionalQueryObjective(settings, network(channels=3))


def test_views_and_windows_of_training():
    """Views have their share of the area and lie inside; a ramp, which a view shows exactly, is where its window says."""
    method, index = objective(), torch.arange(64)
    ramp = torch.linspace(-1, 1, 64).expand(64, 3, 64, 64).contiguous()
    shown = method.cut(Batch(index, ramp), Draws(0, index, "x"))
    draws = Draws(0, index, "x")
    anchor, target = method.windows(draws, "anchor", (0.15, 0.5)), method.windows(draws, "target", (0.8, 1.0))
    for boxes, low, high in ((anchor, 0.15, 0.5), (target, 0.7, 1.0)):
        area = boxes[:, 2] * boxes[:, 3]
        assert area.min() >= low - 1e-9 and area.max() <= high + 1e-9
        assert boxes[:, :2].min() >= 0 and (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + 1e-9
    torch.testing.assert_close(shown.extra["window"], relative_window(target, anchor).float())
    # the value at pixel j of a view is that of the plane at left + width (j + 1/2) / 64
    middle = anchor[:, 1] + anchor[:, 3] * 31.5 / 64
    expected = -1 + 2 * (64 * middle - 0.5) / 63
    found = shown.extra["anchor picture"][:, 0, 10, 31].double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(views(ramp[:1], SAME), ramp[:1], rtol=0, atol=1e-5)


def test_the_loss_is_the_models_own_of_the_target_and_anchors_are_dropped():
    batch = Batch(torch.arange(4), torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    method, draws = objective(drop_anchor=0.0, loss="x0"), Draws(0, batch.index, "denoiser")
    net = method.roles["denoiser"].network
    shown = method.cut(batch, draws)
    level = method.levels(draws, torch.device("cpu"))
    x = level.mix(shown.images, draws.normal_like("eps", shown.images))
    extra = asks(shown.extra["anchor picture"], shown.extra["window"])
    raw = method.denoiser(net)(x, level, Condition(extra=extra), Context()).raw
    loss = method.loss(Phase("denoiser", "denoiser"), {"denoiser": net}, batch, draws, 0)[0]
    assert loss.item() == pytest.approx((raw - shown.images).square().mean().item(), rel=1e-4)
    many = Batch(torch.arange(40), torch.zeros(40, 3, 8, 8))
    seen = objective(drop_anchor=0.5).cut(many, Draws(0, many.index, "")).extra["seen"]
    assert 0.3 < seen.mean() < 0.7
    sheet, names = method.preview({"denoiser": net}, batch, 0)
    assert len(sheet) == len(names) == 12 and bool(sheet.isfinite().all())
    with pytest.raises(ValueError, match="give network"):
        PositionalQueryObjective(PositionalQueryObjectiveConfig(), torch.nn.Identity())
    with pytest.raises(ValueError, match="share of the area"):
        PositionalQueryObjectiveConfig(anchor=(0.5, 0.2))
