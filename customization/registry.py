"""The registry of methods that teach a model something: name -> module, config class, objective class. Closed, imported when
used."""

from __future__ import annotations

METHODS: dict[str, tuple[str, str, str]] = {
    "lora": ("customization.objective", "CustomizationConfig", "CustomizationObjective"),
    "consislora": ("customization.methods.consistent", "ConsistentConfig", "ConsistentObjective"),
    "custom_diffusion": ("customization.methods.custom_diffusion", "CustomDiffusionConfig", "CustomDiffusionObjective"),
    "moslora": ("customization.methods.mixture", "MixtureConfig", "MixtureObjective"),
    "res_adapter": ("customization.methods.res_adapter", "ResAdapterConfig", "ResAdapterObjective"),
    "orthogonal": ("customization.methods.orthogonal", "OrthogonalConfig", "OrthogonalObjective"),
    "sara": ("customization.methods.small_weights", "SaraConfig", "SaraObjective"),
    "unlearning": ("customization.methods.forget", "UnlearningConfig", "UnlearningObjective"),
}
