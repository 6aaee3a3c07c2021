"""Adapter files that are not read, each by the name of its method, so that a message can say what a file is.

The tables are of keys: LyCORIS's and ComfyUI's other algorithms, peft's other methods (one prefix each), and what control
networks and first versions of programs wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# a piece of a key -> the method; the first that fits counts
FOREIGN: dict[str, str] = {
    "boft": "BOFT",
    "oft_": "OFT",
    "ia3": "IA3",
    "on_input": "IA3",
    "lora_embedding_": "a LoRA of an embedding table",
    "lora_E": "AdaLoRA",
    "ranknum": "AdaLoRA",
    "pvera_lambda": "PVeRA",
    "vera_lambda": "VeRA",
    "lora_S": "SVD LoRA",
    "lambda_layer": "T-LoRA",
    "q_layer.weight": "T-LoRA",
    "p_layer.weight": "T-LoRA",
    "bias_indices": "an extraction with a sparse remainder (LyCORIS)",
    "bias_values": "an extraction with a sparse remainder (LyCORIS)",
    "bias_size": "an extraction with a sparse remainder (LyCORIS)",
    "lora_A.bias": "a LoRA whose first factor has a bias",
    "lora_down.bias": "a LoRA whose first factor has a bias",
    "reshape_weight": "a LoRA that makes its layers larger",
    "set_weight": "a file that sets weights instead of changing them",
    "lora_controlnet": "Control-LoRA",
    "lllite_": "ControlNet-LLLite",
    "glora_": "GLoRA",
    "adamss_": "AdaMSS",
    "adaption_prompt_": "LLaMA-Adapter",
    "beft_": "BEFT",
    "bone_": "Bone",
    "c3a_": "C3A",
    "cartridge_": "Cartridges",
    "cpt_": "CPT",
    "deft_": "DEFT",
    "delora_": "DeLoRA",
    "fourierft_": "FourierFT",
    "frod_": "FRoD",
    "gralora_": "GraLoRA",
    "hira_": "HiRA",
    "hra_": "HRA",
    "lily_": "Lily",
    "ln_tuning_": "LN tuning",
    "miss_": "MiSS",
    "multitask_prompt_tuning_": "multitask prompt tuning",
    "osf_": "OSF",
    "p_tuning_": "P-tuning",
    "peanut_": "PEANuT",
    "poly_": "Poly",
    "prefix_tuning_": "prefix tuning",
    "prompt_tuning_": "prompt tuning",
    "psoft_": "PSOFT",
    "randlora_": "RandLoRA",
    "road_": "RoAd",
    "shadow_": "Shadow",
    "shira_": "SHiRA",
    "supertuning_": "SuperTuning",
    "tinylora_": "TinyLoRA",
    "trainable_tokens_": "trainable tokens",
    "unilora_": "UniLoRA",
    "vblora_": "VB-LoRA",
    "waveft_": "WaveFT",
    "xlora_": "X-LoRA",
}
# how a whole key looks -> the method
_SHAPES = (
    (re.compile(r".+\.(?:[ab][12]|bm)\.weight"), "GLoRA"),
    (re.compile(r"(?:.+:)?\d+:(?:up|down|alpha|rank)"), "the first LoRA files, whose layers are numbered (cloneofsimo's)"),
    (re.compile(r".+\.scalar"), "a LyCORIS file with a learned scalar for each layer"),
    (re.compile(r".+\.sums_?grads"), "a LoRA with weights that are only for training (GGPO)"),
)
_WHOLE = re.compile(r".+\.(?:weight|bias|scale)")
# peft's methods for which files are read, and switches of its LoRA that change what the factors mean
READ = ("LORA", "LOHA", "LOKR")
SWITCHES = {
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "Activated LoRA",
    "use_bdlora": "BD-LoRA",
    "layer_replication": "a LoRA of a model with layers repeated",
    "arrow_config": "Arrow",
    "fan_in_fan_out": "a LoRA of transposed weights",
    "target_parameters": "a LoRA of parameters that are no layers",
}


def foreign(keys: Iterable[str], by_shape: bool = False) -> str | None:
    """A clause that names the first key of a method that is not applied here; None where there is none. by_shape: among those
    that are known by the shape of the whole key alone."""
    for key in keys:
        method = next((name for piece, name in FOREIGN.items() if piece in key and not by_shape), None)
        method = method or next((name for shape, name in _SHAPES if shape.fullmatch(key)), None)
        if method is not None:
            return f"it has the key {key[:200]!r} of {method}, which is not applied here."
    return None


def whole_weights(keys: Iterable[str]) -> str | None:
    """The same for a weight that replaces the model's, as peft's `modules_to_save` and control LoRAs have beside factors."""
    full_weight = next(
        (key for key in keys if _WHOLE.fullmatch(key) and "lora" not in key.rpartition(".")[0].rpartition(".")[2]), None
    )
    if full_weight is None:
        return None
    return (
        f"it has {full_weight[:200]!r}, a weight that replaces the model's (peft's modules_to_save, control LoRAs), which is "
        "not applied here."
    )


def foreign_config(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A clause for a config of peft's whose method, or a switch of it, is not applied here."""
    for config in configs.values():
        kind = config.get("peft_type")
        if isinstance(kind, str) and kind.upper() not in READ:
            return (
                f"its config says that it is of peft's method {kind[:40]!r}, which is not applied here; {', '.join(READ)} are."
            )
        for switch, method in SWITCHES.items():
            if config.get(switch):
                return f"its config has {switch}, as {method} has; that is not applied here."
    return None
