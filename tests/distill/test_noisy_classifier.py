"""The classifier of noisy images: any path's x, a toy where it finds Bayes' rule, and its export as a guide."""

import pytest
import torch

from distill.networks.classifier.energy import NoisyLabel
from distill.networks.classifier.network import NoisyClassifier, NoisyClassifierConfig
from distill.objectives.classifier import ClassifierConfig, ClassifierObjective
from distill.types import Batch, Draws, Phase
from gen.models.components import load_component, save_component
from gen.tasks.energy_guidance.task import make_guide
from samplers import Condition, Context, RectifiedFlow, VariancePreserving
from samplers.guidance import ClassifierGuided
from samplers.guidance.greedy import RAdam
from samplers.path import VarianceExploding
from tests.gen.conftest import randomise

TINY = {"channels": 2, "num_classes": 3, "patch": 1, "widths": (8, 8), "groups": 4, "time_dim": 16}
FLOW = RectifiedFlow()


def network(**changes):
    return randomise(NoisyClassifier(NoisyClassifierConfig(**TINY | changes)), 1).eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_all_paths_are_the_same_classifier_at_the_same_log_snr():
    net, x, level = network().double(), noise(2, 2, 4, 4).double(), FLOW(0.6)
    expected = net(x / (0.4**2 + 0.6**2) ** 0.5, torch.tensor([0.6 / 0.4] * 2).double().atan()).log_softmax(1)
    assert (net.log_probabilities(x, level) - expected).abs().max() < 1e-5
    for path in (VarianceExploding(), VariancePreserving.scaled_linear()):
        other = path.at_logsnr(level.logsnr)
        scaled = x * (other.alpha / level.alpha)
        assert (net.log_probabilities(scaled, other) - expected).abs().max() < 1e-5
    rows = FLOW(torch.tensor([0.6, 0.2]).double())
    assert (net.log_probabilities(x, rows)[0] - expected[0]).abs().max() < 1e-5
    assert (net.log_probabilities(x, rows)[1] - net.log_probabilities(x, FLOW(0.2))[1]).abs().max() < 1e-5
    assert (net.log_probabilities(x, FLOW(0.2)) - expected).abs().max() > 1e-3  # it reads the level


def test_training_finds_the_posterior_of_two_gaussians():
    """Constant images of -1 or +1 under noise: log p(+ | x) - log p(- | x) is 2 alpha sum(x) / sigma^2, at every level."""
    torch.manual_seed(0)
    net = NoisyClassifier(
        NoisyClassifierConfig(channels=1, num_classes=2, patch=2, widths=(16,), groups=4, time_dim=16)
    ).train()
    objective = ClassifierObjective(ClassifierConfig(), net)
    ascents = [RAdam(0.03, (0.9, 0.99)) for _ in net.parameters()]
    for step in range(80):
        index = torch.arange(64) + 64 * step
        labels = index % 2
        batch = Batch(index=index, latents=(2.0 * labels - 1)[:, None, None, None].expand(-1, 1, 2, 2), labels=labels)
        loss, logged = objective.loss(Phase("classifier", "classifier"), {"classifier": net}, batch, Draws(0, index), step)
        slopes = torch.autograd.grad(-loss, list(net.parameters()))
        for parameter, ascent, slope in zip(net.parameters(), ascents, slopes, strict=True):
            parameter.data += ascent(slope)
    level, eps, sign = FLOW(0.75), noise(256, 1, 2, 2), 2.0 * (torch.arange(256) % 2) - 1
    x = level.alpha * sign[:, None, None, None] + level.sigma * eps
    with torch.no_grad():
        found = net.log_probabilities(x, level)
    odds, truth = found[:, 1] - found[:, 0], 2 * level.alpha * x.sum((1, 2, 3)) / level.sigma**2
    assert torch.corrcoef(torch.stack([odds, truth]))[0, 1] > 0.9
    assert float((odds.sigmoid() - truth.sigmoid()).abs().mean()) < 0.16  # saying nothing is 0.3
    assert set(logged) == {"top1", "top1_clear"}


def test_its_folder_is_a_guide(tmp_path):
    net = network()
    net.set_labels(["cat", "dog", "red heart"])
    save_component(net, tmp_path / "it")
    again, x = load_component(tmp_path / "it", "noisy_classifier"), noise(2, 2, 4, 4)
    assert again.labels == net.labels and torch.equal(
        again.log_probabilities(x, FLOW(0.5)), net.log_probabilities(x, FLOW(0.5))
    )

    energy = NoisyLabel(str(tmp_path / "it"), "a Cat", scale=2.0).for_prompts(["", ""])
    expected = 2 * net.log_probabilities(x, FLOW(0.5))[:, 0]
    assert torch.equal(energy.noisy(x, FLOW(0.5), Condition()), expected)
    own = NoisyLabel(net).for_prompts(["a dog", "red heart"])(x, Condition())
    assert (own - net.log_probabilities(x, VarianceExploding()(0.02))[[0, 1], [1, 2]]).abs().max() < 1e-6
    with pytest.raises(ValueError, match="knows no 'dogg'; did you mean 'dog'"):
        NoisyLabel(net, "dogg").noisy(x, FLOW(0.5), Condition())

    guide = make_guide(energy, 1.5, None, None)
    assert guide.guide.method == "classifier" and guide.guide.energy == ""

    class Zero:
        path = FLOW

        def __call__(self, x, level, condition, context):
            from samplers.prediction import Prediction

            return Prediction(x, level, torch.zeros_like(x), (0.0, 1.0))

    levels = (FLOW(1.0), FLOW(0.5), FLOW(0.0))
    field, _ = guide.build(None, Zero(), None, levels, None, ["", ""])
    direct = ClassifierGuided(Zero(), energy.noisy, 1.5, unconditional=False)
    found, wanted = (d(x, FLOW(0.5), Condition(), Context()).eps for d in (field, direct))
    assert torch.equal(found, wanted) and wanted.abs().max() > 0
    with pytest.raises(ValueError, match="knows clean ones only"):
        make_guide(lambda images, c: images.sum((1, 2, 3)), 1.0, "classifier", None).build(
            None, Zero(), None, levels, None, [""]
        )


def test_mistakes_are_sentences():
    with pytest.raises(ValueError, match="There are 2 labels, and the classifier's num_classes is 3"):
        network().set_labels(["a", "b"])
    with pytest.raises(ValueError, match="do not divide its width 6"):
        network(widths=(8, 6))
    with pytest.raises(ValueError, match=r"takes \(B, 2, H, W\)"):
        network()(noise(1, 3, 4, 4), torch.tensor([0.1]))
    objective = ClassifierObjective(ClassifierConfig(), network())
    index = torch.arange(1)
    with pytest.raises(ValueError, match="the data have none"):
        objective.loss(Phase("classifier", "classifier"), {}, Batch(index=index, latents=noise(1, 2, 4, 4)), Draws(0, index), 0)
