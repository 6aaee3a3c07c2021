"""Training of a control: its loss against the model's own, what learns at first, what is shown, and that it is followed."""

from __future__ import annotations

import copy

import pytest
import torch

from distill.networks.controlled import ControlledNetwork, follows
from distill.objectives.bases.student_sampling import sample_by
from distill.objectives.bases.teacher import Teacher
from distill.objectives.control import ControlConfig, ControlObjective
from distill.types import Batch, Draws, Phase
from gen.generator import Generator
from gen.models.control_pictures import edges, segments
from gen.models.folder import write_model
from gen.nn.registry import build
from samplers.denoiser import Condition, Context
from samplers.noise import normal
from tests.distill.cases import AUTOENCODER
from tests.distill.students import SIZES, VP, exact_teacher, model, tiny_teacher
from tests.gen.conftest import randomise

PHASE = Phase("control", "control")


def pictures(count: int, seed: int = 0) -> Batch:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Batch(torch.arange(count), images, labels=torch.arange(count) % 3)


def teacher(path=None, prediction: str = "x0") -> Teacher:
    given = tiny_teacher(prediction=prediction) if path is None else tiny_teacher(path=path, prediction=prediction)
    autoencoder = randomise(build({**AUTOENCODER, "channels": 2}), 2).eval().requires_grad_(False)
    return Teacher(given.model, given.network, autoencoder, name="tiny")


def objective(given=None, network=None, **config) -> ControlObjective:
    torch.manual_seed(0)  # of the convolutions
    settings = ControlConfig(**{"depth": 2, "width": 8, "drop_label": 0.0, **config})
    return ControlObjective(settings, network or torch.nn.Identity(), None, given or teacher())


def loss_of(method: ControlObjective, batch: Batch, seed: int = 0) -> torch.Tensor:
    networks = {name: role.network for name, role in method.roles.items()}
    return method.loss(PHASE, networks, batch, Draws(seed, batch.index, "control"), 0)[0]


@pytest.mark.parametrize(("path", "prediction", "measured"), [(None, "x0", "flow"), (None, "flow", None), (VP, "eps", "v")])
def test_at_first_the_loss_is_the_models_own(path, prediction, measured):
    """The error of the reading that is measured, by its own formula, without any control."""
    given = teacher(path, prediction)
    method, batch = objective(given, loss=measured, min_sigma=1e-3), pictures(4)
    draws = Draws(0, batch.index, "control")
    x0 = given.clean(batch)
    level = given.path(torch.sigmoid(draws.normal("time")) * given.path.t_noise)
    eps = draws.normal_like("eps", x0)
    predicted = given.denoiser(given.network)(level.mix(x0, eps), level, Condition(label=batch.labels), Context())
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in (level.alpha, level.sigma))
    error = {
        "flow": lambda: predicted.flow(given.path) - (eps - x0),
        "v": lambda: (alpha * predicted.eps - sigma * predicted.x0) - (alpha * eps - sigma * x0),
    }[measured or prediction]()
    assert loss_of(method, batch).item() == pytest.approx(error.square().mean().item(), rel=1e-4)


def test_the_layers_behind_learn_first_and_the_model_never():
    """With all that is behind its blocks at zero nothing before it has a gradient, but these layers have at once; where what is
    before them were zero too, they would see no picture."""
    given, batch = teacher(), pictures(4)
    before = copy.deepcopy(given.network.state_dict())
    method = objective(given)
    control = method.roles["control"].network.control
    loss_of(method, batch).backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in control.after)
    before_them = [p.grad for name, p in control.named_parameters() if not name.startswith("after")]
    assert all(gradient is None or not gradient.any() for gradient in before_them)
    with torch.no_grad():
        for layer in control.after:
            layer.weight -= 0.1 * layer.weight.grad
    method.roles["control"].network.zero_grad()
    loss_of(method, batch).backward()
    assert all(p.grad.abs().max() > 0 for name, p in control.named_parameters() if name.endswith("weight")), "all learn"
    assert all(torch.equal(value, before[name]) for name, value in given.network.state_dict().items())
    assert all(parameter.grad is None for parameter in given.network.parameters())
    names = {name for name, _ in method.roles["control"].network.named_parameters()}
    assert names and all(name.startswith("control.") for name in names)


def test_what_is_followed_is_made_of_the_picture_itself():
    method, batch = objective(kinds=["edges", "segments"], thick=0.0), pictures(12)
    draws = Draws(3, batch.index, "control")
    shown, mode = method.shown(batch.images, draws)
    assert set(mode.tolist()) == {0, 1}
    low, high = 0.04 + 0.06 * draws.uniform("l"), 0.10 + 0.12 * draws.uniform("h")
    original = (batch.images + 1) / 2
    expected = torch.where((mode == 0).view(-1, 1, 1, 1), edges(original, low, high), segments(original))
    assert torch.equal(shown, expected)
    one = method.shown(batch.images[5:6], Draws(3, batch.index[5:6], "control"))
    assert torch.equal(one[0][0], shown[5])  # whatever else is in the batch
    thick = objective(kinds=["edges"], thick=1.0).shown(batch.images, draws)[0]
    thin = objective(kinds=["edges"], thick=0.0).shown(batch.images, draws)[0]
    assert torch.equal(thick, torch.nn.functional.max_pool2d(thin, 3, 1, 1))
    extra = method.condition(batch, draws, torch.device("cpu")).extra
    assert torch.equal(torch.nn.functional.pixel_shuffle(extra["map:control:trained"], 4), shown)
    assert extra["control mode:trained"].tolist() == mode[:, None].tolist()


def test_it_learns_to_follow():
    """Pictures of a bar at any height: from pure noise, what follows a picture is nearer to it than what follows another."""
    generator = torch.Generator().manual_seed(1)
    given = teacher()
    rows = torch.arange(16).view(1, 1, 16, 1)

    def batch(first: int, count: int = 16) -> Batch:
        height = torch.randint(1, 12, (count, 1, 1, 1), generator=torch.Generator().manual_seed(first))
        bar = (rows >= height) & (rows < height + 4)
        images = torch.where(bar, -1.0, 1.0).expand(-1, 3, -1, 16).contiguous()
        return Batch(torch.arange(first, first + count), images, labels=torch.zeros(count, dtype=torch.long))

    method = objective(given, kinds=["segments"], depth=3, time={"type": "uniform"}, loss="x0")
    network = method.roles["control"].network
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = loss_of(method, batch(100 * step), step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10]), (losses[:10], losses[-10:])
    held_out = batch(10**6)
    x0 = given.clean(held_out)
    x = torch.randn(x0.shape, generator=generator)
    level = given.path(torch.ones(16) * given.path.t_noise)

    def error(shown: torch.Tensor) -> float:
        condition = Condition(label=held_out.labels, extra=follows(segments((shown + 1) / 2), 4))
        with torch.no_grad():
            predicted = given.denoiser(network)(x, level, condition, Context()).x0
        return (predicted - x0).square().mean().item()

    assert error(held_out.images) < 0.7 * error(held_out.images.flip(0))


def test_what_is_written_is_a_control_that_draws_as_the_run_does(tmp_path):
    given = teacher()
    method = objective(given, kinds=["edges", "segments"])
    network = method.roles["control"].network
    randomise(network, 4)
    method.export({"control": network}, tmp_path / "control")
    assert "fewstep image" in (tmp_path / "control" / "README.md").read_text()
    write_model(tmp_path / "model", given.model.model_copy(update={"sample_size": 16}), given.network, given.autoencoder)
    generator = Generator.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    picture = torch.zeros(1, 3, 16, 16)
    picture[..., 4:12, 4:12] = 1
    call = {"class_labels": [1], "num_inference_steps": 2, "seed": 0, "output_type": "latent", "progress": False}
    made = generator(control=picture[0], controlnet=tmp_path / "control", control_mode=1, **call).images
    with torch.no_grad():
        for parameter in network.parameters():  # what is written is in bfloat16
            parameter.copy_(parameter.bfloat16())
        condition = Condition(label=torch.tensor([1]), extra=follows(segments(picture), 4, torch.tensor([1])))
        drawn = sample_by(given.denoiser(network), given.model.defaults, normal([0], (2, 4, 4), "latents"), condition, steps=2)
    torch.testing.assert_close(made, drawn, rtol=1e-3, atol=1e-3)
    assert (made - generator(**call).images).abs().max() > 0.01


def test_wrong_settings_and_models_are_one_sentence():
    with pytest.raises(ValueError, match="kinds is \\['depth'\\]; give some of edges, segments"):
        ControlConfig(kinds=["depth"])
    with pytest.raises(ValueError, match="is a Exact, and a control is trained for a DiT of ours"):
        objective(exact_teacher())
    with pytest.raises(ValueError, match="depth is 9; the network has 3 blocks"):
        objective(depth=9)
    sized = build({"type": "dit", **SIZES, "dim": 24, "size_conditions": True})
    with pytest.raises(ValueError, match="reads the size of the picture"):
        objective(Teacher(model(), sized, name="sized"))
    latents = Batch(torch.arange(2), latents=torch.zeros(2, 2, 4, 4), labels=torch.zeros(2).long())
    with pytest.raises(ValueError, match="The data have no pictures"):
        loss_of(objective(), latents)
    assert model(size=4).sample_size == SIZES["size"]


def test_copies_have_a_control_of_their_own():
    method = objective()
    network = method.roles["control"].network
    twin = copy.deepcopy(network)
    assert isinstance(twin, ControlledNetwork) and twin.base is network.base
    assert all(a is not b for a, b in zip(network.parameters(), twin.parameters(), strict=True))
