"""Kernels of other packages: what they are given, against the equation, by stand-ins that compute it and keep their arguments.

Signatures: flash-attn 2.8 (flash_attn_interface.py), FlashAttention 3 (hopper/flash_attn_interface.py), SageAttention 2.2
(sageattention/core.py).
"""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from gen.nn import attention as module
from gen.nn import attention_kernels as kernels
from gen.nn.attention import BACKENDS, PREFERRED, attention, available_backends, choose
from gen.nn.backbones.dit import DiT, DiTConfig
from samplers.denoiser import Condition, Context
from tests.gen.test_attention import biases, equation, tensors

NEW = ("flash", "flash3", "sage", "cudnn")
PACKAGES = {"flash": "flash_attn", "flash3": "flash_attn_interface", "sage": "sageattention"}
CLOSE = {"rtol": 2e-2, "atol": 2e-2}


class There:
    """A tensor's description, on a CUDA device."""

    def __init__(self, q: torch.Tensor):
        self.dtype, self.shape, self.device, self.requires_grad = q.dtype, q.shape, torch.device("cuda"), q.requires_grad


def by_hand(q, k, v, scale):
    """(B, L, H, D)"""
    return module.math(q.float(), k.float(), v.float(), None, None, scale).to(q.dtype)


def packed_by_hand(q, k, v, begins, scale):
    """(L, H, D), sequences from one of `begins` to the next."""
    parts = [
        by_hand(*(part[None, a:b] for part, (a, b) in ((q, one), (k, other), (v, other))), scale)[0]
        for one, other in zip(*(list(zip(b.tolist()[:-1], b.tolist()[1:], strict=True)) for b in begins), strict=True)
    ]
    return torch.cat(parts)


class Stand:
    """The four packages' functions with their own signatures; `seen` are the arguments of the last call."""

    def __init__(self, tuples: bool = False):
        self.seen: dict[str, Any] = {}
        self.tuples = tuples  # earlier versions of FlashAttention 3 give two results

    def flash2(self):
        def flash_attn_func(
            q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
            deterministic=False, return_attn_probs=False,
        ):  # fmt: skip
            self.seen = {"q": q, "k": k, "v": v}
            assert dropout_p == 0.0 and causal is False and window_size == (-1, -1)
            return by_hand(q, k, v, softmax_scale)

        def flash_attn_varlen_func(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
            window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
            block_table=None,
        ):  # fmt: skip
            self.seen = {"q": q, "begins": (cu_seqlens_q, cu_seqlens_k), "longest": (max_seqlen_q, max_seqlen_k)}
            assert dropout_p == 0.0 and causal is False
            return packed_by_hand(q, k, v, (cu_seqlens_q, cu_seqlens_k), softmax_scale)

        return types.SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)

    def flash3(self):
        def flash_attn_func(
            q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
            window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
            return_attn_probs=False,
        ):  # fmt: skip
            self.seen = {"q": q, "k": k, "v": v}
            assert causal is False
            out = by_hand(q, k, v, softmax_scale)
            return (out, None) if self.tuples else out

        def flash_attn_varlen_func(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None, softmax_scale=None,
            causal=False, qv=None, window_size=(-1, -1), softcap=0.0,
        ):  # fmt: skip
            self.seen = {"q": q, "begins": (cu_seqlens_q, cu_seqlens_k), "longest": (max_seqlen_q, max_seqlen_k)}
            out = packed_by_hand(q, k, v, (cu_seqlens_q, cu_seqlens_k), softmax_scale)
            return (out, None) if self.tuples else out

        return types.SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)

    def sage(self):
        def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
            self.seen = {"q": q, "k": k, "v": v}
            assert tensor_layout == "NHD" and is_causal is False and not kwargs
            return by_hand(q, k, v, sm_scale)

        def sageattn_varlen(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, is_causal=False, sm_scale=None, smooth_k=True
        ):  # fmt: skip
            self.seen = {"q": q, "begins": (cu_seqlens_q, cu_seqlens_k), "longest": (max_seqlen_q, max_seqlen_k)}
            return packed_by_hand(q, k, v, (cu_seqlens_q, cu_seqlens_k), sm_scale)

        return types.SimpleNamespace(sageattn=sageattn, sageattn_varlen=sageattn_varlen)


@pytest.fixture
def stand(monkeypatch):
    """All packages are there, and the CPU passes for a CUDA device of compute capability 9.0."""
    stand = Stand()
    found = {"flash_attn": stand.flash2(), "flash_attn_interface": stand.flash3(), "sageattention": stand.sage()}
    monkeypatch.setattr(kernels, "package", lambda name: found.get(name))
    monkeypatch.setattr(kernels, "capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "_cudnn_serves", lambda q, bias: True)
    monkeypatch.setattr(module, "xformers_why_not", lambda q, bias, lengths: "it is not installed")
    for name in NEW:
        kernel, reason = BACKENDS[name]
        monkeypatch.setitem(BACKENDS, name, (kernel, lambda q, b, n, reason=reason: reason(There(q), b, n)))
    return stand


@pytest.mark.parametrize("tuples", [False, True])
@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_kernel_is_given(stand, name, tuples):
    stand.tuples = tuples
    q, k, v = tensors(d=16, dtype=torch.bfloat16)
    wide = torch.stack([v, v], -1)[..., 0]  # rows whose channels do not lie side by side
    result = attention(q, k, wide, scale=0.4, backend=name)
    assert result.dtype == torch.bfloat16 and result.shape == q.shape
    torch.testing.assert_close(result.double(), equation(q, k, v, scale=0.4), **CLOSE)
    for part, given in zip((q, k, v), (stand.seen[one] for one in "qkv"), strict=True):
        assert torch.equal(part, given) and given.stride(-1) == 1
    assert stand.seen["q"].data_ptr() == q.data_ptr(), "an aligned view must not be copied"


@pytest.mark.parametrize("name", PACKAGES)
def test_packed_lengths(stand, name):
    lengths = ([3, 1, 4], [2, 5, 1])
    q, k, v = tensors(b=1, lq=8, lk=8, d=16, dtype=torch.bfloat16)
    result = attention(q, k, v, lengths=lengths, backend=name)
    torch.testing.assert_close(result, attention(q, k, v, lengths=lengths, backend="math"), **CLOSE)
    assert [one.tolist() for one in stand.seen["begins"]] == [[0, 3, 4, 8], [0, 2, 7, 8]]
    assert all(one.dtype == torch.int32 for one in stand.seen["begins"])
    assert stand.seen["longest"] == (4, 5) and stand.seen["q"].shape == (8, 3, 16)
    again = stand.seen["begins"]
    attention(q, k, v, lengths=lengths, backend=name)
    assert stand.seen["begins"][0] is again[0], "offsets are made once, not in every layer"


def test_offsets_of_a_plan_are_not_kept_for_a_run():
    """Tensors without values, made while memory is planned, would break the run that came after, and a run's the plan."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    lengths, device = (3, 4, 11), torch.device("cpu")
    with FakeTensorMode():
        planned = kernels.offsets(lengths, device)
    assert isinstance(planned, FakeTensor)
    real = kernels.offsets(lengths, device)
    assert not isinstance(real, FakeTensor) and real.tolist() == [0, 3, 7, 18]
    with FakeTensorMode():
        assert isinstance(kernels.offsets(lengths, device), FakeTensor)
    assert kernels.offsets(lengths, device) is real
    for n in range(2 * kernels.KEPT):
        kernels.offsets((n,), device)
    assert len(kernels._offsets) <= kernels.KEPT


@pytest.mark.parametrize("kind", biases())
def test_cudnn_alone_is_asked(stand, kind, monkeypatch):
    """The mask is additive and of q's dtype, without rows that see nothing; PyTorch is allowed no other kernel."""
    seen = {}

    def product(q, k, v, attn_mask=None, scale=None):
        from torch.nn.attention import _cur_sdpa_kernel_backends

        seen.update(kernels=[str(one) for one in _cur_sdpa_kernel_backends()], mask=attn_mask)
        scores = torch.einsum("bhqd,bhkd->bhqk", q.float(), k.float()) * scale + (0 if attn_mask is None else attn_mask.float())
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v.float()).to(q.dtype)

    monkeypatch.setattr(kernels.F, "scaled_dot_product_attention", product)
    q, k, v = tensors(d=16, dtype=torch.bfloat16)
    bias = biases()[kind]
    result = attention(q, k, v, bias, scale=0.4, backend="cudnn")
    torch.testing.assert_close(result.double(), equation(q, k, v, bias, 0.4), rtol=4e-2, atol=4e-2)
    assert seen["kernels"] == ["SDPBackend.CUDNN_ATTENTION"] and result.shape == q.shape
    if bias is not None:
        assert seen["mask"].dtype == q.dtype and seen["mask"].shape == (2, 3, 7, 5) and not torch.isnan(result).any()


@pytest.mark.parametrize(
    ("name", "change", "options", "message"),
    [
        ("flash", {"dtype": torch.float32}, {}, "computes in float16 or bfloat16, not torch.float32"),
        ("flash", {"d": 264}, {}, "at most 256 channels, not 264"),
        ("flash", {}, {"bias": biases()["key padding"]}, "takes no mask or bias"),
        ("flash3", {}, {"bias": biases()["additive"]}, "takes no mask or bias"),
        ("sage", {"d": 136}, {}, "at most 128 channels, not 136"),
        ("sage", {}, {"gradients": True}, "SageAttention has no gradients"),
        ("cudnn", {"d": 12}, {}, "multiple of 8, not 12"),
        ("cudnn", {"b": 1}, {"lengths": ([7], [5])}, "takes no packed lengths"),
    ],
)
def test_a_call_that_cannot_be_served_says_why(stand, name, change, options, message):
    q, k, v = tensors(**({"d": 16, "dtype": torch.bfloat16} | change))
    q.requires_grad_(bool(options.pop("gradients", False)))
    with pytest.raises(ValueError, match=f"Attention backend {name!r} cannot serve this call: .*{message}.*backend='auto'"):
        attention(q, k, v, **options, backend=name)


@pytest.mark.parametrize(("name", "level", "message"), [("flash", (7, 5), "8.0 on"), ("flash3", (8, 0), "9.0 on")])
def test_older_devices(stand, monkeypatch, name, level, message):
    monkeypatch.setattr(kernels, "capability", lambda device: level)
    with pytest.raises(ValueError, match=f"compute capability {message}"):
        attention(*tensors(d=16, dtype=torch.bfloat16), backend=name)


def test_flash3_is_for_hopper(stand, monkeypatch):
    monkeypatch.setattr(kernels, "capability", lambda device: (12, 0))
    with pytest.raises(ValueError, match="made for Hopper"):
        attention(*tensors(d=16, dtype=torch.bfloat16), backend="flash3")


def test_without_the_packages_each_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(kernels, "package", lambda name: None)
    monkeypatch.setattr(kernels, "capability", lambda device: (9, 0))
    q = There(tensors(d=16, dtype=torch.bfloat16)[0])
    how = {"flash": "pip install flash-attn", "flash3": "folder hopper", "sage": "pip install sageattention"}
    for name, words in how.items():
        reason = BACKENDS[name][1](q, None, None)
        assert reason.startswith("it is not installed: ") and words in reason


def test_a_package_that_cannot_be_loaded_counts_as_missing(monkeypatch, tmp_path):
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: a torch of another version')")
    monkeypatch.syspath_prepend(tmp_path)
    kernels.package.cache_clear()
    try:
        assert kernels.package("flash_attn") is None and kernels.package("no_such_package") is None
    finally:
        kernels.package.cache_clear()


def test_here_every_one_has_its_reason():
    reasons = available_backends()
    assert set(NEW) <= set(reasons)
    if not torch.cuda.is_available():
        assert all("CUDA kernels only and the tensors are on cpu" in reasons[name] for name in NEW)


def test_auto_takes_the_first_that_serves(stand, monkeypatch):
    half, wide = (There(tensors(d=16, dtype=dtype)[0]) for dtype in (torch.bfloat16, torch.float32))
    bias = biases()["pairs"]
    monkeypatch.setitem(BACKENDS, "xformers", (module.xformers, lambda q, b, n: None))
    for name in NEW:  # descriptions of tensors are on the device already
        kernel, _ = BACKENDS[name]
        monkeypatch.setitem(BACKENDS, name, (kernel, getattr(kernels, f"{name}_why_not")))
    assert choose(half, half, half) == "flash3" and choose(half, half, half, bias) == "xformers"
    assert choose(wide, wide, wide) == "xformers"
    monkeypatch.setattr(kernels, "capability", lambda device: (8, 6))
    assert choose(half, half, half) == "flash"
    monkeypatch.setitem(BACKENDS, "xformers", (module.xformers, lambda q, b, n: "it is not installed"))
    assert choose(wide, wide, wide) == "sdpa" and choose(half, half, half, bias) == "sdpa"
    assert not {"sage", "cudnn", "flex"} & set(PREFERRED)


@torch.no_grad()
@pytest.mark.parametrize("name", ["flash", "flash3"])
def test_a_network_packs_its_text_for_kernels_without_a_mask(stand, name):
    shape = {"size": 4, "patch": 2, "channels": 3, "dim": 32, "depth": 2, "heads": 2, "text_tokens": 20, "text_dim": 6}
    torch.manual_seed(0)
    net = DiT(DiTConfig(**shape)).eval()
    for parameter in net.parameters():
        parameter.normal_(std=0.3)
    net.bfloat16()
    mask = torch.arange(20) < torch.tensor([3, 17, 0])[:, None]
    condition = Condition(tokens=torch.randn(3, 20, 6).bfloat16(), mask=mask)
    x, time = torch.randn(3, 3, 4, 4).bfloat16(), torch.rand(3)
    masked = net(x, time, condition)
    net.attention_backend = name
    made = net(x, time, condition, Context())
    assert (made - masked).abs().max() < 0.1 * masked.abs().max()
    assert stand.seen["begins"][1].tolist() == [0, 3, 20, 40] and stand.seen["longest"] == (4, 20)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("kind", ["none", "pairs", "one query sees nothing", "packed"])
def test_real_kernels(name, kind):
    tolerance = 6e-2 if name == "sage" else 2e-2
    if kind == "packed":
        q, k, v = tensors(b=1, lq=192, lk=256, d=64, dtype=torch.bfloat16, device="cuda")
        bias, options = None, {"lengths": ([64, 128], [160, 96])}
    else:
        q, k, v = tensors(d=64, dtype=torch.bfloat16, device="cuda")
        bias, options = biases()[kind], {}
        bias = None if bias is None else bias.cuda()
    if reason := BACKENDS[name][1](q, bias, options.get("lengths")):
        pytest.skip(reason)
    expected = attention(q.float(), k.float(), v.float(), bias, **options, backend="math")
    torch.testing.assert_close(
        attention(q, k, v, bias, **options, backend=name).float(), expected, rtol=tolerance, atol=tolerance
    )
