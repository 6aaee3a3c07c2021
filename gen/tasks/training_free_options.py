"""The keywords of training-free changes (`gen.tasks.training_free`), known before any of them is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from torch import Tensor


class TrainingFreeOptions(TypedDict, total=False):
    """The keywords of a call. Pictures are files, PIL pictures, arrays or tensors, one or a list.

    negtome: pictures to stay away from, or "batch", the batch's first picture.
    negtome_mask: white where each counts. Options: scale 0.9, threshold 0.65, layers, interval
        (`samplers.guidance.NegativeMerging`).
    reference: pictures that self-attention sees.
    reference_mask: white where each counts.
    reference_prompt: what each shows, the call's own prompt if left out. Options: weight 3, layers, interval, null
        (`samplers.guidance.MultiReference`).
    concepts: words of the prompt that must not mix. Options: strength 0.1, window 3, quantile 0.7 of the correction,
        suppression 1 and interval of the attention maps (`samplers.guidance.t2i_zero`).
    aesthetic: texts, or a safetensors file with one embedding, towards which the text encoder is moved for each prompt.
        Options: steps 10, rate 1e-4.
    greedy: an energy's name, or a function (pictures (B, 3, H, W) in [0, 1], condition) -> (B,), higher is better. Options:
        iterations and rate of gradient steps, or candidates: scales, interpolations, draws (with spread); limit, interval; and
        those of the energy (`samplers.guidance.Greedy`).
    """

    negtome: Any
    negtome_mask: Any
    negtome_options: Mapping[str, Any] | None
    reference: Any
    reference_mask: Any
    reference_prompt: str | Sequence[str] | None
    reference_options: Mapping[str, Any] | None
    concepts: str | Sequence[str] | None
    concepts_options: Mapping[str, Any] | None
    aesthetic: Any
    aesthetic_options: Mapping[str, Any] | None
    greedy: str | Callable[..., Tensor] | None
    greedy_options: Mapping[str, Any] | None
