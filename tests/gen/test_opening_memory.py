"""Opening a pipeline holds its weights once, in the dtype that they are used in: the memory of a process while it opens one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.gen import original_layouts as original
from tests.gen import pipelines
from tests.gen.pipelines import seeded

MB = 1 << 20
SLACK = 32 * MB  # the largest tensor (7 MB in float32) four times, as quantising it takes, and what opening imports

MEASURE = """
import json, sys, threading, time, torch
from gen.generator import Generator

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))

small, large, folder, dtype, quantize = sys.argv[1:]
more = {"quantize": quantize} if quantize else {}
beside = {} if large == folder else {"text_encoder": folder, "vae": folder}
Generator.from_pretrained(small, device="cpu", dtype=dtype, **more)  # imports
before, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
generator = Generator.from_pretrained(large, device="cpu", dtype=dtype, **beside, **more)
done.set()
thread.join()
from gen.nn.quantized import stored_bytes
print(json.dumps([peak[0] - before, stored_bytes(generator.network)]))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(a small pipeline's folder, a large one's, its denoiser in one file in float32)."""
    from diffusers import FluxTransformer2DModel

    root, pipeline = tmp_path_factory.mktemp("opening"), pipelines.flux()
    small = pipelines.save(pipeline, root / "small")
    pipeline.transformer = seeded(
        FluxTransformer2DModel, patch_size=1, in_channels=16, num_layers=2, num_single_layers=6, attention_head_dim=128,
        num_attention_heads=4, joint_attention_dim=16, pooled_projection_dim=pipeline.transformer.config.pooled_projection_dim,
        guidance_embeds=True,
    )  # fmt: skip
    large = pipelines.save(pipeline, root / "large")
    tensors = {name: value.clone().contiguous() for name, value in original.flux(pipeline.transformer).items()}
    save_file(tensors, root / "flux.safetensors")
    return small, large, root / "flux.safetensors"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize(("dtype", "quantize"), [("float32", ""), ("bfloat16", ""), ("bfloat16", "int8")])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_weights_are_held_once(folders, kind, dtype, quantize):
    """Files are mapped, and their pages counted by nobody: memory of our own is that of the open network."""
    small, large, file = folders
    given = [str(small), str(large if kind == "folder" else file), str(large), dtype, quantize]
    freed = {"MALLOC_MMAP_THRESHOLD_": str(MB), "MALLOC_ARENA_MAX": "1"}  # the C library keeps nothing that is freed
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *given], capture_output=True, text=True, check=False, env=os.environ | freed
    )
    assert result.returncode == 0, result.stderr[-2000:]
    peak, size = json.loads(result.stdout.splitlines()[-1])
    assert size > 40 * MB
    assert peak < size + SLACK
