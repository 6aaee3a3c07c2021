"""Layers for q, k and v as one for the fused projection, and how LoKr cuts a weight: against whole matrices and peft."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from customization.algebra import weighted_sum
from gen.adapters import Adapter, AdapterError, Delta, read_adapter, renamed, write_adapter
from gen.adapters.join import joined
from gen.adapters.peft_config import _cuts, make_config


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(10, 18), nn.Linear(6, 10)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lora(seed: int, out: int, rank: int = 2, scale: float = 1.0, **more: torch.Tensor) -> Delta:
    return Delta({"down": rand(rank, 10, seed=seed), "up": rand(out, rank, seed=seed + 50), **more}, scale)


def named(name: str, **layers: Delta) -> Adapter:
    return Adapter(name, {f"denoiser.attn.{layer}": delta for layer, delta in layers.items()})


def network() -> nn.Module:
    net = nn.Module()
    net.attn = Attention()
    return net.double()


def test_a_file_of_q_k_and_v_merges_with_one_of_the_fused_projection(tmp_path):
    """The sum of both, to rounding, of all rows or of some, whatever the scales, through a file of kohya's names too."""
    apart = named("apart", to_q=lora(1, 6, 2, 0.5), to_v=lora(3, 6, 3, 2.0, up_bias=rand(6, seed=9)))
    fused = named("fused", qkv=lora(7, 18, 4))
    weight = torch.zeros(18, 10).double()
    wanted = weight.clone()
    wanted[:6] = apart.layers["denoiser.attn.to_q"].delta(weight[:6])
    wanted[12:] = apart.layers["denoiser.attn.to_v"].delta(weight[:6])
    one = renamed(apart, {"denoiser": network()})
    assert list(one.layers) == ["denoiser.attn.qkv"] and one.layers["denoiser.attn.qkv"].rank == 5
    torch.testing.assert_close(one.layers["denoiser.attn.qkv"].delta(weight), wanted, rtol=1e-12, atol=1e-12)
    bias = one.layers["denoiser.attn.qkv"].bias(torch.float64)
    torch.testing.assert_close(bias[12:], 2 * rand(6, seed=9))
    assert not bias[:12].any()
    both, _ = weighted_sum([one, fused], [0.7, -1.0])
    sum_of = 0.7 * wanted - fused.layers["denoiser.attn.qkv"].delta(weight)
    torch.testing.assert_close(both.layers["denoiser.attn.qkv"].delta(weight), sum_of, rtol=1e-12, atol=1e-12)
    again = renamed(read_adapter(write_adapter(apart, tmp_path / "a.safetensors", "kohya")), {"denoiser": network()})
    torch.testing.assert_close(again.layers["denoiser.attn.qkv"].delta(weight), wanted, rtol=1e-12, atol=1e-12)


def test_pieces_become_one_layer():
    weight = rand(9, 10, seed=4)
    cuts = [(0, 3), (3, 6), (6, 9)]
    whole = lora(1, 9, 2, 1.5)
    back = joined([(cut, whole.select(*cut)) for cut in reversed(cuts)], 9)
    assert back.rank == 2 and torch.equal(back.factors["up"], whole.factors["up"])  # the same A: nothing grows
    dora = [(cut, lora(i, 3, 2, 0.5, magnitude=rand(3, seed=i).abs())) for i, cut in enumerate(cuts)]
    wanted = torch.cat([delta.delta(weight[slice(*cut)]) for cut, delta in dora])
    torch.testing.assert_close(joined(dora, 9).delta(weight), wanted, rtol=1e-12, atol=1e-12)
    full = [(cuts[2], Delta({"weight": rand(3, 10, seed=8)})), (cuts[0], Delta({"bias": rand(3, seed=2)}))]
    made = joined(full, 9)
    assert torch.equal(made.factors["weight"][6:], rand(3, 10, seed=8)) and not made.factors["weight"][:6].any()
    assert torch.equal(made.factors["bias"], torch.cat([rand(3, seed=2), torch.zeros(6)]))
    with pytest.raises(AdapterError, match="DoRA of some rows only"):
        joined(dora[:2], 9)
    kron = Delta({"lokr_w1": rand(3, 2), "lokr_w2": rand(1, 5)})
    with pytest.raises(AdapterError, match="LoKr of some rows only"):
        joined([(cut, kron) for cut in cuts], 9)
    with pytest.raises(AdapterError, match=r"b: what it changes of attn\.qkv is LoKr"):
        renamed(named("b", to_q=Delta({"lokr_w1": rand(3, 2), "lokr_w2": rand(2, 5)})), {"denoiser": network()})


def test_rows_of_a_lokr_keep_double_precision():
    delta = Delta({"lokr_w1": rand(3, 2), "lokr_w2": rand(3, 3)}, 1 / 3)
    weight = torch.zeros(9, 6).double()
    assert (delta.select(3, 6).delta(weight[3:6]) - delta.delta(weight)[3:6]).abs().max() < 1e-15


@pytest.mark.parametrize("options", [{}, {"decompose_factor": 4}, {"decompose_factor": 5, "decompose_both": True}])
def test_peft_cuts_a_lokr_as_its_file_has_it(options, tmp_path):
    """A file without peft's settings, such as kohya's, opens in peft: the cut is found from the factors."""
    peft = pytest.importorskip("peft")
    layers = lambda: nn.ModuleDict({"up": nn.Linear(16, 40), "down": nn.Linear(40, 12), "conv": nn.Conv2d(12, 8, 3)})  # noqa: E731
    ends = ["up", "down", "conv"]
    config = peft.LoKrConfig(r=1, alpha=3, target_modules=ends, init_weights=False, **options)
    theirs = peft.get_peft_model(layers(), config)
    theirs.save_pretrained(tmp_path / "theirs")
    adapter = read_adapter(tmp_path / "theirs")
    bare = replace(adapter, metadata={}, format="", keys={})
    bare = replace(bare, layers={n: replace(delta, scale=3.0) for n, delta in bare.layers.items()})
    write_adapter(bare, tmp_path / "ours", "peft")
    again = peft.PeftModel.from_pretrained(layers(), tmp_path / "ours")
    for end in ends:
        one, other = (model.base_model.model[end].get_delta_weight("default") for model in (again, theirs))
        torch.testing.assert_close(one, other)


def test_the_cut_of_a_size_is_pefts():
    layer = pytest.importorskip("peft.tuners.lokr.layer")
    for size in (1, 7, 12, 40, 64, 127, 320, 768, 1280):
        for factor in (-1, 1, 2, 3, 4, 5, 8, 16, 40, 50, 1000):
            assert _cuts(size, factor) == layer.factorization(size, factor), (size, factor)
    cut = {
        "a": Delta({"lokr_w1": rand(3, 2), "lokr_w2": rand(4, 8)}),
        "b": Delta({"lokr_w1": rand(6, 2), "lokr_w2": rand(2, 8)}),
    }
    with pytest.raises(AdapterError, match="no one setting"):
        make_config(cut, {})
