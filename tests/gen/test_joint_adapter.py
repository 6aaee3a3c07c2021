"""Joint adapters: what joint attention adds, against attention written out; whole models; recipes; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gen.generator import Generator
from gen.io.weights import CheckpointError
from gen.models.components import save_component
from gen.models.control_pictures import KINDS, map_of
from gen.models.folder import write_model
from gen.nn.joint import JointAdapter, JointAdapterConfig, JointAttention
from gen.nn.reference_encoder import attention_sizes
from gen.pipeline.recipe import Recipe
from gen.tasks.joint.cli import with_map
from samplers.denoiser import Context
from samplers.hooks import Site
from tests.gen.conftest import CONFIG, randomise, tiny_autoencoder, tiny_text_encoder
from tests.gen.test_reference_encoder import NETWORKS, network, text

CALL = {"seed": 1, "num_inference_steps": 2, "progress": False, "output_type": "pt"}
PICTURE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))


def adapter_for(base, zero: bool = False, **sizes) -> JointAdapter:
    """A small adapter for a network; none of its weights is zero unless asked for."""
    found = attention_sizes(base, "joint")
    linear = {n: tuple(m.weight.shape) for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith("fc1")}
    own = {"layers": found["layers"], "dim": found["layer_dim"], "rank": 2, "map_rank": 2, "changed": linear, **sizes}
    made = JointAdapter(JointAdapterConfig(**own))
    return (made if zero else randomise(made, 3)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(a generator on a tiny DiT, the folder of an adapter with weights, that of a fresh one)."""
    root = tmp_path_factory.mktemp("joint")
    base = network()
    write_model(root / "model", CONFIG, base, tiny_autoencoder(), tiny_text_encoder())
    save_component(adapter_for(base), root / "adapter")
    save_component(adapter_for(base, zero=True), root / "fresh")
    return Generator.from_pretrained(root / "model", device="cpu", dtype="float32"), root


def test_joint_attention_written_out():
    """Each stream's patches attend to the other's, changed by their own low-rank factors; tokens before patches do not."""
    torch.manual_seed(0)
    count, extras, heads, width = 2, 3, 2, 4
    own = adapter_for(network(), layers=2, dim=8, changed={}, map_rank=0).double()
    q, k, v = torch.randn(3, 2 * count, extras + 5, heads, width, dtype=torch.float64).unbind(0)
    site = Site(1, 2, extras, 1, 5)
    out = JointAttention(own, count, 0.7)(site, q, k, v, lambda q, k, v: torch.zeros_like(q))
    assert torch.equal(out[:, :extras], torch.zeros_like(out[:, :extras]))
    for row in range(2 * count):
        stream, other = row // count, (row + count) % (2 * count)
        parts = []
        for part, value in enumerate((q[row], k[other], v[other])):
            flat = value[extras:].flatten(1)
            change = own.up[1, stream, part].double() @ own.down[1, stream, part].double()
            parts.append((flat + flat @ change.T).unflatten(1, (heads, width)))
        scores = torch.einsum("lhd,mhd->hlm", parts[0], parts[1]) / width**0.5
        seen = torch.einsum("hlm,mhd->lhd", scores.softmax(-1), parts[2]).flatten(1)
        expected = 0.7 * (seen @ own.out[1, stream].double().T)
        torch.testing.assert_close(out[row, extras:].flatten(1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_a_fresh_adapter_changes_nothing_and_another_joins_any_network(kind):
    """Of each kind of network: without weights two models apart; with them each stream depends on the other."""
    base, condition, context = network(kind), text(4), Context()
    x, time = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([100.0, 100.0, 900.0, 900.0])
    plain = base(x, time, condition, context)
    fresh, own = adapter_for(base, zero=True, changed={}, map_rank=0), adapter_for(base, changed={}, map_rank=0)
    with torch.no_grad():
        same = base(x, time, condition, JointAttention(fresh, 2).hooked(context))
        torch.testing.assert_close(same, plain, rtol=1e-5, atol=1e-6)
        joined = base(x, time, condition, JointAttention(own, 2).hooked(context))
        moved = x.clone()
        moved[2] += 1  # the first map
        there = base(moved, time, condition, JointAttention(own, 2).hooked(context))
    assert (there[0] - joined[0]).abs().max() > 1e-6 and (there[1] - joined[1]).abs().max() < 1e-6


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"joint_map": PICTURE, "joint_scale": 2.0},
        {"joint_picture": PICTURE, "joint_shown": "both", "sampler": "euler_a"},
        {"joint_map": PICTURE, "joint_strength": 0.6, "negative_prompt": "blurry"},
        {"guidance": "pag"},
        {"cache": "first_block"},
    ],
)
def test_every_direction_replays_and_does_not_depend_on_its_neighbours(opened, call):
    generator, root = opened
    asked = {**CALL, "joint": "segments", "joint_adapter": root / "adapter", "num_inference_steps": 3, **call}
    made = generator("a cat", num_images_per_prompt=2, **asked)
    both = call.get("joint_shown") == "both" or not ({"joint_map", "joint_picture"} & call.keys())
    assert made.images.shape == (2, 3, 32, 64 if both else 32) and bool(made.images.isfinite().all())
    assert torch.equal(generator("a cat", **{**asked, "seed": 2}).images[0], made.images[1])
    recipe = Recipe.from_json(made.recipes[1].to_json())
    again = {name: value for name, value in asked.items() if name in ("joint_map", "joint_picture", "joint_adapter")}
    assert torch.equal(generator.replay(recipe, "pt", progress=False, **again).images[0], made.images[1])


def test_a_fresh_adapter_draws_the_models_own_picture_and_keeps_what_is_given(opened):
    generator, root = opened
    plain = generator("a cat", **CALL).images[0]
    asked = {**CALL, "joint": "segments", "joint_adapter": root / "fresh"}
    torch.testing.assert_close(generator("a cat", **asked).images[0, :, :, :32], plain, rtol=1e-4, atol=1e-4)
    shown = generator("a cat", **asked, joint_map=PICTURE, joint_shown="map").images[0]
    read = KINDS["segments"][1](PICTURE[None])
    expected = generator.decode(generator.autoencoder.encode(read * 2 - 1) * generator.config.latent_scale)[0]
    torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-4)
    other = generator.estimate(PICTURE, "a cat", **CALL, joint_adapter=root / "adapter").images
    assert other.shape == (1, 3, 32, 32) and generator.loaded_adapters is not None and not generator.adapters


def test_what_is_refused(opened, tmp_path):
    generator, root = opened
    asked = {**CALL, "joint": "segments", "joint_adapter": root / "adapter"}
    for wrong, message in (
        ({"joint": "segment"}, "Did you mean 'segments'"),
        ({"joint": "edges"}, "draws segments, not edges"),
        ({"joint": None}, "joint_adapter was given without joint"),
        ({"joint_map": PICTURE, "joint_picture": PICTURE}, "nothing is left to draw"),
        ({"joint_strength": 0.5}, "give joint_map or joint_picture"),
        ({"joint_map": PICTURE, "joint_strength": 2.0}, "joint_strength"),
        ({"joint_shown": "maps"}, "Did you mean 'map'"),
        ({"joint_adapter": tmp_path / "none"}, "no folder here"),
        ({"image": PICTURE}, "goes without image"),
        ({"hires": 2.0}, "goes without joint"),
    ):
        with pytest.raises(ValueError, match=message):
            generator("a cat", **{**asked, **wrong})
    save_component(adapter_for(network(), changed={"blocks.0.nothing": (4, 4)}), tmp_path / "other")
    with pytest.raises(CheckpointError, match="changes a layer"):
        generator("a cat", **{**asked, "joint_adapter": tmp_path / "other"})
    save_component(adapter_for(network(), layers=2), tmp_path / "short")
    with pytest.raises(ValueError, match="it is for another model"):
        generator("a cat", **{**asked, "joint_adapter": tmp_path / "short"})
    made = generator("a cat", **asked, joint_map=PICTURE).recipes[0]
    for given, message in (
        ({}, "drawn of a map, which its recipe does not hold"),
        ({"joint_map": 1 - PICTURE, "joint_adapter": root / "adapter"}, "joint_map is not what"),
        ({"joint_map": PICTURE, "joint_scale": 2.0}, "leave joint_scale out"),
        ({"joint_map": PICTURE, "joint_picture": PICTURE}, "without joint_picture"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.replay(made, "pt", progress=False, **given)


def test_maps_and_the_command_line():
    assert with_map({"joint": "edges=a=b.png"}) == {"joint": "edges", "joint_map": Path("a=b.png")}
    assert with_map({"joint": None}) == {"joint": None, "joint_map": None}
    with pytest.raises(ValueError, match="names no file"):
        with_map({"joint": "edges="})
    lines = map_of("edges", PICTURE[None])
    assert lines.shape == (1, 3, 32, 32) and set(lines.unique().tolist()) <= {0.0, 1.0}
