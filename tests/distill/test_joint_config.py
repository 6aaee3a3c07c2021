"""The shipped config of a network of text and patches is one for all of them, as its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import gen
from distill.config import load_config
from distill.registry import OBJECTIVES
from gen.io.weights import read_json
from gen.nn.registry import build, from_registry

FILE = Path(__file__).parents[2] / "configs" / "default" / "generator_mmdit.yaml"
LINES = re.findall(r"#   (network\.type=.*?)(?:  .*)?$", FILE.read_text(), re.MULTILINE)
CHANGES = [[], *(line.split() for line in LINES), ["network.type=z_image", *LINES[-1].split()[1:]]]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: changes[0] if changes else "mmdit")
def test_the_config_as_it_is_and_with_the_changes_that_it_names(changes):
    config = load_config(FILE, changes)
    _, objective = from_registry(OBJECTIVES, "objective", config.objective)
    assert objective.clock == ("t" if changes else "1000t")
    with torch.device("meta"):
        network = build(config.network)
    shipped = Path(gen.__file__).parent / "weights" / "default"
    assert network.config.text_dim == read_json(shipped / "text_encoder" / "config.json")["dim"]
    assert network.config.channels == read_json(shipped / "autoencoder" / "config.json")["channels"]
