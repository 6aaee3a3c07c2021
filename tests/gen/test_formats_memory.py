"""Reading holds the weights once: the high-water mark of a process that reads a file of about 100 MB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from gen.models.components import save_component
from gen.nn.registry import build
from tests.gen import published

MB = 1 << 20
WINDOW = 16 * MB
SLACK = 24 * MB  # the largest tensor (9 MB), the allocator, pages of code that reading touches first
SIZES = {"dim": 768, "depth": 2, "size": 32, "channels": 4}

MEASURE = """
import json, sys, torch
from gen.io.weights import TensorFile
import gen.nn.backbones.uvit
from gen.models.components import load_component
from gen.models.formats import read_checkpoint

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))

TensorFile.WINDOW = int(sys.argv[3])
torch.empty(1).copy_(torch.ones(1, dtype=torch.float16))
before = status("VmRSS")
if sys.argv[1] == "component":
    network = load_component(sys.argv[2])
else:
    network = read_checkpoint(sys.argv[2], heads=12, dtype=getattr(torch, sys.argv[1]))
peak = status("VmHWM") - before
size = sum(p.numel() * p.itemsize for p in network.parameters())
print(json.dumps([peak, size, sum(p.double().sum().item() for p in network.parameters())]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    tensors = published.tensors(published.uvit(**SIZES))
    save_file(tensors, folder / "a.safetensors")
    network = build({"type": "uvit", "patch": 2, "heads": 12, **SIZES})
    save_component(network, folder / "component")
    total = sum(p.double().sum().item() for p in network.parameters())
    return folder, {"component": total, "file": sum(t.double().sum().item() for t in tensors.values())}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize("how", ["float32", "bfloat16", "component"])
def test_reading_holds_the_weights_once(files, how):
    folder, sums = files
    path = folder / ("component" if how == "component" else "a.safetensors")
    command = [sys.executable, "-c", MEASURE, how, str(path), str(WINDOW)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, size, total = json.loads(result.stdout)
    assert size > (40 if how == "bfloat16" else 80) * MB
    expected = sums["component" if how == "component" else "file"]
    assert total == pytest.approx(expected, rel=1e-2 if how == "bfloat16" else 1e-9, abs=1e-3)  # everything was read
    assert size < peak < size + WINDOW + SLACK  # a second copy would be size more
