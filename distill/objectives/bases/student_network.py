"""Where a student's network comes from: the teacher's own again, one that a config describes, or a LoRA on the teacher."""

from __future__ import annotations

import copy

import torch
from torch import nn

from distill.networks.lora.overlay import LoraNetwork
from distill.objectives.bases.student_config import StudentConfig
from distill.objectives.bases.teacher import Teacher
from gen.nn.registry import build, config_of


def make_student(config: StudentConfig, teacher: Teacher, network: nn.Module, scalars: tuple[str, ...]) -> nn.Module:
    """The network that trains. network: the one that the run's config describes, an identity for none.

    scalars: what the method's networks receive besides the time. ValueError where the two do not fit.
    """
    if getattr(teacher.network, "bridged", False) and (config.lora is None or config.merge):
        raise ValueError(
            f"The teacher {teacher.name!r} is a diffusers pipeline, whose copy cannot be saved as a model of ours: "
            "train a LoRA on it (objective.lora, for example {rank: 64}, without merge)."
        )
    if config.lora is not None:
        return LoraNetwork(teacher.network, config.lora)
    if isinstance(network, nn.Identity):
        network = like_teacher(teacher, (*(("guidance",) if config.embed_guidance else ()), *scalars))
    reads_scale = "guidance" in (getattr(getattr(network, "config", None), "scalars", None) or ())
    if reads_scale != config.embed_guidance and hasattr(network, "config"):
        raise ValueError(
            f"embed_guidance is {str(config.embed_guidance).lower()}, but the student's network "
            f"{'is' if reads_scale else 'is not'} told a guidance scale; set network.scalars to "
            f"{'[guidance]' if config.embed_guidance else '[]'}, or embed_guidance to {str(reads_scale).lower()}."
        )
    if config.start == "teacher":
        copy_weights(teacher.network, network)
    return freeze_unread(network)


def like_teacher(teacher: Teacher, scalars: tuple[str, ...]) -> nn.Module:
    """A network of the teacher's kind and sizes, in float32, that receives `scalars` besides."""
    network = teacher.network
    if not scalars:
        return copy.deepcopy(network).float().train().requires_grad_(True)
    if not hasattr(network.config, "scalars"):
        raise ValueError(
            f"The teacher's network cannot be told its {scalars[0]} ({type(network).__name__} has no such input); "
            + (
                "leave embed_guidance out, and give one guidance_scale or train a LoRA."
                if scalars[0] == "guidance"
                else "this method needs a teacher on a DiT or U-ViT of ours."
            )
        )
    all_scalars = dict.fromkeys((*network.config.scalars, *scalars))
    return build({**config_of(network), "scalars": list(all_scalars)}).train().requires_grad_(True)


def freeze_unread(network: nn.Module) -> nn.Module:
    """Leave out of the training what the network's output does not depend on: the coarse outputs of several resolutions. They
    are a teacher's own loss (`diffusion`), and a parameter without a gradient would stop data-parallel training."""
    for parameter in network.unread() if hasattr(network, "unread") else ():  # type: ignore[operator]
        parameter.requires_grad_(False)
    return network


@torch.no_grad()
def copy_weights(teacher: nn.Module, student: nn.Module) -> None:
    """Start a student as its teacher. It may have `scalar_embeds` more, which begin at zero; anything else is an error."""
    source, target = teacher.state_dict(), student.state_dict()
    extra = [name for name in target if name not in source and not name.startswith("scalar_embeds.")]
    missing = [name for name in source if name not in target]
    reshaped = [name for name in target if name in source and target[name].shape != source[name].shape]
    if extra or missing or reshaped:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]} besides" if extra else (
            f"has another shape of {reshaped[0]}"
        )  # fmt: skip
        raise ValueError(
            f"The student's network is not the teacher's: it {what}. Give the teacher's network section, or set "
            "objective.start to network."
        )
    for name, value in target.items():
        if name in source:
            value.copy_(source[name])
