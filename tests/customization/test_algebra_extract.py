"""Extraction from pipelines with convolutions and text encoders, and the randomised decomposition that it uses."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from customization.algebra import Keep, extract, sketch_svd
from customization.algebra.svd import SMALL, core_svd, matrix_svd
from gen.adapters import AdapterError, write_adapter
from gen.generator import Generator
from gen.io.weights import CheckpointError
from tests.customization.adapters import change, lora, normal
from tests.gen import pipelines


def decaying(rows: int, columns: int, decay: float) -> torch.Tensor:
    """A matrix with singular values decay^i."""
    side = min(rows, columns)
    p, w = (torch.linalg.qr(normal(i, n, side)).Q for i, n in enumerate((rows, columns)))
    return (p * decay ** torch.arange(side, dtype=torch.float64)) @ w.T


def test_the_core_decomposition_is_that_of_the_product():
    for rows, columns, rank in ((30, 20, 5), (9, 20, 12), (20, 9, 12)):  # also with a rank above a side
        up, down = normal(1, rows, rank), normal(2, rank, columns)
        p, s, wt = core_svd(up, down)
        torch.testing.assert_close((p * s) @ wt, up @ down)
        torch.testing.assert_close(s, torch.linalg.svdvals(up @ down)[: len(s)])
        torch.testing.assert_close(p.T @ p, torch.eye(len(s), dtype=p.dtype))
        torch.testing.assert_close(wt @ wt.T, torch.eye(len(s), dtype=p.dtype))


def test_the_sketch_is_near_the_optimum_and_reproducible():
    matrix = decaying(SMALL + 40, SMALL + 10, 0.97)  # the values fall slowly: a hard case
    before = torch.random.get_rng_state()
    p, s, wt = matrix_svd(matrix, 24)
    assert torch.equal(torch.random.get_rng_state(), before) and len(s) == 24
    exact = torch.linalg.svdvals(matrix)
    error, best = float((matrix - (p * s) @ wt).norm()), float(exact[24:].norm())
    assert best <= error * (1 + 1e-12) and error < 1.001 * best
    torch.testing.assert_close(s[:16], exact[:16], rtol=2e-3, atol=0)
    again = sketch_svd(matrix, 24)
    assert torch.equal(again[1], s) and not torch.equal(sketch_svd(matrix, 24, seed=1)[1], s)
    weak = sketch_svd(matrix, 24, iterations=0, oversample=0)
    assert float((matrix - (weak[0] * weak[1]) @ weak[2]).norm()) > 1.05 * best  # what the iterations are for


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(base pipeline's folder, tuned one's, what was added by file and module)."""
    folder = tmp_path_factory.mktemp("pipelines")
    base = pipelines.save(pipelines.stable_diffusion(), folder / "base")
    new = shutil.copytree(base, folder / "tuned")
    added = {}
    for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = new / part / f"{file}.safetensors"
        weights = load_file(path)
        convolution = next((n for n, v in weights.items() if v.ndim == 4 and v.shape[2] == 3 and v.shape[1] > 8), None)
        linear = next(n for n, v in weights.items() if v.ndim == 2 and n.endswith(("to_q.weight", "q_proj.weight")))
        for i, name in enumerate(filter(None, (linear, convolution))):
            shape = weights[name].shape
            added[f"{part}.{name}"] = 0.2 * change(lora(10 + i, shape[0], shape[1], 2, tuple(shape[2:]))).float()
            weights[name] = weights[name] + added[f"{part}.{name}"]
        save_file(weights, path, {"format": "pt"})
    return base, new, added


def networks(generator: Generator) -> list[torch.nn.Module]:
    return [generator.network.network, *generator.text_encoder.encoders.values()]


def test_a_pipeline_comes_back_with_its_convolutions_and_text_encoder(tuned, tmp_path):
    base, new, added = tuned
    found = extract(new, base, Keep(rank=2), name="x")
    assert len(found.adapter.layers) == len(added) == 3 and not found.left and found.unchanged > 20
    assert max(report.error for report in found.reports) < 1e-5
    assert set(found.adapter.types) == {"LoRA", "conv LoRA"} and found.adapter.parts == ("denoiser", "text_encoder")
    generator, expected = (Generator.from_pretrained(f, device="cpu", dtype="float32", native=False) for f in (base, new))
    for to in ("diffusers", "kohya"):
        write_adapter(found.adapter, tmp_path / f"{to}.safetensors", to)
        assert generator.load_adapter(tmp_path / f"{to}.safetensors").complete
        generator.fuse_adapters({to: 1.0})
        for own, other in zip(networks(generator), networks(expected), strict=True):
            theirs = other.state_dict()
            for name, value in own.state_dict().items():
                torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5)
        generator.unfuse_adapters()


def test_what_cannot_be_extracted(tuned, tmp_path):
    base, new, _ = tuned
    with pytest.raises(AdapterError, match=r"Rank 4000 is more than any layer has rows or columns; give at most \d+"):
        extract(new, base, Keep(rank=4000))
    with pytest.raises(AdapterError, match=r"No linear layer or convolution of .* differs"):
        extract(base, base, Keep(rank=2))
    with pytest.raises(CheckpointError, match="is not a folder"):
        extract(new, base / "model_index.json", Keep(rank=2))
    save_file({"nothing.of.it": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="has no tensor in common with the denoiser"):
        extract(tmp_path / "other.safetensors", base, Keep(rank=2))
