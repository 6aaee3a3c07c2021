"""What every family does and refuses: each cell of the table in docs/models.md (`FamilyRow.works`) shown true."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gen.generator import Generator
from gen.models.bridge.families.table import FAMILIES, FEATURES
from gen.nn.backbones import editing
from tests.gen import ip_adapters, pipelines, pipelines_chat
from tests.gen.conftest import SMALL
from tests.gen.lora import factors
from tests.gen.test_control import network_for

TINY: dict[str, tuple[str, dict]] = {
    "StableDiffusionPipeline": ("stable_diffusion", {}),
    "LatentConsistencyModelPipeline": ("latent_consistency", {}),
    "StableDiffusionXLPipeline": ("sdxl", {}),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl_refiner", {}),
    "KolorsPipeline": ("kolors", {}),
    "StableDiffusion3Pipeline": ("sd3", {}),
    "FluxPipeline": ("flux", {}),
    "FluxKontextPipeline": ("flux_kontext", {}),
    "FluxFillPipeline": ("flux_fill", {}),
    "Flux2Pipeline": ("flux2", {}),
    "Flux2KleinPipeline": ("flux2_klein", {}),
    "ChromaPipeline": ("chroma", {}),
    "QwenImagePipeline": ("qwen_image", {}),
    "QwenImageEditPipeline": ("qwen_edit", {}),
    "QwenImageEditPlusPipeline": ("qwen_edit", {"plus": True}),
    "ZImagePipeline": ("z_image", {}),
    "Krea2Pipeline": ("krea2", {}),
    "Lumina2Pipeline": ("lumina2", {}),
    "HiDreamImagePipeline": ("hidream", {}),
    "AuraFlowPipeline": ("auraflow", {}),
    "CogView4Pipeline": ("cogview4", {}),
    "SanaPipeline": ("sana", {}),
    "SanaSprintPipeline": ("sana_sprint", {}),
    "PixArtSigmaPipeline": ("pixart", {"sigma": True}),
    "PixArtAlphaPipeline": ("pixart", {}),
    "DiTPipeline": ("dit", {}),
}
SHOWN = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3))
HALF = torch.zeros(1, 32, 32)
HALF[..., :16] = 1
CALL = {"seed": 1, "num_inference_steps": 2, "progress": False, "output_type": "latent"}


def opened(name: str, bridged, folder: Path) -> Generator:
    if name != "QwenImage21Pipeline":
        tiny, options = TINY[name]
        return bridged(tiny, **options)[1]
    pipeline = pipelines_chat.qwen_image21()  # saved with what the stand-in for its processor leaves out
    saved = pipelines.save(pipeline, folder / "qwen_image21")
    pipeline.processor.tokenizer.save_pretrained(saved / "processor")
    index = json.loads((saved / "model_index.json").read_text())
    index["processor"] = ["transformers", "Qwen3VLProcessor"]
    (saved / "model_index.json").write_text(json.dumps(index))
    return Generator.from_pretrained(saved, device="cpu", dtype="float32")


def control_for(generator: Generator, kind: str, bridged, folder: Path) -> Path:
    """A ControlNet that this network takes; else one that it has no place for."""
    takes = FAMILIES[kind].works("control") and kind != "LatentConsistencyModelPipeline"  # which takes Stable Diffusion's
    like = TINY[kind][0] if takes else "stable_diffusion"
    network_for(like, bridged(like)[0], 5).save_pretrained(folder / "control", safe_serialization=True)
    return folder / "control"


def lora_for(generator: Generator, folder: Path) -> Path:
    """A LoRA on one layer, in diffusers' names."""
    network = generator.network.network
    layers = {key: one for key, one in network.named_modules() if isinstance(one, nn.Linear) and "to_q" in key}
    layers = layers or {key: one for key, one in network.named_modules() if isinstance(one, nn.Linear) and "to_out" in key}
    key, layer = next(iter(layers.items()))
    down, up = factors(*layer.weight.shape)
    part = "unet" if hasattr(network, "mid_block") else "transformer"
    save_file({f"{part}.{key}.lora_A.weight": down, f"{part}.{key}.lora_B.weight": 9 * up}, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def asked_for(feature: str, generator: Generator, kind: str, bridged, folder: Path) -> dict:
    """Keywords of a call that asks for a feature."""
    if feature == "control":
        return {"control": SHOWN, "controlnet": control_for(generator, kind, bridged, folder)}
    if feature == "image_prompt":
        reads = FAMILIES[kind].works(feature)
        unet = generator.network.network if reads else bridged("stable_diffusion")[1].network.network
        made = ip_adapters.for_flux if hasattr(unet, "single_transformer_blocks") and reads else ip_adapters.ip_adapter
        file = ip_adapters.save(folder / "ip", made(unet))
        return {"ip_adapter": file, "ip_adapter_image": SHOWN}
    return {
        "text": {"prompt": "a dog"},
        "negative": {"negative_prompt": "blurry moon"},
        "image": {"image": SHOWN, "strength": 0.6},
        "mask": {"image": SHOWN, "mask": HALF},
        "cache": {"cache": "reuse"},
        "block_cache": {"cache": "first_block", "cache_options": {"threshold": 9.0}},
        "canvas": {"width": 64, "window": 32, "stride": 32},
    }[feature]


@pytest.fixture
def small(monkeypatch):
    """Editors read pictures of sizes that a test can afford."""
    monkeypatch.setattr(editing, "SIZES", SMALL)
    monkeypatch.setattr(editing, "AREA", editing.AREA // 1024)

    def shrink(generator: Generator) -> None:
        chat = getattr(generator.text_encoder, "chat", None)
        if chat is not None and chat.area:
            monkeypatch.setattr(generator.text_encoder, "chat", replace(chat, area=chat.area // 1024))

    return shrink


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "QwenImage21Pipeline" else kind for kind in FAMILIES]
)
def test_what_works_and_what_is_refused(bridged, small, tmp_path, kind):
    generator, row = opened(kind, bridged, tmp_path), FAMILIES[kind]
    small(generator)
    assert type(generator.network) is row.network
    base = {"height": 32, "width": 32, **CALL}
    base |= {"class_labels": [7]} if row.reader is None and not row.works("text") else {"prompt": "a cat"}
    side = 256 if kind == "QwenImage21Pipeline" else 32  # its autoencoder makes one latent of 16 pixels
    base |= {"height": side, "width": side}
    if row.network.reads == "mask":
        base |= {"image": SHOWN, "mask": 1 - HALF}

    def make(call: dict, canvas: bool = False):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            made = generator.panorama(**call) if canvas else generator(**call)
        return made.images[0], [str(one.message) for one in said]

    plain, _ = make(base)
    for feature in FEATURES:
        if feature == "lora":
            generator.load_adapter(lora_for(generator, tmp_path), "style")
            try:
                found, _ = make(base)
            finally:
                generator.unload_adapter("style")
        else:
            call = {**base, **asked_for(feature, generator, kind, bridged, tmp_path)}
            if row.network.reads == "mask" and feature in ("image", "canvas"):
                call.pop("mask")
            if feature == "negative" and side != 32:
                call["guidance_scale"] = 4.0  # which it leaves out
            if feature == "canvas" and side != 32:
                call |= {"width": 2 * side, "window": side, "stride": side}
            if not row.works(feature):
                _refused(make, call, feature, plain)
                continue
            found, _ = make(call, feature == "canvas")
        assert bool(found.isfinite().all()), feature
        if feature == "canvas":
            assert found.shape[-1] == 2 * plain.shape[-1]
        else:
            assert found.shape == plain.shape and not torch.equal(found, plain), feature


def _refused(make, call: dict, feature: str, plain) -> None:
    """In a sentence; a negative prompt of a network that reads text is told that it has no effect."""
    if feature == "negative" and "prompt" in call:
        found, said = make(call)
        assert torch.equal(found, plain) and any("has no effect" in one for one in said)
        return
    with pytest.raises(ValueError, match=r"^.{20,}[.;)]") as refused:
        make(call, feature == "canvas")
    assert "\n" not in str(refused.value)
