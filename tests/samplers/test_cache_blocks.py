"""Block and attention caches on tiny backbones: what they compute, how many blocks run, and that branches stay apart."""

import math
from dataclasses import replace

import pytest
import torch

from samplers import Condition, Context, NetworkDenoiser, RectifiedFlow, get_grid, get_solver, sample, trajectory
from samplers.analytic import Mixture
from samplers.cache import EasyCache, FirstBlockCache, PyramidBroadcast, Reuse, TaylorSeer
from samplers.guidance import ClassifierFree, PerturbedAttention, SkipLayer
from samplers.hooks import with_hook
from tests.gen.test_hooks import tiny

FLOW = RectifiedFlow()
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TEXT = Condition(tokens=torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
LEVELS = get_grid("karras", FLOW, 9)
CACHES = {
    "first block": lambda d: FirstBlockCache(d, 0.02),
    "taylor": lambda d: TaylorSeer(d, 3, 2),
    "pyramid": lambda d: PyramidBroadcast(d, 2, 3),
}


def network(kind="dit"):
    return NetworkDenoiser(tiny(kind, text_tokens=4, text_dim=6), FLOW, "flow")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


class Counter:
    """Counts, per step, the blocks and attention layers that really run, as the hooks nearest to the network."""

    def __init__(self):
        self.blocks, self.attention = [], []

    def context(self, **options):
        context = with_hook(Context(**options), "block", self.block)
        return with_hook(context, "attention", self.layer)

    def block(self, index, count, x, run):
        self.blocks.append(index)
        return run()

    def layer(self, site, x, run):
        self.attention.append((site.index, site.kind))
        return run()


def run(denoiser, context=None, x=X, condition=TEXT, solver="euler", levels=LEVELS):
    return sample(denoiser, get_solver(solver), levels[0].sigma * x, levels, condition, context=context)


@pytest.mark.parametrize("kind", ["dit", "uvit"])
@pytest.mark.parametrize(
    "off", [lambda d: FirstBlockCache(d, 0.0), lambda d: TaylorSeer(d, 1), lambda d: PyramidBroadcast(d, 1, 1)]
)
def test_off_is_bit_identical(off, kind):
    counter = Counter()
    assert torch.equal(run(off(network(kind)), counter.context()), run(network(kind)))
    assert counter.blocks == [0, 1, 2] * 9


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_what_runs_is_as_stated(kind):
    counter = Counter()
    run(TaylorSeer(network(kind), 3), counter.context())
    assert counter.blocks == [0, 1, 2] * 3  # all blocks at steps 0, 3 and 6, none in between

    counter, context = Counter(), Counter().context()
    run(TaylorSeer(network(kind), 4, interval=(-1.0, 1.0)), context := counter.context())
    outside = sum(not -1 <= level.logsnr <= 1 for level in LEVELS[:-1])
    assert len(counter.blocks) >= 3 * outside and len(counter.blocks) < 27
    assert context.evaluations == 9 * len(X)  # the embeddings and the head run each time

    counter = Counter()
    run(PyramidBroadcast(network(kind), 2, 4), counter.context())
    own, cross = ([i for i, name in counter.attention if name == which] for which in ("self", "cross"))
    assert counter.blocks == [0, 1, 2] * 9 and own == [0, 1, 2] * 5  # steps 0, 2, 4, 6, 8
    assert cross == ([0, 1, 2] * 3 if kind == "dit" else [])  # steps 0, 4, 8

    counter = Counter()
    run(FirstBlockCache(network(kind), 1e9), counter.context())
    assert counter.blocks == [0, 1, 2, *[0] * 8]


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_first_block_cache(kind):
    """Against a second statement: the change of block 0's residual decides, the rest's last addition is added again."""
    net, threshold, context = network(kind), 0.02, Context()
    cached = FirstBlockCache(net, threshold)
    last, skipped = None, []
    for step, level in enumerate(LEVELS[:-1]):
        x = X * (1 + 0.05 * step * torch.tensor([0.2, 1.0]).reshape(2, 1, 1, 1))  # one image changes more than the other
        said = cached(x, level, TEXT, context.at(step)).raw
        seen = {}

        def note(index, count, value, run, seen=seen):
            out = run()
            seen[index] = (value, out)
            return out

        expected = net(x, level, TEXT, with_hook(Context(), "block", note)).raw
        (start, out), final = seen[0], seen[2][1]
        now = (out - start, final - out)
        if last is not None:  # every image decides for itself
            same = (now[0] - last[0]).abs().mean((1, 2)) / last[0].abs().mean((1, 2)) < threshold
            skipped.append(same.tolist())
            replaced = with_hook(Context(), "block", lambda i, n, v, run, y=out + last[1]: y if i == n - 1 else v)
            expected = torch.where(same.reshape(-1, 1, 1, 1), net(x, level, TEXT, replaced).raw, expected)
            now = tuple(torch.where(same.reshape(-1, 1, 1), a, b) for a, b in zip(last, now, strict=True))
        last = now
        assert (said - expected).abs().max() < 1e-12
    assert {tuple(row) for row in skipped} >= {(True, True), (True, False)}


@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylor_expansion(order):
    """The published recursion of differences, by hand, in log-SNR, on what all blocks add together."""
    net, context, stride = network("uvit"), Context(), 2
    cached = TaylorSeer(net, stride, order)
    history: list[tuple[float, torch.Tensor]] = []
    for step, logsnr in enumerate([-2.0, -1.5, -1.1, -0.3, 0.2, 0.5, 1.3, 1.4]):
        level = FLOW.at_logsnr(logsnr)
        said = cached(X, level, TEXT, context.at(step)).raw
        seen = {}

        def note(index, count, value, run, seen=seen):
            seen.setdefault(index, value)
            seen["out"] = run()
            return seen["out"]

        exact = net(X, level, TEXT, with_hook(Context(), "block", note)).raw
        if step % stride == 0:
            history.append((logsnr, seen["out"] - seen[0]))
            assert torch.equal(said, exact)
            continue

        def difference(i, k, history=history):
            """D^i at full evaluation k."""
            if i == 0:
                return history[k][1]
            return (difference(i - 1, k) - difference(i - 1, k - 1)) / (history[k][0] - history[k - 1][0])

        k = len(history) - 1
        terms = [difference(i, k) * (logsnr - history[k][0]) ** i / math.factorial(i) for i in range(min(order, k) + 1)]
        total = sum(terms)
        forecast = with_hook(Context(), "block", lambda i, n, v, run, add=total: v + add if i == n - 1 else v)
        assert (said - net(X, level, TEXT, forecast).raw).abs().max() < 1e-10


@pytest.mark.parametrize("steps", [((0, 1.0), (1, 0.9), (2, 0.8)), ((0, 0.9), (1, 0.8), (9, 0.4))])
def test_taylor_from_pure_noise_and_from_long_ago_repeats(steps):
    """Differences are taken neither across an infinite distance nor across steps at which the branch was away."""
    cached, context, counter = TaylorSeer(network(), 2, 2), Context(), {}
    for step, t in steps:
        level = FLOW(t)
        hook = with_hook(context.at(step), "block", lambda i, n, v, run: run())
        assert torch.isfinite(cached(X, level, TEXT, hook).raw).all()
        counter[step] = next(value for key, value in context.store.items() if key[0] == "memory")[-1][1][1]
    assert len(counter[step]) == 1  # D^0 alone


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_pyramid_broadcast(kind):
    """Against the network with the attention outputs of an earlier step put back by hand."""
    net, context = network(kind), Context()
    cached, kept = PyramidBroadcast(net, 2, 3), {}
    for step, level in enumerate(LEVELS[:-1]):
        x = X * (1 + 0.1 * step)
        said = cached(x, level, TEXT, context.at(step)).raw

        def put_back(site, tokens, run, step=step):
            if step % (3 if site.kind == "cross" else 2) == 0:
                kept[site.index, site.kind] = run()
            return kept[site.index, site.kind]

        assert torch.equal(said, net(x, level, TEXT, with_hook(Context(), "attention", put_back)).raw)


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("kind", ["dit", "uvit"])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_separate_calls_and_one_batch_of_two_branches_agree(name, kind, solver):
    class Apart(ClassifierFree):
        def __call__(self, x, level, condition, context):
            cond = self.denoiser(x, level, condition, context.fork("cond"))
            null = self.denoiser(x, level, condition.null(), context.fork("null"))
            return self.combine(cond, null, self.scale, context)

    # a first-block decision is one for the whole batch, so it is forced to be the same for both branches
    cache = (lambda d: FirstBlockCache(d, 1e9)) if name == "first block" else CACHES[name]
    a, b = (run(rule(cache(network(kind)), 1.5), solver=solver) for rule in (ClassifierFree, Apart))
    assert (a - b).abs().max() < 1e-9 * a.abs().max()
    plain = run(ClassifierFree(network(kind), 1.5), solver=solver)
    assert (a - plain).abs().max() > 1e-6  # the cache did something


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_repeated_step_is_harmless(name, solver):
    cached, rule, context = CACHES[name](network()), get_solver(solver), Context(steps=9)
    plain = list(trajectory(cached, rule, X, LEVELS, TEXT))
    state = replace(rule.init(X), level=LEVELS[0])
    for step in range(9):
        for _ in range(2):
            result = rule.step(cached, state, LEVELS[step], LEVELS[step + 1], TEXT, context.at(step))
        state = replace(result, step=step + 1, level=LEVELS[step + 1])
        assert torch.equal(state.x, plain[step].x)


@pytest.mark.parametrize("name", CACHES)
def test_runs_branches_and_adapters_do_not_mix(name):
    cached, context = CACHES[name](network()), Context()
    first = run(cached, context)

    def memories():
        return {key: value for key, value in context.store.items() if key[0] == "memory"}

    count = len(memories())
    assert torch.equal(run(cached, context), first)  # even where a context is used twice
    for other in (replace(context, adapters={"a": 0.5}), context.fork("tile", 3)):
        assert torch.equal(run(cached, other), first)
    assert len(memories()) == 3 * count and all(len(value) <= 2 for value in memories().values())  # bounded
    assert count == (6 if name == "pyramid" else 1)


@pytest.mark.parametrize("name", CACHES)
def test_interval_early_exit_and_change_of_batch(name):
    cached = replace(CACHES[name](network()), interval=(50.0, 60.0))
    assert torch.equal(run(cached), run(network()))
    cached, context = CACHES[name](network()), Context()
    for state in trajectory(cached, get_solver("euler"), X, LEVELS, TEXT, context=context):
        if state.step == 4:
            break
    said = cached(X[:1], LEVELS[4], TEXT[:1], context.at(4)).raw  # what is remembered does not fit this batch
    assert torch.equal(said, network()(X[:1], LEVELS[4], TEXT[:1], Context()).raw)
    times = torch.tensor([0.3, 0.6], dtype=torch.float64)
    for step in range(3):  # levels per sample are never cached
        said = cached(X, FLOW(times), TEXT, context.at(step)).raw
        assert torch.equal(said, network()(X, FLOW(times), TEXT, Context()).raw)


def test_caches_stack():
    """Attention is repeated inside the blocks that TaylorSeer still runs, and outputs are reused around both."""
    net = network()
    stack = Reuse(TaylorSeer(PyramidBroadcast(net, 4, 4), 2, 0), 1)
    counter = Counter()
    run(stack, counter.context())
    assert counter.blocks == [0, 1, 2] * 5  # steps 0, 2, 4, 6, 8
    assert [i for i, kind in counter.attention if kind == "self"] == [0, 1, 2] * 3  # steps 0, 4, 8
    context = Context()
    run(ClassifierFree(Reuse(FirstBlockCache(net, 1e9), 3, 0), 2.0), context)
    assert context.evaluations == 2 * 3 * len(X)
    assert torch.isfinite(run(ClassifierFree(EasyCache(TaylorSeer(net, 2), 0.1), 2.0))).all()


def test_perturbed_guidance_around_a_cache():
    """The perturbed branch has its own memory: caches set to stride 1 in all but name change nothing."""
    net = network("uvit")
    for rule in (PerturbedAttention, SkipLayer):
        counter = Counter()
        cached = TaylorSeer(net, 3)
        run(rule(ClassifierFree(cached, 3.0), 2.0, (1,), base=cached), counter.context())
        skipped = 1 if rule is SkipLayer else 0  # the counting hook is inside, next to the block
        assert len(counter.blocks) == 3 * (3 + 3 - skipped)
        late = replace(cached, interval=(50.0, 60.0))
        guided = run(rule(ClassifierFree(late, 3.0), 2.0, (1,), base=late))
        assert torch.equal(guided, run(rule(ClassifierFree(net, 3.0), 2.0, (1,), base=net)))


def test_half_precision():
    net = NetworkDenoiser(tiny("dit", text_tokens=4, text_dim=6).bfloat16(), FLOW, "flow")
    condition = TEXT.map(lambda v: v.bfloat16())
    for cache in CACHES.values():
        result = run(ClassifierFree(cache(net), 1.5), x=X.bfloat16(), condition=condition)
        assert result.dtype == torch.bfloat16 and torch.isfinite(result).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: FirstBlockCache(d, math.inf), "threshold must be a finite number of at least 0"),
        (lambda d: TaylorSeer(d, 0), "stride must be a whole number of at least 1"),
        (lambda d: TaylorSeer(d, 2, order=5), "order=5"),
        (lambda d: PyramidBroadcast(d, 2, True), "cross_stride must be a whole number"),
        (lambda d: PyramidBroadcast(d, interval=(2.0, 1.0)), "interval .* is empty"),
        (lambda d: run(TaylorSeer(d), x=X[:, 0, 0, :2], condition=Condition()), "network's 'block' hook, and this network has"),
        (lambda d: run(FirstBlockCache(d), x=X[:, 0, 0, :2], condition=Condition()), "The first-block cache works through"),
        (lambda d: run(PyramidBroadcast(d), x=X[:, 0, 0, :2], condition=Condition()), "'attention' hook"),
    ],
)
def test_mistakes_are_sentences(build, message):
    with pytest.raises(ValueError, match=message):
        build(Mixture.example(FLOW))


def test_a_cache_remembers_through_wrappers_that_are_made_anew_at_every_step():
    """Its memory belongs to the network below, not to an object that is gone by the next step."""

    class Around:
        def __init__(self, denoiser):
            self.denoiser, self.path, self.ballast = denoiser, denoiser.path, []

        def __call__(self, *args):
            return self.denoiser(*args)

    net, kept, made = network("dit"), [], []
    context, again = Context(), Context()
    steady = Reuse(net, 3, 0)
    for step, level in enumerate(LEVELS[:-1]):
        wrapper = Around(net)
        kept.append(wrapper)  # alive, so that no later one can have its place in memory
        made.append(Reuse(wrapper, 3, 0)(X, level, TEXT, again.at(step)).raw)
        assert torch.equal(made[-1], steady(X, level, TEXT, context.at(step)).raw)
    assert again.evaluations == context.evaluations < len(made) * len(X)
