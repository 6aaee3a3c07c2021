"""ADM's U-Net, upsamplers and classifier against their equations written again (`tests.gen.adm`), and their files."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from distill.networks.classifier.energy import NoisyLabel
from gen import Generator
from gen.models.formats import read_checkpoint, write_checkpoint
from gen.models.formats.read import own_tensors, slots_of
from gen.models.formats.registry import FORMATS, detect
from gen.nn.registry import build
from samplers.denoiser import Condition, Context
from samplers.guidance import ClassifierGuided
from samplers.hooks import with_hook
from samplers.path import RectifiedFlow, VariancePreserving
from samplers.registry import get_grid
from tests.gen.adm import CLASSIFIERS, PUBLISHED, Computed, flags, random_weights, shapes_of

TINY = {"multipliers": (1, 2), "attention": [2], "classes": 5}
VARIANTS = {
    "as at 64 pixels": flags(64, 32, blocks=1, head_dim=16, new_order=True) | TINY | {"size": 8},
    "as at 128 pixels": flags(128, 32, blocks=2, heads=4) | TINY | {"size": 8},
    "an upsampler": flags(256, 32, blocks=1, upsampler=True) | TINY | {"size": 8},
    "plain": flags(64, 32, blocks=2, updown=False, scale_shift=False, out=3)
    | TINY
    | {"size": 8, "classes": 0, "attention": [1, 2]},
    "three resolutions": flags(64, 32, blocks=1) | TINY | {"size": 8, "multipliers": (1, 1, 2), "attention": [4]},
}


def ours(f, name, dtype=torch.float64, classifier=False, **changes):
    """(the network that a file of these flags is, in memory; its weights by published names)."""
    weights, format = random_weights(shapes_of(f, classifier)), FORMATS[name]
    config = format.infer({key: tuple(value.shape) for key, value in weights.items()}, {"size": f["size"], "heads": 4})
    own = {"heads_first": not f["new_order"], "head_dim": max(f["head_dim"], 0), "heads": f["heads"]}
    network = build({**config, **own, **changes}).to(dtype).eval()
    slots, tensors = slots_of(format, network), own_tensors(network)
    assert slots.keys() == weights.keys()
    with torch.no_grad():
        for key, (slot,) in slots.items():
            slot.of(tensors).copy_(weights[key])
    return network, weights


@pytest.mark.parametrize("f", VARIANTS.values(), ids=VARIANTS)
def test_the_network_is_its_equations(f):
    network, weights = ours(f, "adm")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 12, generator=generator, dtype=torch.float64)  # no square
    time, label = torch.tensor([3.0, 700.0], dtype=torch.float64), torch.tensor([4, 0]) if f["classes"] else None
    low = torch.randn(2, 3, 2, 3, generator=generator, dtype=torch.float64) if f["read"] == 6 else None
    image = None if low is None else F.interpolate(low, (8, 12), mode="bilinear")
    with torch.no_grad():
        got = network(x, time, Condition(label=label, image=image))
        expected = Computed(weights, f).unet(x, time, label, low)
    assert expected.abs().mean() > 0.1
    assert got.shape == expected.shape and (got - expected).abs().max() < 1e-5  # time is embedded in float32 at least


def test_hooks_of_attention_and_of_heads_act_together():
    f = VARIANTS["as at 128 pixels"]
    network, _ = ours(f, "adm")
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    time, condition = torch.tensor([3.0, 700.0], dtype=torch.float64), Condition(label=torch.tensor([4, 0]))
    plain = Context()
    halved = with_hook(Context(), "heads", lambda site, q, k, v, run: run(q, k, v) / 2)
    both = with_hook(halved, "attention", lambda site, x, run: run())
    with torch.no_grad():
        alone, with_heads, with_both = (network(x, time, condition, context) for context in (plain, halved, both))
    torch.testing.assert_close(with_both, with_heads, rtol=0, atol=1e-12)
    assert not torch.allclose(with_heads, alone, atol=1e-3)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_classifier_is_its_equations(blocks):
    f = flags(64, 32, blocks=blocks, head_dim=16) | TINY | {"size": 8}
    network, weights = ours(f, "adm-classifier", classifier=True)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    time = torch.tensor([0.0, 40.0, 999.0], dtype=torch.float64)
    with torch.no_grad():
        assert (network(x, time) - Computed(weights, f).classifier(x, time)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="pictures of 8 pixels"):
        network(x[..., :6, :], time)


@pytest.mark.parametrize(("name", "kind", "f"), [(name, "adm", f) for name, f in PUBLISHED.items()]
                         + [(name, "adm-classifier", f) for name, f in CLASSIFIERS.items()])  # fmt: skip
def test_published_files_are_known_by_their_shapes(name, kind, f):
    """Every flag of a published network follows from names and shapes, and every tensor of the file has its place."""
    shapes = shapes_of(f, kind != "adm")
    assert detect(shapes) == kind
    config = FORMATS[kind].infer(shapes, {})
    told = {"size": f["size"], "dim": f["dim"], "multipliers": tuple(f["multipliers"]), "blocks": f["blocks"]}
    told |= {
        "attention": tuple(sorted(f["attention"])),
        "num_classes": f["classes"],
        "scale_shift": True,
        "resample_blocks": True,
    }
    told |= {"head_dim": 64} if f["head_dim"] == 64 else {"heads": 4}
    told |= {"beside": f["read"] - 3, "learned_variance": True} if kind == "adm" else {}
    assert {key: config[key] for key in told} == told
    assert config.get("heads_first", True) is not f["new_order"]
    with torch.device("meta"):
        network = build(config)
    slots, tensors = slots_of(FORMATS[kind], network), own_tensors(network)
    assert {key: tuple(tensors[slot.name].shape) for key, (slot,) in slots.items()} == shapes
    assert {slot.name for (slot,) in slots.values()} == tensors.keys()


def test_files_are_read_and_written_again(tmp_path):
    f = VARIANTS["as at 128 pixels"]
    weights = random_weights(shapes_of(f), dtype=torch.float32)
    save_file(weights, tmp_path / "it.safetensors")
    with pytest.raises(ValueError, match="does not tell its size"):
        read_checkpoint(tmp_path / "it.safetensors")
    network = read_checkpoint(tmp_path / "it.safetensors", size=8, heads=4)
    x, time = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    expected = Computed({key: value.double() for key, value in weights.items()}, f).unet(
        x.double(), time.double(), torch.tensor([2])
    )
    assert (network(x, time, Condition(label=torch.tensor([2]))) - expected).abs().max() < 1e-4
    write_checkpoint(network, tmp_path / "again.safetensors", "adm")
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == weights.keys() and all(torch.equal(again[name], value) for name, value in weights.items())
    with pytest.raises(ValueError, match="no row for images without a label"):
        network(x, time, Condition())


def test_a_published_file_opens_as_a_model_and_is_guided_by_its_classifier(tmp_path):
    """Noise, clock, steps and variance are the published ones; the classifier, read from its file, gives log p(class | x) at
    the numbers of its own levels on any path, and one step under it moves eps by -sigma times its gradient."""
    f = VARIANTS["as at 128 pixels"]
    save_file(random_weights(shapes_of(f), dtype=torch.float32), tmp_path / "unet.safetensors")
    c = flags(64, 32, blocks=1, head_dim=16) | TINY | {"size": 8}
    weights = random_weights(shapes_of(c, classifier=True), dtype=torch.float32)
    save_file(weights, tmp_path / "classifier.safetensors")
    generator = Generator.from_pretrained(
        tmp_path / "unet.safetensors", device="cpu", dtype="float32", model_options={"size": 8, "heads": 4}
    )
    defaults = generator.config.defaults
    assert (defaults.num_inference_steps, defaults.sampler) == (250, "ddpm")
    assert defaults.sampler_options == {"variance": "learned_range"} and generator.config.clock == "index"
    levels = get_grid(defaults.schedule, generator.denoiser.path, 250, **defaults.schedule_options)
    numbers = [round(1000 * level.t - 1) for level in levels[:-1]]
    assert (numbers[0], numbers[-1], len(set(numbers))) == (999, 0, 250)  # space_timesteps(1000, "250")
    made = generator(class_labels=[2], seed=0, num_inference_steps=3, output_type="pt", progress=False)
    assert made.images.shape == (1, 3, 8, 8) and made.images.isfinite().all()

    classifier = read_checkpoint(tmp_path / "classifier.safetensors", size=8, heads=4)
    path, x = VariancePreserving.linear(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    level = path(0.701)
    expected = Computed(weights, {**c, "head_dim": -1}).classifier(x, torch.tensor([700.0, 700.0])).log_softmax(1)
    with torch.no_grad():
        assert (classifier.log_probabilities(x, level) - expected).abs().max() < 1e-3
        other = RectifiedFlow().at_logsnr(level.logsnr)
        scaled = x * ((other.alpha**2 + other.sigma**2) ** 0.5)
        assert (classifier.log_probabilities(scaled, other) - expected).abs().max() < 1e-3
    energy = NoisyLabel(classifier, "3").for_prompts([""])
    guided = ClassifierGuided(generator.denoiser, energy.noisy, 2.0, unconditional=False)
    condition, x = Condition(label=torch.tensor([1])), x[:1]
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.log_probabilities(leaf, level)[0, 3], leaf)
    with torch.no_grad():
        moved, plain = guided(x, level, condition, Context()), generator.denoiser(x, level, condition, Context())
    assert (moved.eps - (plain.eps - 2 * level.sigma * gradient)).abs().max() < 1e-4  # Algorithm 2
