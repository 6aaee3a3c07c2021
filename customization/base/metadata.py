"""What an adapter's file says of its training, in the words that other tools look for.

`modelspec.*` is the Stability metadata specification 1.0.0; `ss_*` are kohya's. Values are texts. There is no date and no path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from customization.base.config import CustomizationConfig
from gen import __version__
from gen.generator import Generator

# class of the pipeline -> (modelspec's architecture, kohya's base model version)
ARCHITECTURES = {
    "StableDiffusionPipeline": ("stable-diffusion-v1", "sd_v1"),
    "StableDiffusionXLPipeline": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "StableDiffusion3Pipeline": ("stable-diffusion-3", "sd3"),
    "FluxPipeline": ("flux-1-dev", "flux1"),
    "PixArtAlphaPipeline": ("pixart-alpha", "pixart_alpha"),
    "PixArtSigmaPipeline": ("pixart-sigma", "pixart_sigma"),
}
METHODS = {"lora": "lora", "rslora": "lora", "dora": "lora", "loha": "loha", "lokr": "lokr", "oft": "oft"}
PREDICTIONS = {"eps": "epsilon", "v": "v", "flow": "flow", "x0": "sample", "edm": "edm"}


def architecture(generator: Generator) -> tuple[str, str]:
    """(modelspec's name, kohya's name) of what the adapter is for."""
    if generator.pipeline is None:
        return f"fewstep-{type(generator.network).__name__.lower()}", f"fewstep_{generator.name}"
    kind = str(generator.pipeline.index.get("_class_name"))
    if kind == "StableDiffusionPipeline" and generator.pipeline.parts["unet"].config.get("cross_attention_dim") == 1024:
        return "stable-diffusion-v2", "sd_v2"
    return ARCHITECTURES.get(kind, (kind, kind))


def trigger_phrase(prompt: str | None, words: Sequence[str]) -> str:
    """What a prompt needs for an adapter to show what it has learned: what the pictures' one prompt adds to a caption, and the
    learned words that are not in it. "{}, <ink> style" is "<ink> style"."""
    phrase = " ".join((prompt or "").replace("{}", " ").split()).strip(" ,;.:-")
    return ", ".join(filter(None, [phrase, *(word for word in words if word.lower() not in phrase.lower())]))


def describe_training(config: CustomizationConfig, generator: Generator, run: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of an adapter. run: the values of the training config (`distill.config.TrainConfig`), and `pictures` and
    `class_pictures`, how many there were."""
    spec, version = architecture(generator)
    adapter = config.adapter or config.text_adapter
    kind = METHODS[adapter.type] if adapter is not None else getattr(config, "writes", "textual-inversion")
    size = generator.config.sample_size
    found: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{spec}/{kind}",
        "modelspec.implementation": "fewstep",
        "modelspec.title": config.name,
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": PREDICTIONS[generator.config.prediction],
        "ss_output_name": config.name,
        "ss_base_model_version": version,
        "ss_sd_model_name": generator.name,
        "ss_training_comment": f"fewstep {__version__}",
        "ss_resolution": f"({size}, {size})",
        "ss_noise_offset": config.noise_offset or None,
        "ss_multires_noise_iterations": config.noise_pyramid.levels if config.noise_pyramid else None,
        "ss_multires_noise_discount": config.noise_pyramid.discount if config.noise_pyramid else None,
        "ss_huber_c": config.huber.c if config.huber else None,
        "ss_huber_schedule": config.huber.schedule if config.huber else None,
        "ss_prior_loss_weight": config.prior_weight if run.get("class_pictures") else None,
    }
    if phrase := trigger_phrase(run.get("trigger"), list(config.tokens)):
        found["modelspec.trigger_phrase"] = phrase
    if adapter is not None:
        found["ss_network_module"] = f"fewstep.{adapter.type}"
        if adapter.type != "oft":
            alpha = adapter.rank if adapter.alpha is None else adapter.alpha
            found |= {"ss_network_dim": "Dynamic" if adapter.ranks else adapter.rank, "ss_network_alpha": f"{alpha:g}"}
    optimizer, schedule = run.get("optimizer") or {}, run.get("schedule") or {}
    found |= {
        "ss_steps": run.get("max_steps"),
        "ss_max_train_steps": run.get("max_steps"),
        "ss_total_batch_size": run.get("batch_size"),
        "ss_gradient_accumulation_steps": run.get("accumulate"),
        "ss_seed": run.get("seed"),
        "ss_mixed_precision": run.get("precision"),
        "ss_num_train_images": run.get("pictures"),
        "ss_num_reg_images": run.get("class_pictures"),
        "ss_optimizer": optimizer.get("type"),
        "ss_learning_rate": optimizer.get("lr"),
        "ss_lr_scheduler": schedule.get("type"),
        "ss_lr_warmup_steps": schedule.get("warmup"),
    }
    return {name: str(value) for name, value in found.items() if value is not None}
