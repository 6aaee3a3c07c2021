"""What this installation can do: versions, devices, dtypes and attention backends, each with the reason where it cannot."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from gen.models.pretrained import DEFAULT, fast_bfloat16, resolve_device, resolve_dtype
from gen.nn.attention import available_backends

PACKAGES = (
    "fewstep",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "xformers",
    "flash-attn",
    "sageattention",
    "fastapi",
    "nicegui",
    "pyarrow",
    "pillow",
    "numpy",
)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, str]:
    """Name -> value, in the order to show it. Installed packages are looked up, not imported."""
    device = resolve_device(None)
    dtype = str(resolve_dtype(None, device)).removeprefix("torch.")
    versions = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    versions |= {package: _version(package) for package in PACKAGES}
    fast = "fast" if fast_bfloat16(torch.device("cpu")) else "slow, float32 is used"
    versions["cpu"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, bfloat16 {fast}"
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            capability = f"{properties.major}.{properties.minor}"
            versions[f"cuda:{i}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute {capability}"
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        versions["cuda"] = f"not available ({built})"
    versions["mps"] = "available" if torch.backends.mps.is_available() else "not available"
    versions["used by default"] = f"{device}, {dtype}"
    for name, reason in available_backends().items():
        versions[f"attention {name}"] = "available" if reason is None else f"not available: {reason}"
    versions["default model"] = "present" if (DEFAULT / "config.json").is_file() else "missing from gen/weights/default"
    return versions
