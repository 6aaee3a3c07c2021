"""The registry of objectives: name -> module, config class, objective class. Closed, imported when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from distill.objective import Objective
from gen.nn.registry import from_registry

if TYPE_CHECKING:
    from distill.data import Source

OBJECTIVES: dict[str, tuple[str, str, str]] = {
    "diffusion": ("distill.objectives.diffusion", "DiffusionConfig", "DiffusionObjective"),
    "consistency_distillation": (
        "distill.objectives.consistency",
        "ConsistencyDistillationConfig",
        "ConsistencyDistillationObjective",
    ),
    "consistency_training": (
        "distill.objectives.consistency_training",
        "ConsistencyTrainingConfig",
        "ConsistencyTrainingObjective",
    ),
    "improved_consistency": (
        "distill.objectives.improved_consistency",
        "ImprovedConsistencyConfig",
        "ImprovedConsistencyObjective",
    ),
    "easy_consistency": ("distill.objectives.easy_consistency", "EasyConsistencyConfig", "EasyConsistencyObjective"),
    "continuous_consistency": (
        "distill.objectives.continuous_consistency",
        "ContinuousConsistencyConfig",
        "ContinuousConsistencyObjective",
    ),
    "mean_flow": ("distill.objectives.mean_flow", "MeanFlowConfig", "MeanFlowObjective"),
    "moment_matching": ("distill.objectives.moment_matching", "MomentMatchingConfig", "MomentMatchingObjective"),
    "autoencoder": ("distill.objectives.autoencoder", "AutoencoderObjectiveConfig", "AutoencoderObjective"),
    "text": ("distill.objectives.text", "TextObjectiveConfig", "TextObjective"),
    "progressive": ("distill.objectives.progressive", "ProgressiveConfig", "ProgressiveObjective"),
    "guidance": ("distill.objectives.guidance", "GuidanceConfig", "GuidanceObjective"),
    "tract": ("distill.objectives.tract", "TractConfig", "TractObjective"),
    "multistep_consistency": (
        "distill.objectives.multistep_consistency",
        "MultistepConsistencyConfig",
        "MultistepConsistencyObjective",
    ),
    "phased_consistency": ("distill.objectives.phased_consistency", "PhasedConsistencyConfig", "PhasedConsistencyObjective"),
    "latent_consistency": ("distill.objectives.latent_consistency", "LatentConsistencyConfig", "LatentConsistencyObjective"),
    "adversarial_consistency": (
        "distill.objectives.adversarial_consistency",
        "AdversarialConsistencyConfig",
        "AdversarialConsistencyObjective",
    ),
    "adversarial_continuous": (
        "distill.objectives.adversarial_continuous",
        "AdversarialContinuousConfig",
        "AdversarialContinuousObjective",
    ),
    "adversarial_diffusion": (
        "distill.objectives.adversarial_diffusion",
        "AdversarialDiffusionConfig",
        "AdversarialDiffusionObjective",
    ),
    "distribution_matching": (
        "distill.objectives.distribution_matching",
        "DistributionMatchingConfig",
        "DistributionMatchingObjective",
    ),
    "frechet": ("distill.objectives.frechet", "FrechetConfig", "FrechetObjective"),
    "trajectory_consistency": (
        "distill.objectives.trajectory_consistency",
        "TrajectoryConsistencyConfig",
        "TrajectoryConsistencyObjective",
    ),
    "classifier": ("distill.objectives.classifier", "ClassifierConfig", "ClassifierObjective"),
    "collaborate": ("distill.objectives.collaborate", "CollaborateConfig", "CollaborateObjective"),
    "evaluator": ("distill.objectives.evaluator", "EvaluatorObjectiveConfig", "EvaluatorObjective"),
}


def check_objective(config: dict[str, Any]) -> None:
    """ValueError for a type or options that make_objective would not take."""
    from_registry(OBJECTIVES, "objective", config)


def make_objective(config: dict[str, Any], network: nn.Module, source: Source | None = None) -> Objective:
    """The objective that `config["type"]` names, training `network` on `source`; an identity stands for no network given."""
    objective, checked = from_registry(OBJECTIVES, "objective", config)
    if isinstance(network, nn.Identity) and not objective.makes_network:
        raise ValueError(f"The objective {config['type']!r} trains the network that the config describes; give its section.")
    return objective(checked, network, source)
