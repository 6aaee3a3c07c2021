"""What a run of a student leaves: a model folder or a LoRA, and its card."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from distill.networks.lora.overlay import LoraNetwork
from distill.objectives.bases.teacher import Teacher
from gen.io.weights import write_bytes
from gen.models.folder import Defaults, write_model


def export_student(
    network: nn.Module, teacher: Teacher, settings: Defaults, method: str, source: str, merge: bool, folder: Path
) -> None:
    """Write a model folder that samples as `settings` say by itself, or a LoRA folder for `load_adapter`.

    network: the student's. method: its name in words of a class, such as "Progressive". source: the paper.
    merge: put a LoRA into the teacher's weights instead of writing it alone.
    """
    if isinstance(network, LoraNetwork) and not merge:
        network.save(folder, method.lower())
        write_bytes(folder / "README.md", model_card(teacher.name, settings, method, source, adapter=True).encode())
        return
    if isinstance(network, LoraNetwork):
        network = network.merged()
    config = teacher.model.model_copy(update={"defaults": settings})
    readme = model_card(teacher.name, settings, method, source)
    write_model(folder, config, network, teacher.autoencoder, teacher.text_encoder, readme=readme)


def model_card(name: str, settings: Defaults, method: str, source: str, adapter: bool = False) -> str:
    """The text of README.md. name: of the teacher."""
    kind = "A LoRA" if adapter else "A model"
    sampler = f"--sampler {settings.sampler} --schedule {settings.schedule} --steps {settings.num_inference_steps}"
    usage = f"fewstep image --model {name} --lora THIS_FOLDER {sampler} --guidance-scale 1" if adapter else (
        'fewstep image "a red heart" --model THIS_FOLDER'
    )  # fmt: skip
    return (
        f"# {name}, {method}\n\n{kind} that makes pictures in {settings.num_inference_steps} step"
        f"{'s' if settings.num_inference_steps > 1 else ''}, distilled from {name!r} with {method}"
        f"{f' ({source})' if source else ''}.\n\n    {usage}\n"
    )
