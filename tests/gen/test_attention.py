"""Every backend against the equation, and the arguments that xformers gets against what its kernels ask for."""

import sys
import types

import pytest
import torch

from gen.nn import attention as module
from gen.nn.attention import BACKENDS, attention, available_backends, choose
from gen.nn.backbones.blocks import SelfAttention, normalize_heads
from gen.nn.backbones.dit import DiT, DiTConfig
from samplers.denoiser import Condition, Context


def tensors(b=2, lq=7, lk=5, h=3, d=8, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(b * 1000 + lq * 100 + lk * 10 + d)
    shapes = (b, lq, h, d), (b, lk, h, d), (b, lk, h, d)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes]


def equation(q, k, v, bias=None, scale=None):
    """softmax(scale q k^T + bias) v in float64, one query at a time; a query that attends to nothing gives 0."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    full = torch.zeros(q.shape[0], q.shape[2], q.shape[1], k.shape[1], dtype=torch.float64)
    if bias is not None:
        full = full + (torch.where(bias, 0.0, -torch.inf) if bias.dtype == torch.bool else bias.double())
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            for i in range(q.shape[1]):
                score = scale * torch.einsum("d,kd->k", q[b, i, h], k[b, :, h]) + full[b, h, i]
                if score.max() > -torch.inf:
                    weight = (score - score.max()).exp()
                    out[b, i, h] = torch.einsum("k,kd->d", weight / weight.sum(), v[b, :, h])
    return out


def biases(b=2, lq=7, lk=5, h=3):
    generator = torch.Generator().manual_seed(0)
    keys = torch.ones(b, 1, 1, lk, dtype=torch.bool)
    keys[0, ..., 2:] = False
    pairs = torch.rand(b, h, lq, lk, generator=generator) < 0.5
    nothing = keys.clone()
    nothing[1] = False  # all queries of one sample, and below one query of the other
    pairs_nothing = pairs.clone()
    pairs_nothing[0, 1, 3] = False
    return {
        "none": None,
        "key padding": keys,
        "pairs": pairs,
        "two axes": pairs[0, 0],
        "nothing to see": nothing,
        "one query sees nothing": pairs_nothing,
        "additive": torch.randn(1, h, lq, lk, generator=generator),
        "additive per key": torch.randn(b, 1, 1, lk, generator=generator),
        "additive, infinite": torch.where(pairs_nothing, 0.3, -torch.inf),
    }


@pytest.mark.parametrize("kind", biases())
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["math", "sdpa", "flex"])
def test_backends_are_the_equation(backend, kind):
    q, k, v = tensors(d=16)
    expected = equation(q, k, v, biases()[kind], scale=0.4)
    result = attention(q, k, v, biases()[kind], scale=0.4, backend=backend)
    assert result.shape == q.shape and result.dtype == q.dtype
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["math", "sdpa"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("shape", [{"lq": 1, "lk": 1}, {"lq": 33, "lk": 17, "d": 24, "h": 1}, {"lq": 4, "lk": 64, "b": 1}])
def test_dtypes_and_shapes(backend, dtype, tolerance, shape):
    q, k, v = tensors(**shape, dtype=dtype)
    result = attention(q, k, v, backend=backend)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), equation(q, k, v), rtol=tolerance, atol=tolerance)


def test_the_half_precision_softmax_is_no_worse_than_rounding():
    """Scores of a wide range in bfloat16: the weights carry its rounding of the scores, not of the sum of 2000 terms."""
    torch.manual_seed(0)
    q = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)
    k, v = torch.randn(1, 2000, 1, 8).bfloat16(), torch.ones(1, 2000, 1, 8, dtype=torch.bfloat16)
    result = attention(q, k, v, backend="math").float()  # the mean of ones; a bfloat16 running sum would stop at 256
    torch.testing.assert_close(result, torch.ones(1, 1, 1, 8), rtol=5e-3, atol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["math", "sdpa", "flex"])
def test_packed_is_block_diagonal_and_each_segment_as_if_alone(backend):
    lengths = ([3, 1, 4], [2, 5, 1])
    q, k, v = tensors(b=1, lq=8, lk=8, d=16)
    blocks = torch.block_diag(*[torch.ones(a, b) for a, b in zip(*lengths, strict=True)]).bool()
    packed = attention(q, k, v, lengths=lengths, backend=backend)
    torch.testing.assert_close(packed.double(), equation(q, k, v, blocks), rtol=1e-5, atol=1e-5)
    if backend != "flex":
        assert torch.equal(packed[:, 3:4], attention(q[:, 3:4], k[:, 2:7], v[:, 2:7], backend=backend))


@pytest.mark.parametrize("kind", ["none", "pairs", "one query sees nothing", "additive"])
def test_gradients_agree(kind):
    gradients = []
    for backend in ("math", "sdpa"):
        leaves = [t.requires_grad_() for t in tensors(dtype=torch.float64)]
        bias = biases()[kind]
        if kind == "additive":
            bias = bias.double().requires_grad_()
        attention(*leaves, bias, backend=backend).square().sum().backward()
        gradients.append([t.grad for t in (*leaves, bias) if t is not None and t.grad is not None])
    assert len(gradients[0]) == (4 if kind == "additive" else 3)
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_auto_on_a_cpu():
    def chosen(length, dtype, gradients=False, lengths=None):
        q = torch.empty(1, length, 1, 8, dtype=dtype, requires_grad=gradients)
        return choose(q, q, q, None, lengths)

    assert chosen(81, torch.bfloat16) == "sdpa" and chosen(81, torch.float32, gradients=True) == "sdpa"
    assert chosen(400, torch.bfloat16, gradients=True) == "math"
    assert chosen(4096, torch.bfloat16, gradients=True) == "sdpa"
    assert chosen(4096, torch.bfloat16, gradients=True, lengths=([1024] * 4, [1024] * 4)) == "math"
    q, k, v = tensors()
    assert torch.equal(attention(q, k, v), attention(q, k, v, backend="sdpa"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "sdpaa"}, "Unknown attention backend 'sdpaa'.*Did you mean sdpa"),
        ({"backend": "xformers"}, "'xformers' cannot serve this call: .*CUDA kernels only and the tensors are on cpu"),
        ({"bias": torch.ones(2, 3, 7, 6)}, r"broadcast to .* = \(2, 3, 7, 5\); it was given \(2, 3, 7, 6\)"),
        ({"bias": torch.ones(1, 2, 3, 7, 5)}, "broadcast"),
        ({"bias": torch.ones(5, dtype=torch.int64)}, "bool .* or floating"),
        ({"lengths": ([7], [5])}, "B = 1"),
        ({"k": torch.zeros(2, 5, 3, 9)}, "Lq, H, D"),
        ({"v": torch.zeros(2, 5, 3, 8, dtype=torch.bfloat16)}, "one dtype"),
    ],
)
def test_a_call_that_cannot_be_served_says_why(change, message):
    q, k, v = tensors()
    with pytest.raises(ValueError, match=message):
        attention(**({"q": q, "k": k, "v": v} | change))


@pytest.mark.parametrize("lengths", [([8], [4, 4]), ([4, 3], [4, 4]), ([8, 0], [4, 4])])
def test_packed_lengths_that_do_not_fit(lengths):
    q, k, v = tensors(b=1, lq=8, lk=8)
    with pytest.raises(ValueError, match="add up to Lq and Lk"):
        attention(q, k, v, lengths=lengths)
    with pytest.raises(ValueError, match="cannot be combined"):
        attention(q, k, v, torch.ones(8, 8), lengths=([8], [8]))


def test_flex_on_a_cpu_refuses_gradients():
    q, k, v = tensors()
    with pytest.raises(ValueError, match="no gradients on a CPU"):
        attention(q.requires_grad_(), k, v, backend="flex")


def test_available_backends():
    reasons = available_backends()
    assert reasons.keys() == BACKENDS.keys() and reasons["math"] is None and reasons["sdpa"] is None
    if not torch.cuda.is_available():
        assert "CUDA" in reasons["xformers"]


class FakeKernel(types.ModuleType):
    """xFormers' interface over the oracle; keeps the arguments it was called with."""

    class attn_bias:
        class BlockDiagonalMask:
            @classmethod
            def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
                self = cls()
                self.q_seqlen, self.kv_seqlen, self.device = q_seqlen, kv_seqlen, device
                return self

    def memory_efficient_attention(self, query, key, value, attn_bias=None, p=0.0, scale=None):
        self.seen = query, key, value, attn_bias
        assert p == 0.0
        if isinstance(attn_bias, self.attn_bias.BlockDiagonalMask):
            return module.math(query, key, value, None, (attn_bias.q_seqlen, attn_bias.kv_seqlen), scale)
        # unlike the oracle: a fully masked row is NaN, as softmax says
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * scale + (0 if attn_bias is None else attn_bias)
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)


@pytest.fixture(params=["xformers", "mslk"])
def fake(request, monkeypatch):
    """The named package as the only one there, with a stand-in for its kernel; and a CPU that passes for a CUDA device."""
    name = {"xformers": "xformers.ops.fmha", "mslk": "mslk.attention.fmha"}[request.param]
    kernel = FakeKernel(name)
    find = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda n: n == request.param if n in ("xformers", "mslk") else find(n)
    )
    monkeypatch.setitem(sys.modules, name, kernel)
    for parent in (name.rsplit(".", 1)[0], name.split(".")[0]):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    reason = module.xformers_why_not
    monkeypatch.setitem(BACKENDS, "xformers", (module.xformers, lambda q, bias, n: reason(Elsewhere(q), bias, n)))
    module._fmha.cache_clear()
    yield kernel
    module._fmha.cache_clear()
    module._segments.cache_clear()


class Elsewhere:
    """A tensor's description, on a CUDA device."""

    def __init__(self, q):
        self.dtype, self.shape, self.device = q.dtype, q.shape, torch.device("cuda")


@pytest.mark.parametrize("kind", biases())
def test_xformers_gets_what_its_kernels_ask_for(fake, kind):
    q, k, v = tensors()
    # views as a fused projection makes them, and one that is not aligned
    q, k = torch.stack([q, q], 2)[:, :, 0], torch.nn.functional.pad(k, (0, 1))[..., :-1]
    assert k.stride(-2) % 8
    result = attention(q, k, v, biases()[kind], scale=0.4, backend="xformers")
    torch.testing.assert_close(result.double(), equation(q, k, v, biases()[kind], 0.4), rtol=1e-5, atol=1e-5)
    for given, original in zip(fake.seen[:3], (q, k, v), strict=True):
        assert torch.equal(given, original)
        assert given.stride(-1) == 1 and not any(s % 8 for s in given.stride()[:-1])
    assert fake.seen[0].data_ptr() == q.data_ptr(), "an aligned view must not be copied"
    bias = fake.seen[3]
    if kind == "none":
        assert bias is None
    else:
        assert bias.dtype == q.dtype and bias.shape == (2, 3, 7, 5)
        assert bias.stride(-1) == 1 and bias.stride(-2) % 8 == 0 and not torch.isnan(result).any()


def test_xformers_packed_lengths(fake):
    q, k, v = tensors(b=1, lq=8, lk=8)
    result = attention(q, k, v, lengths=((3, 5), (6, 2)), backend="xformers")
    assert torch.equal(result, attention(q, k, v, lengths=((3, 5), (6, 2)), backend="math"))
    assert fake.seen[3].q_seqlen == [3, 5] and fake.seen[3].kv_seqlen == [6, 2] and fake.seen[3].device == q.device


@torch.no_grad()
def test_xformers_gets_packed_text(fake):
    """A network that is told to use xFormers packs its text: no padding, no bias, one mask for all blocks and steps."""
    shape = {"size": 4, "patch": 2, "channels": 3, "dim": 32, "depth": 2, "heads": 2, "text_tokens": 20, "text_dim": 6}
    torch.manual_seed(0)
    net = DiT(DiTConfig(**shape)).eval()
    for parameter in net.parameters():
        parameter.normal_(std=0.3)
    mask = torch.arange(20) < torch.tensor([3, 17, 0])[:, None]
    condition = Condition(tokens=torch.randn(3, 20, 6), mask=mask)
    x, time = torch.randn(3, 3, 4, 4), torch.rand(3)
    masked = net(x, time, condition)
    net.attention_backend = "xformers"
    context, calls, kernel = Context(), [], fake.memory_efficient_attention

    def recording(query, key, value, attn_bias=None, p=0.0, scale=None):
        calls.append((query, key, value, attn_bias))
        return kernel(query, key, value, attn_bias, p, scale)

    fake.memory_efficient_attention = recording
    for _ in range(2):
        torch.testing.assert_close(net(x, time, condition, context), masked, rtol=1e-5, atol=1e-5)
    cross = [call for call in calls if call[3] is not None]
    assert len(calls) == 8 and len(cross) == 4 and len({id(call[3]) for call in cross}) == 1
    for query, key, value, bias in cross:
        assert query.shape == (1, 12, 2, 16) and key.shape == value.shape == (1, 40, 2, 16)  # 3 + 17 + the null text's 20
        assert bias.q_seqlen == [4, 4, 4] and bias.kv_seqlen == [3, 17, 20] and bias.device == x.device
        assert all(t.stride(-1) == 1 and not any(s % 8 for s in t.stride()[:-1]) for t in (query, key, value))


@pytest.mark.parametrize(
    ("change", "message"), [({"d": 12}, "multiple of 8, not 12"), ({"dtype": torch.float64}, "not torch.float64")]
)
def test_xformers_says_why_not(fake, change, message):
    with pytest.raises(ValueError, match=message):
        attention(*tensors(**change), backend="xformers")


def test_an_empty_placeholder_package_is_passed_over(monkeypatch):
    """mslk on the package index is an empty shell; xformers must still be found behind it."""
    kernel = FakeKernel("xformers.ops.fmha")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda n: True)
    for name in ("mslk", "xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "xformers.ops.fmha", kernel)
    module._fmha.cache_clear()
    try:
        assert module._fmha() is kernel
    finally:
        module._fmha.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["sdpa", "xformers", "flex"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", [*biases(), "packed"])
def test_real_kernels(backend, dtype, tolerance, kind):
    if reason := available_backends()[backend]:
        pytest.skip(reason)
    if kind == "packed":
        q, k, v = tensors(b=1, lq=48, lk=64, d=32, dtype=dtype, device="cuda")
        bias, options = None, {"lengths": ([16, 32], [40, 24])}
    else:
        q, k, v = tensors(d=32, dtype=dtype, device="cuda")
        bias, options = biases()[kind], {}
        bias = None if bias is None else bias.cuda()
    expected = attention(q.double(), k.double(), v.double(), bias, **options, backend="math")
    torch.testing.assert_close(
        attention(q, k, v, bias, **options, backend=backend).double(), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("qk_norm", ["none", "rms", "layer"])
def test_gradients_of_q_k_and_v_meet_in_the_projection(qk_norm):
    """Against the parts cut out of the projection one by one, with products and no kernel."""
    layer, x = SelfAttention(12, 2, True, qk_norm).double(), torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    given = torch.autograd.grad(layer(x).square().sum(), wanted)
    q, k, v = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1))
    q, k = normalize_heads(q, qk_norm), normalize_heads(k, qk_norm)
    out = layer.proj(((q @ k.mT / 6**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
    for mine, truth in zip(given, torch.autograd.grad(out.square().sum(), wanted), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-12)
