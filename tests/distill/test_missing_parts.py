"""Weights that a config begins from and that are not there: the key, and the command that makes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from distill.missing_parts import made_by
from distill.train import main
from gen.cli.app import main as fewstep

CONFIGS = Path(__file__).parents[2] / "configs"
AUTOENCODER = "objective.autoencoder: runs/autoencoder/export does not exist; `fewstep train configs/default/autoencoder.yaml`"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with the configs and nothing that they make."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "gen").symlink_to(CONFIGS.parent / "gen")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("default/generator.yaml", AUTOENCODER),
        (
            "default/fast_adversarial.yaml",
            "init_from: runs/fast/export/denoiser does not exist; `fewstep train configs/default/fast.yaml` makes it",
        ),
        (
            "default/fast_frechet.yaml objective.representations=[teacher]",
            "init_from: runs/fast_adversarial/export/denoiser does not exist; "
            "`fewstep train configs/default/fast_adversarial.yaml` makes it",
        ),
        (
            "default/fast_perceptual.yaml init_from=configs",
            "objective.features: runs/judge/export does not exist; "
            "`fewstep train configs/default/evaluator.yaml seed=7 max_steps=1300 output=runs/judge` makes it",
        ),
        (
            "distill/published/tract.yaml",
            "objective.teacher.model: runs/cifar10/export does not exist; train what it should hold first",
        ),
        (
            "default/text_encoder.yaml",
            "objective.teacher: data/text-teacher does not exist; "
            "`python -m distill.text_teacher --out data/text-teacher` makes it",
        ),
        ("lora/consislora_style.yaml", "`fewstep lora train configs/lora/consislora_content.yaml` makes it"),
    ],
)
def test_what_is_missing_is_told_with_what_makes_it(elsewhere, capsys, config, message):
    file, *overrides = config.split()
    command = ["lora", "train"] if file.startswith("lora") else ["train"]
    assert fewstep([*command, f"configs/{file}", *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists() and not Path("data").exists()


def test_weights_that_no_config_makes_are_told_with_their_key(elsewhere, capsys):
    assert main(["configs/default/generator.yaml", "objective.autoencoder=absent", "--dry-run"]) == 2
    assert "objective.autoencoder: absent does not exist" in capsys.readouterr().err


def test_a_command_goes_on_in_the_next_line_of_a_comment():
    found = made_by(Path("runs/judge_long/export"), CONFIGS / "default" / "fast_frechet.yaml")
    assert found is not None
    assert found.endswith("init_from=runs/judge/export optimizer.lr=1.5e-3 schedule.warmup=50 schedule.cooldown=0.6")
