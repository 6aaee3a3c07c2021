"""Controls of our DiT: what they add, against the blocks run by hand; what they go with; pictures to follow; folders."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gen.generator import Generator
from gen.io.weights import CheckpointError
from gen.models.components import save_component
from gen.models.control import DiTFollower
from gen.models.control_pictures import KINDS, PALETTE, as_lines, edges, segments
from gen.models.folder import write_model
from gen.nn.backbones.dit_control import DiTControl, DiTControlConfig
from gen.nn.control import MODE, PICTURE, WEIGHT
from gen.nn.registry import build
from gen.pipeline.recipe import Recipe
from gen.tasks.control.cli import named_controls
from samplers.denoiser import Condition, Context
from samplers.hooks import with_hook
from tests.gen.conftest import CONFIG, randomise, tiny_autoencoder, tiny_text_encoder

SIZES = {"type": "dit", "size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 4, "heads": 2}
TEXT = {"text_tokens": 8, "text_dim": 16, "modulation": "adaln_single", "pooled_text": True}
EDGES = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
OTHER = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2))
CALL = {"seed": 1, "num_inference_steps": 2, "progress": False, "output_type": "latent"}


def network(**sizes):
    return randomise(build({**SIZES, **TEXT, **sizes}), 1).eval()


def control_of(base, depth: int = 2, seed: int = 3, zero: bool = False, **options) -> DiTControl:
    """A control of a tiny DiT; none of its weights is zero unless asked for."""
    control = DiTControl.of(base, depth, 4, **options)
    return (control if zero else randomise(control, seed)).eval()


def following(count: int, picture=EDGES, weight: float = 1.0, name: str = "a") -> dict:
    shown = F.pixel_unshuffle(picture.expand(count, -1, -1, -1), 4)
    return {PICTURE + name: shown, WEIGHT + name: torch.full((count,), weight)}


def text(count: int, **extra) -> Condition:
    tokens = torch.randn(count, 8, 16, generator=torch.Generator().manual_seed(4))
    mask = torch.arange(8) < torch.arange(3, 3 + count)[:, None]
    return Condition(tokens=tokens, mask=mask, extra=extra)


def noisy(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return x, torch.linspace(100, 900, count)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["text", "label", "nothing"])
def test_an_untrained_control_changes_nothing_to_the_bit(kind):
    base = {"text": network, "label": lambda: randomise(build({**SIZES, "num_classes": 3}), 1).eval(),
            "nothing": lambda: randomise(build(SIZES), 1).eval()}[kind]()  # fmt: skip
    base.controls["a"] = DiTFollower(control_of(base, zero=True), "")
    condition = {"text": text(3), "label": Condition(label=torch.tensor([0, 2, -1])), "nothing": Condition()}[kind]
    plain, followed = (base(*noisy(3), replace(condition, extra=extra), Context()) for extra in ({}, following(3)))
    assert torch.equal(plain, followed)
    base.controls["a"] = DiTFollower(control_of(base), "")
    trained, off = (base(*noisy(3), replace(condition, extra=following(3, weight=w)), Context()) for w in (1.0, 0.0))
    assert torch.equal(plain, off) and (plain - trained).abs().max() > 1e-3


@torch.no_grad()
def test_copies_start_as_the_blocks_that_they_are_of():
    """With the layers behind them as identities, what is added is what the denoiser's own blocks give."""
    base, seen = network(), []
    control = control_of(base, depth=3, zero=True)
    for layer in control.after:
        torch.nn.init.eye_(layer.weight)

    def keep(index, count, x, run):
        out = run()
        seen.append(out)
        return out

    torch.nn.init.zeros_(control.picture.leave.weight)  # so that copies see what the blocks see
    base.controls["a"] = DiTFollower(control, "")
    added = []
    original = control.forward
    control.forward = lambda *given: added.append(original(*given)) or added[-1]
    base(*noisy(2), text(2), with_hook(Context(), "block", keep))
    base(*noisy(2), text(2, **following(2)), Context())
    for mine, own in zip(added[0], seen, strict=False):
        torch.testing.assert_close(mine, own)


@torch.no_grad()
@pytest.mark.parametrize(("places", "where"), [("first", [0, 1, None, None]), ("spread", [0, 0, 1, 1])])
@pytest.mark.parametrize("reads_text", [True, False])
def test_what_is_added_and_where(places, where, reads_text):
    """Against blocks run one by one: each of the control's results behind the blocks that are its own, times its weight."""
    base = network()
    control = control_of(base, places=places, text=reads_text)
    base.controls["a"] = DiTFollower(control, "")
    found = base(*noisy(2), text(2, **following(2, weight=0.7)), Context())
    kept = []
    original = control.forward
    control.forward = lambda *given: kept.append(original(*given)) or kept[-1]
    base(*noisy(2), text(2, **following(2)), Context())

    def by_hand(index, count, x, run):
        return run() + (0 if where[index] is None else 0.7 * kept[0][where[index]])

    expected = base(*noisy(2), text(2), with_hook(Context(), "block", by_hand))
    torch.testing.assert_close(found, expected)
    assert [control.place(i, 4) for i in range(4)] == where
    prompts = text(2, **following(2))
    other = replace(prompts, tokens=prompts.tokens + 1)
    base(*noisy(2), other, Context())
    # without text of its own it knows of the prompt what the modulation says
    assert not torch.equal(kept[-1][0], kept[0][0])


@torch.no_grad()
def test_rows_follow_their_own_pictures():
    base = network()
    base.controls["a"] = DiTFollower(control_of(base, kinds=["edges", "segments"]), "")
    x, time = noisy(3)
    extra = following(3, torch.stack([EDGES, OTHER, EDGES]))
    extra |= {WEIGHT + "a": torch.tensor([1.0, 0.5, 0.0]), MODE + "a": torch.tensor([[0], [1], [1]])}
    condition = text(3, **extra)
    together = base(x, time, condition, Context())
    alone = torch.cat([base(x[i : i + 1], time[i : i + 1], condition[i : i + 1], Context()) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together[2], base(x, time, text(3), Context())[2])  # its weight is 0
    first = base(x, time, replace(condition, extra={**extra, MODE + "a": torch.zeros(3, 1)}), Context())
    assert (first - together)[1].abs().max() > 1e-4 and torch.equal(first[0], together[0])


@torch.no_grad()
def test_several_are_summed():
    base = network()
    one, two = control_of(base), control_of(base, depth=3, seed=9, text=False)
    base.controls |= {"a": DiTFollower(one, ""), "b": DiTFollower(two, "")}
    kept = {}
    for name, each in (("a", one), ("b", two)):

        def keep(*given, name=name, run=each.forward):
            kept[name] = run(*given)
            return kept[name]

        each.forward = keep
    both = base(*noisy(2), text(2, **following(2), **following(2, OTHER, 0.5, "b")), Context())

    def by_hand(index, count, x, run):
        return run() + kept["a"][one.place(index, 4)] + 0.5 * kept["b"][two.place(index, 4)]

    torch.testing.assert_close(both, base(*noisy(2), text(2), with_hook(Context(), "block", by_hand)))


# ---- a whole model ----


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(a generator on a tiny DiT, a control's folder, one of another control)."""
    root = tmp_path_factory.mktemp("dit")
    base = network()
    write_model(root / "model", CONFIG, base, tiny_autoencoder(), tiny_text_encoder())
    save_component(control_of(base), root / "one")
    save_component(control_of(base, depth=3, seed=8, kinds=["edges", "segments"]), root / "two")
    return Generator.from_pretrained(root / "model", device="cpu"), root / "one", root / "two"


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"prompt": "a [red:blue:0.5] cat AND a dog:0.5"},
        {"guidance": "nag"},
        {"guidance": "pag"},
        {"guidance": "slg", "guidance_options": {"layers": [1]}},
        {"guidance": "apg"},
        *({"cache": name} for name in ("reuse", "easy", "first_block", "taylor")),
        {"image": torch.full((3, 32, 32), 0.5), "strength": 0.9},
        {"sampler": "euler_a"},
        {"height": 48, "width": 64},
    ],
)
def test_it_goes_with_the_rest(opened, call):
    """A picture is another with control; none but for the pictures beside it; and a recipe makes it again."""
    generator, folder, _ = opened
    asked = {"prompt": "a cat", "negative_prompt": "blurry", "num_inference_steps": 3, **call}
    picture = {"control": EDGES, "controlnet": folder}
    if "height" in call:
        picture["control"] = F.interpolate(EDGES[None], (48, 64))[0]
    common = {name: CALL[name] for name in ("progress", "output_type")}
    made = generator(**asked, **picture, seed=1, num_images_per_prompt=2, **common)
    plain = generator(**asked, seed=1, **common)
    assert bool(made.images[0].isfinite().all()) and not torch.equal(made.images[0], plain.images[0])
    alone = generator(**asked, **picture, seed=2, **common)
    assert torch.equal(alone.images[0], made.images[1])
    recipe = Recipe.from_json(made.recipes[1].to_json())
    again = generator.replay(
        recipe, "latent", progress=False, **picture, **({"image": call["image"]} if "image" in call else {})
    )
    assert torch.equal(again.images[0], made.images[1])


def test_it_acts_within_its_range_and_a_name_is_enough(opened):
    generator, folder, union = opened
    plain = generator("a cat", **CALL).images[0]
    asked = {"control": EDGES, "controlnet": folder}
    none = generator("a cat", **asked, control_range=(900, 1000), **CALL).images[0]
    zero = generator("a cat", **asked, control_weight=0.0, **CALL).images[0]
    assert torch.equal(none, plain) and torch.equal(zero, plain)
    modes = [generator("a cat", control=EDGES, controlnet=union, control_mode=m, **CALL) for m in (0, 1)]
    assert not torch.equal(modes[0].images[0], modes[1].images[0])
    assert [made.recipes[0].control[0].mode for made in modes] == [0, 1]
    with pytest.raises(ValueError, match="is a union; give control_mode"):
        generator("a cat", control=EDGES, controlnet=union, **CALL)


def test_canvases_regions_and_loras(opened):
    generator, folder, _ = opened
    asked = {"control": EDGES, "controlnet": folder}
    plain = generator("a cat", **asked, **CALL)
    placed = generator.layout({"regions": [{"prompt": "a cat", "box": [0, 0, 1, 1]}]}, **asked, **CALL)
    torch.testing.assert_close(placed.images[0], plain.images[0], atol=1e-5, rtol=0)
    wide = torch.cat([EDGES, OTHER], dim=2)
    latents = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    windows = {"height": 32, "width": 64, "window": 32, "stride": 32, "latents": latents, "sampler": "euler"}
    drawn = generator.panorama("a cat", control=wide, controlnet=folder, **windows, **CALL).images[0]
    for i, own in enumerate((EDGES, OTHER)):
        half = {"latents": latents[..., 8 * i : 8 * (i + 1)], "control": own, "controlnet": folder, "sampler": "euler"}
        torch.testing.assert_close(
            drawn[..., 8 * i : 8 * (i + 1)], generator("a cat", **half, **CALL).images[0], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"control": EDGES}, "control and controlnet go together"),
        ({"control": EDGES, "controlnet": 3}, "give the folder of a ControlNet, or edges or segments"),
        ({"control": EDGES, "controlnet": "nowhere"}, "controlnet is 'nowhere', which is no folder here"),
        ({"control": {"edges": EDGES}, "controlnet": "edges"}, "control has names"),
        ({"control": {"edges": EDGES}}, "has dim 256, and this model's network 32"),
        ({"control": {"outline": EDGES}}, "controlnet is 'outline'"),
    ],
)
def test_wrong_requests_are_one_sentence(opened, asked, said):
    with pytest.raises(ValueError, match=said):
        opened[0]("a cat", **asked, **CALL)


def test_folders_from_outside_are_checked(opened, tmp_path):
    import shutil

    generator, folder, _ = opened

    def changed(name: str, **values) -> dict:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **values}))
        return {"control": EDGES, "controlnet": copy}

    for name, values, said in (
        ("kind", {"type": "dit"}, "is a 'dit', and this model takes a dit_control"),
        ("code", {"type": "os.system"}, "is a 'os.system'"),
        ("key", {"auto_map": "x.Y"}, "auto_map"),
        ("deep", {"depth": 50_000}, "more than|larger|not of one model"),
        ("wide", {"dim": 64}, "does not fit DiTControl"),
        ("factor", {"factor": 8}, "does not fit DiTControl|not of one model"),
    ):
        with pytest.raises(CheckpointError, match=said):
            generator("a cat", **changed(name, **values), **CALL)
    other = control_of(network(dim=16))
    save_component(other, tmp_path / "narrow")
    with pytest.raises(CheckpointError, match="has dim 16, and this model's network 32; it is for another model"):
        generator("a cat", control=EDGES, controlnet=tmp_path / "narrow", **CALL)
    with pytest.raises(ValueError, match="factor is 6; the convolutions need a multiple of 4"):
        DiTControlConfig(**{key: value for key, value in SIZES.items() if key != "type"}, factor=6)
    with pytest.raises(ValueError, match="depth is 9; the network has 4 blocks"):
        DiTControl.of(network(), 9, 4)


# ---- pictures to follow ----


def painted(size: int = 32) -> torch.Tensor:
    """A blue square on yellow, a smaller red one in it, (1, 3, size, size)."""
    picture = torch.tensor([0.95, 0.9, 0.2]).view(1, 3, 1, 1).repeat(1, 1, size, size)
    picture[..., 8:24, 8:24] = torch.tensor([0.1, 0.2, 0.8]).view(3, 1, 1)
    picture[..., 12:16, 12:16] = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1)
    return picture


def test_edges_are_the_outlines_of_what_is_painted():
    lines = edges(painted())[0, 0]
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")

    def ring(first: int, last: int) -> torch.Tensor:
        """How far from the outline of a square."""
        inside = torch.maximum((rows - (first + last) / 2).abs(), (columns - (first + last) / 2).abs())
        return (inside - (last - first) / 2).abs()

    near = torch.minimum(ring(8, 23), ring(12, 15))
    assert set(lines.unique().tolist()) == {0.0, 1.0} and (near[lines > 0] <= 1).all()
    for first, last in ((8, 23), (12, 15)):  # closed but for corners: each side has its line, one pixel wide
        middle = (first + last) // 2
        assert lines[middle, first - 1 : first + 1].sum() == 1 and lines[last : last + 2, middle].sum() == 1
    assert not edges(torch.full((1, 3, 16, 16), 0.5)).any()
    faint = 0.5 + (painted() - 0.5) / 8
    assert not edges(faint).any() and torch.equal(edges(faint, 0.06 / 8, 0.15 / 8)[0, 0], lines)
    both = edges(torch.cat([faint, painted()]), torch.tensor([0.06 / 8, 0.06]), torch.tensor([0.15 / 8, 0.15]))
    assert torch.equal(both[0, 0], lines) and torch.equal(both[1, 0], lines)


def test_a_faint_line_is_kept_where_it_joins_a_clear_one():
    ramp = torch.zeros(1, 3, 32, 32)
    ramp[..., 16:] = torch.linspace(0.3, 1.0, 32).view(32, 1)
    weak, strong, joined = edges(ramp, 0.3, 0.3), edges(ramp, 0.09, 0.09), edges(ramp, 0.09, 0.3)
    assert torch.equal(joined, strong) and 0 < weak.sum() < strong.sum()


def test_segments_are_the_regions_whatever_their_colours():
    regions = segments(painted())
    colours = [torch.tensor(colour) for colour in PALETTE]
    assert torch.equal(regions[0, :, 0, 0], colours[0]) and torch.equal(regions[0, :, 20, 20], colours[1])
    assert torch.equal(regions[0, :, 13, 13], colours[2])
    assert torch.equal(segments(regions), regions)  # a map of regions is its own
    recoloured = painted()[:, [2, 0, 1]] * 0.8 + 0.1
    assert torch.equal(segments(recoloured), regions)
    noisy = painted() + 0.02 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (segments(noisy) - regions).abs().mean() < 0.01
    assert not segments(torch.full((1, 3, 16, 16), 0.7)).any()
    two = torch.cat([painted(), recoloured])
    assert torch.equal(segments(two), torch.cat([regions, regions]))


def test_lines_of_a_drawing_become_white_on_black():
    drawing = 1 - edges(painted())
    assert torch.equal(as_lines(drawing), edges(painted())) and torch.equal(as_lines(1 - drawing), edges(painted()))
    assert set(KINDS) == {"edges", "segments"}


def test_pictures_are_given_by_name_on_the_command_line(tmp_path):
    from pathlib import Path

    def split(*control: str, controlnet: tuple[str, ...] = ()) -> tuple[list, list]:
        found = named_controls({"control": [Path(c) for c in control], "controlnet": [Path(n) for n in controlnet]})
        return found["control"], found["controlnet"]

    assert split("edges=a.png") == ([Path("a.png")], ["edges"])
    assert split("a.png", "segments=b=c.png", controlnet=("net",)) == (
        [Path("a.png"), Path("b=c.png")],
        [Path("net"), "segments"],
    )
    assert split("a.png", controlnet=("net",)) == ([Path("a.png")], [Path("net")])
    assert split("depth=a.png", controlnet=("net",)) == ([Path("depth=a.png")], [Path("net")])
    with pytest.raises(ValueError, match="1 of the pictures of --control have no name, and --controlnet has 0"):
        split("a.png", "edges=b.png")
    with pytest.raises(ValueError, match="0 of the pictures of --control have no name, and --controlnet has 1"):
        split("edges=b.png", controlnet=("net",))


def test_the_default_models_own_controls_are_followed():
    """A thing fills an ellipse shown as a region, or as its outline, where the same seed without draws another shape."""
    generator = Generator.from_pretrained("default", device="cpu", dtype="float32")
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    inside = ((columns - 64) / 50) ** 2 + ((rows - 70) / 26) ** 2 < 1
    shown = inside.float().expand(3, -1, -1).contiguous()
    lines = edges(shown[None])[0]
    call = {"seed": 3, "num_inference_steps": 8, "progress": False, "output_type": "pt"}

    def fits(**control) -> float:
        """The intersection over union of the ellipse and what is drawn on white."""
        drawn = (1 - generator("a red car", **control, **call).images[0]).amax(0) > 0.25
        return ((drawn & inside).sum() / (drawn | inside).sum()).item()

    plain = fits()
    assert (
        plain < 0.7 and fits(control={"segments": shown}) > 0.85 and fits(control=1 - lines, controlnet="edges") > plain + 0.1
    )
    named = generator("a red car", control=shown, controlnet="segments", **{**call, "num_inference_steps": 1})
    assert named.recipes[0].control[0].mode == 1
