"""What a pipeline's `__call__` takes, read from its signature, and a call of ours in its words."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen.io.images import digest, read_picture
from samplers.lookup import nearest

# options of a pipeline that a call of ours gives in its own way -> how
GIVEN = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "height": "height",
    "width": "width",
    "num_inference_steps": "num_inference_steps",
    "num_images_per_prompt": "num_images_per_prompt",
    "generator": "seed",
    "latents": "latents",
    "image": "image",
    "mask_image": "mask",
    "strength": "strength",
    "output_type": "output_type",
    "eta": "sampler_options",
    "callback": "callback_on_step_end",
    "callback_steps": "callback_on_step_end",
    "callback_on_step_end": "callback_on_step_end",
    "callback_on_step_end_tensor_inputs": "callback_on_step_end_tensor_inputs",
}
# options that cannot be followed -> why
REFUSED = {"return_dict": "pictures come back as of any Generator", "denoising_end": "a run goes on to clean pictures"}
PICTURE_TYPES = (str, Path, Image.Image, np.ndarray)
SCALES = ("true_cfg_scale", "guidance_scale")


@dataclass(frozen=True)
class PipelinePictures:
    """Pictures that a pipeline is given under one name: PIL pictures, one or a list, and their sha256."""

    value: Any
    digests: tuple[str, ...]


@dataclass(frozen=True)
class PipelineCall:
    """A pipeline's `__call__`: its name, and the defaults of what it takes."""

    name: str
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any) -> PipelineCall:
        """ValueError for an object that has no call in steps."""
        name = type(pipe).__name__
        parameters = inspect.signature(type(pipe).__call__).parameters
        call = cls(name, {key: value.default for key, value in list(parameters.items())[1:]})
        if getattr(pipe, "scheduler", None) is None or "num_inference_steps" not in call.defaults:
            raise ValueError(
                f"{name} has no scheduler and number of steps of its own, so no solver can take its place; call it directly."
            )
        return call

    def takes(self, name: str) -> bool:
        return name in self.defaults

    def default(self, name: str) -> Any:
        value = self.defaults.get(name)
        return None if value is inspect.Parameter.empty else value

    @property
    def steps(self) -> int:
        return self.default("num_inference_steps") or 50

    @property
    def scale(self) -> str | None:
        """The argument that the guidance scale of a call is: that of classifier-free guidance where there is one alone."""
        if self.takes("guidance_scale") and self.default("guidance_scale") is not None:
            return "guidance_scale"
        return next((name for name in SCALES if self.takes(name)), None)

    @property
    def usual_scale(self) -> float:
        """The guidance scale by default; 1 where there is none."""
        value = None if self.scale is None else self.default(self.scale)
        return float(value) if isinstance(value, int | float) else 1.0

    def unguided(self, pipe: Any) -> dict[str, float]:
        """The arguments that turn the pipeline's own guidance off."""
        name = next((name for name in SCALES if self.takes(name)), None)
        if name is None:
            return {}
        return {name: _neutral(pipe) if name == "guidance_scale" else 1.0}

    def check_options(self, options: Mapping[str, Any], scaled: bool) -> None:
        """ValueError for options that the pipeline does not take, or that a call gives in another way. scaled: the guidance
        scale is given by guidance_scale."""
        for name in options:
            if name in GIVEN:
                raise ValueError(f"pipeline_options has {name!r}, which is given by {GIVEN[name]}=; leave it out there.")
            if name in REFUSED:
                raise ValueError(f"pipeline_options has {name!r}, which cannot be followed: {REFUSED[name]}.")
            if name not in self.defaults:
                known = sorted(self.defaults.keys() - GIVEN.keys() - REFUSED.keys())
                near = nearest(name, known)
                hint = f" Did you mean {near!r}?" if near else ""
                raise ValueError(f"{self.name} takes no {name!r}.{hint} It takes {', '.join(known)}.")
            if scaled and name == self.scale:
                raise ValueError(f"pipeline_options has {name!r}, which is given by guidance_scale=; leave it out there.")

    def check_takes(self, name: str, given: Any, instead: str) -> None:
        """ValueError where something is given that the pipeline does not take."""
        if given is not None and not self.takes(name):
            raise ValueError(f"{self.name} takes no {name}; {instead}.")


def _neutral(pipe: Any) -> float:
    """The guidance scale at which a pipeline says that it does not guide: 1, or 0 of those that add to the condition."""
    had = "_guidance_scale" in vars(pipe)
    before = vars(pipe).get("_guidance_scale")
    try:
        for scale in (1.0, 0.0):
            pipe.__dict__["_guidance_scale"] = scale
            if not getattr(pipe, "do_classifier_free_guidance", False):
                return scale
        return 1.0
    except Exception:  # whatever else the property looks at is not there before a call
        return 1.0
    finally:
        if had:
            pipe.__dict__["_guidance_scale"] = before
        else:
            pipe.__dict__.pop("_guidance_scale", None)


def is_picture(name: str, value: Any) -> bool:
    """Is an option a picture, or several: a file, PIL or an array under a name such as control_image?"""
    values = value if isinstance(value, list | tuple) and value else [value]
    return "image" in name and "embed" not in name and all(isinstance(one, PICTURE_TYPES) for one in values)


def read_pictures(name: str, value: Any, mode: str = "RGB") -> PipelinePictures:
    """ValueError says what cannot be read."""
    several = isinstance(value, list | tuple)
    pictures = [read_picture(name, one, mode) for one in (value if several else [value])]
    images = [_pil(picture) for picture in pictures]
    return PipelinePictures(images if several else images[0], tuple(digest(picture) for picture in pictures))


def _pil(picture: Tensor) -> Any:
    pixels = (picture[0].movedim(0, -1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])


def arguments(
    call: PipelineCall,
    *,
    prompts: Sequence[str],
    negatives: Sequence[str],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    **others: Any,
) -> dict[str, Any]:
    """The arguments of a pipeline's `__call__` for a batch of B pictures. others: by the pipeline's names, None left out."""
    given: dict[str, Any] = {name: value for name, value in others.items() if value is not None}
    given |= options
    embedded = any(name.startswith("prompt_embeds") for name in options)
    if call.takes("prompt") and not (embedded and not any(prompts)):
        given["prompt"] = list(prompts) if len(prompts) > 1 else prompts[0]
    elif any(prompts):
        raise ValueError(f"{call.name} reads no prompt; leave it out.")
    elif len(prompts) > 1 and call.takes("num_images_per_prompt"):
        given["num_images_per_prompt"] = len(prompts)
    if any(text.strip() for text in negatives):
        call.check_takes("negative_prompt", True, "leave it out")
        given["negative_prompt"] = list(negatives) if len(negatives) > 1 else negatives[0]
    if call.takes("generator"):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        given["generator"] = generators if len(generators) > 1 else generators[0]
    return given
