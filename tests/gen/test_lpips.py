"""LPIPS against its equation on VGG-16 written out, and the names that its weights have in files of others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from gen.io.weights import CheckpointError
from gen.tasks.energies.lpips import load_lpips

CHANNELS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
            17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}  # fmt: skip
POOLED = {4, 9, 16, 23}  # torchvision's pooling layers; ReLUs stand after each convolution
TAKEN = (3, 8, 15, 22, 29)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    found = {}
    for number, (inputs, outputs) in CHANNELS.items():
        found[f"features.{number}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=g) * (2 / (9 * inputs)) ** 0.5
        found[f"features.{number}.bias"] = 0.1 * torch.randn(outputs, generator=g)
    for part, width in enumerate((64, 128, 256, 512, 512)):
        found[f"lin{part}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=g)
    return found


def equation(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    total, maps = torch.zeros(len(x)), []
    for images in (x, y):
        images = F.interpolate(images, (224, 224), mode="bilinear")
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).view(2, 1, 3, 1, 1)
        h = (images - shift) / scale
        own = []
        for number in range(30):
            if number in CHANNELS:
                h = F.conv2d(h, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], padding=1)
            else:
                h = F.max_pool2d(h, 2) if number in POOLED else F.relu(h)
            if number in TAKEN:
                own.append(h / (h.norm(dim=1, keepdim=True) + 1e-10))
        maps.append(own)
    for part, (f, g) in enumerate(zip(*maps, strict=True)):
        total = total + F.conv2d((f - g) ** 2, weights[f"lin{part}.model.1.weight"]).mean((1, 2, 3))
    return total


def test_the_distance_is_its_equation_under_either_spelling_of_the_weights(weights, tmp_path):
    slices = {n: k + 1 for k, part in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))) for n in part}
    other = {}
    for name, value in weights.items():
        kind, number, *rest = name.split(".")
        other[f"net.slice{slices[int(number)]}.{number}.{rest[0]}" if kind == "features" else name] = value
    save_file(weights, tmp_path / "a.safetensors")
    save_file({**other, "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, tmp_path / "b.safetensors")
    g = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 1, 3, 48, 48, generator=g) * 2 - 1
    expected = equation(weights, x, y)
    network = load_lpips(tmp_path / "a.safetensors")
    torch.testing.assert_close(network(x, y), expected, rtol=1e-4, atol=1e-6)
    assert network(x, x).item() == 0
    again = load_lpips(tmp_path / "b.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True))
    x.requires_grad_()
    network(x, y).sum().backward()
    assert x.grad.abs().sum() > 0 and not any(p.requires_grad for p in network.parameters())


def test_what_is_not_such_a_file_is_named(weights, tmp_path):
    with pytest.raises(ValueError, match="lpips:FILE"):
        load_lpips(None)
    save_file({k: v for k, v in weights.items() if k != "lin3.model.1.weight"}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"holds neither lin3\.model\.1\.weight nor"):
        load_lpips(tmp_path / "a.safetensors")
    save_file({**weights, "features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="another shape"):
        load_lpips(tmp_path / "b.safetensors")
