"""U-ViT against its equations written out a second time, the published sizes, and the rules for conditions and sizes."""

import math

import pytest
import torch
import torch.nn.functional as F

from gen.nn.backbones import blocks as parts
from gen.nn.backbones.uvit import SkipGate, UViT, UViTConfig
from gen.nn.registry import build
from samplers.denoiser import Condition, Context

TINY = {"size": 4, "patch": 2, "channels": 3, "dim": 16, "depth": 5, "heads": 2}
CLASSES = {"num_classes": 5}
TEXT = {"text_tokens": 4, "text_dim": 6}
VARIANTS = {
    "unconditional": {"gelu": "tanh"},
    "classes": CLASSES,
    "text": TEXT | {"time_mlp": True, "text_norm": True, "qk_norm": "rms", "refine_channels": 4},
    "both": CLASSES | TEXT | {"qkv_bias": True, "qk_norm": "layer", "final_conv": False, "out_channels": 6},
    "scaled skips": {"skip_scale": 0.7, "mlp_ratio": 2.0, "heads": 4, "depth": 8},
    "skips over root two": {"skip_scaling": "sqrt2"},
    "learned skips": CLASSES | {"skip_scaling": "learned", "size": 8, "depth": 7},
    "skips learned each": {"skip_scaling": "learned_each", "size": 8, "routing": {"share": 0.6, "power": 2.0}},
    "routed": TEXT | {"skip_scale": 0.8, "routing": {}},
}


def network(dtype=torch.float32, **changes) -> UViT:
    """Random weights everywhere, so that every term of the equations counts."""
    net = UViT(UViTConfig(**TINY | changes)).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * spread)
            if parameter.ndim == 1:
                parameter += 0.5
    return net


def inputs(config: UViTConfig, batch=3, height=None, width=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x = normal(batch, config.channels, height or config.size, width or config.size)
    time = torch.rand(batch, generator=generator, dtype=torch.float64) * 1000
    label = torch.tensor([2, -1, 4])[:batch] if config.num_classes else None
    tokens = mask = None
    if config.text_dim:
        tokens = normal(batch, config.text_tokens, config.text_dim)
        mask = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]][:batch]).bool()
    return x, time.to(dtype), Condition(label=label, tokens=tokens, mask=mask)


def layer_norm(x, weight, bias, eps=1e-5):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def equations(w: dict, c: UViTConfig, x, time, condition: Condition):
    """The paper's network from a dictionary of weights, image by image and head by head."""

    def linear(name, v):
        return torch.einsum("...i,oi->...o", v, w[f"{name}.weight"]) + w.get(f"{name}.bias", 0)

    def norm(name, v):
        return layer_norm(v, w[f"{name}.weight"], w[f"{name}.bias"])

    def gelu(v):
        if c.gelu == "exact":
            return v * 0.5 * (1 + torch.erf(v / math.sqrt(2)))
        return 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    def head_norm(v):
        if c.qk_norm == "rms":
            return v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return layer_norm(v, 1, 0, 1e-6) if c.qk_norm == "layer" else v

    def window(b):
        """The channels that the blocks work on."""
        channels = torch.arange(c.dim)
        if c.routing is None:
            return channels >= 0
        width = math.floor(c.routing.share * c.dim)
        start = round((float(time[b]) / c.routing.last) ** c.routing.power * (c.dim - width))
        return (channels >= start) & (channels < start + width)

    def block(name, v, on):
        full, v = v, torch.where(on, v, 0)
        q, k, value = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", v)).split(c.dim, dim=-1)
        heads, width = [], c.dim // c.heads
        for h in range(c.heads):
            at = slice(h * width, (h + 1) * width)
            scores = torch.einsum("qd,kd->qk", head_norm(q[:, at]), head_norm(k[:, at])) / math.sqrt(width)
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            heads.append(torch.einsum("qk,kd->qd", weights, value[:, at]))
        v = v + linear(f"{name}.attn.proj", torch.cat(heads, -1))
        v = v + linear(f"{name}.mlp.fc2", gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", v))))
        return v + torch.where(on, 0, full)

    def conv3(name, image):
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
        height, width = image.shape[1:]
        out = w[f"{name}.bias"][:, None, None].expand(-1, height, width).clone()
        for i in range(3):
            for j in range(3):
                shifted = padded[:, i : i + height, j : j + width]
                out += torch.einsum("oi,ihw->ohw", w[f"{name}.weight"][:, :, i, j], shifted)
        return out

    images, p, g = [], c.patch, c.grid
    for b in range(len(x)):
        sequence = []
        if c.num_classes:
            label = int(condition.label[b])
            sequence.append(w["label_embed.weight"][label if label >= 0 else c.num_classes])
        frequencies = [10000 ** (-i / (c.dim // 2)) for i in range(c.dim // 2)]
        angles = torch.tensor(frequencies, dtype=torch.float64) * time[b]
        token = torch.cat([angles.cos(), angles.sin()])
        if c.time_mlp:
            hidden = linear("time_embed.0", token)
            token = linear("time_embed.2", hidden * torch.sigmoid(hidden))
        sequence.append(token)
        for i in range(c.text_tokens):
            feature = condition.tokens[b, i]
            feature = norm("text_norm", feature) if c.text_norm else feature
            sequence.append(linear("text_embed", feature) if condition.mask[b, i] else w["null_tokens"][i])
        for i in range(g):
            for j in range(g):
                patch = x[b, :, i * p : (i + 1) * p, j * p : (j + 1) * p]
                sequence.append(torch.einsum("dcij,cij->d", w["patch_embed.weight"], patch) + w["patch_embed.bias"])
        v = torch.stack(sequence) + w["pos_embed"][0]

        half, skips, on = c.depth // 2, [], window(b)
        for i in range(half):
            v = block(f"in_blocks.{i}", v, on)
            skips.append(v)
        v = block("mid_block", v, on)
        for i in range(half):
            skip = skips[half - 1 - i]
            if "learned" in c.skip_scaling:
                gate = f"skip_gates.{i if c.skip_scaling == 'learned_each' else 0}"
                hidden = linear(f"{gate}.fc1", skip.sum(1) / c.dim).clamp_min(0)
                skip = skip / (1 + torch.exp(-linear(f"{gate}.fc2", hidden)))[:, None]
            skip = skip / 2**0.5 if c.skip_scaling == "sqrt2" else skip * c.skip_scale ** (half - 1 - i)
            v = block(f"out_blocks.{i}", linear(f"out_blocks.{i}.skip_linear", torch.cat([v, skip], -1)), on)
        v = linear("head", norm("norm", v))[-g * g :]

        channels = c.out_channels or c.channels
        image = torch.empty(channels, g * p, g * p, dtype=x.dtype)
        for i in range(g):
            for j in range(g):
                image[:, i * p : (i + 1) * p, j * p : (j + 1) * p] = v[i * g + j].view(p, p, channels).permute(2, 0, 1)
        if c.final_conv:
            image = conv3("final_conv", image)
        if c.refine_channels:
            hidden = conv3("refine.conv1", image)
            hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
            image = image + conv3("refine.conv2", hidden)
        images.append(image)
    return torch.stack(images)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@torch.no_grad()
def test_forward_is_the_equations(variant, dtype, tolerance):
    net = network(dtype, **VARIANTS[variant])
    x, time, condition = inputs(net.config, dtype=dtype)
    time = time / 100 if dtype == torch.float32 else time  # float32 angles of 1000 rad are only good to 6e-5
    weights = {name: value.double() for name, value in net.state_dict().items()}
    exact = Condition(condition.label, None if condition.tokens is None else condition.tokens.double(), condition.mask)
    expected = equations(weights, net.config, x.double(), time.double(), exact)
    result = net(x, time, condition)
    assert result.dtype == dtype and expected.std() > 0.1
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance * 5)


@torch.no_grad()
def test_unconditional_rows():
    """A negative label, an all-False mask, no input at all and the null condition are one and the same."""
    net = network(torch.float64, **VARIANTS["both"])
    x, time, condition = inputs(net.config, dtype=torch.float64)
    nothing = net(x, time, Condition())
    assert torch.equal(nothing, net(x, time, condition.null()))
    row1 = Condition(condition.label[1:2], condition.tokens[1:2], torch.zeros(1, 4).bool())
    torch.testing.assert_close(net(x[1:2], time[1:2], row1), nothing[1:2], rtol=1e-12, atol=1e-12)
    assert (net(x, time, condition) - nothing).flatten(1).abs().amax(1).min() > 1e-3


@torch.no_grad()
def test_masked_tokens_have_no_influence_and_real_ones_do():
    net = network(torch.float64, **VARIANTS["text"])
    x, time, condition = inputs(net.config, dtype=torch.float64)
    noise = torch.randn(condition.tokens.shape, dtype=torch.float64)
    garbage = torch.where(condition.mask[..., None], condition.tokens, 1e3 * noise)
    base = net(x, time, condition)
    assert torch.equal(net(x, time, Condition(tokens=garbage, mask=condition.mask)), base)
    other = net(x, time, Condition(tokens=condition.tokens + noise, mask=condition.mask))
    assert (other - base)[:2].abs().max() > 1e-3 and torch.equal(other[2], base[2])  # row 2 has no real token


@torch.no_grad()
def test_fewer_tokens_are_padded_as_masked():
    net = network(torch.float64, **VARIANTS["text"])
    x, time, condition = inputs(net.config, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0]] * 3).bool()
    long = net(x, time, Condition(tokens=condition.tokens, mask=mask))
    for short in (Condition(tokens=condition.tokens[:, :2], mask=mask[:, :2]), Condition(tokens=condition.tokens[:, :2])):
        torch.testing.assert_close(net(x, time, short), long, rtol=1e-13, atol=1e-13)


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
def test_other_sizes():
    net = network(torch.float64, size=8)
    x, time, condition = inputs(net.config, height=12, width=6, dtype=torch.float64)
    assert net(x, time, condition).shape == (3, 3, 12, 6)
    # rows and columns are not mixed up: positions that depend on the row alone stay constant along each row
    net.pos_embed[:, 1:] = torch.arange(4.0).repeat_interleave(4)[None, :, None]
    rows = net.positions(6, 3)[0, 1:].view(6, 3, -1)
    torch.testing.assert_close(rows, rows[:, :1, :1].expand_as(rows), rtol=1e-12, atol=1e-12)
    assert (rows[1:, 0, 0] > rows[:-1, 0, 0]).all()
    grid = net.pos_embed[:, 1:].unflatten(1, (4, 4)).movedim(3, 1)
    expected = torch.nn.functional.interpolate(grid, size=(6, 3), mode="bicubic")[0].movedim(0, 2)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_learned_skips_at_other_sizes():
    """The gate reads and is read by any grid: a picture that is the same everywhere gets the same gates at every size."""
    gate = SkipGate(extras=1, grid=4).double()
    flat = torch.ones(2, 17, 3, dtype=torch.float64) * torch.tensor([1.0, -0.5])[:, None, None]
    gate.fc2.weight[1:] = gate.fc2.weight[1]
    gate.fc2.bias[1:] = gate.fc2.bias[1]
    trained = gate(flat, 4, 4)
    wide = gate(flat[:, :1].expand(-1, 1 + 3 * 7, -1), 3, 7)
    torch.testing.assert_close(wide[:, 1:], trained[:, 1:2].expand_as(wide[:, 1:]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(wide[:, 0], trained[:, 0], rtol=1e-12, atol=1e-12)
    torch.manual_seed(0)
    rows = torch.randn(1, 1 + 8 * 8, 3, dtype=torch.float64)
    gate = SkipGate(extras=1, grid=4).double()
    image = rows[:, 1:].mean(-1).view(1, 1, 8, 8)
    means = torch.cat([rows[:, :1].mean(-1), F.interpolate(image, size=(4, 4), mode="bilinear").flatten(1)], 1)
    out = gate.fc2(gate.fc1(means).relu()).sigmoid()
    scale = F.interpolate(out[:, None, 1:].unflatten(-1, (4, 4)), size=(8, 8), mode="bilinear").flatten(1)
    torch.testing.assert_close(gate(rows, 8, 8)[:, 1:], rows[:, 1:] * scale[..., None], rtol=1e-12, atol=1e-12)


def test_the_trained_size_is_untouched():
    net = network()
    assert net.positions(2, 2) is net.pos_embed
    same = torch.nn.functional.interpolate(net.pos_embed[:, 1:].unflatten(1, (2, 2)).movedim(3, 1), size=(2, 2), mode="bicubic")
    torch.testing.assert_close(same.movedim(1, 3).flatten(1, 2), parts.resize_positions(net.pos_embed[:, 1:], 2, 2, 2))


@torch.no_grad()
def test_text_is_projected_once_per_run():
    net = network(**VARIANTS["text"])
    calls = []
    net.text_embed.register_forward_hook(lambda *_: calls.append(1))
    x, time, condition = inputs(net.config)
    expected = net(x, time, condition)
    context = Context()
    for step in range(3):
        assert torch.equal(net(x, time, condition, context.at(step)), expected)
    assert len(calls) == 2  # once without a run, once in it
    other = Condition(tokens=condition.tokens.clone(), mask=condition.mask)
    net(x, time, other, context)
    net(x, time, condition, context.fork("null"))
    assert len(calls) == 4
    # a smaller batch without text, and a second network, in the same run
    assert net(x, time, Condition(), context).shape == x.shape
    assert torch.equal(net(x[:1], time[:1], Condition(), context), net(x[:1], time[:1], Condition()))
    twin = network(**VARIANTS["text"])
    twin.text_embed.weight.mul_(2)
    assert torch.equal(twin(x, time, condition, context), twin(x, time, condition))


def test_text_is_projected_every_time_where_it_can_change():
    net = network(**VARIANTS["text"])
    calls = []
    net.text_embed.register_forward_hook(lambda *_: calls.append(1))
    x, time, condition = inputs(net.config)
    context = Context()
    for _ in range(2):
        net(x, time, condition, context)  # gradients
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(x, time, condition, context)
    assert len(calls) == 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant):
    net = network(**VARIANTS[variant])
    x, time, condition = inputs(net.config)
    net(x, time, condition).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    if net.config.num_classes:
        used = net.label_embed.weight.grad.abs().amax(1) > 0
        assert used.tolist() == [False, False, True, False, True, True]  # labels 2, 4 and the null row


def test_zero_init_makes_every_block_the_identity():
    torch.manual_seed(0)
    net = UViT(UViTConfig(**TINY, zero_init=True, refine_channels=4))
    x = torch.randn(2, 5, 16)
    assert torch.equal(net.mid_block(x, None, "auto"), x)
    image = torch.randn(2, 3, 4, 4)
    assert torch.equal(net.refine(image), image) and torch.equal(net.final_conv(image), image)
    assert not torch.equal(UViT(UViTConfig(**TINY)).mid_block(x, None, "auto"), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@torch.no_grad()
def test_pure_dtypes(dtype):
    exact = network(torch.float64, **VARIANTS["text"])
    net = network(dtype, **VARIANTS["text"])
    x, time, condition = inputs(net.config, dtype=torch.float64)
    result = net(x.to(dtype), time.float(), condition)
    assert result.dtype == dtype
    tolerance = {torch.bfloat16: 0.15, torch.float32: 1e-3, torch.float64: 1e-3}[dtype]  # float32 time
    reference = exact(x, time, condition)
    assert (result.double() - reference).norm() < tolerance * reference.norm()


def test_autocast_keeps_the_residual_stream_in_half_precision():
    net = network(**VARIANTS["both"])
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    x, time, condition = inputs(net.config)
    with torch.autocast("cpu", torch.bfloat16):
        result = net(x, time, condition)
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 5
    reference = net(x, time, condition)
    assert (result.float() - reference).norm() < 0.1 * reference.norm()


@torch.no_grad()
def test_attention_backend_is_handed_down(monkeypatch):
    net = network()
    asked = []
    plain = parts.attention
    monkeypatch.setattr(parts, "attention", lambda *a, backend: asked.append(backend) or plain(*a, backend=backend))
    x, time, condition = inputs(net.config)
    base = net(x, time, condition)
    net.attention_backend = "math"
    torch.testing.assert_close(net(x, time, condition), base, rtol=1e-4, atol=1e-5)
    assert asked == ["auto"] * 5 + ["math"] * 5
    net.attention_backend = "xformers"
    with pytest.raises(ValueError, match="CUDA"):
        net(x, time, condition)


@torch.no_grad()
def test_block_hook_sees_every_block_and_may_skip_it():
    net = network(torch.float64)
    x, time, condition = inputs(net.config, dtype=torch.float64)
    order = []

    def run_all(index, count, value, run):
        order.append((index, count))
        return run()

    assert torch.equal(net(x, time, condition, Context(hooks={"block": run_all})), net(x, time, condition))
    assert order == [(i, 5) for i in range(5)]
    skipped = net(x, time, condition, Context(hooks={"block": lambda i, n, value, run: value if i == 2 else run()}))
    net.mid_block.attn.proj.weight.zero_(), net.mid_block.attn.proj.bias.zero_()
    net.mid_block.mlp.fc2.weight.zero_(), net.mid_block.mlp.fc2.bias.zero_()
    torch.testing.assert_close(skipped, net(x, time, condition), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "call", "message"),
    [
        ({}, {"x": torch.zeros(1, 3, 5, 4)}, "multiples of 2; it was given 5 by 4"),
        ({}, {"x": torch.zeros(1, 4, 4, 4)}, r"shape \(B, 3, H, W\); it was given \(1, 4, 4, 4\)"),
        ({}, {"label": torch.tensor([1])}, "takes no label"),
        ({}, {"tokens": torch.zeros(1, 4, 6)}, "takes no text"),
        (CLASSES, {"label": torch.tensor([5])}, "labels 0 to 4 .*given 5"),
        (CLASSES, {"label": torch.tensor([1, 2])}, "one per image"),
        (TEXT, {"tokens": torch.zeros(1, 5, 6)}, "room for 4 text tokens and was given 5"),
        (TEXT, {"tokens": torch.zeros(1, 4, 7)}, r"must be \(1, L, 6\); it is \(1, 4, 7\)"),
        (TEXT, {"tokens": torch.zeros(2, 4, 6)}, r"must be \(1, L, 6\)"),
        (TEXT, {"tokens": torch.zeros(1, 4, 6), "mask": torch.ones(1, 3).bool()}, "mask must be"),
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
        ({"heads": 3}, "of heads 3"),
        ({"text_dim": 5}, "go together"),
        ({"qk_norm": "l2"}, "qk_norm"),
        ({"skip_scaling": "sqrt2", "skip_scale": 0.5}, "leave it out"),
        ({"routing": {"share": 1.5}}, "routing.share"),
        ({"width": 3}, "width"),
    ],
)
def test_configs_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        build({"type": "uvit", **TINY, **change})
