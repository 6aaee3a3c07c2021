"""Guidance and caches by name: the tables are closed, true, and say what is wrong."""

import pytest
import torch

from samplers import Condition, Context, NetworkDenoiser, RectifiedFlow, get_grid, get_solver, sample
from samplers.analytic import Mixture
from samplers.cache import CACHES, cache_names, get_cache
from samplers.guidance import GUIDANCE, CFGPlusPlus, ClassifierFree, Rescale, get_guidance, guidance_info, guidance_names
from tests.gen.test_hooks import TEXT, tiny

FLOW = RectifiedFlow()
X = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = Condition(label=torch.tensor([1, 3]))
LEVELS = get_grid("karras", FLOW, 3)
NEEDS = {"scale": 3.0, "layers": (1,), "weak": None}


def network():
    return NetworkDenoiser(tiny("dit", num_classes=5), FLOW, "flow")


@pytest.mark.parametrize("name", GUIDANCE)
@torch.no_grad()
def test_every_name_runs_at_the_cost_it_states(name):
    info, net, context = GUIDANCE[name], network(), Context()
    options = {need: net if need == "weak" else NEEDS[need] for need in info.needs}
    if info.evaluations == 3:
        options["scale"] = 3.0
    condition = LABELS
    if info.inner:  # it is about text
        net = NetworkDenoiser(tiny("dit", **TEXT), FLOW, "flow")
        condition = Condition(tokens=torch.ones(2, 4, 6, dtype=torch.float64))
    inner = ClassifierFree(net, 3.0) if info.modifier and not info.inner else net
    denoiser, solver = get_guidance(name, inner, get_solver("euler"), **options)
    assert torch.isfinite(sample(denoiser, solver, X, LEVELS, condition, context=context)).all()
    assert context.evaluations == (2 if info.modifier else info.evaluations) * 3 * len(X)
    assert isinstance(solver, CFGPlusPlus) == (info.solver is not None)


@pytest.mark.parametrize("name", CACHES)
@torch.no_grad()
def test_every_cache_runs(name):
    cached = get_cache(name, network())
    assert torch.isfinite(sample(ClassifierFree(cached, 3.0), get_solver("euler"), X, LEVELS, LABELS)).all()
    assert set(CACHES[name].options) <= set(type(cached).__dataclass_fields__)


def test_names_aliases_and_order():
    assert guidance_names() == tuple(GUIDANCE) and cache_names() == tuple(CACHES)
    assert guidance_info("CFG++").name == "cfg++" and guidance_info("cfg_pp").name == "cfg++"
    assert guidance_info("CFG-Zero*").name == "cfg_zero" and guidance_info("Skip Layer").name == "slg"
    denoiser, solver = get_guidance("rescale", *get_guidance("cfg", Mixture.example(FLOW), "euler", scale=2.0), factor=0.3)
    assert isinstance(denoiser, Rescale) and denoiser.factor == 0.3 and denoiser.denoiser.scale == 2.0 and solver == "euler"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: get_guidance("cgf", d, None, scale=2.0), "Unknown guidance 'cgf': did you mean 'cfg'"),
        (lambda d: get_guidance("apg", d, None, scale=2.0, beta=1), "'apg' has no option 'beta': it takes scale"),
        (lambda d: get_guidance("apg", d, None), "'apg' needs scale"),
        (lambda d: get_guidance("autoguidance", d, None), "needs weak and scale"),
        (lambda d: get_cache("teacache", d), "Unknown cache 'teacache'"),
        (lambda d: get_cache("reuse", d, steps=2), "'reuse' has no option 'steps'"),
        (lambda d: get_guidance(3, d, None), "chosen by its name, got 3"),
    ],
)
def test_mistakes_are_sentences(build, message):
    with pytest.raises(ValueError, match=message):
        build(Mixture.example(FLOW))
