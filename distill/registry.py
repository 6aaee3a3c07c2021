"""What a training config can name: `type:` of its sections objective and data -> (module, config class, class).

The tables are closed to files, and a row's module is imported when it is used. Methods and data of the user's own are added,
for one process, by `register_objective` and `register_source`; networks by `gen.nn.registry.register_network`.
"""

from __future__ import annotations

from pydantic import BaseModel

from gen.nn.registry import register

OBJECTIVES: dict[str, tuple[str, str, str]] = {
    "diffusion": ("distill.objectives.diffusion", "DiffusionConfig", "DiffusionObjective"),
    "upsampler": ("distill.objectives.upsampler", "UpsamplerObjectiveConfig", "UpsamplerObjective"),
    "error_propagation": ("distill.objectives.error_propagation", "ErrorPropagationConfig", "ErrorPropagationObjective"),
    "consistency_distillation": (
        "distill.objectives.consistency_distillation",
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
    "truncated_consistency": (
        "distill.objectives.truncated_consistency",
        "TruncatedConsistencyConfig",
        "TruncatedConsistencyObjective",
    ),
    "continuous_consistency": ("distill.objectives.scm", "ContinuousConsistencyConfig", "ContinuousConsistencyObjective"),
    "consistency_trajectory": (
        "distill.objectives.consistency_trajectory",
        "ConsistencyTrajectoryConfig",
        "ConsistencyTrajectoryObjective",
    ),
    "regularized_consistency": ("distill.objectives.rcm", "RegularizedConsistencyConfig", "RegularizedConsistencyObjective"),
    "mean_flow": ("distill.objectives.mean_flow", "MeanFlowConfig", "MeanFlowObjective"),
    "alpha_flow": ("distill.objectives.alpha_flow", "AlphaFlowConfig", "AlphaFlowObjective"),
    "align_your_flow": ("distill.objectives.align_your_flow", "AlignYourFlowConfig", "AlignYourFlowObjective"),
    "improved_mean_flow": ("distill.objectives.improved_mean_flow", "ImprovedMeanFlowConfig", "ImprovedMeanFlowObjective"),
    "twin_flow": ("distill.objectives.twin_flow", "TwinFlowConfig", "TwinFlowObjective"),
    "moment_matching": ("distill.objectives.inductive_moment_matching", "MomentMatchingConfig", "MomentMatchingObjective"),
    "multimarginal": ("distill.objectives.multimarginal", "MultimarginalObjectiveConfig", "MultimarginalObjective"),
    "step_policy": ("distill.objectives.step_policy", "StepPolicyObjectiveConfig", "StepPolicyObjective"),
    "pi_flow": ("distill.objectives.pi_flow", "PiFlowConfig", "PiFlowObjective"),
    "draft": ("distill.objectives.draft", "DraftConfig", "DraftObjective"),
    "diffusion_dpo": ("distill.objectives.diffusion_dpo", "DiffusionDpoConfig", "DiffusionDpoObjective"),
    "pso": ("distill.objectives.pairwise_sample", "PairwiseSampleConfig", "PairwiseSampleObjective"),
    "spo": ("distill.objectives.step_preferences", "StepPreferencesConfig", "StepPreferencesObjective"),
    "ddo": ("distill.objectives.direct_discriminative", "DirectDiscriminativeConfig", "DirectDiscriminativeObjective"),
    "flow_grpo": ("distill.objectives.flow_grpo", "FlowGrpoConfig", "FlowGrpoObjective"),
    "diffusion_nft": ("distill.objectives.diffusion_nft", "DiffusionNftConfig", "DiffusionNftObjective"),
    "autoencoder": ("distill.objectives.autoencoder", "AutoencoderObjectiveConfig", "AutoencoderObjective"),
    "decoder": ("distill.objectives.decoder", "DecoderConfig", "DecoderObjective"),
    "text": ("distill.objectives.text", "TextObjectiveConfig", "TextObjective"),
    "progressive": ("distill.objectives.progressive_distillation", "ProgressiveConfig", "ProgressiveObjective"),
    "guidance": ("distill.objectives.guidance_distillation", "GuidanceConfig", "GuidanceObjective"),
    "tract": ("distill.objectives.tract", "TractConfig", "TractObjective"),
    "multistep_consistency": (
        "distill.objectives.multistep_consistency",
        "MultistepConsistencyConfig",
        "MultistepConsistencyObjective",
    ),
    "multistep_latent_consistency": (
        "distill.objectives.multistep_latent_consistency",
        "MultistepLatentConfig",
        "MultistepLatentObjective",
    ),
    "phased_consistency": ("distill.objectives.phased_consistency", "PhasedConsistencyConfig", "PhasedConsistencyObjective"),
    "latent_consistency": ("distill.objectives.latent_consistency", "LatentConsistencyConfig", "LatentConsistencyObjective"),
    "adversarial_consistency": (
        "distill.objectives.adversarial_consistency",
        "AdversarialConsistencyConfig",
        "AdversarialConsistencyObjective",
    ),
    "adversarial_continuous": (
        "distill.objectives.sana_sprint",
        "AdversarialContinuousConfig",
        "AdversarialContinuousObjective",
    ),
    "adversarial_diffusion": (
        "distill.objectives.adversarial_diffusion_distillation",
        "AdversarialDiffusionConfig",
        "AdversarialDiffusionObjective",
    ),
    "denoising_diffusion_gan": (
        "distill.objectives.denoising_diffusion_gan",
        "DenoisingDiffusionGanConfig",
        "DenoisingDiffusionGanObjective",
    ),
    "ufogen": ("distill.objectives.ufogen", "UfogenConfig", "UfogenObjective"),
    "yoso": ("distill.objectives.yoso", "YosoConfig", "YosoObjective"),
    "nitro_fusion": ("distill.objectives.nitro_fusion", "NitroFusionConfig", "NitroFusionObjective"),
    "distribution_matching": ("distill.objectives.dmd2", "DistributionMatchingConfig", "DistributionMatchingObjective"),
    "sid": ("distill.objectives.sid", "ScoreIdentityConfig", "ScoreIdentityObjective"),
    "decoupled_dmd": ("distill.objectives.decoupled_dmd", "DecoupledMatchingConfig", "DecoupledMatchingObjective"),
    "f_distill": ("distill.objectives.f_distill", "DivergenceConfig", "DivergenceObjective"),
    "dmdr": ("distill.objectives.dmdr", "RewardedMatchingConfig", "RewardedMatchingObjective"),
    "swiftbrush": ("distill.objectives.swiftbrush", "SwiftBrushConfig", "SwiftBrushObjective"),
    "drifting": ("distill.objectives.drifting", "DriftingConfig", "DriftingObjective"),
    "sliced_mmd_flow": ("distill.objectives.sliced_mmd_flow", "SlicedFlowConfig", "SlicedFlowObjective"),
    "frechet": ("distill.objectives.frechet", "FrechetConfig", "FrechetObjective"),
    "trajectory_consistency": (
        "distill.objectives.trajectory_consistency",
        "TrajectoryConsistencyConfig",
        "TrajectoryConsistencyObjective",
    ),
    "single_trajectory": ("distill.objectives.single_trajectory", "SingleTrajectoryConfig", "SingleTrajectoryObjective"),
    "pix2pix_turbo": ("distill.objectives.pix2pix_turbo", "Pix2PixTurboConfig", "Pix2PixTurboObjective"),
    "cycle_gan_turbo": ("distill.objectives.cycle_gan_turbo", "CycleGanTurboConfig", "CycleGanTurboObjective"),
    "control": ("distill.objectives.control", "ControlConfig", "ControlObjective"),
    "reference": ("distill.objectives.reference", "ReferenceConfig", "ReferenceObjective"),
    "joint": ("distill.objectives.unicon", "JointObjectiveConfig", "JointObjective"),
    "positional_query": ("distill.objectives.positional_query", "PositionalQueryObjectiveConfig", "PositionalQueryObjective"),
    "classifier": ("distill.objectives.classifier", "ClassifierConfig", "ClassifierObjective"),
    "collaborate": ("distill.objectives.collaborative_diffusion", "CollaborateConfig", "CollaborateObjective"),
    "transparent": ("distill.objectives.transparent", "TransparentConfig", "TransparentObjective"),
    "evaluator": ("distill.objectives.evaluator", "EvaluatorObjectiveConfig", "EvaluatorObjective"),
}

SOURCES: dict[str, tuple[str, str, str]] = {
    "emoji": ("distill.data.emoji.data", "EmojiConfig", "EmojiData"),
    "emoji_latents": ("distill.data.emoji_latents", "EmojiLatentsConfig", "EmojiLatents"),
    "layered": ("distill.data.layered", "LayeredConfig", "LayeredDrawings"),
    "images": ("distill.data.images", "ImagesConfig", "ImageFolder"),
    "webdataset": ("distill.data.webdataset", "WebDatasetConfig", "WebDataset"),
    "huggingface": ("distill.data.huggingface", "HuggingFaceConfig", "HuggingFace"),
    "preferences": ("distill.data.preferences", "PreferencePairsConfig", "PreferencePairs"),
    "pairs": ("distill.data.picture_pairs", "PairsConfig", "Pairs"),
    "unpaired": ("distill.data.picture_pairs", "UnpairedConfig", "Unpaired"),
    "outlines": ("distill.data.picture_pairs", "OutlinesConfig", "Outlines"),
    "prompts": ("distill.data.prompts", "PromptsConfig", "Prompts"),
    "latents": ("distill.data.latents", "LatentsConfig", "Latents"),
    "grouped": ("distill.data.grouped", "GroupedConfig", "Grouped"),
}


def register_objective(type: str, objective: type, config: type[BaseModel]) -> None:
    """Make a training method of your own known by a type name, for the rest of this process: `objective: {type: NAME, ...}`.

    objective: a subclass of `distill.objectives.bases.objective.Objective`, called as objective(config, network, source).
    config: a subclass of `gen.nn.registry.Config`, from which the section's other keys are checked.
    Both are defined at the top of one module. ValueError for a name that is taken.
    """
    register(OBJECTIVES, "objective", type, objective, config)


def register_source(type: str, source: type, config: type[BaseModel]) -> None:
    """Make a data source of your own known by a type name, for the rest of this process: `data: {type: NAME, ...}`.

    source: a class with the methods of `distill.data.Source`, called as source(config, seed).
    config: a subclass of `gen.nn.registry.Config`, from which the section's other keys are checked.
    Both are defined at the top of one module. ValueError for a name that is taken.
    """
    register(SOURCES, "data source", type, source, config)
