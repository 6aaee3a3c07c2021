"""Energies and rewards that belong to other packages, by name: `--guide`, `--greedy` and `fewstep search` know them beside
those of `gen.tasks.energies` and `gen.rewards`."""

from __future__ import annotations

from typing import Any

# name -> the rest of a row of gen.tasks.energies.EnergyInfo
ENERGIES: dict[str, tuple] = {
    "label": (
        "distill.networks.evaluator.energy",
        "LabelEnergy",
        "the evaluation network recognises `label`, or the prompt",
        ("label", "scale", "copies"),
        (),
        False,
        8.0,
    ),
    "text": (
        "distill.networks.evaluator.energy",
        "TextEnergy",
        "the evaluation network finds it fits `text`",
        ("text", "scale", "copies"),
        (),
        False,
        2.0,
    ),
    "style": (
        "distill.networks.evaluator.energy",
        "StyleEnergy",
        "the style of a picture",
        ("image", "scale"),
        ("image",),
        True,
        8.0,
    ),
    "classifier": (
        "distill.networks.classifier.energy",
        "NoisyLabel",
        "a trained classifier of noisy latents recognises `label`, or the prompt",
        ("folder", "label", "scale"),
        ("folder",),
        True,
        1.0,
        (),
        "classifier",
    ),
}

# name -> the rest of a row of gen.rewards.RewardInfo
REWARDS: dict[str, dict[str, Any]] = {
    "evaluator": {
        "module": "distill.networks.evaluator.reward",
        "factory": "EvaluatorReward",
        "description": "the shipped evaluation network finds that the picture fits its prompt",
        "options": ("by", "copies"),
        "reads_prompts": True,
    }
}


def add_rewards() -> None:
    """Make them known by name, for the rest of this process."""
    from gen.rewards import REWARDS as KNOWN
    from gen.rewards import RewardInfo

    for name, row in REWARDS.items():
        KNOWN.setdefault(name, RewardInfo(name, **row))
