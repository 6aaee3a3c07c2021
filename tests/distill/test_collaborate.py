"""Training the influence of several models: the loss written out, who gets gradients, and who gets the say."""

import pytest
import torch

from distill.losses.distances import level_weight
from distill.objectives import make_objective
from distill.types import Batch, Draws, Phase
from gen.models.components import load_component, save_component
from gen.models.folder import write_model
from gen.nn.influence_networks import InfluenceConfig, Influences
from gen.nn.registry import build
from samplers import Condition, Context
from samplers.multi_model.collaborative_diffusion import CollaborativeDiffusion
from tests.distill.students import SIZES, model
from tests.gen.conftest import randomise

NETWORK = {"type": "influence", "channels": 2, "dim": 8, "depth": 2, "text_dims": [0, 0], "num_classes": [3, 0]}
PHASE = Phase("influence", "influence")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of labels that say different things."""
    made = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp("models") / str(seed)
        network = randomise(build({"type": "dit", **SIZES}), seed)
        made.append(str(write_model(folder, model(), network)))
    return made


def objective(folders, network=None, reads=("label", "nothing"), **options):
    members = [{"model": folder, "reads": one} for folder, one in zip(folders, reads, strict=True)]
    torch.manual_seed(0)
    network = build(NETWORK) if network is None else network
    return make_objective({"type": "collaborate", "models": members, **options}, network)


def batch(count=4):
    x0 = torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return Batch(index=torch.arange(count), images=x0, labels=torch.arange(count) % 3)


def models(made):
    return {name: role.network for name, role in made.roles.items()}


def test_the_loss_is_that_of_the_mixture_and_only_the_maps_learn(folders):
    made = objective(folders, randomise(build(NETWORK), 5), max_weight=7.0)
    data, draws = batch(), Draws(3, torch.arange(4), "influence")
    loss, logged = made.loss(PHASE, models(made), data, draws, 0)
    loss.backward()
    level = made.levels(draws, data.images.device)
    x = level.mix(data.images, draws.normal("eps", (2, 4, 4)))
    conditions = Condition(label=data.labels), Condition(label=torch.full((4,), -1))
    maps = made.roles["influence"].network(x, level.logsnr, conditions).softmax(1)
    raws = []
    for i, condition in enumerate(conditions):
        config, network = made.opened[folders[i]].config, made.roles[f"model{i}"].network
        raws.append(config.denoiser(network, torch.float32)(x, level, condition, Context()).raw)
    x0 = maps[:, :1] * raws[0] + maps[:, 1:] * raws[1]
    error = (x0 - data.images).square().mean((1, 2, 3))
    assert torch.allclose(loss, (level_weight("truncated_snr", level, 7.0) * error).mean(), rtol=1e-5)
    assert torch.allclose(logged["share0"], maps[:, 0].mean(), atol=1e-6) and maps.std() > 0.01
    for name, role in made.roles.items():
        gradients = [p.grad for p in role.network.parameters()]
        assert all(g is not None for g in gradients) if name == "influence" else all(g is None for g in gradients)


def test_the_better_model_gets_the_say(folders, tmp_path):
    """The data are what the second model says, so its influence grows."""
    network = build(NETWORK)
    made = objective(folders, network, ("label", "nothing"))
    data = batch(8)
    frozen, config = made.roles["model1"].network, made.opened[folders[1]].config
    shares, nothing = [], Condition(label=torch.full((8,), -1))
    for step in range(15):
        draws = Draws(step, torch.arange(8), "influence")
        level = made.levels(draws, data.images.device)
        with torch.no_grad():  # a picture that the second model would say of its own noisy version
            x = level.mix(data.images, draws.normal("eps", (2, 4, 4)))
            target = config.denoiser(frozen, torch.float32)(x, level, nothing, Context()).x0
        said, _ = made.mixture(models(made), x, level, [Condition(label=data.labels), nothing])
        parameters = [p for p in network.parameters() if p.requires_grad]
        gradients = torch.autograd.grad((said.x0 - target).square().mean(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.02 * gradient.sign()
        shares.append(float(network(x, level.logsnr, [Condition(label=data.labels), nothing]).softmax(1)[:, 1].mean().detach()))
    assert shares[0] < 0.7 and shares[-1] > 0.9
    # what it exports is what denoisers are put together with
    save_component(network, tmp_path / "influence")
    again = load_component(tmp_path / "influence", "influence")
    denoisers = [made.opened[f].config.denoiser(made.roles[f"model{i}"].network, torch.float32) for i, f in enumerate(folders)]
    both = CollaborativeDiffusion(again.members(denoisers, [Condition(label=data.labels), nothing]))
    with torch.no_grad():
        expected, _ = made.mixture(models(made), x, level, [Condition(label=data.labels), nothing])
        assert torch.allclose(both(x, level, Condition(), Context()).raw, expected.raw, atol=1e-5)
    with pytest.raises(ValueError, match="1 models and 2 conditions are given for the influence of 2"):
        again.members(denoisers[:1], [None, None])


def test_influence_reads_its_condition_and_level_and_starts_at_zero():
    config = InfluenceConfig(channels=2, dim=8, depth=2, text_dims=(5, 0), num_classes=(0, 3))
    network, x = Influences(config), torch.randn(2, 2, 4, 4)
    level = torch.tensor([0.5, -1.0])
    tokens = Condition(tokens=torch.randn(2, 3, 5), mask=torch.tensor([[True, True, False]] * 2))
    labels = Condition(label=torch.tensor([0, -1]))
    assert not network(x, level, [tokens, labels]).any()
    randomise(network, 1)
    said = network(x, level, [tokens, labels])
    assert said.shape == (2, 2, 4, 4)
    hidden = Condition(tokens=tokens.tokens + 9 * (~tokens.mask).unsqueeze(-1), mask=tokens.mask)  # padding is not read
    assert torch.allclose(network(x, level, [hidden, labels]), said)
    assert not torch.allclose(network(x, level + 1, [tokens, labels]), said)
    other = network(x, level, [Condition(tokens=tokens.tokens + 1, mask=tokens.mask), Condition(label=torch.tensor([1, -1]))])
    assert not torch.allclose(other[:, 0], said[:, 0]) and torch.allclose(other[1, 1], said[1, 1])
    assert not torch.allclose(other[0, 1], said[0, 1])
    empty = Condition(tokens=tokens.tokens, mask=torch.zeros(2, 3, dtype=torch.bool))
    assert torch.isfinite(network(x, torch.tensor([float("inf"), -float("inf")]), [empty, labels])).all()


def test_refusals(folders):
    with pytest.raises(ValueError, match="trains influence maps, not DiT"):
        objective(folders, build({"type": "dit", **SIZES}))
    three = build({**NETWORK, "text_dims": [0] * 3, "num_classes": [0] * 3})
    with pytest.raises(ValueError, match="the influence of 3 models, and 2 are given"):
        objective(folders, three)
    with pytest.raises(ValueError, match="one entry per model each"):
        build({**NETWORK, "num_classes": [3]})
