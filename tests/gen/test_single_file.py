"""Models in one file, in their authors' layout: the pictures of the pipelines they were written from, and published sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.generator import Generator
from gen.models.bridge.files import kinds, layouts
from gen.models.bridge.files.open import is_whole_model
from gen.models.bridge.files.plans import planned
from tests.gen import original_layouts as original
from tests.gen import pipelines
from tests.gen import pipelines_chat as chat
from tests.gen.pipelines import clip_tokenizer, seeded, t5, t5_tokenizer
from tests.gen.test_bridge_parity import CLOSE, noise, ours, theirs


def vae(channels: int = 4, **options: Any):
    from diffusers import AutoencoderKL

    return seeded(
        AutoencoderKL, block_out_channels=(32, 32), in_channels=3, out_channels=3, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels,
        seed=9, **options,
    )  # fmt: skip


def clip(seed: int, projected: bool, act: str, layers: int = 3):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    words = len(pipelines.LETTERS) * 2 + 2
    config = CLIPTextConfig(
        vocab_size=words, hidden_size=64, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=1,
        projection_dim=64, hidden_act=act, bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=1,
    )  # fmt: skip
    return seeded(CLIPTextModelWithProjection if projected else CLIPTextModel, config, seed=seed)


def unet(linear: bool = False, **options: Any):
    widths = (64, 128) if linear else (32, 64)
    heads = [width // 64 for width in widths] if linear else 8
    return pipelines.unet(
        block_out_channels=widths, attention_head_dim=heads, norm_num_groups=32, cross_attention_dim=64,
        use_linear_projection=linear, **options,
    )  # fmt: skip


def scheduler(values: dict[str, Any]):
    import diffusers

    return getattr(diffusers, values["_class_name"]).from_config(values)


def stable_diffusion(second: bool = False):
    from diffusers import StableDiffusionPipeline

    encoder = clip(1, False, "gelu" if second else "quick_gelu")
    pipeline = StableDiffusionPipeline(
        vae=vae(scaling_factor=0.18215), text_encoder=encoder, tokenizer=clip_tokenizer("!" if second else "<|endoftext|>"),
        unet=unet(second), scheduler=scheduler(kinds.PNDM), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    text = original.open_clip(encoder, last=False) if second else original.clip(encoder)
    prefix = "cond_stage_model.model." if second else "cond_stage_model.transformer."
    file = original.prefixed("model.diffusion_model.", original.unet(pipeline.unet)) | original.prefixed(prefix, text)
    file |= {"model_ema.decay": torch.ones(()), "alphas_cumprod": torch.ones(1000)}
    return pipeline, file | original.prefixed("first_stage_model.", original.vae(pipeline.vae))


def sdxl(zeros: bool = True):
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025), text_encoder=clip(1, False, "quick_gelu"), tokenizer=clip_tokenizer(),
        text_encoder_2=clip(2, True, "gelu"), tokenizer_2=clip_tokenizer("!"),
        unet=unet(True, addition_embed_type="text_time", addition_time_embed_dim=256,
                  projection_class_embeddings_input_dim=6 * 256 + 64, transformer_layers_per_block=(1, 2)),
        scheduler=scheduler(kinds.EULER), force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip
    pipeline.unet.register_to_config(cross_attention_dim=128)
    pipeline.unet = unet_of_width(pipeline.unet, 128)
    file = original.prefixed("model.diffusion_model.", original.unet(pipeline.unet))
    file |= original.prefixed("conditioner.embedders.0.transformer.", original.clip(pipeline.text_encoder))
    file |= original.prefixed("conditioner.embedders.1.model.", original.open_clip(pipeline.text_encoder_2))
    return pipeline, file | original.prefixed("first_stage_model.", original.vae(pipeline.vae))


def unet_of_width(network: Any, width: int):
    """The same network for features of another width."""
    return seeded(type(network).from_config, {**network.config, "cross_attention_dim": width})


def sd3(newer: bool = False):
    from diffusers import StableDiffusion3Pipeline

    extra = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if newer else {}
    network = pipelines.transformer(
        "SD3Transformer2DModel", in_channels=8, out_channels=8, joint_attention_dim=128, caption_projection_dim=128,
        pooled_projection_dim=128, pos_embed_max_size=24, attention_head_dim=64, **extra,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=network, scheduler=scheduler(kinds.FLOW),
        vae=vae(8, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(1, True, "quick_gelu"), tokenizer=clip_tokenizer(), text_encoder_2=clip(2, True, "gelu"),
        tokenizer_2=clip_tokenizer("!"), text_encoder_3=t5(3, 128), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip
    file = original.prefixed("model.diffusion_model.", original.sd3(network))
    for name, part in (("clip_l", pipeline.text_encoder), ("clip_g", pipeline.text_encoder_2)):
        file |= original.prefixed(f"text_encoders.{name}.transformer.", original.clip(part))
    texts = {name: v for name, v in pipeline.text_encoder_3.state_dict().items() if "embed_tokens" not in name}
    file |= original.prefixed("text_encoders.t5xxl.transformer.", texts)
    return pipeline, file | original.prefixed("first_stage_model.", original.vae(pipeline.vae))


def flux(guided: bool = True):
    from diffusers import FluxPipeline, FluxTransformer2DModel

    network = seeded(
        FluxTransformer2DModel, patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=128,
        num_attention_heads=1, joint_attention_dim=16, pooled_projection_dim=64, guidance_embeds=guided,
    )  # fmt: skip
    pipeline = FluxPipeline(
        transformer=network, scheduler=scheduler(kinds.FLUX_DEV if guided else {**kinds.FLOW, "shift": 1.0}),
        vae=vae(4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(1, False, "quick_gelu"), tokenizer=clip_tokenizer(), text_encoder_2=t5(3), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip
    return pipeline, original.flux(network)


def z_image():
    from diffusers import ZImageTransformer2DModel

    pipeline = chat.z_image()
    pipeline.transformer = seeded(
        ZImageTransformer2DModel, in_channels=4, dim=128, n_layers=2, n_refiner_layers=1, n_heads=1, n_kv_heads=1,
        cap_feat_dim=16,
    )  # fmt: skip
    return pipeline, original.prefixed("model.diffusion_model.", original.z_image(pipeline.transformer))


def qwen_image():
    from diffusers import QwenImageTransformer2DModel

    pipeline = chat.qwen_image()
    pipeline.transformer = seeded(
        QwenImageTransformer2DModel, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=128,
        num_attention_heads=1, joint_attention_dim=16,
    )  # fmt: skip
    pipeline.scheduler = scheduler(kinds.QWEN)
    return pipeline, pipeline.transformer.state_dict()


WHOLE = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_2": lambda: stable_diffusion(second=True),
    "sdxl": sdxl,
    "sd3": sd3,
    "sd35": lambda: sd3(newer=True),
}


def written(tmp_path, made) -> tuple[Any, Any, Any]:
    """(pipeline, its file, its folder)."""
    pipeline, tensors = made
    file = tmp_path / "model.safetensors"
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, file)
    return pipeline, file, pipelines.save(pipeline, tmp_path / "folder")


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_in_one_file_gives_the_pipelines_picture(tmp_path, name):
    pipeline, file, folder = written(tmp_path, WHOLE[name]())
    generator = Generator.from_pretrained(file, dtype="float32", text_encoder=folder, device="cpu")
    family = {"stable_diffusion_2": "stable_diffusion", "sd35": "sd3"}.get(name, name)
    x = noise(generator, 1)
    torch.testing.assert_close(ours(family, generator, x, 4.0), theirs(family, pipeline, x, 4.0), **CLOSE)
    assert generator.weights["vae"] and set(generator.weights) >= {"text_encoder", "vae"}


@pytest.mark.parametrize("guided", [True, False])
def test_a_denoiser_alone_takes_the_rest_from_a_pipeline(tmp_path, guided):
    pipeline, file, folder = written(tmp_path, flux(guided))
    with pytest.raises(ValueError, match=r"holds transformer of FLUX; give text_encoder= .* and vae= \(--vae\), a folder"):
        Generator.from_pretrained(file)
    generator = Generator.from_pretrained(file, dtype="float32", text_encoder=folder, vae=folder, device="cpu")
    x, scale = noise(generator, 1), 3.5 if guided else 1.0
    expected = theirs("flux", pipeline, x, scale, max_sequence_length=512 if guided else 256)
    torch.testing.assert_close(ours("flux", generator, x, scale), expected, **CLOSE)
    assert generator.config.defaults.num_inference_steps == (28 if guided else 4)


@pytest.mark.parametrize("make", [z_image, qwen_image])
def test_newer_denoisers_are_what_their_pipelines_folders_are(tmp_path, make):
    """The folder's picture is diffusers' own (test_bridge_schedulers.py); the file's is the folder's."""
    _, file, folder = written(tmp_path, make())
    one = Generator.from_pretrained(file, dtype="float32", text_encoder=folder, vae=folder, device="cpu")
    other = Generator.from_pretrained(folder, dtype="float32", device="cpu")
    assert one.config == other.config
    call = {"prompt": "a cat", "height": 32, "width": 32, "num_inference_steps": 2, "seed": 1, "output_type": "pt"}
    assert torch.equal(one(**call, progress=False).images, other(**call, progress=False).images)
    if make is qwen_image:
        for name, kind in (("qwen_image_edit_fp8", "QwenImageEdit"), ("qwen_image_edit_2509", "QwenImageEditPlus")):
            file = file.rename(tmp_path / f"{name}.safetensors")
            editor = Generator.from_pretrained(file, text_encoder=folder, vae=folder, device="cpu")
            assert type(editor.network).__name__ == kind
        return
    turbo = file.rename(tmp_path / "z_image_turbo_bf16.safetensors")
    assert Generator.from_pretrained(turbo, text_encoder=folder, vae=folder).config.defaults.num_inference_steps < 50


def test_variants_of_a_layout(tmp_path):
    """Kontext by its name, Fill by its channels; SDXL's refiner by its text; Depth and Canny are refused by name."""
    _, file, folder = written(tmp_path, flux())
    kontext = file.rename(tmp_path / "flux1-kontext-dev.safetensors")
    generator = Generator.from_pretrained(kontext, text_encoder=folder, vae=folder, device="cpu")
    assert type(generator.network).__name__ == "Kontext" and generator.pipeline.index["_class_name"] == "FluxKontextPipeline"
    tensors = load_file(kontext)
    filling = "cannot be opened as FLUX Fill: its network takes 96 channels, not 48"  # this autoencoder's factor is 2, not 8
    for channels, match in ((96, filling), (32, "is FLUX Depth or Canny, which is not opened")):
        save_file(tensors | {"img_in.weight": torch.ones(128, channels)}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=match):
            Generator.from_pretrained(tmp_path / "other.safetensors", text_encoder=folder, vae=folder)
    kind = next(kind for kind in kinds.KINDS if kind.name == "SDXL")
    widths = [{"cross_attention_dim": width} for width in (2048, 1280)]
    assert [kind.variant(config, "x") for config in widths] == [None, "StableDiffusionXLImg2ImgPipeline"]
    assert [kind.index(config, "x")["force_zeros_for_empty_prompt"] for config in widths] == [True, False]


def test_an_autoencoder_in_one_file(tmp_path):
    """`ae.safetensors` and its like, in CompVis' names."""
    pipeline, file, folder = written(tmp_path, flux())
    save_file({k: v.contiguous() for k, v in original.vae(pipeline.vae).items()}, tmp_path / "ae.safetensors")
    one = Generator.from_pretrained(file, dtype="float32", text_encoder=folder, vae=tmp_path / "ae.safetensors", device="cpu")
    other = Generator.from_pretrained(file, dtype="float32", text_encoder=folder, vae=folder, device="cpu")
    latents = noise(one, 1)
    assert torch.equal(one.decode(latents), other.decode(latents))


def test_what_was_trained_on_v(tmp_path):
    """SDXL files say it by empty tensors; of Stable Diffusion 2 the caller does, who may know that it predicts eps."""
    _, file, folder = written(tmp_path, sdxl())
    tensors = load_file(file) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(tensors, file)
    generator = Generator.from_pretrained(file, text_encoder=folder, device="cpu")
    assert generator.config.prediction == "v" and generator.config.path.zero_terminal_snr
    told = Generator.from_pretrained(file, text_encoder=folder, device="cpu", model_options={"prediction": "eps"})
    assert told.config.prediction == "eps"
    with pytest.raises(ValueError, match="takes prediction, eps or v"):
        Generator.from_pretrained(file, text_encoder=folder, model_options={"prediction": "x0"})


def test_files_that_do_not_fit_are_refused(tmp_path):
    """Before anything is read: a missing, an unknown and a misshapen tensor, each by its name."""
    _, file, folder = written(tmp_path, stable_diffusion())
    whole = load_file(file)
    key = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    for change, match in (
        (lambda t: t.pop(key), "lacks down_blocks.0.resnets.0.conv1.weight"),
        (lambda t: t.update({"model.diffusion_model.other": torch.ones(1)}), "has unknown model.diffusion_model.other"),
        (lambda t: t.update({key: torch.ones(32, 16, 3, 3)}), r"conv1.weight is \(32, 16, 3, 3\), UNet2DConditionModel needs"),
        (lambda t: t.update({key: torch.full_like(whole[key], torch.nan)}), "holds NaN or infinite values"),
        (lambda t: t.update({"model.diffusion_model.input_blocks.9.0.op.weight": torch.ones(1)}), "without a gap"),
    ):
        tensors = dict(whole)
        change(tensors)
        save_file(tensors, file)
        with pytest.raises(ValueError, match=match):
            Generator.from_pretrained(file, text_encoder=folder)
    save_file(whole, file)
    with pytest.raises(ValueError, match="leave variant out"):
        Generator.from_pretrained(file, text_encoder=folder, variant="fp16")
    with pytest.raises(ValueError, match=r"has a text encoder of 90 words, and CLIP knows 49408"):
        Generator.from_pretrained(file)


def meta(name: str, **config: Any):
    """A network of published size without memory."""
    import diffusers
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=True):
        return getattr(diffusers, name)(**config)


XL = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048, "use_linear_projection": True, "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD15 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2, "attention_head_dim": 8, "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}  # fmt: skip
SD3 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
}  # fmt: skip
PUBLISHED = {
    "Stable Diffusion 1.5": (original.unet, "UNet2DConditionModel", SD15),
    "Stable Diffusion 2.1": (original.unet, "UNet2DConditionModel", SD15 | {
        "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True,
    }),
    "SDXL": (original.unet, "UNet2DConditionModel", XL),
    "SDXL refiner": (original.unet, "UNet2DConditionModel", XL | {
        "block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24], "cross_attention_dim": 1280,
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"], "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 2560,
    }),
    "SD3 medium": (original.sd3, "SD3Transformer2DModel", SD3 | {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192,
    }),
    "SD3.5 large": (original.sd3, "SD3Transformer2DModel", SD3 | {
        "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    }),
    "SD3.5 medium": (original.sd3, "SD3Transformer2DModel", SD3 | {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
        "qk_norm": "rms_norm", "dual_attention_layers": list(range(13)),
    }),
    "Z-Image": (original.z_image, "ZImageTransformer2DModel", {}),
    "Qwen-Image": (lambda network: network.state_dict(), "QwenImageTransformer2DModel", {}),
    "FLUX.1-dev": (original.flux, "FluxTransformer2DModel", {
        "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "guidance_embeds": True,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_by_their_headers(name, tmp_path):
    """The config from shapes alone builds the network that the published config builds, and every tensor has its place."""
    write, class_name, config = PUBLISHED[name]
    network = meta(class_name, **config)
    shapes = {key: tuple(value.shape) for key, value in original.prefixed("model.diffusion_model.", write(network)).items()}
    kind = kinds.kind_of(shapes)
    holder = kind.parts["unet" if class_name.startswith("UNet") else "transformer"][0]
    source: Any = type("Header", (), {"path": tmp_path / "x", "shapes": shapes})()
    built = planned(source, holder, "model.diffusion_model.")
    differing = {
        key: value for key, value in built.config.items()
        if key not in ("sample_size", "transformer_layers_per_block") and _plain(value) != _plain(network.config[key])
    }  # fmt: skip
    assert differing.keys() <= ({"out_channels"} if name.startswith("FLUX") else set())  # None there: as in_channels
    built.filling(source, torch.float32)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_flux_rows_are_those_of_diffusers_converter():
    """At the one width that it knows, 3072."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    network = meta(
        "FluxTransformer2DModel", patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, guidance_embeds=True
    )
    names = original.flux(network)
    numbered = {name: torch.arange(len(value))[:, None] + 10**6 * i for i, (name, value) in enumerate(names.items())}
    found = layouts.flux(dict(numbered), {**network.config, "num_single_layers": 1})
    expected = convert_flux_transformer_checkpoint_to_diffusers(dict(numbered))
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_clips_vocabulary_is_the_published_one():
    from gen.models.bridge.files.elsewhere import WORDS, clip_tokenizer

    tokenizer = clip_tokenizer()
    assert len(tokenizer) == WORDS and tokenizer.pad_token_id == 49407
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert clip_tokenizer("!").pad_token_id == 0


def test_other_files_are_not_taken_for_whole_models(tmp_path):
    save_file({"x_embedder.proj.weight": torch.zeros(1)}, tmp_path / "dit.safetensors")
    assert not is_whole_model(tmp_path / "dit.safetensors")


def test_a_ckpt_is_converted_first(tmp_path):
    """The pickle is opened by the one command for it, never on the way to a picture."""
    from gen.cli.app import main

    _, file, folder = written(tmp_path, stable_diffusion())
    torch.save({"state_dict": load_file(file), "global_step": 1}, tmp_path / "sd.ckpt")
    with pytest.raises(ValueError, match=r"Convert it first \(`fewstep convert --from-pickle`\)"):
        Generator.from_pretrained(tmp_path / "sd.ckpt", text_encoder=folder)
    assert main(["convert", "--from-pickle", str(tmp_path / "sd.ckpt"), str(tmp_path / "sd.safetensors")]) == 0
    converted = Generator.from_pretrained(tmp_path / "sd.safetensors", dtype="float32", text_encoder=folder, device="cpu")
    other = Generator.from_pretrained(file, dtype="float32", text_encoder=folder, device="cpu")
    latents = noise(other, 1)
    assert torch.equal(converted.decode(latents), other.decode(latents))
