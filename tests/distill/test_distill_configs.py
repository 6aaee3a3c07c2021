"""The shipped configs of distillation and preferences: all are read, name real objectives, and say where they were not run."""

from __future__ import annotations

from pathlib import Path

import pytest

import distill.networks.classifier  # noqa: F401  (makes its network type known)
from distill.config import load_config
from distill.registry import OBJECTIVES, SOURCES
from gen.nn.registry import COMPONENTS, from_registry

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDERS = ("distill", "preference")
SHIPPED, PUBLISHED = (
    [file for folder in FOLDERS for file in sorted(CONFIGS.glob(f"{folder}/{within}*.yaml"))] for within in ("", "published/")
)


@pytest.mark.parametrize("file", [*SHIPPED, *PUBLISHED], ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_config_is_valid(file):
    config = load_config(file)
    objective, _ = from_registry(OBJECTIVES, "objective", config.objective)
    assert config.network or objective.makes_network
    if config.network:
        from_registry(COMPONENTS, "network type", config.network)
    if config.data["type"] in SOURCES:
        from_registry(SOURCES, "data source", config.data)
    first = file.read_text().partition("\n")[0]
    assert first.startswith("# ") and ("Not run here" in first) == (file in PUBLISHED)


def test_every_method_has_a_config_of_both_kinds():
    def types(files):
        return {load_config(file).objective["type"] for file in files}

    shipped = types([*SHIPPED, *(CONFIGS / "default" / f"{name}.yaml" for name in ("control", "reference", "joint"))])
    assert shipped == types(PUBLISHED)
    assert shipped == set(OBJECTIVES) - {"diffusion", "autoencoder", "decoder", "transparent", "text", "evaluator"}
