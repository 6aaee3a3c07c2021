"""Block caches and perturbed attention on networks of diffusers: against diffusers' pipelines; nothing stays behind."""

from __future__ import annotations

import pytest
import torch

from gen.generator import Generator
from gen.models.bridge.hook_layouts import LAYOUTS, layout_of, shows
from gen.models.bridge.hooks import Heads, hooked
from gen.models.bridge.pipeline import PIPELINES
from samplers.denoiser import Context
from samplers.hooks import with_hook
from tests.gen import pipelines
from tests.gen.test_bridge_parity import CLOSE, PROMPT, STEPS, grid_of, noise, ours, theirs

TRANSFORMERS = ("pixart", "sd3", "flux", "sana")


def call(name: str, generator: Generator, **options):
    subject = {"class_labels": [7]} if name == "dit" else {"prompt": PROMPT}
    usual = {"num_inference_steps": 4, "seed": 2, "height": 32, "width": 32, "output_type": "pt", "progress": False}
    return generator(**subject, **usual | options)


def changed(network: torch.nn.Module) -> list[str]:
    """Modules with a forward or a processor of ours."""
    return [
        name
        for name, module in network.named_modules()
        if "forward" in vars(module) or isinstance(getattr(module, "processor", None), Heads)
    ]


def test_every_network_that_a_family_opens_has_a_layout():
    assert LAYOUTS.keys() == {family.classes[family.backbone][0] for family in PIPELINES.values()}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_block_caches(bridged, name):
    """Never skipping changes no bit; a cache that skips runs fewer blocks and gives another picture; all is put back."""
    _, generator = bridged(name)
    plain, runs = call(name, generator).images, []
    inside = generator.network.network
    block = [*inside.transformer_blocks, *getattr(inside, "single_transformer_blocks", [])][1]
    handle = block.register_forward_hook(lambda *_: runs.append(1))
    none = call(name, generator, cache="first_block", cache_options={"threshold": 0.0}).images
    never = call(name, generator, cache="first_block", cache_options={"threshold": 1e-9}).images
    full = len(runs)
    taylor = call(name, generator, cache="taylor", cache_options={"stride": 1}).images
    assert torch.equal(none, plain) and torch.equal(never, plain) and torch.equal(taylor, plain)
    handle.remove()
    seen = []
    original = block.forward
    block.forward = lambda *args, **named: seen.append(1) or original(*args, **named)
    try:
        for cache, options in (("first_block", {"threshold": 1e3}), ("taylor", {"stride": 3})):
            seen.clear()
            images = call(name, generator, cache=cache, cache_options=options).images
            assert 0 < len(seen) < full / 2 and (images - plain).abs().max() > 1e-5 and images.isfinite().all()
        assert "forward" in vars(block)  # what was there before is there again
    finally:
        del block.forward
    assert changed(generator.network) == []


def test_a_cache_on_a_joint_network_forecasts_what_its_blocks_add(bridged):
    """At a repeated input TaylorSeer's repeat is exact: the text that leaves the blocks is not what the head reads."""
    _, generator = bridged("sd3")
    network = generator.network
    condition, x, time = generator.encode_prompt([PROMPT]), torch.randn(1, 8, 16, 16), torch.tensor([500.0])
    with torch.no_grad():
        plain = network(x, time, condition, Context())
        kept: dict[str, torch.Tensor] = {}

        def record(index, count, tokens, run):
            out = run()
            kept.setdefault("start", tokens)
            kept["end"] = out
            return out

        def repeat(index, count, tokens, run):
            return kept["start"] + (kept["end"] - kept["start"]) if index == count - 1 else tokens

        assert torch.equal(network(x, time, condition, with_hook(Context(), "block", record)), plain)
        again = network(x, time, condition, with_hook(Context(), "block", repeat))
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["stable_diffusion", "sana"])
def test_attention_broadcast(bridged, name):
    _, generator = bridged(name)
    plain = call(name, generator).images
    same = call(name, generator, cache="pyramid", cache_options={"self_stride": 1, "cross_stride": 1}).images
    fresh = call(name, generator, cache="pyramid", cache_options={"interval": (50.0, 60.0)}).images  # no level lies there
    assert torch.equal(same, plain) and torch.equal(fresh, plain)
    cached = call(name, generator, cache="pyramid", cache_options={"self_stride": 3, "cross_stride": 3}).images
    assert (cached - plain).abs().max() > 1e-5 and changed(generator.network) == []


@pytest.mark.parametrize("name", ["stable_diffusion", "dit"])
def test_perturbed_attention_at_scale_0_is_cfg(bridged, name):
    _, generator = bridged(name)
    options = {"layers": (0,), "perturbed_scale": 0.0}
    plain = call(name, generator, guidance="cfg", guidance_scale=3.0)
    none = call(name, generator, guidance="pag", guidance_scale=3.0, guidance_options=options)
    assert torch.equal(none.images, plain.images)
    some = call(name, generator, guidance="pag", guidance_scale=3.0, guidance_options=options | {"perturbed_scale": 2.0})
    blurred = call(name, generator, guidance="seg", guidance_scale=3.0, guidance_options=options | {"perturbed_scale": 2.0})
    assert some.nfe == plain.nfe * 1.5
    assert min((some.images - plain.images).abs().max(), (blurred.images - some.images).abs().max()) > 1e-5
    assert changed(generator.network) == []


def test_an_identity_hook_changes_nothing(bridged):
    """Attention in our processor is attention in diffusers', to rounding."""
    _, generator = bridged("stable_diffusion")
    network, condition = generator.network, generator.encode_prompt([PROMPT])
    x, time, sites = torch.randn(1, 4, 9, 13), torch.tensor([300.0]), []
    context = with_hook(Context(), "heads", lambda site, q, k, v, run: sites.append(site) or run(q, k, v))
    with torch.no_grad():
        torch.testing.assert_close(
            network(x, time, condition, context), network(x, time, condition, Context()), atol=1e-5, rtol=1e-5
        )
    # the tiny U-Net attends at half the size, rounded up: once on the way down, in the middle, twice on the way up
    assert [(site.index, site.rows, site.columns) for site in sites] == [(i, 5, 7) for i in range(4)]


def test_stable_diffusion_pag_gives_diffusers_picture(bridged):
    from diffusers import StableDiffusionPAGPipeline

    pipeline, generator = bridged("stable_diffusion")
    parts = {name: part for name, part in pipeline.components.items() if name != "unet"}
    x = noise(generator, 2)
    for layer, index in (("mid", 1), ("down", 0)):
        unet = pipelines.unet()
        unet.load_state_dict(pipeline.unet.state_dict())
        pag = StableDiffusionPAGPipeline(**parts, unet=unet, requires_safety_checker=False, pag_applied_layers=[layer])
        pag.set_progress_bar_config(disable=True)
        reference = theirs("stable_diffusion", pag, x, 4.0, pag_scale=2.5)
        options = {"layers": (index,), "perturbed_scale": 2.5}
        found = ours("stable_diffusion", generator, x, 4.0, guidance="pag", guidance_options=options)
        torch.testing.assert_close(found, reference, **CLOSE)
    assert (found - ours("stable_diffusion", generator, x, 4.0)).abs().max() > 1e-3


@pytest.mark.parametrize("native", [False, True])
def test_pixart_sigma_pag_gives_diffusers_picture(bridged, native):
    from diffusers import PixArtSigmaPAGPipeline

    _, generator = bridged("pixart", native=native, sigma=True)
    fresh = pipelines.pixart(sigma=True)  # its processors stay with the pipeline that set them
    pag = PixArtSigmaPAGPipeline(**fresh.components, pag_applied_layers=["blocks.1"])
    pag.set_progress_bar_config(disable=True)
    x = noise(generator, 1)
    pag.scheduler.set_timesteps(STEPS)
    grid = grid_of(pag.scheduler, generator.denoiser.path)
    reference = theirs("pixart", pag, x, 4.0, pag_scale=2.5)
    options = {"layers": (1,), "perturbed_scale": 2.5}
    found = ours("pixart", generator, x, 4.0, schedule=grid, guidance="pag", guidance_options=options)
    torch.testing.assert_close(found, reference, **CLOSE)


def test_what_cannot_work_says_why(bridged):
    for name, options, message in (
        ("stable_diffusion", {"cache": "first_block"}, "a U-Net's blocks change the size of the picture"),
        ("sd3", {"guidance": "pag", "guidance_options": {"layers": 0}}, "its attention is over text and image together"),
        ("flux", {"cache": "pyramid", "guidance": "cfg"}, "its attention is over text and image together"),
        ("sana", {"guidance": "seg", "guidance_options": {"layers": 0}}, "Sana's attention is linear"),
        ("pixart", {"guidance": "pag", "guidance_options": {"layers": 9}}, "the network has blocks 0 to 1"),
    ):
        _, generator = bridged(name)
        with pytest.raises(ValueError, match=message):
            call(name, generator, **options)
        assert changed(generator.network) == []


def test_an_attention_of_another_kind_is_refused(bridged):
    from diffusers.models.attention_processor import FusedAttnProcessor2_0

    generator = Generator(bridged("pixart")[1].config, bridged("pixart")[1].network, device="cpu", dtype="float32")
    attention = generator.network.network.transformer_blocks[0].attn1
    before, attention.processor = attention.processor, FusedAttnProcessor2_0()
    try:
        context = with_hook(Context(), "heads", lambda site, q, k, v, run: run(q, k, v))
        condition = bridged("pixart")[1].encode_prompt(["a"])
        with pytest.raises(ValueError, match=r"computed by FusedAttnProcessor2_0; call set_attn_processor"):
            generator.network(torch.randn(1, 4, 16, 16), torch.tensor([1.0]), condition, context)
    finally:
        attention.processor = before
    assert changed(generator.network) == []


class Chain(torch.nn.Module):
    """Two blocks, known as PixArt's."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.transformer_blocks:
            x = block(x)
        return x


@torch.no_grad()
@pytest.mark.parametrize("place", ["network", "call", "block"])
def test_hooks_reach_into_what_is_compiled(place):
    """A compiled network runs as it is written where hooks act, and compiled again afterwards."""
    graphs, seen = [], []
    network: torch.nn.Module = type("PixArtTransformer2DModel", (Chain,), {})()
    x = torch.randn(1, 3, 2)
    plain, options = network(x), {"backend": lambda graph, inputs: graphs.append(graph) or graph}
    if place == "network":
        network = torch.compile(network, **options)
    elif place == "call":
        network.compile(**options)
    else:
        network.transformer_blocks[1] = torch.compile(network.transformer_blocks[1], **options)
    hook = with_hook(Context(), "block", lambda index, count, tokens, run: seen.append(index) or run())
    torch.testing.assert_close(network(x), plain)
    assert len(graphs) == 1 and shows(network) == "block"
    with hooked(network, hook, 1, 3):
        torch.testing.assert_close(network(x), plain)
    assert seen == [0, 1] and len(graphs) == 1
    torch.testing.assert_close(network(x), plain)
    assert seen == [0, 1]


def test_a_network_without_a_layout_refuses_hooks_in_a_sentence():
    class New(torch.nn.Module):
        pass

    class Finetune(torch.nn.Module):
        pass

    Finetune.__name__ = "SD3Transformer2DModel"
    hook = with_hook(Context(), "block", lambda index, count, tokens, run: run())
    assert shows(New()) == "block"
    with (
        pytest.raises(ValueError, match="A New has no known places for caches of blocks and skipped layers; use caches of"),
        hooked(New(), hook, 2, 2),
    ):
        pass
    derived = type("Finetuned", (Finetune,), {})
    assert layout_of(derived()) is LAYOUTS["SD3Transformer2DModel"]
