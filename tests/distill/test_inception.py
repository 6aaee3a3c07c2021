import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill.networks.features import load_features
from distill.networks.inception import Conv, Inception, load_inception
from gen.io.weights import CheckpointError


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    tensors = {name: tensor.clone() for name, tensor in Inception().state_dict().items()}
    for name, tensor in tensors.items():
        if name.endswith(("bias", "running_mean")):
            tensor.normal_(std=0.1)
    return tensors


def test_its_layers_are_the_published_ones():
    """torchvision counts 27,161,264 parameters, of which the auxiliary head has 3,326,696 and the classifier 2,049,000."""
    with torch.device("meta"):
        network = Inception()
    assert sum(p.numel() for p in network.parameters()) == 27_161_264 - 3_326_696 - 2_049_000
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 94
    sizes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert sizes["Mixed_5b.branch5x5_2.conv.weight"] == (64, 48, 5, 5)
    assert sizes["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert sizes["Mixed_7a.branch7x7x3_2.conv.weight"] == (192, 192, 1, 7)
    assert sizes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    sides = {"Mixed_5d": (35, 288), "Mixed_6a": (17, 768), "Mixed_6e": (17, 768), "Mixed_7a": (8, 1280), "Mixed_7c": (8, 2048)}
    seen = {}
    for name in sides:
        getattr(network, name).register_forward_hook(lambda m, _, out, name=name: seen.update({name: out.shape}))
    assert network(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 2048)
    assert {name: (shape[2], shape[1]) for name, shape in seen.items()} == sides


def by_hand(block, x, *names):
    for name in names:
        conv, bn = getattr(block, name).conv, getattr(block, name).bn
        x = nn.functional.conv2d(x, conv.weight, None, conv.stride, [k // 2 for k in conv.kernel_size])
        scale = bn.weight / (bn.running_var + 1e-3).sqrt()
        x = ((x - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]).clamp(min=0)
    return x


def pools(x):
    """(average, maximum) over the places of a 3 x 3 window that exist."""
    rows, columns = x.shape[2:]
    windows = [[x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] for j in range(columns)] for i in range(rows)]
    make = lambda f: torch.stack([torch.stack([f(w) for w in row], -1) for row in windows], -2)  # noqa: E731
    return make(lambda w: w.mean((2, 3))), make(lambda w: w.amax((2, 3)))


def test_the_blocks_do_what_published_fids_were_measured_with(weights):
    network = Inception().eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        x = torch.randn(1, 192, 5, 5)
        a, average = network.Mixed_5b, pools(x)[0]
        parts = [("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")]
        expected = torch.cat([*(by_hand(a, x, *names) for names in parts), by_hand(a, average, "branch_pool")], 1)
        torch.testing.assert_close(a(x), expected, atol=1e-5, rtol=1e-5)
        for name, inputs, which in (("Mixed_7b", 1280, 0), ("Mixed_7c", 2048, 1)):
            x, block = torch.randn(1, inputs, 3, 3), getattr(network, name)
            three, double = by_hand(block, x, "branch3x3_1"), by_hand(block, x, "branch3x3dbl_1", "branch3x3dbl_2")
            expected = [
                by_hand(block, x, "branch1x1"),
                by_hand(block, three, "branch3x3_2a"),
                by_hand(block, three, "branch3x3_2b"),
                by_hand(block, double, "branch3x3dbl_3a"),
                by_hand(block, double, "branch3x3dbl_3b"),
                by_hand(block, pools(x)[which], "branch_pool"),
            ]
            torch.testing.assert_close(block(x), torch.cat(expected, 1), atol=1e-4, rtol=1e-4)


def test_weights_come_from_a_file_of_the_user_s(weights, tmp_path):
    extra = {"fc.weight": torch.zeros(1008, 2048), "AuxLogits.conv0.bn.bias": torch.zeros(2)}
    kept = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    save_file({**kept, **extra}, tmp_path / "inception.safetensors")
    features = load_features(f"inception:{tmp_path / 'inception.safetensors'}")
    network = Inception().eval()
    network.load_state_dict(weights)
    images = torch.rand(2, 3, 40, 40) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(features(images), network(images))
    with pytest.raises(ValueError, match="inception:FILE"):
        load_features("inception")
    wrong = [{n: v for n, v in kept.items() if n != "Mixed_6b.branch1x1.bn.bias"}, {**kept, "other": torch.zeros(1)},
             {**kept, "Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 5, 5)}]  # fmt: skip
    for tensors, name in zip(wrong, ("Mixed_6b.branch1x1.bn.bias", "other", "Conv2d_1a_3x3.conv.weight"), strict=True):
        save_file(tensors, tmp_path / "wrong.safetensors")
        with pytest.raises(CheckpointError, match=name):
            load_inception(tmp_path / "wrong.safetensors")


def test_a_layer_has_the_published_epsilon():
    assert Conv(1, 1).bn.eps == 0.001
