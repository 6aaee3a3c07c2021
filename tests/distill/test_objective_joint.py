"""Training of a joint adapter: its loss against the model's own, its levels, what learns, and what a run of it gives."""

from __future__ import annotations

import pytest
import torch

from distill.networks.joined import JoinedNetwork
from distill.objectives.unicon import JointObjective, JointObjectiveConfig
from distill.types import Batch, Draws, Phase
from gen.generator import Generator
from gen.models.control_pictures import map_of
from gen.models.folder import write_model
from samplers.denoiser import Context
from tests.distill.test_objective_reference import captioned, text_teacher
from tests.gen.conftest import CONFIG, randomise

PHASE = Phase("joint", "joint")


def objective(**config) -> JointObjective:
    settings = {"rank": 2, "map_rank": 2, "exclude": ("kv",), "given": 0.0, "together": 0.0, **config}
    return JointObjective(JointObjectiveConfig(**settings), torch.nn.Identity(), None, text_teacher())


def loss_of(method: JointObjective, batch: Batch, seed: int = 0):
    networks = {name: role.network for name, role in method.roles.items()}
    return method.loss(PHASE, networks, batch, Draws(seed, batch.index, "joint"), 0)


def test_at_first_the_loss_is_the_models_own_on_pictures_and_maps():
    batch = captioned()
    method = objective(loss="flow", min_sigma=1e-3)
    given, draws = method.teacher, Draws(0, batch.index, "joint")
    maps = map_of("segments", (batch.images + 1) / 2) * 2 - 1
    x0 = torch.cat([given.clean(batch), given.clean(Batch(batch.index, maps))])
    level, noised = method.levels(draws, x0.device)
    assert bool(noised.all()) and (level.t[:4] - level.t[4:]).abs().min() > 1e-3
    eps = torch.cat([draws.normal_like(name, x0[:4]) for name in ("eps", "eps of maps")])
    condition = method.condition(batch, draws, x0.device)
    assert torch.equal(condition.tokens[:4], condition.tokens[4:])
    predicted = given.denoiser(given.network)(level.mix(x0, eps), level, condition, Context())
    error = predicted.flow(given.path) - (eps - x0)
    assert loss_of(method, batch)[0].item() == pytest.approx(error.square().mean().item(), rel=1e-4)


def test_levels_of_the_directions():
    """A share has one of the two without noise, and nothing of its error; a share has both at one level."""
    method, index = objective(given=0.5, together=0.3), torch.arange(200)
    level, noised = method.levels(Draws(0, index, "joint"), torch.device("cpu"))
    pictures, maps = level.t.view(2, 200)
    assert torch.equal(level.t == 0, ~noised) and not bool(((pictures == 0) & (maps == 0)).any())
    shares = [(pictures == 0).float().mean(), (maps == 0).float().mean(), (pictures == maps).float().mean()]
    torch.testing.assert_close(torch.stack(shares), torch.tensor([0.25, 0.25, 0.3]), rtol=0, atol=0.1)
    batch = captioned(2)
    alone = objective(given=1.0, min_sigma=1e-3, loss="flow")
    _, said = loss_of(alone, batch)
    own_level, kept = alone.levels(Draws(0, batch.index, "joint"), torch.device("cpu"))
    assert bool(kept.sum() == 2) and said["raw_error"].isfinite() and (own_level.t == 0).sum() == 2


def test_what_learns():
    """What joins, of both directions, and layers of maps; the model never. Pictures alone would stay the base's."""
    method, batch = objective(), captioned()
    network = method.roles["joint"].network
    loss_of(method, batch)[0].backward()
    assert bool((network.adapter.out.grad.flatten(2).abs().amax(2) > 0).all())
    assert all(up.grad.abs().max() > 0 for up in network.adapter.map_up.values())
    assert all(p.grad is None for p in network.base.parameters())
    assert not any(name.endswith(".kv") for name in network.adapter.config.changed)
    randomise(network.adapter, 5)
    network.adapter.out.data.zero_()
    x, time = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((4,), 500.0)
    condition = method.condition(captioned(2), Draws(0, torch.arange(2), ""), torch.device("cpu"))
    with torch.no_grad():
        changed, plain = network(x, time, condition), network.base(x, time, condition)
    torch.testing.assert_close(changed[:2], plain[:2], rtol=1e-5, atol=1e-6)
    assert (changed[2:] - plain[2:]).abs().max() > 1e-3


def test_branches_of_guidance_are_joined_each_for_itself():
    method = objective()
    trained = randomise(method.roles["joint"].network, 5)
    x, time = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(100, 900, 8)
    condition = method.condition(captioned(4), Draws(0, torch.arange(4), ""), torch.device("cpu"))
    with torch.no_grad():
        both = JoinedNetwork(trained.base, trained.adapter, 2)(x, time, condition)
        apart = [trained(x[rows], time[rows], condition[rows]) for rows in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(both, torch.cat(apart), rtol=1e-4, atol=1e-5)


def test_a_preview_and_an_adapter_that_a_generator_reads(tmp_path):
    """The exported adapter makes of rows what the trained network makes of them."""
    method, batch = objective(), captioned(2)
    network = randomise(method.roles["joint"].network, 6).bfloat16().float()
    sheet, names = method.preview({"joint": network}, batch, 0)
    assert sheet.shape == (12, 3, 32, 32) and len(names) == 12 and bool(sheet.isfinite().all())
    method.export({"joint": network}, tmp_path / "adapter")
    teacher = method.teacher
    write_model(tmp_path / "model", CONFIG, teacher.network, teacher.autoencoder, teacher.text_encoder)
    generator = Generator.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    call = {"seed": 1, "num_inference_steps": 1, "guidance_scale": 1.0, "sampler": "euler", "progress": False}
    asked = {"joint": "segments", "joint_adapter": tmp_path / "adapter", "output_type": "pt"}
    drawn = generator("cat", **call, **asked).images
    plain = generator("cat", **call, output_type="pt").images
    assert drawn.shape == (1, 3, 32, 64) and (drawn[..., :32] - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"), [({"kind": "edge"}, "Did you mean 'edges'"), ({"given": 0.7, "together": 0.5}, "must not exceed 1")]
)
def test_what_a_config_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        JointObjectiveConfig(**wrong)
