"""LoRA and its relatives put into a network by peft, and what they have become as an adapter of ours.

lora     B A                                 arXiv 2106.09685
rslora   the same, scaled by alpha / sqrt(r) arXiv 2312.03732
dora     a LoRA of the direction, and a magnitude per output   arXiv 2402.09353
loha     (A1 B1) * (A2 B2)                   arXiv 2108.06098
lokr     W1 (x) W2                           arXiv 2212.10650
oft      R W, R orthogonal in blocks         arXiv 2306.07280; arXiv 2506.19847 for the form that peft trains
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.networks.lora.targets import find_layers, hint
from gen.adapters import Adapter, Delta, from_tensors
from gen.adapters.peft_config import BESIDE
from gen.nn.registry import Config
from samplers.noise import fold

NAME = "default"  # peft's name for the one adapter
Kind = Literal["lora", "rslora", "dora", "loha", "lokr", "oft"]


class AdapterConfig(Config):
    """alpha: the rank where it is not given. ranks: of layers whose names hold these parts ("blocks.0", "attn.qkv"), in the
    place of rank; of several that fit, the last. targets: ends of module names ("attn.qkv", "to_q"); none: every linear layer
    inside the repeated blocks. exclude: ends of those that are left out. conv: convolutions too. factor: of LoKr, how W is
    cut, -1 for as square as possible. block_size: of OFT's blocks."""

    type: Kind = "lora"
    rank: int = Field(default=16, gt=0, le=4096)
    alpha: float | None = Field(default=None, gt=0, le=1e4)
    ranks: dict[str, Annotated[int, Field(gt=0, le=4096)]] = Field(default_factory=dict)
    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    conv: bool = False
    factor: int = Field(default=-1, ge=-1)
    block_size: int = Field(default=32, gt=1)

    @model_validator(mode="after")
    def _read(self) -> AdapterConfig:
        other = {"factor": "lokr", "block_size": "oft"}
        for key, kind in other.items():
            if key in self.model_fields_set and self.type != kind:
                raise ValueError(f"{key} is {kind}'s; leave it out of a {self.type}")
        if self.type == "oft" and ({"rank", "alpha"} & self.model_fields_set or self.ranks):
            raise ValueError("oft has block_size, and neither rank, ranks nor alpha")
        return self


def find_targets(network: nn.Module, config: AdapterConfig, what: str = "denoiser") -> list[str]:
    """The names of the layers that an adapter changes. ValueError where an end fits nothing, or nothing is left."""
    kinds = (nn.Linear, nn.Conv2d) if config.conv else (nn.Linear,)
    return find_layers(network, config.targets, config.exclude, kinds, what)


def inject(network: nn.Module, config: AdapterConfig, seed: int, what: str = "denoiser") -> dict[str, nn.Parameter]:
    """Put an adapter into a network, which computes what it did before until the adapter is trained; returns the parameters
    that train, by their names in the network. Start values are a function of the seed."""
    try:
        from peft import inject_adapter_in_model
    except ImportError:
        raise ValueError(
            "Training adapters needs the package peft; run .venv/bin/pip install -e '.[lora]' in the repository."
        ) from None
    names = find_targets(network, config, what)
    _check_ranks(network, config, names)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(fold(seed, "adapter", what))
        inject_adapter_in_model(peft_config(config, names), network, NAME)
    found = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {name: widened(parameter) for name, parameter in found.items()}


def widened(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, in float32 or wider: small updates vanish in bfloat16."""
    if parameter.dtype != torch.float64:
        parameter.data = parameter.data.float()
    parameter.requires_grad_(True)
    return parameter


def layer_ranks(config: AdapterConfig, names: Sequence[str]) -> dict[str, int]:
    """The rank of every layer. ValueError for a key of `ranks` that fits none."""
    fitting = {key: [name for name in names if f".{key}." in f".{name}."] for key in config.ranks}
    for key, layers in fitting.items():
        if not layers:
            raise ValueError(f"ranks names {key!r}, but no layer that trains has these parts in its name; {hint(key, names)}")
    own = {name: config.ranks[key] for key, layers in fitting.items() for name in layers}
    return {name: own.get(name, config.rank) for name in names}


def _check_ranks(network: nn.Module, config: AdapterConfig, names: list[str]) -> None:
    for name, rank in layer_ranks(config, names).items() if config.type != "oft" else ():
        shape = network.get_parameter(f"{name}.weight").shape
        highest = min(shape[0], math.prod(shape[1:]))
        if rank > highest and config.type in ("lora", "rslora", "dora"):
            raise ValueError(
                f"rank is {rank}, but {name} is {' x '.join(map(str, shape))} and has a rank of at most {highest}; "
                "lower rank, or leave the layer out with exclude."
            )


def peft_config(config: AdapterConfig, names: list[str]) -> Any:
    """The same settings in peft's words."""
    import peft

    alpha: Any = config.rank if config.alpha is None else config.alpha
    alpha = int(alpha) if float(alpha).is_integer() else alpha
    ranks = {name: rank for name, rank in layer_ranks(config, names).items() if rank != config.rank}
    by_layer: dict[str, Any] = {"rank_pattern": ranks, "alpha_pattern": dict(ranks) if config.alpha is None else {}}
    if config.type == "loha":
        return peft.LoHaConfig(r=config.rank, alpha=alpha, target_modules=names, use_effective_conv2d=config.conv, **by_layer)
    if config.type == "lokr":
        return peft.LoKrConfig(
            r=config.rank,
            alpha=alpha,
            target_modules=names,
            decompose_factor=config.factor,
            use_effective_conv2d=config.conv,
            **by_layer,
        )
    if config.type == "oft":
        return peft.OFTConfig(r=0, oft_block_size=config.block_size, target_modules=names)
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        target_modules=names,
        use_rslora=config.type == "rslora",
        use_dora=config.type == "dora",
        **by_layer,
    )


# ---- what they have become ----


def peft_state(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by their names in a network as peft's files have them."""
    state = {}
    for name, value in values.items():
        end = "lora_magnitude_vector" if f"lora_magnitude_vector.{NAME}" in name else None
        plain = name.replace(f".{NAME}.", ".").removesuffix(f".{NAME}")
        plain = f"{plain.partition('.lora_magnitude_vector')[0]}.{end}" if end else plain
        state[f"base_model.model.{plain}"] = value.detach().cpu().contiguous().clone()
    return state


def peft_settings(network: nn.Module) -> dict[str, Any]:
    """adapter_config.json of what `inject` put into a network."""
    config: Any = network.peft_config[NAME]  # type: ignore[index]
    plain = {name: value for name, value in asdict(config).items() if not callable(value)}
    plain.pop("runtime_config", None)  # peft's, of this process
    plain |= {"peft_type": config.peft_type.value, "inference_mode": True}
    if plain.get("target_modules"):
        plain["target_modules"] = sorted(plain["target_modules"])
    return json.loads(json.dumps(plain, default=list))


def to_adapter(
    network: nn.Module, values: Mapping[str, Tensor], config: AdapterConfig, name: str, part: str = "denoiser"
) -> Adapter:
    """What `inject` put into a network, with these values of its parameters, as an `Adapter` on one part of a model. OFT, which
    no format of ours has, becomes the difference of weights that it makes."""
    metadata: dict[str, str] = {}
    if config.type == "oft":
        layers = oft_differences(network, values)
    else:
        metadata = {BESIDE: json.dumps(peft_settings(network))}
        layers = dict(from_tensors(peft_state(values), metadata, name).layers)
    # peft's file of settings says more than the factors do, such as how LoKr cuts a weight; it is the denoiser's
    kept = metadata if part == "denoiser" else {}
    return Adapter(name, {f"{part}.{layer.partition('.')[2]}": delta for layer, delta in layers.items()}, kept)


@torch.no_grad()
def oft_differences(network: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Delta]:
    """R W - W of every layer that has an OFT."""
    from torch.func import functional_call

    layers = {}
    for name in values:
        path = name.partition(".oft_R")[0]
        module: Any = network.get_submodule(path)
        base = module.get_base_layer()
        own = {key.removeprefix(f"{path}."): value for key, value in values.items() if key.startswith(f"{path}.oft_R")}
        rotation = functional_call(_Weight(module), {f"module.{key}": value for key, value in own.items()}, ())
        layers[f"denoiser.{path}"] = Delta({"weight": _rotated(base, rotation) - base.weight.float()})
    return layers


class _Weight(nn.Module):
    """Called, it gives the rotation of a layer."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self) -> Tensor:
        return self.module.get_delta_weight(NAME)  # type: ignore[operator]


def _rotated(base: nn.Module, rotation: Tensor) -> Tensor:
    """The weight that a layer has when its input is rotated: W R^T, as peft merges it."""
    weight = base.get_parameter("weight").float()
    flat = (rotation.float() @ weight.flatten(1).T).T
    return flat.reshape(weight.shape).contiguous()


__all__ = ["AdapterConfig", "find_targets", "inject", "peft_settings", "peft_state", "to_adapter"]
