"""Guidance by an energy, against the published algorithms written out in the variance-preserving x."""

import math
import weakref
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from samplers import (
    Condition,
    Context,
    NetworkDenoiser,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    fold,
    get_grid,
    get_solver,
    sample,
    seeded_noise,
)
from samplers.analytic import Mixture
from samplers.guidance import TFG, ClassifierFree, ClassifierGuided, Recurrent, Rescale, Universal, dps, freedom, lgd, mpgd
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.solvers.edict import EDICT

VE, VP, FLOW = VarianceExploding(0.02, 20.0), VariancePreserving.linear(), RectifiedFlow()
PATHS = pytest.mark.parametrize("path", [VE, VP, FLOW], ids=["VE", "VP", "flow"])
Z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
AS_UNIVERSAL = {"rho_shares": "score", "mu_shares": "constant", "mu_on": "x0"}
LABELS = Condition(label=torch.tensor([0, 1, 2]))
TARGET = torch.tensor([0.7, -0.4], dtype=torch.float64)


def energy(x0, condition):
    """Neither quadratic nor symmetric, so that the order of inner steps matters."""
    return -((x0 - TARGET) ** 2).sum(1) / (1 + 0.3 * (x0**2).sum(1)) + 0.2 * x0[:, 0].sin()


def grad(function, at):
    at = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def grid(path, steps=8):
    """The same log-SNR on every path, neither pure noise nor evenly spaced."""
    return (*(path.at_logsnr(-2.5 + 5 * (i / steps) ** 1.3) for i in range(steps)), path(0.0))


def vp_levels(levels):
    """alpha-bar of each level's variance-preserving twin."""
    return [1 / (1 + (v.sigma / v.alpha) ** 2) for v in levels]


def tweedie(x, bar):
    """D(x) in the variance-preserving coordinates, from the mixture on the VE path."""
    sigma = math.sqrt(1 / bar - 1)
    return Mixture.example(VE)(x / math.sqrt(bar), NoiseLevel(sigma, 1.0, sigma), Condition(), Context()).x0


def published_tfg(x, bars, rho, mu, gamma, deltas, iterations, recur, renoise):
    """arXiv 2409.15761, Algorithm 1, with DDIM as its sampler; rho, mu by step, x variance-preserving."""
    for i, (bar, after) in enumerate(pairwise(bars)):
        for r in range(recur):

            def log_f(z, i=i, bar=bar):
                if gamma == 0:
                    return energy(z, None)
                values = [energy(z + gamma * math.sqrt(1 - bar) * d, None).exp() for d in deltas(i)]
                return (sum(values) / len(values)).log()

            x0 = tweedie(x, bar)
            delta_t = rho[i] * grad(lambda v, bar=bar, log_f=log_f: log_f(tweedie(v, bar)), x)
            delta_0 = torch.zeros_like(x)
            for _ in range(iterations):
                delta_0 = delta_0 + mu[i] * grad(log_f, x0 + delta_0)
            eps = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
            ddim = math.sqrt(after) * x0 + math.sqrt(1 - after) * eps
            step = bar / after  # the paper's alpha_t
            following = ddim + delta_t / math.sqrt(step) + math.sqrt(after) * delta_0
            if r < recur - 1:
                x = math.sqrt(step) * following + math.sqrt(1 - step) * renoise(i, r)
        x = following
    return x


def twin(path, solver, levels, denoise, noise=None, context=None):
    """A run whose start is the same variance-preserving point on every path."""
    scale = math.hypot(levels[0].alpha, levels[0].sigma)
    with torch.no_grad():
        return sample(denoise, solver, Z * scale, levels, noise=noise, context=context)


def normalised(shares):
    return [len(shares) * share / sum(shares) for share in shares]


class Tape:
    """A noise source that hands out a fixed table, by purpose and log-SNR, whatever the path."""

    def __init__(self, key=()):
        self.key = key

    def fork(self, *key):
        return Tape((*self.key, *key))

    def __call__(self, s, t):
        seed = fold(0, *self.key, round(s.logsnr, 6))
        return torch.randn(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@PATHS
@pytest.mark.parametrize(
    ("iterations", "recur", "gamma", "shares"),
    [(1, 1, 0.0, "increase"), (3, 1, 0.4, "decrease"), (2, 3, 0.3, "constant"), (1, 2, 0.0, "increase")],
)
def test_first_order_solvers_make_the_published_steps(path, iterations, recur, gamma, shares):
    levels, context = grid(path, 5), Context()
    bars = [*vp_levels(levels[:-1]), 1.0]
    alphas = [bar / after for bar, after in pairwise(bars)]
    raw = {"increase": alphas, "decrease": [1 - a for a in alphas], "constant": [1.0] * len(alphas)}[shares]
    rho, mu = ([bar * share for share in normalised(raw)] for bar in (0.05, 0.03))
    field = TFG(
        Mixture.example(path, "v"),
        energy,
        levels,
        rho=0.05,
        mu=0.03,
        gamma=gamma,
        samples=3,
        iterations=iterations,
        rho_shares=shares,
        mu_shares=shares,
        noise=Tape(),
    )
    ours = twin(path, Recurrent(get_solver("euler"), recur), levels, field, noise=Tape(), context=context)
    expected = published_tfg(
        Z,
        bars,
        rho,
        mu,
        gamma,
        lambda i: [Tape(("energy", k))(levels[i], levels[i]) for k in range(3)],
        iterations,
        recur,
        lambda i, r: Tape(("recurrence", r + 1, "up"))(levels[i], levels[i + 1]),
    )
    assert (ours - expected).abs().max() < 1e-11
    assert (ours - twin(path, get_solver("ddim"), levels, field.denoiser)).abs().max() > 0.02
    assert context.evaluations == 3 * 5 * recur


def published_dps(x, bars, zeta, log_f=lambda i, z: energy(z, None), recur=1, renoise=None):
    """arXiv 2209.14687, Algorithm 1 (DDIM): x_{t-1} = DDIM(x_t) + zeta grad_{x_t}. With recur, FreeDoM's Algorithm 2."""
    for i, (bar, after) in enumerate(pairwise(bars)):
        for r in range(recur):
            x0 = tweedie(x, bar)
            eps = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
            g = grad(lambda v, i=i, bar=bar: log_f(i, tweedie(v, bar)), x)
            following = math.sqrt(after) * x0 + math.sqrt(1 - after) * eps + zeta * g
            if r < recur - 1:
                x = math.sqrt(bar / after) * following + math.sqrt(1 - bar / after) * renoise(i, r)
        x = following
    return x


@PATHS
def test_dps_and_freedom_are_the_published_loops(path):
    levels = grid(path)
    bars = [*vp_levels(levels[:-1]), 1.0]
    denoiser, euler = Mixture.example(path), get_solver("euler")
    ours = twin(path, euler, levels, dps(denoiser, energy, levels, 0.07))
    assert (ours - published_dps(Z, bars, 0.07)).abs().max() < 1e-12
    field, solver = freedom(denoiser, euler, energy, levels, 0.07, times=2)
    ours = twin(path, solver, levels, field, noise=Tape())
    up = lambda i, r: Tape(("recurrence", r + 1, "up"))(levels[i], levels[i + 1])  # noqa: E731
    expected = published_dps(Z, bars, 0.07, recur=2, renoise=up)
    assert (ours - expected).abs().max() < 1e-12
    assert (expected - published_dps(Z, bars, 0.07)).abs().max() > 0.1


@PATHS
def test_lgd_is_the_published_loop(path):
    levels = grid(path)
    bars = [*vp_levels(levels[:-1]), 1.0]

    def log_f(i, z):  # equation 8: r_t = sigma / sqrt(1 + sigma^2), sigma the variance-exploding one
        ratio = math.sqrt(1 / bars[i] - 1)
        radius = ratio / math.sqrt(1 + ratio**2)
        values = [energy(z + radius * Tape(("energy", k))(levels[i], levels[i]), None).exp() for k in range(5)]
        return (sum(values) / 5).log()

    ours = twin(path, get_solver("euler"), levels, lgd(Mixture.example(path), energy, levels, 0.07, samples=5, noise=Tape()))
    assert (ours - published_dps(Z, bars, 0.07, log_f)).abs().max() < 1e-12


@PATHS
def test_mpgd_is_the_published_loop(path):
    levels = grid(path)
    ours = twin(path, get_solver("euler"), levels, mpgd(Mixture.example(path), energy, levels, 0.04))
    x = Z
    for bar, after in pairwise([*vp_levels(levels[:-1]), 1.0]):
        x0 = tweedie(x, bar)
        eps = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
        x = math.sqrt(after) * (x0 + 0.04 * grad(lambda v: energy(v, None), x0)) + math.sqrt(1 - after) * eps
    assert (ours - x).abs().max() < 1e-12


@PATHS
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_universal_guidance_is_the_published_loop(path, iterations):
    """arXiv 2302.07121: both guidances move epsilon, the forward one by sqrt(1 - bar) grad, the backward by Delta z0."""
    levels, s = grid(path), 0.05
    ours = twin(
        path, get_solver("euler"), levels, Universal(Mixture.example(path, "eps"), energy, s, 0.3, iterations=iterations)
    )
    x = Z
    for bar, after in pairwise([*vp_levels(levels[:-1]), 1.0]):
        x0 = tweedie(x, bar)
        eps = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
        eps = eps - s * math.sqrt(1 - bar) * grad(lambda v, bar=bar: energy(tweedie(v, bar), None), x)
        delta = torch.zeros_like(x)
        for _ in range(iterations):
            delta = delta + 0.3 * grad(lambda v: energy(v, None), x0 + delta)
        eps = eps - math.sqrt(bar / (1 - bar)) * delta
        x = math.sqrt(after) * (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar) + math.sqrt(1 - after) * eps
    assert (ours - x).abs().max() < 1e-11


@PATHS
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_tfg_contains_universal_guidance_for_any_number_of_iterations(path, iterations):
    levels, mixture = grid(path, 5), Mixture.example(path)
    tfg = TFG(mixture, energy, levels, rho=0.05, mu=0.3 if iterations else 0.0, iterations=max(1, iterations), **AS_UNIVERSAL)
    runs = [twin(path, get_solver("euler"), levels, f) for f in (tfg, Universal(mixture, energy, 0.05, 0.3, iterations))]
    assert (runs[0] - runs[1]).abs().max() < 1e-12
    moved = twin(path, get_solver("euler"), levels, replace(tfg, mu_on="x", mu=0.3))
    assert (moved - runs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_tfg_on_x_contains_universal_guidance_up_to_one_iteration_with_its_own_strengths(iterations):
    """The mean term of TFG enters x_t whole and that of universal guidance by 1 - e^-h; given strengths that make up for it,
    one inner step agrees, and more cannot, because the strength is also the step length."""
    levels = grid(VP)

    def reach(s, t):
        return -math.expm1(s.logsnr - t.logsnr)

    tfg = TFG(
        Mixture.example(VP),
        energy,
        levels,
        rho=0.05,
        mu=0.3,
        iterations=iterations,
        rho_shares=lambda s, t: s.sigma**2 * reach(s, t),
        mu_shares=reach,
    )
    run = [
        twin(VP, get_solver("euler"), levels, field)
        for field in (tfg, Universal(Mixture.example(VP), energy, 0.05, 0.3, iterations))
    ]
    gap = (run[0] - run[1]).abs().max()
    assert gap < 1e-12 if iterations == 1 else gap > 1e-3


@PATHS
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s"])
def test_zero_strength_is_the_plain_sampler_to_the_bit(path, name):
    levels, denoiser, solver = grid(path), Mixture.example(path, "v"), get_solver(name)
    plain = twin(path, solver, levels, denoiser, noise=Tape())
    for field in (
        TFG(denoiser, energy, levels, rho=0.0, mu=0.0),
        Universal(denoiser, energy, 0.0, 0.0, iterations=2),
        Universal(denoiser, energy, 0.0, 1.0, iterations=0),
        TFG(denoiser, energy, levels, interval=(50.0, 60.0)),
        ClassifierGuided(denoiser, lambda x, level, c: x.sum(1), 0.0),
    ):
        assert torch.equal(twin(path, solver, levels, field, noise=Tape()), plain)
    assert torch.equal(twin(path, Recurrent(solver, 1), levels, denoiser, noise=Tape()), plain)


@pytest.mark.parametrize(("name", "nfe"), [("euler", 8), ("heun", 15), ("dpmpp_2m", 8), ("unipc", 8)])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_guidance_costs_no_evaluation_and_recurrence_a_multiple(name, nfe, checkpoint):
    levels = grid(VP)
    for times in (1, 2):
        context = Context()
        field = TFG(Mixture.example(VP), energy, levels, rho=0.02, mu=0.02, checkpoint=checkpoint)
        twin(VP, Recurrent(get_solver(name), times), levels, field, noise=Tape(), context=context)
        assert context.evaluations == 3 * nfe * times


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "dpmpp_2s", "euler_a"])
def test_every_solver_goes_where_the_energy_is_higher(name):
    levels, solver = grid(VP, 12), get_solver(name)
    plain = twin(VP, solver, levels, Mixture.example(VP), noise=Tape())
    for field in (TFG(Mixture.example(VP), energy, levels, rho=0.05, mu=0.05), Universal(Mixture.example(VP), energy, 0.5)):
        moved = twin(VP, solver, levels, field, noise=Tape())
        assert (energy(moved, None) > energy(plain, None) + 0.01).all()


class Pair:
    """Gaussian data about 0: narrow (0.3) with a label, broad (1.5) without one, exactly denoised."""

    path = VP

    def __call__(self, x, level, condition, context):
        spread = torch.tensor([1.5, 0.3], dtype=torch.float64)[(condition.label >= 0).long()][:, None] ** 2
        return Prediction(x, level, spread * level.alpha / (spread * level.alpha**2 + level.sigma**2) * x, (1.0, 0.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda d, **o: TFG(d, energy, grid(VP), rho=0.2, mu=0.1, **AS_UNIVERSAL, **o),
        lambda d, **o: Universal(d, energy, 0.2, 0.1, iterations=1, **o),
    ],
    ids=["tfg", "ugd"],
)
def test_the_gradient_under_guidance_is_the_conditional_predictions(make):
    level, scale = grid(VP)[2], 4.0
    x = 0.5 + Z
    slopes = [s**2 * level.alpha / (s**2 * level.alpha**2 + level.sigma**2) for s in (0.3, 1.5)]
    jacobian = {"cond": slopes[0], "guided": slopes[1] + scale * (slopes[0] - slopes[1])}
    assert jacobian["guided"] < 0 < jacobian["cond"]
    x0 = jacobian["guided"] * x
    slope = grad(lambda v: energy(v, None), x0)
    for branch, factor in jacobian.items():
        found = make(ClassifierFree(Pair(), scale), branch=branch)(x, level, LABELS, Context())
        expected = x0 + 0.1 * slope + 0.2 * level.sigma**2 / level.alpha * factor * slope
        assert (found.x0 - expected).abs().max() < 1e-12


def test_a_gradient_through_guided_jacobians_leads_away():
    """What the branch is for: with the guided Jacobian pictures end far below where they would without the energy."""
    levels, denoiser = grid(VP, 12), ClassifierFree(Pair(), 4.0)
    wanted = lambda x0, c: -(x0 - 1).square().sum(1)  # noqa: E731

    def end(field):
        with torch.no_grad():
            return wanted(sample(field, get_solver("dpmpp_2m"), Z, levels, LABELS), None).mean()

    plain = end(denoiser)
    for method in (lambda **o: dps(denoiser, wanted, levels, 0.3, **o), lambda **o: Universal(denoiser, wanted, 1.0, **o)):
        assert end(method(branch="guided")) < plain - 10
        assert end(method()) > plain + 0.1
    with pytest.raises(ValueError, match="branch='null'; choose one of cond, guided"):
        dps(denoiser, wanted, levels, branch="null")


def test_all_paths_are_one():
    ends = [
        twin(
            p,
            Recurrent(get_solver("dpmpp_2m"), 2),
            grid(p),
            lgd(Mixture.example(p, "v"), energy, grid(p), 0.1, noise=Tape()),
            Tape(),
        )
        for p in (VE, VP, FLOW)
    ]
    assert max((end - ends[0]).abs().max() for end in ends[1:]) < 1e-10


@PATHS
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow"])
def test_an_exact_classifier_makes_the_conditional_model(path, kind):
    """Bayes' rule on the mixture, at every level and for every prediction kind."""
    mixture = Mixture.example(path, kind, labelled=True)

    def classifier(x, level, condition):
        return mixture.log_density(x, level, condition) - mixture.log_density(x, level)

    for level in grid(path)[:-1]:
        x = level.alpha + math.hypot(level.alpha, level.sigma) * Z
        guided = ClassifierGuided(mixture, classifier)(x, level, LABELS, Context())
        assert (guided.x0 - mixture(x, level, LABELS, Context()).x0).abs().max() < 1e-12
    tensors = NoiseLevel(*(torch.full((3,), v, dtype=torch.float64) for v in (level.t, level.alpha, level.sigma)))
    batched = ClassifierGuided(mixture, classifier)(x, tensors, LABELS, Context())
    assert (batched.x0 - guided.x0).abs().max() < 1e-12
    twice = ClassifierGuided(mixture, classifier, 2.0)(x, level, LABELS, Context())
    plain = mixture(x, level, LABELS.null(), Context())
    assert ((twice.x0 - plain.x0) - 2 * (guided.x0 - plain.x0)).abs().max() < 1e-12


def test_a_classifier_is_silent_at_pure_noise():
    mixture, level = Mixture.example(FLOW, "v", labelled=True), FLOW(1.0)
    guided = ClassifierGuided(mixture, lambda x, level, c: x.sum(1))(Z, level, LABELS, Context())
    assert torch.equal(guided.raw, mixture(Z, level, LABELS.null(), Context()).raw)


def test_pure_noise_and_clean_data_are_levels_too():
    levels = get_grid("uniform", FLOW, 6)
    assert levels[0].alpha == 0
    for field in (dps(Mixture.example(FLOW), energy, levels, 0.1), Universal(Mixture.example(FLOW), energy)):
        end = sample(field, Recurrent(get_solver("dpmpp_2m"), 2), Z, levels, noise=seeded_noise([1, 2, 3], Z))
        assert end.isfinite().all()


class Token:
    """Lives as long as the graph that holds it."""


class Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, token):
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Counting(torch.nn.Module):
    """A network that knows how many graphs of it are alive, and whether it was asked for one."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1,), 0.3, dtype=torch.float64))
        self.graphs, self.asked, self.calls = [], [], 0

    def forward(self, x, time, condition, context):
        self.calls += 1
        self.asked.append(torch.is_grad_enabled())
        token = Token()
        self.graphs.append(weakref.ref(token))
        return Held.apply((x * self.weight).tanh(), token)


def test_no_graph_outlives_its_step_and_none_is_made_without_need():
    levels, network = grid(VP), Counting()
    denoiser = NetworkDenoiser(network, VP, "x0")
    alive = []

    def watch(state):
        alive.append(sum(ref() is not None for ref in network.graphs))
        assert not state.x.requires_grad

    field = TFG(ClassifierFree(denoiser, 2.0), energy, levels, rho=0.1, mu=0.1)
    sample(Rescale(field, 0.5), get_solver("dpmpp_2m"), Z, levels, LABELS, on_step=watch)
    assert network.graphs and max(alive) == 0 and network.weight.grad is None
    network.asked.clear()
    for cheap in (mpgd(denoiser, energy, levels), Universal(denoiser, energy, 0.0, iterations=2)):
        sample(cheap, get_solver("euler"), Z, levels)
    assert not any(network.asked)


def test_checkpointing_changes_no_bit_and_recomputes():
    levels, results, calls = grid(VP), [], []
    for checkpoint in (False, True):
        network, context = Counting(), Context()
        field = TFG(NetworkDenoiser(network, VP, "x0"), energy, levels, rho=0.1, mu=0.1, checkpoint=checkpoint)
        results.append(sample(field, get_solver("heun"), Z, levels, context=context))
        calls.append(network.calls)
        assert context.evaluations == 15 * 3
    assert torch.equal(*results) and calls == [15, 30]


@pytest.mark.parametrize("branch", ["cond", "guided"])
@pytest.mark.parametrize("make", [TFG, Universal])
def test_checkpointing_changes_nothing_under_guidance(make, branch):
    """The conditional branch is remembered beside the guided prediction, and is recomputed with it."""
    levels, strength = grid(VP), {"rho": 0.1, "mu": 0.1} if make is TFG else {"scale": 2.0}
    given = (levels,) if make is TFG else ()
    results = []
    for checkpoint in (False, True):
        inside = ClassifierFree(NetworkDenoiser(Counting(), VP, "x0"), 3.0)
        field = make(inside, energy, *given, **strength, branch=branch, checkpoint=checkpoint)
        results.append(sample(field, get_solver("euler"), Z, levels))
    assert torch.equal(*results)


def test_images_do_not_look_at_one_another():
    levels = grid(VP)
    field = TFG(Mixture.example(VP), energy, levels, rho=0.05, mu=0.05, gamma=0.3, noise=seeded_noise([5, 6, 7], Z))
    together = twin(VP, get_solver("dpmpp_2m"), levels, field)
    alone = TFG(Mixture.example(VP), energy, levels, rho=0.05, mu=0.05, gamma=0.3, noise=seeded_noise([6], Z[1:2]))
    scale = math.hypot(levels[0].alpha, levels[0].sigma)
    one = sample(alone, get_solver("dpmpp_2m"), Z[1:2] * scale, levels)
    assert (one[0] - together[1]).abs().max() < 1e-13


def test_a_limit_bounds_the_move():
    levels = grid(VP)
    for make in (
        lambda limit: TFG(Mixture.example(VP), energy, levels, rho=5.0, mu=5.0, limit=limit),
        lambda limit: Universal(Mixture.example(VP), energy, 50.0, limit=limit),
    ):
        plain = Mixture.example(VP)(Z, levels[2], Condition(), Context()).x0
        free, bound = (make(limit)(Z, levels[2], Condition(), Context()).x0 - plain for limit in (None, 0.1))
        assert (free.square().mean(1).sqrt() > 0.2).any()
        assert (bound.square().mean(1).sqrt() < 0.1 + 1e-12).all()
        assert torch.allclose(torch.nn.functional.normalize(free), torch.nn.functional.normalize(bound))


def broken(x0, condition):
    return torch.as_tensor(x0.new_zeros(3, 2) @ torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda x0, c: x0.sum(), "one log-density per image"),
        (lambda x0, c: 3.0, "returned float"),
        (lambda x0, c: x0[:, 0] / 0 * 0, "gave nan for image 0"),
        (lambda x0, c: torch.stack([x0[0, 0], x0[1, 0], x0[2, 0] / 0]), "for image 2"),
        (lambda x0, c: x0.detach()[:, 0], "cannot be differentiated|does not depend"),
        (lambda x0, c: x0.sum(1).detach() + (x0[:, 0] - x0[:, 0]).abs().sqrt(), "gradient of the energy .* is not finite"),
        (broken, "The energy 'broken' failed on images \\(3, 2\\): RuntimeError"),
    ],
)
def test_a_bad_energy_is_named_in_one_sentence(bad, says):
    levels = grid(VP)
    for field in (TFG(Mixture.example(VP), bad, levels), Universal(Mixture.example(VP), bad, iterations=1)):
        with pytest.raises(ValueError, match=says) as caught:
            sample(field, get_solver("euler"), Z, levels)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d, g: TFG(d, energy, g, rho=-1.0), "rho=-1.0"),
        (lambda d, g: TFG(d, energy, g, mu=math.nan), "mu=nan"),
        (lambda d, g: TFG(d, energy, g, iterations=0), "iterations=0"),
        (lambda d, g: TFG(d, energy, g, gamma=0.1), "pass noise="),
        (lambda d, g: TFG(d, energy, g, rho_shares="rising"), "increase, decrease, constant"),
        (lambda d, g: TFG(d, energy, g[:1]), "two at least"),
        (lambda d, g: TFG(d, energy, g, interval=(3.0, 1.0)), "is empty"),
        (lambda d, g: Universal(d, energy, iterations=-1), "iterations=-1"),
        (lambda d, g: ClassifierGuided(d, energy, math.inf), "finite"),
        (lambda d, g: Recurrent(get_solver("euler"), 0), "times=0"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make(Mixture.example(VP), grid(VP))


def test_recurrence_needs_noise_and_inference_mode_is_refused():
    levels = grid(VP)
    with pytest.raises(ValueError, match="pass noise="):
        sample(Mixture.example(VP), Recurrent(get_solver("euler"), 2), Z, levels)
    with torch.inference_mode(), pytest.raises(ValueError, match="no_grad"):
        sample(dps(Mixture.example(VP), energy, levels), get_solver("euler"), Z.clone(), levels)


def test_recurrence_keeps_to_its_interval():
    levels, context = grid(VP), Context()
    inside = sum(v.logsnr <= 0 for v in levels[:-1])
    sample(Mixture.example(VP), Recurrent(get_solver("euler"), 3, (-math.inf, 0.0)), Z, levels, noise=Tape(), context=context)
    assert 0 < inside < 8 and context.evaluations == 3 * (8 + 2 * inside)


def test_every_further_pass_of_a_recurrence_begins_anew():
    """By hand from the state before the step: of order 2 first, of order 1 then, as the history is of other noise."""
    levels, inner, denoiser = grid(VP), get_solver("dpmpp_2m"), Mixture.example(VP)
    before = inner.step(denoiser, inner.init(Z), levels[0], levels[1], Condition(), Context())
    before = replace(before, level=levels[1], step=1)
    s, t = levels[1:3]
    first = inner.step(denoiser, before, s, t, Condition(), Context(step=1))
    up = s.alpha / t.alpha
    x = up * first.x + math.sqrt(s.sigma**2 - (up * t.sigma) ** 2) * Tape(("recurrence", 1, "up"))(s, t)
    second = inner.step(denoiser, replace(before, x=x, history=()), s, t, Condition(), Context(step=1))
    ours = Recurrent(inner, 2).step(denoiser, before, s, t, Condition(), Context(step=1), Tape())
    assert (ours.x - second.x).abs().max() < 1e-14
    stale = inner.step(denoiser, replace(before, x=x), s, t, Condition(), Context(step=1))
    assert (stale.x - second.x).abs().max() > 1e-4


def test_a_recurrence_keeps_what_is_no_history():
    """EDICT's second sequence moves along with the first, and does not go back to the twin that it began with."""
    levels, inner, denoiser = grid(VP), EDICT(twin=Z + 1), Mixture.example(VP)
    before = inner.step(denoiser, inner.init(Z), levels[0], levels[1], Condition(), Context())
    before = replace(before, level=levels[1], step=1)
    s, t = levels[1:3]
    first = inner.step(denoiser, before, s, t, Condition(), Context(step=1))
    up = s.alpha / t.alpha
    x = up * first.x + math.sqrt(s.sigma**2 - (up * t.sigma) ** 2) * Tape(("recurrence", 1, "up"))(s, t)
    second = inner.step(denoiser, replace(before, x=x), s, t, Condition(), Context(step=1))
    ours = Recurrent(inner, 2).step(denoiser, before, s, t, Condition(), Context(step=1), Tape())
    assert all((a - b).abs().max() < 1e-14 for a, b in zip(ours.carry, second.carry, strict=True))
