"""Scales as peft stores them: not in the weights but in a config of r, alpha and patterns of both by module name.

diffusers writes it as JSON into the file's metadata, its keys under the network's name ("transformer.lora_alpha"); peft writes
adapter_config.json beside the file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from gen.adapters.delta import AdapterError, Delta
from gen.adapters.patterns import Patterns

IN_FILE = "lora_adapter_metadata"  # diffusers' name for it
BESIDE = "adapter_config.json"  # peft's; our metadata keep its text under this name
PARTS = {"unet": "denoiser", "transformer": "denoiser", "denoiser": "denoiser"} | {
    name: name for name in ("text_encoder", "text_encoder_2", "text_encoder_3")
}
_KINDS = {"lora": "LORA", "loha": "LOHA", "lokr": "LOKR"}


def read_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """part -> config, from a file's metadata. AdapterError where a config is not one."""
    configs: dict[str, dict[str, Any]] = {}
    for source in (IN_FILE, BESIDE):
        for name, value in _json(source, metadata[source]).items() if source in metadata else ():
            prefix, dot, key = name.partition(".")
            part, key = (PARTS[prefix], key) if dot and prefix in PARTS else ("denoiser", name)
            table = key in ("rank_pattern", "alpha_pattern") and isinstance(value, dict)
            configs.setdefault(part, {})[key] = Patterns(value) if table else value
    return configs


def _json(source: str, text: str) -> dict[str, Any]:
    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not a number that a config may hold")

    try:
        if len(text) > 4_000_000:
            raise ValueError("it is larger than 4 MB")
        value = json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"its {source} is not valid JSON: {str(error) or 'nested too deeply'}.") from None
    if not isinstance(value, dict):
        raise AdapterError(f"its {source} holds a {type(value).__name__}, not an object.")
    return value


def scale_of(config: Mapping[str, Any], path: str, rank: int | None) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), of the module at this path; 1 where nothing is said."""
    alpha = _by_pattern(config, "alpha_pattern", path, config.get("lora_alpha", config.get("alpha")))
    if alpha is None:
        return 1.0
    r = rank or _number("r", _by_pattern(config, "rank_pattern", path, config.get("r", 1)))
    alpha = _number("lora_alpha", alpha)
    if r < 1:
        raise AdapterError(f"its config says rank {r}; a rank is at least 1.")
    return alpha / (math.sqrt(r) if config.get("use_rslora") is True else r)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterError(f"its config has {value!r:.50} for {name}, which is not a number.")
    return value


def _by_pattern(config: Mapping[str, Any], name: str, path: str, default: Any) -> Any:
    patterns = config.get(name) or {}
    if not isinstance(patterns, Mapping) or not all(isinstance(key, str) for key in patterns):
        raise AdapterError(f"its config's {name} is not a table of module names.")
    try:
        matched = (patterns if isinstance(patterns, Patterns) else Patterns(patterns)).find(path)
    except ValueError as error:
        raise AdapterError(f"its config has, in {name}, {error}; spell the names of the modules out.") from None
    return default if matched is None else patterns[matched]


def make_config(layers: Mapping[str, Delta], known: Mapping[str, Any]) -> dict[str, Any]:
    """The peft config of one network's layers (by path), such that `scale_of` gives every layer its scale.

    known: the config that the layers came with, used as it is where it still says so.
    """
    if known and all(scale_of(known, path, delta.rank) == delta.scale for path, delta in layers.items()):
        return dict(known)
    kinds = {delta.kind for delta in layers.values()} & set(_KINDS)
    kind = kinds.pop() if len(kinds) == 1 else "lora"
    ranks = {path: delta.rank or _whole_rank(delta) for path, delta in layers.items()}
    [(r, _)] = Counter(ranks.values()).most_common(1)
    alphas = {path: delta.scale * ranks[path] for path, delta in layers.items()}
    [(alpha, _)] = Counter(alphas.values()).most_common(1)
    config: dict[str, Any] = {
        "peft_type": _KINDS[kind],
        "r": r,
        "lora_alpha" if kind == "lora" else "alpha": _whole(alpha),
        "rank_pattern": _patterns(ranks, r),
        "alpha_pattern": {path: _whole(a) for path, a in _patterns(alphas, alpha).items()},
        "target_modules": sorted(layers),
    }
    factors = {factor for delta in layers.values() for factor in delta.factors}
    if kind == "lora":
        config |= {"use_rslora": False, "use_dora": "magnitude" in factors, "lora_bias": "up_bias" in factors}
    else:
        config["use_effective_conv2d"] = bool(factors & {"hada_t1", "lokr_t2"})
    if kind == "lokr":
        config |= {"decompose_both": "lokr_w1_a" in factors, "decompose_factor": _cut_of(layers)}
    return config


def _patterns(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """The layers whose value is not the usual one. A name fits the end of another too, unless it is tied to the beginning."""
    ends = {path[i + 1 :] for path in values for i, letter in enumerate(path) if letter == "."}
    return {f"^{path}" if path in ends else path: value for path, value in values.items() if value != usual}


def _cut_of(layers: Mapping[str, Delta]) -> int:
    """peft's `decompose_factor` for which it cuts every weight as these layers do; AdapterError where there is none."""
    cuts = set()
    for delta in layers.values():
        if delta.kind == "lokr":
            (a, c), (b, d, *_) = (part.shape for part in delta.kron_parts(torch.float32))
            cuts |= {(a, b), (c, d)}
    for factor in (-1, *sorted({first for first, _ in cuts}, reverse=True), *range(2, 257)):
        if all(_cuts(first * second, factor) == (first, second) or _flat(first, second, factor) for first, second in cuts):
            return factor
    some = ", ".join(f"{first} x {second}" for first, second in sorted(cuts)[:3])
    raise AdapterError(f"its LoKr layers are cut in ways ({some}, ...) that peft has no one setting for; write it as kohya.")


def _cuts(size: int, factor: int) -> tuple[int, int]:
    """How peft and LyCORIS write a size as a product: by the factor where it divides the size, else by the largest divisor that
    is no larger than what remains nor, if that is positive, than the factor."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor < 0 else min(math.isqrt(size), factor)
    first = next(side for side in range(most, 0, -1) if size % side == 0)
    return first, size // first


def _flat(first: int, second: int, factor: int) -> bool:
    """Is it the cut of a convolution's inputs, its kernel (1, 9, 25 or 49 places) being stored with the second side?"""
    return any(second % k == 0 and _cuts(first * second // k, factor) == (first, second // k) for k in (9, 25, 49))


def _whole(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _whole_rank(delta: Delta) -> int:
    """A rank at which peft stores the second matrix of a LoKr whole."""
    return max(delta.factors["lokr_w2"].shape) if "lokr_w2" in delta.factors else 1
