"""DiMR against its equations written out a second time, and the rules for labels, sizes and hooks."""

import math

import pytest
import torch
import torch.nn.functional as F

from distill.objectives.diffusion import averaged
from gen.models.components import load_component, save_component
from gen.nn.backbones.dimr import DiMR, DiMRConfig, layer
from gen.nn.registry import build, config_of
from samplers.cache import get_cache
from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.hooks import with_hook
from samplers.path import RectifiedFlow

COARSE = {"kind": "transformer", "dim": 12, "hidden": 20, "depth": 3, "heads": 2, "patch": 2}
FINE = {"kind": "convnext", "dim": 8, "hidden": 10, "depth": 4, "kernel": 3, "patch": 1}
TINY = {"size": 8, "channels": 3, "num_classes": 5, "stages": [COARSE, FINE]}
VARIANTS = {
    "two resolutions": {},
    "unlabelled": {"num_classes": 0},
    "three resolutions": {"stages": [COARSE | {"pool": 2}, FINE | {"pool": 2}, FINE | {"kernel": 5, "depth": 1}]},
    "transformers": {"stages": [COARSE | {"patch": 4}, COARSE | {"dim": 16, "depth": 2}]},
    "one resolution, clock of 1": {"stages": [COARSE], "time_range": 1.0},
}


def network(dtype=torch.float64, **changes) -> DiMR:
    """Random weights everywhere, so that every term of the equations counts."""
    net = DiMR(DiMRConfig(**TINY | changes)).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            spread = 0.3 if p.ndim < 2 or "pos_embed" in name else p[0].numel() ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * spread)
            if name.endswith(("weight.p0", "weight.p1", "scale.p0", "scale.p1")):
                p += 1
    return net


def inputs(config: DiMRConfig, batch=3, height=None, width=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shape = batch, config.channels, height or config.size, width or config.size
    x = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    time = torch.tensor([0.0, 0.3, 1.0])[:batch].to(dtype) * config.time_range
    return x, time, Condition(label=torch.tensor([2, -1, 4])[:batch] if config.num_classes else None)


def equations(w: dict, c: DiMRConfig, x, time, condition):
    """The network from a dictionary of weights, image by image, head by head and pixel by pixel."""

    def linear(name, v):
        return torch.einsum("...i,oi->...o", v, w[f"{name}.weight"]) + w.get(f"{name}.bias", 0)

    def td(name, tau):
        share = 1 / (1 + torch.exp(-((w[f"{name}.w"] + 1) * tau + w[f"{name}.b"])))
        return share * w[f"{name}.p0"] + (1 - share) * w[f"{name}.p1"]

    def tdln(name, v, tau):
        v = v - v.mean(-1, keepdim=True)
        v = v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return v * td(f"{name}.weight", tau) + td(f"{name}.bias", tau)

    def tdrms(name, v, tau):
        return td(f"{name}.scale", tau) * v / (v.square().mean(-1, keepdim=True).sqrt() + 1e-8)

    def gelu(v):
        return v * 0.5 * (1 + torch.erf(v / math.sqrt(2)))

    def window(v, i, j, k):
        """The k x k neighbourhood of a pixel of (rows, columns, D), zero outside."""
        out = torch.zeros(k, k, v.shape[-1], dtype=v.dtype)
        for a in range(k):
            for b in range(k):
                y, z = i + a - k // 2, j + b - k // 2
                if 0 <= y < v.shape[0] and 0 <= z < v.shape[1]:
                    out[a, b] = v[y, z]
        return out

    def attend(name, v, stage):
        q, k, value = torch.einsum("li,oi->lo", v, w[f"{name}.qkv.weight"]).split(stage.dim, dim=-1)
        heads, width = [], stage.dim // stage.heads
        for h in range(stage.heads):
            at = slice(h * width, (h + 1) * width)
            weights = (torch.einsum("qd,kd->qk", q[:, at], k[:, at]) / math.sqrt(width)).exp()
            heads.append(torch.einsum("qk,kd->qd", weights / weights.sum(1, keepdim=True), value[:, at]))
        return linear(f"{name}.proj", torch.cat(heads, -1))

    results = [[] for _ in c.stages]
    for b in range(len(x)):
        tau, features = 2 * time[b] / c.time_range - 1, None
        for n, stage in enumerate(c.stages):
            name, step = f"stages.{n}", stage.patch * stage.pool
            g, p = c.size // step, stage.patch
            image = torch.einsum("cyaxb->cyx", x[b].view(c.channels, c.size // stage.pool, stage.pool, -1, stage.pool))
            image = image / stage.pool**2
            v = torch.empty(g, g, stage.dim, dtype=x.dtype)
            for i in range(g):
                for j in range(g):
                    patch = image[:, i * p : (i + 1) * p, j * p : (j + 1) * p]
                    v[i, j] = torch.einsum("dcij,cij->d", w[f"{name}.patch_embed.weight"], patch)
            v = v + w[f"{name}.patch_embed.bias"] + w[f"{name}.pos_embed"][0].view(g, g, -1)
            if features is not None:
                ratio = g // features.shape[0]
                up = linear(f"{name}.upsample.linear", tdln(f"{name}.upsample.norm1", features, tau))
                fine = torch.empty_like(v)
                for i in range(g):
                    for j in range(g):
                        shuffled = up[i // ratio, j // ratio].view(ratio, ratio, stage.dim)
                        fine[i, j] = shuffled[i % ratio, j % ratio]
                v = v + tdln(f"{name}.upsample.norm2", fine, tau)
            v = v.flatten(0, 1)
            extra = 0
            if f"{name}.label_embed.weight" in w:
                label, extra = int(condition.label[b]), 1
                v = torch.cat([w[f"{name}.label_embed.weight"][label if label >= 0 else c.num_classes][None], v])
            half, everything, skips = stage.depth // 2, [v], []
            for i in range(2 * half + 1):
                block = f"{name}.blocks.{i}"
                if i > half:
                    v = linear(f"{block}.skip_linear", torch.cat([v, skips.pop()], -1))
                if stage.kind == "transformer":
                    v = v + attend(f"{block}.attn", tdrms(f"{block}.norm1", v, tau), stage)
                else:
                    grid, kernel = v.view(g, g, -1), w[f"{block}.conv.weight"][:, 0]
                    mixed = [
                        torch.einsum("abd,dab->d", window(grid, y, z, stage.kernel), kernel) for y in range(g) for z in range(g)
                    ]
                    v = v + torch.stack(mixed) + w[f"{block}.conv.bias"]
                inner = tdrms(f"{block}.norm2", v, tau)
                v = v + linear(f"{block}.mlp.w2", gelu(linear(f"{block}.mlp.w0", inner)) * linear(f"{block}.mlp.w1", inner))
                everything.append(v)
                if i < half:
                    skips.append(v)
            features = torch.cat([f[extra:] for f in everything], -1).view(g, g, -1)
            last = tdln(f"{name}.norm", v[extra:], tau).view(g, g, -1)
            out = torch.empty(c.channels, g, g, dtype=x.dtype)
            for i in range(g):
                for j in range(g):
                    out[:, i, j] = torch.einsum("abd,cdab->c", window(last, i, j, 3), w[f"{name}.head.weight"])
            results[n].append(out + w[f"{name}.head.bias"][:, None, None])
    return [torch.stack(r) for r in results]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@torch.no_grad()
def test_forward_is_the_equations(variant, dtype, tolerance):
    net = network(dtype, **VARIANTS[variant])
    x, time, condition = inputs(net.config, dtype=dtype)
    weights = {name: value.double() for name, value in net.state_dict().items()}
    expected = equations(weights, net.config, x.double(), time.double(), condition)
    results = net.predictions(x, time, condition)
    assert len(results) == len(net.config.stages) and torch.equal(net(x, time, condition), results[-1])
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == dtype and reference.std() > 0.1
        torch.testing.assert_close(result.double(), reference, rtol=tolerance, atol=5 * tolerance)


@torch.no_grad()
def test_norms_end_at_their_two_points():
    """Far from the middle of its sigmoid a parameter is one of the two vectors: p0 at pure noise, p1 at clean data."""
    norm = network().stages[0].norm
    norm.weight.w.fill_(99.0), norm.weight.b.zero_()
    ends = norm.weight(torch.tensor([1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(ends[:, 0], torch.stack([norm.weight.p0, norm.weight.p1]), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_unconditional_rows_and_independent_ones():
    net = network()
    x, time, condition = inputs(net.config)
    together = net(x, time, condition)
    nothing = net(x, time, Condition())
    assert torch.equal(nothing, net(x, time, condition.null()))
    torch.testing.assert_close(together[1], nothing[1], rtol=1e-12, atol=1e-12)  # the label of row 1 is -1
    assert (together - nothing)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-3
    for b in range(3):
        alone = net(x[b : b + 1], time[b : b + 1], condition[b : b + 1])
        torch.testing.assert_close(alone, together[b : b + 1], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_other_sizes():
    net = network()
    x, time, condition = inputs(net.config, height=12, width=6)
    coarse, fine = net.predictions(x, time, condition)
    assert coarse.shape == (3, 3, 6, 3) and fine.shape == (3, 3, 12, 6)
    context = Context()
    assert torch.equal(net(x, time, condition, context), fine) and torch.equal(net(x, time, condition, context), fine)
    for number, (rows, columns) in enumerate([(6, 3), (12, 6)]):
        stage = net.stages[number]
        grid = stage.pos_embed.unflatten(1, (stage.grid, stage.grid)).movedim(3, 1).float()
        expected = F.interpolate(grid, size=(rows, columns), mode="bicubic").flatten(2).transpose(1, 2)
        torch.testing.assert_close(net.positions(number, rows, columns).float(), expected, rtol=1e-5, atol=1e-6)
    assert net.positions(0, 4, 4) is net.stages[0].pos_embed


def test_gradients_reach_every_parameter():
    net = network()
    x, time, condition = inputs(net.config)
    sum(prediction.square().sum() for prediction in net.predictions(x, time, condition)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_half_precision_and_fresh_norms():
    exact, net = network(), network(torch.float32)
    x, time, condition = inputs(net.config, dtype=torch.float32)
    reference = exact(x.double(), time.double(), condition)
    with torch.autocast("cpu", torch.bfloat16):
        assert (net(x, time, condition).double() - reference).norm() < 0.1 * reference.norm()
    result = net.bfloat16()(x.bfloat16(), time, condition)
    assert result.dtype == torch.bfloat16 and (result.double() - reference).norm() < 0.1 * reference.norm()
    torch.manual_seed(0)
    fresh = DiMR(DiMRConfig(**TINY))
    tokens, tau = torch.randn(2, 5, 12), torch.tensor([-1.0, 0.4])
    torch.testing.assert_close(fresh.stages[0].norm(tokens, tau), F.layer_norm(tokens, (12,)), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_hooks_reach_every_block_and_attention():
    net = network()
    x, time, condition = inputs(net.config)
    base, order, sites, heads = net(x, time, condition), [], [], []
    context = with_hook(Context(), "block", lambda i, n, value, run: order.append((i, n, value.shape)) or run())
    context = with_hook(context, "attention", lambda site, value, run: sites.append(site) or run())
    context = with_hook(context, "heads", lambda site, q, k, v, run: heads.append(q.shape) or run(q, k, v))
    assert torch.equal(net(x, time, condition, context), base)
    assert order == [(i, 8, (3, 17, 12)) for i in range(3)] + [(i, 8, (3, 64, 8)) for i in range(3, 8)]
    assert [(s.index, s.count, s.extras, s.rows, s.columns) for s in sites] == [(i, 8, 1, 4, 4) for i in range(3)]
    assert heads == [(3, 17, 2, 6)] * 3
    skipped = with_hook(Context(), "block", lambda i, n, value, run: value if i == 1 else run())
    changed = net(x, time, condition, skipped)
    assert not torch.equal(changed, base)
    middle = net.stages[0].blocks[1]
    for part in (middle.attn.proj, middle.mlp.w2):
        part.weight.zero_(), part.bias.zero_()
    torch.testing.assert_close(net(x, time, condition), changed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cache", ["first_block", "taylor"])
@torch.no_grad()
def test_caches_of_blocks_say_that_the_tokens_change_shape(cache):
    net = network()
    x, _, condition = inputs(net.config)
    path = RectifiedFlow()
    denoiser = get_cache(cache, NetworkDenoiser(net, path, "flow", "1000t"))
    with pytest.raises(ValueError, match=r"from \(3, 17, 12\) to \(3, 64, 8\): use a cache of outputs"):
        denoiser(x, path(0.7), condition, Context())


def test_as_a_folder(tmp_path):
    net = network(torch.float32)
    save_component(net, tmp_path)
    again = load_component(tmp_path, "dimr")
    assert config_of(again) == config_of(net)
    x, time, condition = inputs(net.config, dtype=torch.float32)
    assert torch.equal(again(x, time, condition), net(x, time, condition))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 9}, "size 9 must be a multiple of 2"),
        ({"stages": [FINE | {"patch": 3}, COARSE]}, r"every stage's grid .* are \[3, 2\]"),
        ({"stages": [FINE]}, "there is none"),
        ({"stages": []}, "stages"),
        ({"stages": [COARSE | {"heads": 5}]}, "multiple of heads 5"),
        ({"stages": [FINE | {"kernel": 4}]}, "must be odd"),
    ],
)
def test_configs_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        build({"type": "dimr", **TINY, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"x": torch.zeros(1, 3, 5, 4)}, "multiples of 2; it was given 5 by 4"),
        ({"label": torch.tensor([5])}, "labels 0 to 4 .*given 5"),
        ({"tokens": torch.zeros(1, 4, 6)}, "takes no text"),
    ],
)
def test_errors_are_sentences(call, message):
    call = {"x": torch.zeros(1, 3, 8, 8)} | call
    with pytest.raises(ValueError, match=message):
        network(torch.float32)(call.pop("x"), torch.zeros(1), Condition(**call))


@pytest.mark.parametrize("pool", [2, 4])
def test_noise_has_one_standard_deviation_in_every_layer(pool):
    """Layered Diffusion: what a layer sees of unit noise has the identity as covariance, exactly; averages alone 1 / pool^2."""
    basis = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    seen, plain = (layer(basis, pool, unit).flatten(1) for unit in (True, False))
    covariance = seen.T @ seen
    torch.testing.assert_close(covariance, torch.eye(len(covariance), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(plain.T @ plain, covariance / pool**2, rtol=0, atol=1e-12)


def test_layers_of_one_noise_are_nested_and_lie_at_shifted_levels():
    x0, eps = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)
    level, exact = RectifiedFlow()(0.7), {"rtol": 0, "atol": 1e-12}
    x = level.mix(x0, eps)
    torch.testing.assert_close(layer(layer(x, 2, True), 2, True), layer(x, 4, True), **exact)
    average, noise = averaged(x0, eps, (2, 2))
    torch.testing.assert_close(layer(eps, 4, True), noise, **exact)
    shifted = RectifiedFlow().at_logsnr(level.logsnr + math.log(4))
    rescaled = layer(x, 4, True) * shifted.sigma / level.sigma
    torch.testing.assert_close(rescaled, shifted.mix(average, noise), **exact)


def test_a_layered_network_is_one_whose_layers_are_scaled():
    """The same function as without unit noise, where the first layers of coarse stages have taken the factor over."""
    sizes = VARIANTS["three resolutions"]
    layered, plain = network(**sizes, unit_noise=True), network(**sizes)
    with torch.no_grad():
        for number in (0, 1):
            plain.stage(number).patch_embed.weight.mul_(2)  # their pool
    x, time = (
        torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        torch.tensor([100.0, 900.0]),
    )
    condition = Condition(label=torch.tensor([0, -1]))
    for own, other in zip(layered.predictions(x, time, condition), plain.predictions(x, time, condition), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
    assert (layered(x, time, condition) - network(**sizes)(x, time, condition)).abs().max() > 1e-3
