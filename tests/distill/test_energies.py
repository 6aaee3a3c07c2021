"""The evaluation network's energies of text and style, against their definitions on a small random network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from distill.networks.evaluator.augment import views
from distill.networks.evaluator.energy import LabelEnergy, StyleEnergy, TextEnergy, grams
from distill.networks.evaluator.network import Evaluator, EvaluatorBlock, EvaluatorConfig
from gen.cli.app import ENERGIES
from gen.tasks.energies import EnergyInfo, get_energy
from samplers.denoiser import Condition


@pytest.fixture(scope="module")
def network() -> Evaluator:
    torch.manual_seed(0)
    return Evaluator(EvaluatorConfig(size=16, widths=(4, 6, 8, 10), dim=12, text_dim=5)).eval().requires_grad_(False)


def pictures(count=2, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


class Encoder:
    """Sentence embeddings of the letters' codes."""

    asked: list[str]

    def __init__(self):
        self.asked = []

    def pooled(self, texts):
        self.asked += texts
        return torch.tensor([[float(ord(c)) for c in text[:5].ljust(5)] for text in texts]).sin()


def test_text_is_the_cosine_of_picture_and_text(network):
    encoder, images = Encoder(), pictures()
    energy = TextEnergy(scale=3.0, network=network, encoder=encoder).for_prompts(["a cat", "a dog"])
    embedded = network.embed(images * 2 - 1)
    wanted = F.linear(F.normalize(encoder.pooled(["a cat", "a dog"]), dim=-1), network.text_head.weight, network.text_head.bias)
    expected = 3 * F.cosine_similarity(embedded, wanted, dim=1)
    torch.testing.assert_close(energy(images, Condition()), expected, rtol=1e-5, atol=1e-6)
    energy(images, Condition())
    assert encoder.asked == ["a cat", "a dog"] * 2  # once above, once for all calls
    fixed = TextEnergy("a cat", 3.0, network, encoder).for_prompts(["x", "y"])(images, Condition())
    torch.testing.assert_close(fixed[0], expected[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no text"):
        TextEnergy(network=network, encoder=encoder).for_prompts(["a cat", " "])


def test_style_is_the_distance_of_gram_matrices(network):
    images, reference = pictures(), pictures(3)[2]
    energy = StyleEnergy(reference, 2.0, network)

    def matrices(image):  # stage by stage, feature by feature
        x, found = network.trunk[:3](network.resize(image[None] * 2 - 1)), []
        for i, layer in enumerate(network.trunk[3:]):
            x = layer(x)
            following = network.trunk[4 + i] if 4 + i < len(network.trunk) else None
            if isinstance(following, EvaluatorBlock) and following.shortcut is not None:
                found.append(torch.einsum("chw,dhw->cd", x[0], x[0]) / x[0, 0].numel())
        return found

    wanted = matrices(reference)
    assert len(wanted) == 3
    expected = []
    for image in images:
        parts = [((g - w) ** 2).sum() / (w**2).sum() for g, w in zip(matrices(image), wanted, strict=True)]
        expected.append(-2 * sum(parts) / 3)
    torch.testing.assert_close(energy(images, Condition()), torch.stack(expected), rtol=1e-4, atol=1e-6)
    assert energy(reference[None], Condition()).abs() < 1e-9
    shuffled = grams(network, images)[0]
    torch.testing.assert_close(shuffled, shuffled.mT)


def test_the_stages_end_at_what_is_pooled(network):
    images = pictures() * 2 - 1
    last = network.stages(images)[-1]
    torch.testing.assert_close(torch.cat([last.mean((2, 3)), last.amax((2, 3))], 1), network.features(images))
    assert [f.shape[-1] for f in network.stages(images)] == [8, 4, 2, 1]


def test_both_push_pictures_towards_what_is_asked(network):
    for energy in (StyleEnergy(pictures(3)[2], 1.0, network), TextEnergy("a cat", 1.0, network, Encoder())):
        images = pictures().requires_grad_()
        energy = energy.for_prompts(["", ""]) if hasattr(energy, "for_prompts") else energy
        before = energy(images, Condition())
        (slope,) = torch.autograd.grad(before.sum(), images)
        moved = images + 1e-2 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
        assert (energy(moved.detach(), Condition()) > before).all()


def test_the_command_line_knows_them_and_style_opens_a_file(network, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    info = EnergyInfo("style", *ENERGIES["style"])
    assert info.external and not EnergyInfo("text", *ENERGIES["text"]).external
    found = get_energy(info, image=str(tmp_path / "red.png"), scale=2.0)
    assert isinstance(found, StyleEnergy) and found.scale == 2.0
    with pytest.raises(ValueError, match="needs image"):
        get_energy(info)
    with pytest.raises(ValueError, match="image"):
        get_energy(info, image=str(tmp_path / "none.png"))


def test_copies_are_averaged_and_always_the_same(network):
    encoder, images = Encoder(), pictures()
    single = TextEnergy("a cat", 3.0, network, encoder)
    seen = views(images * 2 - 1, 2)
    assert torch.equal(seen[0], images * 2 - 1) and not torch.equal(seen[1], seen[2])
    expected = sum(single((view + 1) / 2, Condition()) for view in seen) / 3
    several = TextEnergy("a cat", 3.0, network, encoder, copies=2)
    torch.testing.assert_close(several(images, Condition()), expected, rtol=1e-4, atol=1e-5)
    images.requires_grad_(True)
    (gradient,) = torch.autograd.grad(several(images, Condition()).sum(), images)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    with pytest.raises(ValueError, match="copies"):
        TextEnergy("a cat", copies=-1)


def test_a_labels_energy_is_the_mean_over_copies():
    class Known:
        labels, log_scale = ("cat", "dog"), torch.tensor(0.5)

        def to(self, device):
            return self

        def classify(self, images):
            return images.mean((2, 3))[:, :2]

    images = pictures()
    energy = LabelEnergy(network=Known(), copies=2).for_prompts(["a dog", "a cat"])
    each = [(Known().classify(v) * Known.log_scale.exp()).log_softmax(1)[[0, 1], [1, 0]] for v in views(images * 2 - 1, 2)]
    torch.testing.assert_close(energy(images, Condition()), sum(each) / 3)
