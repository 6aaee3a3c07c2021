"""No picture is made of NaN: whatever brings one in is named."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch

from gen.adapters import Adapter, Delta
from gen.generator import Generator
from gen.pipeline.guidance_stack import GuidanceStack
from samplers.editing.image_to_image import start_at
from samplers.grids import uniform_time
from samplers.path import RectifiedFlow

NAN = float("nan")
CALL = {"seed": 5, "num_inference_steps": 3, "progress": False}


@pytest.fixture
def generator(tiny_model):
    return Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")


def spoil(module, name, value=NAN):
    with torch.no_grad():
        parameter = dict(module.named_parameters())[name]
        parameter[(0,) * parameter.ndim] = value


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize(
    ("part", "name", "words"),
    [
        ("network", "mid_block.mlp.fc1.weight", "in the network: the denoiser's weight 'mid_block.mlp.fc1.weight'"),
        ("text_encoder", "layers.0.up.weight", "features of the prompt: the text_encoder's weight 'layers.0.up.weight'"),
        ("autoencoder", "decoder.0.weight", "in the decoder: the autoencoder's weight 'decoder.0.weight'"),
    ],
)
def test_weights(generator, part, name, words, value):
    spoil(getattr(generator, part), name, value)
    generator._encoded.clear()
    with pytest.raises(ValueError, match=words):
        generator("a cat", **CALL)


def test_weights_that_encode_a_picture(generator):
    spoil(generator.autoencoder, "encoder.1.weight")
    with pytest.raises(ValueError, match=r"begins with .*autoencoder's weight 'encoder.1.weight'"):
        generator("a cat", image=torch.rand(3, 32, 32), **CALL)


def test_an_adapter(generator):
    layer = "denoiser.mid_block.attn.qkv"
    factors = {"down": torch.full((2, 32), NAN), "up": torch.ones(96, 2)}
    generator.load_adapter(Adapter("bad", {layer: Delta(factors)}))
    with pytest.raises(ValueError, match=f"in the network: the adapter 'bad' holds them in '{layer}'"):
        generator("a cat", **CALL)
    generator.set_adapters({})
    assert generator("a cat", **CALL).images


@pytest.mark.parametrize("inplace", [False, True])
def test_a_callback(generator, inplace):
    def spoiled(one, step, t, given):
        if step == 1:
            latents = given["latents"] if inplace else given["latents"].clone()
            latents[0, 0, 0, 0] = NAN
            return {"latents": latents}
        return None

    with pytest.raises(ValueError, match="callback_on_step_end made NaN or infinite values of the latents after step 2"):
        generator("a cat", callback_on_step_end=spoiled, **CALL)


def of_value(images, condition):
    return images.mean((1, 2, 3)) * NAN


def of_slope(images, condition):
    """Finite, with a derivative that is not: the root of zero."""
    return (images - images.detach()).sum((1, 2, 3)).square().sqrt()


@pytest.mark.parametrize("method", ["tfg", "dps", "lgd", "mpgd", "freedom", "ugd"])
def test_an_energy(generator, method):
    with pytest.raises(ValueError, match="energy 'of_value' is NaN for a picture without NaN"):
        generator("a cat", guide=of_value, guide_method=method, **CALL)
    with pytest.raises(ValueError, match="of the energy 'of_slope' is not finite"):
        generator("a cat", guide=of_slope, guide_method=method, **CALL)


def test_a_heuristic_of_greedy_choice(generator):
    with pytest.raises(ValueError, match="energy 'of_value' is NaN"):
        generator("a cat", greedy=of_value, **CALL)


@dataclass(frozen=True)
class Spoiling:
    """A denoiser around another that gives NaN below a level."""

    denoiser: object

    @property
    def path(self):
        return self.denoiser.path

    def __call__(self, x, level, condition, context):
        prediction = self.denoiser(x, level, condition, context)
        return prediction.with_raw(prediction.raw * NAN) if level.t < 0.5 else prediction


@pytest.mark.parametrize("guidance", ["cfg", "apg", "cfg_zero"])
def test_guidance(generator, monkeypatch, guidance):
    """What guidance makes of finite branches is not the network's fault."""
    build = GuidanceStack.build

    def spoiled(self, *given, **options):
        field, solver = build(self, *given, **options)
        return Spoiling(field), solver

    monkeypatch.setattr(GuidanceStack, "build", spoiled)
    with pytest.raises(ValueError, match=f"in the guidance '{guidance}'"):
        generator("a cat", guidance=guidance, **CALL)


def test_what_is_around_guidance(generator, monkeypatch):
    """A task that spoils the prediction is named, by its name in the table."""
    from gen.tasks.edit.task import Edit

    monkeypatch.setattr(Edit, "wrap_guided", lambda self, denoiser, solver, batch: (Spoiling(denoiser), solver))
    with pytest.raises(ValueError, match="in the image or the sampler 'dpmpp_2m';"):
        generator("a cat", image=torch.rand(3, 32, 32), **CALL)


def test_a_network_of_ones_own(generator):
    network = copy.deepcopy(generator.network)
    forward = network.forward
    network.forward = lambda x, time, condition, context: forward(x, time, condition, context) * (NAN if time[0] < 400 else 1)
    own = Generator(generator.config, network, generator.autoencoder, generator.text_encoder, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="picture of seed 5 came to NaN or infinite values in the network"):
        own("a cat", **CALL)


def test_a_solver_of_ones_own(generator):
    from samplers import get_solver

    solver = get_solver("euler")

    class Mine:
        def init(self, x):
            return solver.init(x)

        def step(self, *given):
            state = solver.step(*given)
            return type(state)(**{**vars(state), "x": state.x * NAN})

    with pytest.raises(ValueError, match="in the sampler 'Mine'"):
        generator("a cat", sampler=Mine(), **CALL)


def test_one_bad_picture_of_several_is_named(generator, monkeypatch):
    forward = generator.network.forward

    def third(x, *rest):
        out = forward(x, *rest)
        if len(x) == 6:
            out[[2, 5]] = NAN
        return out

    monkeypatch.setattr(generator.network, "forward", third)
    with pytest.raises(ValueError, match="picture of seed 7 "):
        generator(["a cat", "a dog", "a red heart"], **CALL)


def test_a_replay_is_watched_too(generator):
    recipe = generator("a cat", **CALL).recipes[0]
    spoil(generator.network, "head.bias")
    with pytest.raises(ValueError, match=r"denoiser's weight 'head\.bias'"):
        generator.replay(recipe, progress=False)


@pytest.mark.parametrize("steps", [*range(1, 60), 100, 125, 333, 700, 999, 1000, 4096])
def test_the_strength_that_is_advised_is_accepted(steps):
    levels = uniform_time(RectifiedFlow(), steps)
    with pytest.raises(ValueError, match="leaves no step") as refused:
        start_at(levels, 0.4 / steps)
    advised = float(str(refused.value).rsplit(" ", 1)[1].rstrip("."))
    assert len(start_at(levels, advised)) == 2
