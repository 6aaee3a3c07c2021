"""Chroma, FLUX.2, Krea 2, AuraFlow and Lumina 2 in one file: what their pipelines' folders are, in every stored form."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.generator import Generator
from gen.models.bridge.families.krea2 import LAYERS
from gen.models.bridge.files import kinds
from gen.models.bridge.files.plans import planned
from gen.nn import quantized
from tests.gen import more_pipelines as more
from tests.gen import original_layouts as original
from tests.gen import original_layouts_newer as newer
from tests.gen import pipelines_chat as chat
from tests.gen.pipelines import save, seeded
from tests.gen.test_single_file import _plain, meta, scheduler, vae
from tests.gen.test_stored_weights import write_gguf


def with_network(pipeline: Any, class_name: str, noise: dict[str, Any], **sizes: Any) -> Any:
    import diffusers

    pipeline.transformer = seeded(getattr(diffusers, class_name), **sizes)
    pipeline.scheduler = scheduler(noise)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def chroma() -> Any:
    pipeline = with_network(
        more.chroma(), "ChromaTransformer2DModel", kinds.FLOW, in_channels=16, num_layers=1,
        num_single_layers=2, attention_head_dim=128, num_attention_heads=1, joint_attention_dim=16,
        approximator_num_channels=64, approximator_hidden_dim=16, approximator_layers=2,
    )  # fmt: skip
    pipeline.vae = vae(4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    return pipeline


FLUX2 = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 128, "num_attention_heads": 1,
    "joint_attention_dim": 48,
}  # fmt: skip


def flux2() -> Any:
    return with_network(chat.flux2(), "Flux2Transformer2DModel", {**kinds.FLUX_DEV, "shift": 3.0}, **FLUX2)


def flux2_klein(distilled: bool = True) -> Any:
    noise = {**kinds.FLUX_DEV, "shift": 3.0}
    return with_network(chat.flux2_klein(distilled), "Flux2Transformer2DModel", noise, **FLUX2, guidance_embeds=False)


def krea2() -> Any:
    pipeline = with_network(
        chat.krea2(), "Krea2Transformer2DModel", {**kinds.FLUX_DEV, "shift": 1.0, "max_image_seq_len": 6400}, in_channels=16,
        num_layers=2, attention_head_dim=128, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
        text_hidden_dim=16, num_text_layers=12, text_num_attention_heads=2, text_num_key_value_heads=1,
        text_intermediate_size=24, num_layerwise_text_blocks=1, num_refiner_text_blocks=2,
    )  # fmt: skip
    config = pipeline.text_encoder.config
    config.text_config.num_hidden_layers, config.text_config.layer_types = 36, ["full_attention"] * 36
    pipeline.text_encoder = seeded(type(pipeline.text_encoder), config, seed=3)
    pipeline.register_to_config(text_encoder_select_layers=LAYERS)
    return pipeline


def auraflow() -> Any:
    return with_network(
        more.auraflow(), "AuraFlowTransformer2DModel", {**kinds.FLOW, "shift": 1.73}, sample_size=64, num_mmdit_layers=2,
        num_single_dit_layers=2, attention_head_dim=256, num_attention_heads=1, joint_attention_dim=16,
        caption_projection_dim=256, pos_embed_max_size=64 * 64,
    )  # fmt: skip


def lumina2() -> Any:
    pipeline = with_network(
        more.lumina2(), "Lumina2Transformer2DModel", {**kinds.FLOW, "shift": 6.0}, in_channels=4, hidden_size=192, num_layers=2,
        num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, cap_feat_dim=16,
    )  # fmt: skip
    pipeline.vae = vae(4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    return pipeline


MADE = {
    "chroma": (chroma, newer.chroma, "Chroma1-HD"),
    "flux2": (flux2, newer.flux2, "flux2-dev"),
    "flux2_klein": (flux2_klein, newer.flux2, "flux-2-klein-4b"),
    "krea2": (krea2, newer.krea2, "krea-2"),
    "auraflow": (auraflow, newer.auraflow, "aura_flow_0.3"),
    "lumina2": (lumina2, newer.lumina2, "lumina_2"),
}


def test_chromas_scheduler_is_told_by_the_name():
    """Of HD as above; Base, and what was before it, has sigmas of a beta distribution without a shift."""
    (kind,) = (kind for kind in kinds.KINDS if kind.name == "Chroma")
    for stem in ("Chroma1-Base", "chroma-unlocked-v37"):
        assert kind.scheduler({}, (), stem) == {**kinds.FLOW, "shift": 1.0, "use_beta_sigmas": True}
    assert kind.scheduler({}, (), "Chroma1-HD-fp8") == kinds.FLOW and kinds.FLOW["shift"] == 3.0


CALL = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 1, "output_type": "pt", "progress": False}


def written(tmp_path, name: str, prefix: str = "", suffix: str = ".safetensors") -> tuple[Any, Any, Any]:
    """(tensors in the authors' names, their file, the pipeline's folder)."""
    make, write, stem = MADE[name]
    pipeline = make()
    tensors = {key: v.clone().contiguous() for key, v in original.prefixed(prefix, write(pipeline.transformer)).items()}
    file = tmp_path / f"{stem}{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, file)
    return tensors, file, save(pipeline, tmp_path / "folder")


def opened(file, folder, **options: Any) -> Generator:
    return Generator.from_pretrained(
        file, **{"dtype": "float32", "device": "cpu", "text_encoder": folder, "vae": folder} | options
    )


def picture(generator: Generator) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generator("a cat", **CALL).images


@pytest.mark.parametrize("name", MADE)
def test_a_file_is_what_its_pipelines_folder_is(tmp_path, name):
    """The folder's picture is diffusers' own (test_bridge_newer.py); the file's is the folder's."""
    _, file, folder = written(tmp_path, name, "model." if name == "auraflow" else "")
    one, other = opened(file, folder), Generator.from_pretrained(folder, dtype="float32", device="cpu")
    assert one.config.model_dump(exclude={"sample_size"}) == other.config.model_dump(exclude={"sample_size"})
    assert type(one.network) is type(other.network) and one.pipeline.index["_class_name"] == other.pipeline.index["_class_name"]
    torch.testing.assert_close(picture(one), picture(other), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MADE)
def test_fp8_and_gguf_are_the_models_of_their_numbers(tmp_path, monkeypatch, name):
    """In ComfyUI's names: fp8 with a scale for each layer, and GGUF's Q8_0."""
    tensors, file, folder = written(tmp_path, name, "model.diffusion_model.")
    linear = [key for key, value in tensors.items() if key.endswith(".weight") and value.ndim == 2 and value.shape[1] % 32 == 0]
    assert len(linear) > 5
    stored = dict(tensors)
    for key in linear:
        scale = tensors[key].abs().amax() / 448
        stored[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
        stored[key.removesuffix("weight") + "scale_weight"] = scale
    save_file(stored | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, file)
    plain = {
        key: value.float() * stored[key.removesuffix("weight") + "scale_weight"] if key in linear else value
        for key, value in stored.items() if key in tensors
    }  # fmt: skip
    save_file(plain, tmp_path / f"plain-{file.name}")
    fp8 = opened(file, folder)
    assert quantized.is_quantized(fp8.network)
    torch.testing.assert_close(picture(fp8), picture(opened(tmp_path / f"plain-{file.name}", folder)), atol=1e-4, rtol=0)
    gguf = file.with_suffix(".gguf")
    bare = {key.removeprefix("model.diffusion_model."): value for key, value in tensors.items()}
    write_gguf(gguf, bare, "Q8_0", name)
    eight = opened(gguf, folder)
    assert quantized.is_quantized(eight.network)
    assert 0 < (picture(eight) - picture(opened(*(written(tmp_path, name)[1:])))).abs().mean() < 0.05


def test_klein_and_krea_by_their_names(tmp_path):
    """Distilled ones take few steps without guidance; a file called the base is not distilled."""
    _, file, folder = written(tmp_path, "flux2_klein")
    assert opened(file, folder).config.defaults.num_inference_steps == 4
    base = opened(file.rename(tmp_path / "flux-2-klein-base-4b.safetensors"), folder)
    assert base.config.defaults.num_inference_steps == 50 and base.config.defaults.guidance_scale == 4.0
    (tmp_path / "krea").mkdir()
    _, file, folder = written(tmp_path / "krea", "krea2")
    assert opened(file, folder).config.defaults.num_inference_steps == 28
    assert opened(file.rename(file.with_name("krea-2-turbo.safetensors")), folder).config.defaults.num_inference_steps == 8


def test_parts_that_a_file_holds_are_taken_from_it(tmp_path):
    """AuraFlow's published file has its text encoder and autoencoder, Lumina 2's from ComfyUI too."""
    pipeline = auraflow()
    pipeline.vae = vae(scaling_factor=0.13025)
    folder = save(pipeline, tmp_path / "folder")
    texts = {key: v for key, v in pipeline.text_encoder.state_dict().items() if "embed_tokens" not in key}
    tensors = original.prefixed("model.", newer.auraflow(pipeline.transformer))
    tensors |= original.prefixed("text_encoders.pile_t5xl.transformer.", texts)
    tensors |= original.prefixed("vae.", original.vae(pipeline.vae))
    save_file({key: v.clone().contiguous() for key, v in tensors.items()}, tmp_path / "aura_flow.safetensors")
    one = Generator.from_pretrained(tmp_path / "aura_flow.safetensors", dtype="float32", device="cpu", text_encoder=folder)
    other = Generator.from_pretrained(folder, dtype="float32", device="cpu")
    torch.testing.assert_close(picture(one), picture(other), atol=1e-4, rtol=0)
    assert len({one.weights[part] for part in ("transformer", "text_encoder", "vae")}) == 1  # the digest of one file


@pytest.mark.parametrize("name", MADE)
def test_what_does_not_fit_is_refused(tmp_path, name):
    """A missing part by what to give, a missing layer by its name."""
    tensors, file, folder = written(tmp_path, name)
    with pytest.raises(ValueError, match=r"holds transformer of .*; give text_encoder= .* and vae= \(--vae\), a folder"):
        Generator.from_pretrained(file)
    key = next(key for key in reversed(tensors) if "blocks." in key or "layers." in key)
    save_file({k: v for k, v in tensors.items() if k != key}, file)
    with pytest.raises(ValueError, match=r"lacks|does not fit"):
        opened(file, folder)


@pytest.mark.parametrize(("key", "match"), [
    ("nerf_blocks.0.norm.scale", "holds Chroma1-Radiance, which works on pixels"),
    ("model.diffusion_model.txt_in.text_norm.weight", "holds Qwen-Image 2.1, which opens as a pipeline's folder"),
    ("head.modulation", "holds Wan, a model of videos"),
])  # fmt: skip
def test_files_of_others_are_named(tmp_path, key, match):
    path = tmp_path / "model.gguf"
    write_gguf(path, {key: torch.zeros(32)}, None)
    with pytest.raises(ValueError, match=match):
        Generator.from_pretrained(path)


PUBLISHED = {
    "Chroma1-HD": (newer.chroma, "ChromaTransformer2DModel", {}),
    "FLUX.2 dev": (newer.flux2, "Flux2Transformer2DModel", {}),
    "FLUX.2 klein 4B": (newer.flux2, "Flux2Transformer2DModel", {
        "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
        "guidance_embeds": False,
    }),
    "Krea 2": (newer.krea2, "Krea2Transformer2DModel", {}),
    "AuraFlow": (newer.auraflow, "AuraFlowTransformer2DModel", {}),
    "Lumina 2": (newer.lumina2, "Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_by_their_headers(name, tmp_path):
    """The config from shapes alone is the published one, and every tensor has its place."""
    write, class_name, config = PUBLISHED[name]
    network = meta(class_name, **config)
    shapes = {key: tuple(value.shape) for key, value in write(network).items()}
    holder = kinds.kind_of(shapes).parts["transformer"][0]
    source: Any = type("Header", (), {"path": tmp_path / "x", "shapes": shapes})()
    built = planned(source, holder, "")
    differing = {key for key, value in built.config.items() if _plain(value) != _plain(network.config[key])}
    assert differing <= {"out_channels"}  # None there: as in_channels
    built.filling(source, torch.float32)


def test_lumina_2_rows_are_those_of_diffusers_converter():
    """At the one width that it knows, 2304 with keys of 768."""
    from diffusers.loaders.single_file_utils import convert_lumina2_to_diffusers

    from gen.models.bridge.files import layouts_newer

    network = meta("Lumina2Transformer2DModel", num_layers=1, num_refiner_layers=2)
    shapes = {name: value.shape for name, value in newer.lumina2(network).items()}
    numbered = {name: torch.arange(shape[0])[:, None] + 10**6 * i for i, (name, shape) in enumerate(shapes.items())}
    found, expected = layouts_newer.lumina2(dict(numbered), network.config), convert_lumina2_to_diffusers(dict(numbered))
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_file_whose_tensors_are_read_back(tmp_path):
    """Krea 2's modulation is a vector in its file and six rows in the network."""
    _, file, folder = written(tmp_path, "krea2")
    generator, tensors = opened(file, folder), load_file(file)
    table = generator.network.network.transformer_blocks[1].scale_shift_table
    assert table.shape == (6, 256) and torch.equal(table.flatten(), tensors["blocks.1.mod.lin"])
