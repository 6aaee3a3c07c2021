"""Tiny diffusers pipelines whose prompts a language model reads, one builder per family."""

from __future__ import annotations

from typing import Any

from tests.gen.pipelines import LETTERS, flux2_vae, qwen_vae, seeded, vae

# the part of Qwen 3's published template that a prompt alone meets
QWEN_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'\"-<>/|_"


def qwen_tokenizer() -> Any:
    from transformers import Qwen2Tokenizer

    pieces = [*LETTERS, *CAPITALS, "Ġ", "Ċ"]  # bytes for a space and a line break
    tokenizer = Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_SPECIAL[1:])})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


LANGUAGE = {
    "vocab_size": 128,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def qwen3(whole: bool = False, **sizes: Any) -> Any:
    """whole: with the head that predicts words, which published folders may have."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(**{**LANGUAGE, **sizes}, tie_word_embeddings=False)
    return seeded(Qwen3ForCausalLM if whole else Qwen3Model, config, seed=3)


ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2]}
SPECIAL = (
    ("image_token_id", "<|image_pad|>"),
    ("video_token_id", "<|video_pad|>"),
    ("vision_start_token_id", "<|vision_start|>"),
)


def special_ids(tokenizer: Any) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL}


def qwen25_vl(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {**LANGUAGE, "rope_scaling": ROPE, "tie_word_embeddings": False}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16, "patch_size": 4}
    vision |= {"window_size": 16, "fullatt_block_indexes": [0]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **special_ids(tokenizer))
    return seeded(Qwen2_5_VLForConditionalGeneration, config, seed=3)


def qwen2_vl(tokenizer: Any) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {**LANGUAGE, "num_hidden_layers": 1, "rope_scaling": ROPE, "tie_word_embeddings": False}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "mlp_ratio": 1, "num_heads": 2, "patch_size": 4}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **special_ids(tokenizer))
    return seeded(Qwen2VLForConditionalGeneration, config, seed=3)


DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}


def qwen_transformer(**options: Any) -> Any:
    from diffusers import QwenImageTransformer2DModel

    return seeded(
        QwenImageTransformer2DModel,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        **options,
    )


def qwen_image() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline

    tokenizer = qwen_tokenizer()
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=qwen_vae(),
        text_encoder=qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=qwen_transformer(),
    )


class QwenProcessor:
    """Qwen2VLProcessor, which needs torchvision for videos, as far as pictures go: each place holder as many times as the
    picture has tokens."""

    def __init__(self, tokenizer: Any, vision: Any):
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.tokenizer, self.merged = tokenizer, vision.spatial_merge_size**2
        sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        self.image_processor = Qwen2VLImageProcessorPil(**sizes, temporal_patch_size=vision.temporal_patch_size)

    def __call__(self, text: list[str], images: Any, padding: bool, return_tensors: str) -> Any:
        read = self.image_processor(images, return_tensors=return_tensors)
        counts = [int(grid.prod()) // self.merged for grid in read["image_grid_thw"]]
        texts = []
        for one in text:
            first, *parts = one.split("<|image_pad|>")
            texts.append(first + "".join("<|image_pad|>" * n + part for n, part in zip(counts, parts, strict=True)))
        words = self.tokenizer(texts, padding=padding, return_tensors=return_tensors)
        read.update(words)
        return read


def qwen_edit(plus: bool = False, **options: Any) -> Any:
    """Without its processor, for which see QwenProcessor."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPipeline, QwenImageEditPlusPipeline

    tokenizer = qwen_tokenizer()
    return (QwenImageEditPlusPipeline if plus else QwenImageEditPipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=qwen_vae(),
        text_encoder=qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        processor=None,
        transformer=qwen_transformer(**options),
    )


class Qwen21Processor:
    """Qwen3VLProcessor as far as words go."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def apply_chat_template(self, messages: list[dict[str, Any]], tokenize: bool, return_dict: bool) -> list[list[int]]:
        text = messages[0]["content"][0]["text"]
        return [self.tokenizer(f"<|im_start|>system\n{text}<|im_end|>\n")["input_ids"]]

    def __call__(self, text: list[str], padding: bool, padding_side: str, return_tensors: str) -> Any:
        return self.tokenizer(text, padding=padding, padding_side=padding_side, return_tensors=return_tensors)


def qwen_image21() -> Any:
    from diffusers import (
        AutoencoderKLQwenImage21,
        FlowMatchEulerDiscreteScheduler,
        QwenImage21Pipeline,
        QwenImage21Transformer2DModel,
    )

    sizes = {"base_dim": 8, "decoder_base_dim": 8, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1}
    norm = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
    network = seeded(
        QwenImage21Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    tokenizer = qwen_tokenizer()
    return QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=seeded(AutoencoderKLQwenImage21, **sizes, **norm, temperal_downsample=[True], scale_factor_spatial=2, seed=9),
        text_encoder=qwen3_vl(tokenizer, whole=True),
        processor=Qwen21Processor(tokenizer),
        transformer=network,
    )


# what a prompt alone meets of Mistral's template
MISTRAL_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}{%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' }}{%- else %}"
    "{{- '[INST]' }}{%- endif %}{%- for block in message.content %}{{- block.text }}{%- endfor %}"
    "{%- if message.role == 'system' %}{{- '[/SYSTEM_PROMPT]' }}{%- else %}{{- '[/INST]' }}{%- endif %}{%- endfor %}"
)
MISTRAL_SPECIAL = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]")


def mistral_tokenizer() -> Any:
    """As it stands in FLUX.2's folder beside what prepares pictures; it pads on the left."""
    from transformers import PreTrainedTokenizerFast

    backend = qwen_tokenizer().backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", pad_token="<pad>", padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": list(MISTRAL_SPECIAL)})
    tokenizer.chat_template = MISTRAL_TEMPLATE
    return tokenizer


def mistral3(tokenizer: Any) -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text = {**LANGUAGE, "model_type": "mistral", "num_hidden_layers": 31, "tie_word_embeddings": False}
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    vision |= {"num_attention_heads": 2, "patch_size": 4, "image_size": 16}
    image = tokenizer.convert_tokens_to_ids("[IMG]")
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=image, tie_word_embeddings=False)
    return seeded(Mistral3ForConditionalGeneration, config, seed=3)


def flux2_transformer(guided: bool) -> Any:
    from diffusers import Flux2Transformer2DModel

    return seeded(
        Flux2Transformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=guided,
    )


def flux2() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline

    tokenizer = mistral_tokenizer()
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=mistral3(tokenizer),
        tokenizer=tokenizer,
        transformer=flux2_transformer(guided=True),
    )


def flux2_klein(distilled: bool = False) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=qwen3(whole=True, num_hidden_layers=28),
        tokenizer=qwen_tokenizer(),
        transformer=flux2_transformer(guided=False),
        is_distilled=distilled,
    )


def qwen3_vl(tokenizer: Any, whole: bool = False) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel

    text = {**LANGUAGE, "rope_scaling": {**ROPE, "mrope_interleaved": True}, "tie_word_embeddings": False}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16, "patch_size": 4}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **special_ids(tokenizer))
    return seeded(Qwen3VLForConditionalGeneration if whole else Qwen3VLModel, config, seed=3)


def krea2(distilled: bool = False) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel

    network = seeded(
        Krea2Transformer2DModel,
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=24,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    tokenizer = qwen_tokenizer()
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=network,
        text_encoder_select_layers=(0, 1, 3),
        is_distilled=distilled,
    )


def z_image(whole: bool = False, **scheduler: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    network = seeded(
        ZImageTransformer2DModel,
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **scheduler}),
        vae=vae(4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=qwen3(whole),
        tokenizer=qwen_tokenizer(),
        transformer=network,
    )
