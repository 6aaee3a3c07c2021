"""No step waits for the device, and nothing on it has 64 bits: every solver, grid, guidance rule, cache and kind of noise.

The device is pretended (`tests.pretend`); what must wait is in `STAY`, and docs/devices.md gives the reasons.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from gen.nn.registry import build
from samplers import (
    CACHES,
    GUIDANCE,
    ClassifierFree,
    Condition,
    Context,
    NetworkDenoiser,
    RectifiedFlow,
    VariancePreserving,
    get_cache,
    get_guidance,
)
from samplers.brownian import brownian_noise
from samplers.noise import KINDS, normal, seeded_noise
from samplers.registry import get_grid, get_solver, grid_names, solver_info, solver_names
from samplers.sample import trajectory
from samplers.simplex import SimplexPath, shorten, transport
from tests.gen.conftest import UVIT, randomise
from tests.pretend import ROOT, Pretend, pretended

__all__ = ["pretended"]

# file -> what decides on the host, of what is not known before the device has computed it
STAY = {
    "samplers/solvers/adaptive.py": "dpm_adaptive",
    "samplers/cache/easy_cache.py": "easy",
    "samplers/cache/first_block.py": "first_block",
    "samplers/guidance/energy.py": "energies",
    "gen/pipeline/finite.py": "energies",
    "samplers/guidance/inverse.py": "restore",
    "samplers/guidance/operators.py": "restore",
    "gen/nn/text_encoder.py": "prompts that change",
    "gen/models/prompt_cache.py": "prompts that change",
    "gen/models/bridge/families/hidream.py": "hidream",
    "gen/models/bridge/families/qwen_image.py": "qwen_image",
}
ONCE = ("samplers/constants.py",)  # what is copied once in a process, when it is used first
PATHS = {"table": (VariancePreserving.scaled_linear(), "eps", "index"), "flow": (RectifiedFlow(), "flow", "1000t")}


def waits(device: Pretend, first: int = 0) -> list[str]:
    """Those of steps after the first ones that need not be: of files that are not in the table."""
    return [str(wait) for wait in device.between(first) if wait.line.split(":")[0] not in (*STAY, *ONCE)]


def curved(x, time, condition, context):
    return torch.tanh(0.3 * x + 0.001 * time.view(-1, *[1] * (x.ndim - 1)))


def run(device, denoiser, solver, path, steps=4, brownian=False, condition=None):
    """A run whose every step is marked."""
    levels = get_grid("karras", path, steps)
    x = normal([0, 1], (4, 8, 8), "latents", device=device.device) * levels[0].sigma
    noise = (brownian_noise if brownian else seeded_noise)([0, 1], x)
    device.mark()
    made = x
    for state in trajectory(denoiser, solver, x, levels, condition, noise=noise, context=Context()):
        device.mark()
        made = state.x
    return made


@pytest.mark.parametrize("path", PATHS)
def test_no_solver_waits(pretended, path):
    """From the first step on, with noise that is drawn on the host and copied."""
    own, prediction, clock = PATHS[path]
    for name in solver_names():
        denoiser = NetworkDenoiser(curved, own, prediction, clock)
        pretended.seen.clear()
        made = run(pretended, denoiser, get_solver(name), own, 3, solver_info(name).brownian)
        # a flow map's network is told where a step ends, by a table that is copied at the first of them
        found = waits(pretended, 1 if name == "flow_map" else 0)
        assert not found, (name, found)
        assert pretended.take(made).isfinite().all(), name


@pytest.mark.parametrize("source", [seeded_noise, brownian_noise])
@pytest.mark.parametrize("kind", KINDS)
def test_no_noise_waits(pretended, kind, source):
    """Philox' table of quantiles is copied once in a process. On this device a path is added in 32 bits: to 1e-4."""
    like, (path, _, _) = torch.zeros(2, 4, 8, 8), PATHS["table"]
    levels = get_grid("karras", path, 4)
    there = source([5, 6], pretended.put(like), kind=kind)
    there(levels[0], levels[1])
    pretended.mark()
    made = [there(s, t) for s, t in pairwise(levels)]
    pretended.mark()
    assert not pretended.between(0)
    here = source([5, 6], like, kind=kind)
    for one, (s, t) in zip(made, pairwise(levels), strict=True):
        torch.testing.assert_close(pretended.take(one), here(s, t), rtol=1e-4, atol=1e-4)


def test_transports_have_nothing_of_64_bits(pretended):
    """The device, which has none, gives what the CPU gives."""
    x, corners = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)), torch.ones(4, 2, 3)

    def parts(weights, x):
        return torch.stack([x.tanh(), x], 1) * weights[:, :, None]

    edge = SimplexPath(0, 1, 2)
    there = transport(parts, pretended.put(x), edge, 3)
    torch.testing.assert_close(pretended.take(there), transport(parts, x, edge, 3), rtol=1e-5, atol=1e-5)
    assert shorten(parts, pretended.put(corners), edge, 1).count == 2


def test_what_the_table_lists_does_wait(pretended):
    """A line of it that no longer waits is taken out."""
    path, prediction, clock = PATHS["table"]
    run(pretended, NetworkDenoiser(curved, path, prediction, clock), get_solver("dpm_adaptive"), path)
    assert any(wait.line.startswith("samplers/solvers/adaptive.py") for wait in pretended.between(0))


def test_a_copy_from_the_host_is_seen(pretended):
    """The harness itself: copies both ways, what is read, masks as indices; and what does not wait."""
    x = torch.ones(3, device=pretended.device)
    quiet = [lambda: x + 1.5, lambda: x.sum() * torch.tensor(2.0), lambda: torch.full((2,), 3.0, device=x.device)]
    quiet += [lambda: torch.randn(4).pin_memory().to(x.device, non_blocking=True), lambda: x[1:], lambda: x[None, ..., :2]]
    loud = [lambda: float(x[0]), lambda: bool(x.sum() > 2), x.tolist, x.cpu, lambda: torch.randn(3).to(x.device)]
    loud += [lambda: torch.tensor([1.0], device=x.device), lambda: x[x > 0], lambda: x.nonzero(), lambda: torch.equal(x, x)]
    loud += [lambda: torch.randn(3).to(x.device, non_blocking=True), lambda: x.new_tensor([2.0])]
    for action, count in [*((one, 0) for one in quiet), *((one, 1) for one in loud)]:
        before = len(pretended.waits)
        action()
        assert len(pretended.waits) - before == count, action
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(TypeError, match="float64"):
        x.double()


def test_the_device_computes_as_the_cpu_does(pretended):
    path, prediction, clock = PATHS["table"]
    denoiser = NetworkDenoiser(curved, path, prediction, clock)
    there = run(pretended, denoiser, get_solver("dpmpp_2m_sde"), path, brownian=True)
    levels = get_grid("karras", path, 4)
    x = normal([0, 1], (4, 8, 8), "latents") * levels[0].sigma
    for state in trajectory(denoiser, get_solver("dpmpp_2m_sde"), x, levels, noise=brownian_noise([0, 1], x)):
        here = state.x
    torch.testing.assert_close(pretended.take(there), here, rtol=1e-5, atol=1e-5)


def test_no_grid_is_computed_on_the_device(pretended):
    """Levels are floats, whatever the path."""
    with torch.device(pretended.device):
        for path, _, _ in PATHS.values():
            for name in grid_names():
                if name in ("table", "gits"):
                    continue
                try:
                    levels = get_grid(name, path, 4)
                except (TypeError, ValueError):  # of another path, or with options of its own
                    continue
                assert all(type(value) is float for level in levels for value in (level.alpha, level.sigma)), name


@pytest.fixture
def network(pretended):
    made = randomise(build({**UVIT, "num_classes": 3}), 4).to(pretended.device)
    return NetworkDenoiser(made, *PATHS["flow"])


def labels(device):
    return Condition(label=torch.tensor([1, 2], device=device.device))


@pytest.mark.parametrize("name", [name for name in GUIDANCE if name != "embedded"])
def test_no_guidance_rule_waits(pretended, network, name):
    info, options = GUIDANCE[name], {}
    if "scale" in info.options:
        options["scale"] = 2.0
    if name == "autoguidance":
        options["weak"] = network
    base = ClassifierFree(network, 2.0) if info.modifier and not info.inner else network
    denoiser, solver = get_guidance(name, base, get_solver("dpmpp_2m"), **options)
    run(pretended, denoiser, solver, network.path, condition=labels(pretended))
    assert not waits(pretended, 1), name  # layers and the like are read once for a run


@pytest.mark.parametrize("name", CACHES)
def test_no_cache_waits(pretended, network, name):
    denoiser = ClassifierFree(get_cache(name, network), 2.0)
    run(pretended, denoiser, get_solver("dpmpp_2m"), network.path, 6, condition=labels(pretended))
    assert not waits(pretended, 1), name
    assert any(wait.line.split(":")[0] in STAY for wait in pretended.between(1)) == (name in STAY.values())


def test_the_page_says_what_waits():
    page = Path(ROOT / "docs/devices.md").read_text()
    for file in STAY:
        assert f"`{file}`" in page, file
