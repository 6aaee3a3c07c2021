"""Energies that belong to other packages, by name: `--guide` and `--greedy` know them beside those of `gen.tasks.energies`."""

from __future__ import annotations

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
