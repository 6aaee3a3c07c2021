"""The methods that teach a model something: name -> (module, config class, objective class).

Closed to files, and imported when used. A method of the user's own is added, for one process, by `register_method`.
"""

from __future__ import annotations

from pydantic import BaseModel

from gen.nn.registry import register

METHODS: dict[str, tuple[str, str, str]] = {
    "lora": ("customization.base.objective", "CustomizationConfig", "CustomizationObjective"),
    "consislora": ("customization.methods.consislora", "ConsistentConfig", "ConsistentObjective"),
    "custom_diffusion": ("customization.methods.custom_diffusion", "CustomDiffusionConfig", "CustomDiffusionObjective"),
    "esd": ("customization.methods.esd", "ErasureConfig", "ErasureObjective"),
    "full": ("customization.methods.full", "FullConfig", "FullObjective"),
    "moslora": ("customization.methods.moslora", "MixtureConfig", "MixtureObjective"),
    "multibooth": ("customization.methods.multibooth", "MultiBoothConfig", "MultiBoothObjective"),
    "res_adapter": ("customization.methods.res_adapter", "ResAdapterConfig", "ResAdapterObjective"),
    "orthogonal": ("customization.methods.orthogonal_adaptation", "OrthogonalConfig", "OrthogonalObjective"),
    "sara": ("customization.methods.sara_objective", "SaraConfig", "SaraObjective"),
    "unlearning": ("customization.methods.slug_objective", "UnlearningConfig", "UnlearningObjective"),
}


def register_method(type: str, objective: type, config: type[BaseModel]) -> None:
    """Make a method of your own known by a type name, for the rest of this process.

    objective: a subclass of `customization.base.objective.CustomizationObjective`.
    config: a subclass of `customization.base.config.CustomizationConfig`.
    Both are defined at the top of one module. ValueError for a name that is taken.
    """
    register(METHODS, "method", type, objective, config)
