"""DiT against its equations written out a second time and against diffusers, with the rules for conditions and sizes."""

import math

import pytest
import torch

from gen.nn.backbones import dit
from gen.nn.backbones.dit import DiT, DiTConfig, sincos_positions
from gen.nn.registry import build
from samplers.denoiser import Condition, Context
from samplers.hooks import with_hook

TINY = {"size": 4, "patch": 2, "channels": 3, "dim": 16, "depth": 3, "heads": 2}
CLASSES = {"num_classes": 5}
TEXT = {"text_tokens": 4, "text_dim": 6}
SINGLE = {"modulation": "adaln_single"}
VARIANTS = {
    "DiT": CLASSES | {"learned_variance": True},
    "PixArt": SINGLE | TEXT | {"learned_variance": True, "position_scale": 0.5},
    "adaln, text": TEXT | {"qk_norm": "rms", "gelu": "exact"},
    "adaln, both": CLASSES | TEXT | {"qkv_bias": False},
    "single, label": SINGLE | CLASSES | {"qk_norm": "layer", "mlp_ratio": 2.0},
    "single, both": SINGLE | CLASSES | TEXT | {"qk_norm": "rms"},
    "adaln, pooled": CLASSES | TEXT | {"pooled_text": True},
    "single, pooled": SINGLE | TEXT | {"qk_norm": "rms", "pooled_text": True},
    "unconditional": {},
    "sizes": SINGLE | TEXT | {"size_conditions": True, "dim": 24},
    "routed": CLASSES | {"routing": {}},
    "routed, text": SINGLE | TEXT | {"routing": {"share": 0.5, "power": 1.5, "last": 10}},
}


def randomise(net, dtype, seed=0):
    """Random weights everywhere, so that every term of the equations counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * spread)
    return net.to(dtype).eval()


def network(dtype=torch.float32, **changes) -> DiT:
    net = DiT(DiTConfig(**TINY | changes))
    c = net.config  # the buffer is float32 by default
    net.pos_embed = sincos_positions(c.grid, c.grid, c.dim, c.grid, c.position_scale)
    return randomise(net, dtype)


def inputs(config: DiTConfig, batch=3, height=None, width=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x = normal(batch, config.channels, height or config.size, width or config.size)
    time = torch.rand(batch, generator=generator, dtype=torch.float64) * 10
    label = torch.tensor([2, -1, 4])[:batch] if config.num_classes else None
    tokens = mask = None
    if config.text_dim:
        tokens = normal(batch, config.text_tokens, config.text_dim)
        mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]][:batch]).bool()
    extra = {}
    if config.size_conditions:
        extra = {"size": normal(batch, 2).abs() * 3, "aspect": normal(batch, 1).abs()}
    return x, time.to(dtype), Condition(label=label, tokens=tokens, mask=mask, extra=extra)


def equations(w: dict, c: DiTConfig, x, time, condition: Condition):
    """The network from a dictionary of weights, image by image and head by head."""

    def linear(name, v):
        return torch.einsum("...i,oi->...o", v, w[f"{name}.weight"]) + w.get(f"{name}.bias", 0)

    def norm(v):
        v = v - v.mean(-1, keepdim=True)
        return v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def silu(v):
        return v / (1 + torch.exp(-v))

    def gelu(v, kind):
        if kind == "exact":
            return v * 0.5 * (1 + torch.erf(v / math.sqrt(2)))
        return 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    def head_norm(v):
        if c.qk_norm == "rms":
            return v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return norm(v) if c.qk_norm == "layer" else v

    def attend(q, k, value):
        heads, width = [], c.dim // c.heads
        for h in range(c.heads):
            at = slice(h * width, (h + 1) * width)
            weights = (torch.einsum("qd,kd->qk", head_norm(q[:, at]), head_norm(k[:, at])) / math.sqrt(width)).exp()
            heads.append(torch.einsum("qk,kd->qd", weights / weights.sum(1, keepdim=True), value[:, at]))
        return torch.cat(heads, -1)

    def position(column, row):
        quarter = c.dim // 4
        angles = [v / c.position_scale / 10000 ** (i / quarter) for v in (column, row) for i in range(quarter)]
        sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
        values = sines[:quarter] + cosines[:quarter] + sines[quarter:] + cosines[quarter:]
        return torch.tensor(values, dtype=torch.float64)

    images, p, g, single = [], c.patch, c.grid, c.modulation == "adaln_single"
    for b in range(len(x)):
        frequencies = torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=torch.float64)

        def embedded(name, number, frequencies=frequencies):
            embedding = torch.cat([(number * frequencies).cos(), (number * frequencies).sin()])
            return linear(f"{name}.2", silu(linear(f"{name}.0", embedding)))

        cond = embedded("time_embed", time[b])
        if c.size_conditions:
            (height, width), [aspect] = condition.extra["size"][b], condition.extra["aspect"][b]
            cond = cond + torch.cat([embedded("size_embed", v) for v in (height, width)] + [embedded("aspect_embed", aspect)])
        if c.num_classes:
            label = int(condition.label[b])
            cond = cond + w["label_embed.weight"][label if label >= 0 else c.num_classes]
        if c.text_dim:
            real = condition.mask[b]
            text = condition.tokens[b][real] if real.any() else w["null_text"]
            if c.pooled_text:
                pooled = linear("pooled_embed.fc1", text.mean(0))
                cond = cond + linear("pooled_embed.fc2", gelu(pooled, "tanh"))
            text = linear("text_embed.fc2", gelu(linear("text_embed.fc1", text), "tanh"))
        v = []
        for i in range(g):
            for j in range(g):
                patch = x[b, :, i * p : (i + 1) * p, j * p : (j + 1) * p]
                v.append(torch.einsum("dcij,cij->d", w["patch_embed.weight"], patch) + w["patch_embed.bias"] + position(j, i))
        v = torch.stack(v)
        active = torch.ones(c.dim, dtype=torch.bool)
        if c.routing is not None:
            width = math.floor(c.routing.share * c.dim)
            start = round((float(time[b]) / c.routing.last) ** c.routing.power * (c.dim - width))
            active[:start], active[start + width :] = False, False
        for n in range(c.depth):
            name = f"blocks.{n}"
            if single:
                rows = w[f"{name}.table"] + linear("shared_modulation", silu(cond)).view(6, -1)
            else:
                rows = linear(f"{name}.modulation", silu(cond)).view(6, -1)
            shift1, scale1, gate1, shift2, scale2, gate2 = rows
            passing, v = v * ~active, v * active
            qkv = linear(f"{name}.attn.qkv", norm(v) * (1 + scale1) + shift1).split(c.dim, dim=-1)
            v = v + gate1 * linear(f"{name}.attn.proj", attend(*qkv))
            if c.text_dim:
                keys, values = linear(f"{name}.cross.kv", text).split(c.dim, dim=-1)
                v = v + linear(f"{name}.cross.proj", attend(linear(f"{name}.cross.q", v), keys, values))
            hidden = gelu(linear(f"{name}.mlp.fc1", norm(v) * (1 + scale2) + shift2), c.gelu)
            v = v + gate2 * linear(f"{name}.mlp.fc2", hidden) + passing
        shift, scale = w["final_table"] + cond if single else linear("final_modulation", silu(cond)).view(2, -1)
        v = linear("head", norm(v) * (1 + scale) + shift)

        channels = c.channels * (2 if c.learned_variance else 1)
        image = torch.empty(channels, g * p, g * p, dtype=x.dtype)
        for i in range(g):
            for j in range(g):
                image[:, i * p : (i + 1) * p, j * p : (j + 1) * p] = v[i * g + j].view(p, p, channels).permute(2, 0, 1)
        images.append(image)
    return torch.stack(images)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@torch.no_grad()
def test_forward_is_the_equations(variant, dtype, tolerance):
    net = network(dtype, **VARIANTS[variant])
    x, time, condition = inputs(net.config, dtype=dtype)
    weights = {name: value.double() for name, value in net.state_dict().items()}
    exact = condition.map(lambda value: value.double() if value.is_floating_point() else value)
    expected = equations(weights, net.config, x.double(), time.double(), exact)
    result = net(x, time, condition)
    assert result.dtype == dtype and expected.std() > 0.1
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance * 5)


def shared_names(net: DiT, theirs: dict) -> dict:
    """diffusers' names on our tensors, for what DiT and PixArt have in common there."""
    own = dict(net.named_parameters())
    named = {"pos_embed.proj": "patch_embed"}
    for i in range(net.config.depth):
        here, there = f"blocks.{i}", f"transformer_blocks.{i}"
        named |= {f"{there}.attn1.to_out.0": f"{here}.attn.proj", f"{there}.attn2.to_out.0": f"{here}.cross.proj"}
        named |= {f"{there}.attn2.to_q": f"{here}.cross.q", f"{there}.ff.net.0.proj": f"{here}.mlp.fc1"}
        named |= {f"{there}.ff.net.2": f"{here}.mlp.fc2", f"{there}.norm1.linear": f"{here}.modulation"}
    weights = {f"{a}.{kind}": own.get(f"{b}.{kind}") for a, b in named.items() for kind in ("weight", "bias")}
    for i in range(net.config.depth):
        here, there = f"blocks.{i}", f"transformer_blocks.{i}"
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", own[f"{here}.attn.qkv.{kind}"].chunk(3), strict=True):
                weights[f"{there}.attn1.to_{name}.{kind}"] = part
            if net.config.text_dim:
                for name, part in zip("kv", own[f"{here}.cross.kv.{kind}"].chunk(2), strict=True):
                    weights[f"{there}.attn2.to_{name}.{kind}"] = part
    return {name: value for name, value in weights.items() if value is not None}


@torch.no_grad()
def test_class_conditional_is_diffusers_dit():
    from diffusers import DiTTransformer2DModel

    net = network(**VARIANTS["DiT"] | {"channels": 4, "depth": 2})
    reference = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=4, patch_size=2,
        num_embeds_ada_norm=5, norm_eps=1e-6,
    ).eval()  # fmt: skip
    own, weights = dict(net.named_parameters()), shared_names(net, reference.state_dict())
    for kind in ("weight", "bias"):
        weights[f"proj_out_1.{kind}"], weights[f"proj_out_2.{kind}"] = own[f"final_modulation.{kind}"], own[f"head.{kind}"]
        for i in range(2):
            emb = f"transformer_blocks.{i}.norm1.emb"
            weights[f"{emb}.timestep_embedder.linear_1.{kind}"] = own[f"time_embed.0.{kind}"]
            weights[f"{emb}.timestep_embedder.linear_2.{kind}"] = own[f"time_embed.2.{kind}"]
            weights[f"{emb}.class_embedder.embedding_table.weight"] = own["label_embed.weight"]
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"pos_embed.pos_embed"}
    for block in reference.transformer_blocks:  # the paper's frequencies; diffusers spaces them by 1 / 127 for this model
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    x, time, condition = inputs(net.config)
    label = torch.where(condition.label < 0, 5, condition.label)
    expected = reference(x, time, label).sample
    assert expected.shape == (3, 8, 4, 4) and expected.std() > 0.1
    torch.testing.assert_close(net(x, time, condition), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (4, 6)])
@torch.no_grad()
def test_pixart_is_diffusers_pixart(size, sizes):
    from diffusers import PixArtTransformer2DModel

    shape = {"channels": 4, "depth": 2, "dim": 24, "size": 8, "position_scale": 2.0, "size_conditions": sizes}
    net = network(**VARIANTS["PixArt"] | shape)
    reference = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=8, patch_size=2,
        cross_attention_dim=24, caption_channels=6, interpolation_scale=2, use_additional_conditions=sizes,
    ).eval()  # fmt: skip
    own, weights = dict(net.named_parameters()), shared_names(net, reference.state_dict())
    for i in range(2):
        weights[f"transformer_blocks.{i}.scale_shift_table"] = own[f"blocks.{i}.table"]
    weights["scale_shift_table"] = own["final_table"]
    named = {"proj_out": "head", "adaln_single.linear": "shared_modulation"}
    named |= {f"adaln_single.emb.timestep_embedder.linear_{i}": f"time_embed.{j}" for i, j in ((1, 0), (2, 2))}
    for ours, theirs in (("size_embed", "resolution_embedder"), ("aspect_embed", "aspect_ratio_embedder")):
        if sizes:
            named |= {f"adaln_single.emb.{theirs}.linear_{i}": f"{ours}.{j}" for i, j in ((1, 0), (2, 2))}
    named |= {f"caption_projection.linear_{i}": f"text_embed.fc{i}" for i in (1, 2)}
    weights |= {f"{a}.{kind}": own[f"{b}.{kind}"] for a, b in named.items() for kind in ("weight", "bias")}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"pos_embed.pos_embed"}
    x, time, condition = inputs(net.config, height=size[0], width=size[1])
    # rows without a real token read the learned null text here, and anything at all there
    tokens = torch.where(condition.mask.any(1)[:, None, None], condition.tokens, net.null_text)
    mask = condition.mask | ~condition.mask.any(1, keepdim=True)
    added = {"resolution": condition.extra.get("size"), "aspect_ratio": condition.extra.get("aspect")}
    expected = reference(x, tokens, time, added, encoder_attention_mask=mask.float()).sample
    assert expected.shape == (3, 8, *size) and expected.std() > 0.1
    torch.testing.assert_close(net(x, time, condition), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("variant", ["adaln, both", "single, both", "adaln, pooled"])
@torch.no_grad()
def test_unconditional_rows(variant):
    """A negative label, an all-False mask, no input at all and the null condition are one and the same."""
    net = network(torch.float64, **VARIANTS[variant])
    x, time, condition = inputs(net.config, dtype=torch.float64)
    nothing = net(x, time, Condition())
    torch.testing.assert_close(net(x, time, condition.null()), nothing, rtol=1e-12, atol=1e-12)
    row1 = Condition(condition.label[1:2], condition.tokens[1:2], torch.zeros(1, 4).bool())
    torch.testing.assert_close(net(x[1:2], time[1:2], row1), nothing[1:2], rtol=1e-12, atol=1e-12)
    assert (net(x, time, condition) - nothing).flatten(1).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("variant", ["PixArt", "single, pooled"])
@torch.no_grad()
def test_masked_tokens_have_no_influence_and_real_ones_do(variant):
    net = network(torch.float64, **VARIANTS[variant])
    x, time, condition = inputs(net.config, dtype=torch.float64)
    noise = torch.randn(condition.tokens.shape, dtype=torch.float64)
    base = net(x, time, condition)
    garbage = torch.where(condition.mask[..., None], condition.tokens, 1e3 * noise)
    assert torch.equal(net(x, time, Condition(tokens=garbage, mask=condition.mask)), base)
    other = net(x, time, Condition(tokens=condition.tokens + noise, mask=condition.mask))
    assert (other - base)[:2].flatten(1).abs().amax(1).min() > 1e-3 and torch.equal(other[2], base[2])
    only_real = Condition(tokens=condition.tokens[1:2, :1])  # no mask: every token is real, and none is added
    torch.testing.assert_close(net(x[1:2], time[1:2], only_real), base[1:2], rtol=1e-12, atol=1e-12)
    short = Condition(tokens=condition.tokens[:, :1], mask=torch.tensor([[True], [True], [False]]))
    torch.testing.assert_close(net(x, time, short)[1:], base[1:], rtol=1e-12, atol=1e-12)


LONG = SINGLE | {"text_tokens": 40, "text_dim": 6, "depth": 2}


def long_text(net, lengths, dtype=torch.float32):
    """(x, time, condition) with so many real tokens per row of 40; what is masked is large noise."""
    generator = torch.Generator().manual_seed(2)
    batch = len(lengths)
    x, tokens = torch.randn(batch, 3, 4, 4, generator=generator), torch.randn(batch, 40, 6, generator=generator)
    mask = torch.arange(40) < torch.tensor(lengths)[:, None]
    tokens = torch.where(mask[..., None], tokens, 50 * tokens)
    return x.to(dtype), torch.arange(batch).to(dtype), Condition(tokens=tokens.to(dtype), mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("lengths", "kept"), [([3, 9], 16), ([16, 1], 16), ([17, 3], 32), ([33, 2], 40), ([3, 0], 40)])
@torch.no_grad()
def test_padding_that_no_row_needs_is_left_away_to_the_bit(lengths, kept, dtype, monkeypatch):
    """And where a prompt shares its batch with a longer one, it is what it is alone."""
    net = network(dtype, **LONG)
    x, time, condition = long_text(net, lengths, dtype)
    seen = []
    for block in net.blocks:
        block.cross.kv.register_forward_hook(lambda _, args, out: seen.append(out.shape[1]))
    trimmed = net(x, time, condition)
    assert set(seen) == {40 if dtype == torch.bfloat16 else kept}
    monkeypatch.setattr(dit, "trimmed_length", lambda mask, dtype: mask.shape[1])
    whole = net(x, time, condition)
    if dtype == torch.float64:  # on some processors products of another length are summed in another order
        torch.testing.assert_close(whole, trimmed, rtol=1e-13, atol=1e-13)
    else:
        assert torch.equal(whole, trimmed)
    assert seen[-1] == 40


@pytest.mark.parametrize("lengths", [[40, 2, 7], [5, 5], [1, 0, 3]])
@pytest.mark.parametrize("backend", ["auto", "math", "sdpa"])
@torch.no_grad()
def test_packed_text_is_masked_text(lengths, backend):
    net = network(**LONG)
    x, time, condition = long_text(net, lengths)
    masked = net(x, time, condition)
    net.packed_text, net.attention_backend = True, backend
    seen = []
    for block in net.blocks:
        block.cross.kv.register_forward_hook(lambda _, args, out: seen.append(out.shape[:2]))
    packed = net(x, time, condition)
    torch.testing.assert_close(packed, masked, rtol=1e-6, atol=2e-6)
    assert set(seen) == {(1, sum(n or 40 for n in lengths))}  # a row without text reads the null text, which has 40
    context = Context()
    assert torch.equal(net(x, time, condition, context), packed) and torch.equal(net(x, time, condition, context), packed)


@torch.no_grad()
def test_packed_text_under_hooks_and_holes_in_the_mask():
    net = network(torch.float64, **LONG)
    x, time, condition = long_text(net, [12, 30], torch.float64)
    holes = Condition(tokens=condition.tokens, mask=condition.mask & (torch.arange(40) % 3 > 0))
    masked = net(x, time, holes)
    net.packed_text = True
    torch.testing.assert_close(net(x, time, holes), masked, rtol=1e-12, atol=1e-12)
    kinds = []
    context = with_hook(Context(), "attention", lambda site, tokens, run: kinds.append(site.kind) or run())
    torch.testing.assert_close(net(x, time, holes, context), masked, rtol=1e-12, atol=1e-12)
    assert kinds == ["self", "cross"] * 2


def test_training_keeps_the_null_text_in_the_graph():
    """Every parameter has a gradient in every step, also where no row of a batch is unconditional; packing changes none."""
    net = network(torch.float64, **LONG)
    x, time, condition = long_text(net, [12, 30], torch.float64)
    gradients = []
    for packed in (None, True):
        net.packed_text = packed
        net.zero_grad()
        net(x, time, condition).square().sum().backward()
        assert net.null_text.grad is not None and net.null_text.grad.abs().max() == 0
        gradients.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_rows_of_a_batch_are_independent(variant):
    net = network(torch.float64, **VARIANTS[variant])
    x, time, condition = inputs(net.config, dtype=torch.float64)
    together = net(x, time, condition)
    for b in range(3):
        alone = net(x[b : b + 1], time[b : b + 1], condition[b : b + 1])
        torch.testing.assert_close(alone, together[b : b + 1], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_positions_cover_the_trained_range_at_other_sizes():
    net = network(torch.float64, size=8)
    assert net.positions(4, 4, None) is net.pos_embed
    assert torch.equal(sincos_positions(4, 4, 16, 4, 1.0), net.pos_embed)
    wide = net.positions(2, 8, None).view(2, 8, 16)
    trained = net.pos_embed.view(4, 4, 16)
    torch.testing.assert_close(wide[:, ::2], trained[::2])  # every second column and half the rows are trained positions
    x, time, condition = inputs(net.config, height=4, width=16, dtype=torch.float64)
    context = Context()
    assert net(x, time, condition, context).shape == (3, 3, 4, 16)
    assert torch.equal(net(x, time, condition, context), net(x, time, condition))


@torch.no_grad()
def test_text_is_read_once_per_run():
    net = network(**VARIANTS["PixArt"])
    calls = []
    net.text_embed.register_forward_hook(lambda *_: calls.append("text"))
    for block in net.blocks:
        block.cross.kv.register_forward_hook(lambda *_: calls.append("keys"))
    x, time, condition = inputs(net.config)
    expected = net(x, time, condition)
    calls.clear()
    context = Context()
    for step in range(3):
        assert torch.equal(net(x, time, condition, context.at(step)), expected)
    assert sorted(calls) == ["keys"] * 3 + ["text"]
    net(x, time, condition, context.fork("null"))
    assert len(calls) == 8
    assert torch.equal(net(x[:1], time[:1], Condition(), context), net(x[:1], time[:1], Condition()))
    assert torch.equal(net(x, time, Condition(), context), net(x, time, Condition()))
    net.train()
    net(x, time, condition, context)
    with torch.enable_grad():
        assert net.eval()(x, time, condition, context).requires_grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant):
    net = network(**VARIANTS[variant])
    x, time, condition = inputs(net.config)
    net(x, time, condition).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("variant", ["DiT", "PixArt"])
def test_fresh_networks_start_at_zero_and_blocks_as_published(variant):
    torch.manual_seed(0)
    net = DiT(DiTConfig(**TINY | VARIANTS[variant]))
    x, time, condition = inputs(net.config)
    assert net(x, time, condition).abs().max() == 0
    if variant == "DiT":  # adaLN-Zero: the identity; PixArt's tables are random and only its cross-attention is zero
        v = torch.randn(2, 4, 16)
        assert torch.equal(net.blocks[0](v, torch.randn(2, 16), None, None), v)
    else:
        assert all(block.cross.proj.weight.abs().max() == 0 for block in net.blocks)


@pytest.mark.parametrize("variant", ["DiT", "PixArt"])
def test_half_precision(variant):
    net, exact = network(**VARIANTS[variant]), network(torch.float64, **VARIANTS[variant])
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    x, time, condition = inputs(net.config)
    reference = exact(x.double(), time.double(), condition)
    with torch.autocast("cpu", torch.bfloat16):
        result = net(x, time, condition)
    assert (result.double() - reference).norm() < 0.1 * reference.norm()
    result = net.bfloat16()(x.bfloat16(), time, condition)
    assert result.dtype == torch.bfloat16 and (result.double() - reference).norm() < 0.1 * reference.norm()
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 6


@torch.no_grad()
def test_block_hook_and_backend():
    net = network()
    x, time, condition = inputs(net.config)
    order = []
    hooks = {"block": lambda i, n, value, run: order.append((i, n)) or run()}
    assert torch.equal(net(x, time, condition, Context(hooks=hooks)), net(x, time, condition))
    assert order == [(0, 3), (1, 3), (2, 3)]
    net.attention_backend = "xformers"
    with pytest.raises(ValueError, match="CUDA"):
        net(x, time, condition)


@pytest.mark.parametrize(
    ("changes", "call", "message"),
    [
        ({}, {"x": torch.zeros(1, 3, 5, 4)}, "multiples of 2; it was given 5 by 4"),
        ({}, {"label": torch.tensor([1])}, "takes no label"),
        ({}, {"tokens": torch.zeros(1, 4, 6)}, "takes no text"),
        (CLASSES, {"label": torch.tensor([5])}, "labels 0 to 4 .*given 5"),
        (TEXT, {"tokens": torch.zeros(1, 5, 6)}, "room for 4 text tokens and was given 5"),
        (VARIANTS["sizes"], {}, r"extra\['size'\] as \(B, 2\).*'size' is missing"),
        (VARIANTS["sizes"], {"extra": {"size": torch.ones(1, 2), "aspect": torch.ones(1)}}, r"'aspect' is \(1,\)"),
    ],
)
def test_errors_are_sentences(changes, call, message):
    call = {"x": torch.zeros(1, 3, 4, 4)} | call
    with pytest.raises(ValueError, match=message):
        network(**changes)(call.pop("x"), torch.zeros(1), Condition(**call))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 5}, "size 5 must be a multiple of patch 2"),
        ({"dim": 18}, "multiple of 4"),
        ({"text_dim": 5}, "go together"),
        ({"modulation": "film"}, "modulation"),
        ({"size_conditions": True}, "multiple of 3, not 16"),
        ({"routing": {"share": 0}}, "routing.share"),
    ],
)
def test_configs_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        build({"type": "dit", **TINY, **change})
