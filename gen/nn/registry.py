"""Networks by name: a config has a type of the registry below, and its sizes (`gen.models.components` reads whole folders).

The registry is closed: a file can only name what is listed here, and its config is validated by that type's own pydantic
model, so no file chooses what code runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from gen.io.key_hints import dotted_keys, unknown_key
from samplers.lookup import nearest


class Config(BaseModel):
    """Base of every config: unknown keys, NaN and infinities are refused; values do not change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# type name -> (module, config class, class it is the config of); imported when used
Row = tuple[str, str, str]
Registry = Mapping[str, Row]

COMPONENTS: dict[str, tuple[str, str, str]] = {
    "uvit": ("gen.nn.backbones.uvit", "UViTConfig", "UViT"),
    "dit": ("gen.nn.backbones.dit", "DiTConfig", "DiT"),
    "dit_control": ("gen.nn.backbones.dit_control", "DiTControlConfig", "DiTControl"),
    "reference_encoder": ("gen.nn.reference_encoder", "ReferenceEncoderConfig", "ReferenceEncoder"),
    "joint_adapter": ("gen.nn.joint", "JointAdapterConfig", "JointAdapter"),
    "positional_query": ("gen.nn.backbones.positional_query", "PositionalQueryConfig", "PositionalQuery"),
    "dimr": ("gen.nn.backbones.dimr", "DiMRConfig", "DiMR"),
    "adm": ("gen.nn.backbones.adm", "ADMConfig", "ADM"),
    "adm_classifier": ("gen.nn.backbones.adm_classifier", "AdmClassifierConfig", "AdmClassifier"),
    "upsampler": ("gen.nn.backbones.upsampler", "UpsamplerConfig", "Upsampler"),
    "mmdit": ("gen.nn.backbones.mmdit", "MMDiTConfig", "MMDiT"),
    "flux": ("gen.nn.backbones.flux", "FluxConfig", "FluxTransformer"),
    "qwen_image": ("gen.nn.backbones.qwen_image", "QwenImageConfig", "QwenImageTransformer"),
    "z_image": ("gen.nn.backbones.z_image", "ZImageConfig", "ZImageTransformer"),
    "autoencoder": ("gen.nn.autoencoder", "AutoencoderConfig", "Autoencoder"),
    "transparency": ("gen.nn.transparency", "TransparencyConfig", "Transparency"),
    "text_encoder": ("gen.nn.text_encoder", "TextEncoderConfig", "TextEncoder"),
    "multimarginal": ("gen.nn.multimarginal", "MultimarginalConfig", "Multimarginal"),
    "step_policy": ("gen.nn.step_policy", "StepPolicyConfig", "StepPolicy"),
    "influence": ("gen.nn.influence_networks", "InfluenceConfig", "Influences"),
}
OWN_NETWORKS: set[str] = set()  # types that `register_network` made known; each may be any part of a model


def register_network(type: str, network: type[nn.Module], config: type[BaseModel]) -> None:
    """Make a network of your own known by a type name, for the rest of this process: in configs, model folders and training.

    network: made from a checked config, `network(config)`, which it keeps as `network.config`.
    config: a subclass of `Config`. Both must be importable, defined at the top of a module.
    Raises ValueError for a name that is taken.
    """
    register(COMPONENTS, "network type", type, network, config)
    OWN_NETWORKS.add(type)


def register(table: dict[str, Row], what: str, name: str, built: type, config: type[BaseModel]) -> None:
    """A row of the user's own in a table of this process. what: the kind of thing, for the ValueError of a name that is
    taken."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"The {what} is named {name!r}; give a name of letters, digits and underscores.")
    row = built.__module__, config.__qualname__, built.__qualname__
    if table.get(name, row) != row:
        raise ValueError(f"The {what} {name!r} exists already; choose another name.")
    if config.__module__ != built.__module__ or "." in config.__qualname__ + built.__qualname__:
        raise ValueError(f"The {what} {name!r} and its config must be defined at the top of one module.")
    table[name] = row


def describe(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """A validation error as one line. model: of the config, for what an unknown key may mean."""
    known = dotted_keys(model) if model is not None else []

    def one(problem: Any) -> str:
        where = ".".join(map(str, problem["loc"]))
        if known and problem["type"] == "extra_forbidden":
            return unknown_key(where, known)
        if problem["type"] == "value_error":  # a sentence of ours
            message = str(problem["ctx"]["error"]).removesuffix(".")
        else:
            message = problem["msg"][:1].lower() + problem["msg"][1:]
        return f"{where}: {message}" if where else message

    return "; ".join(one(problem) for problem in error.errors())


def from_registry(registry: Registry, what: str, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """(class, checked config) of the row that config["type"] names, imported now.

    `what` is the kind of thing, for the sentence of the ValueError where the type or its config is not valid.
    """
    settings = dict(config)
    kind = settings.pop("type", None)
    if kind not in registry:
        near = nearest(kind, registry)
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"Unknown {what} {kind!r}: {hint}Known: {', '.join(registry)}.")
    name, config_class, built_class = registry[kind]
    module = importlib.import_module(name)
    try:
        return getattr(module, built_class), getattr(module, config_class)(**settings)
    except ValidationError as error:
        reason = describe(error, getattr(module, config_class))
        raise ValueError(f"The config of {what} {kind!r} is not valid: {reason.removesuffix('?')}.") from None


def build(config: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights from its config, e.g. {"type": "uvit", "dim": 256, ...}."""
    network, checked = from_registry(COMPONENTS, "network type", config)
    return network(checked)


def config_of(network: nn.Module) -> dict[str, Any]:
    """The config that `build` makes this network from."""
    path = type(network).__module__, type(network).__qualname__
    kind = next((kind for kind, (module, _, name) in COMPONENTS.items() if (module, name) == path), None)
    if kind is None:
        raise ValueError(f"{path[1]} of {path[0]} is no network that has a type name; give it one with register_network.")
    config: Any = network.config
    return {"type": kind, **config.model_dump(mode="json")}
