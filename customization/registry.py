"""The registry of methods that teach a model something: name -> module, config class, objective class. Closed, imported when
used."""

from __future__ import annotations

METHODS: dict[str, tuple[str, str, str]] = {
    "lora": ("customization.base.objective", "CustomizationConfig", "CustomizationObjective"),
    "consislora": ("customization.methods.consislora", "ConsistentConfig", "ConsistentObjective"),
    "custom_diffusion": ("customization.methods.custom_diffusion", "CustomDiffusionConfig", "CustomDiffusionObjective"),
    "moslora": ("customization.methods.moslora", "MixtureConfig", "MixtureObjective"),
    "res_adapter": ("customization.methods.res_adapter", "ResAdapterConfig", "ResAdapterObjective"),
    "orthogonal": ("customization.methods.orthogonal_adaptation", "OrthogonalConfig", "OrthogonalObjective"),
    "sara": ("customization.methods.sara_objective", "SaraConfig", "SaraObjective"),
    "unlearning": ("customization.methods.slug_objective", "UnlearningConfig", "UnlearningObjective"),
}
