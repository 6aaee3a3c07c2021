"""Tiny diffusers pipelines of the newer families, as `tests.gen.pipelines` has them of the older ones."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.gen.pipelines import (
    LETTERS,
    clip,
    clip_tokenizer,
    flux,
    gemma,
    sana,
    sd3,
    seeded,
    t5,
    t5_tokenizer,
    transformer,
    unet,
    vae,
)

LANGUAGE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def flux_vae(channels: int = 4):
    return vae(channels, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def chroma(**scheduler: Any):
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    network = seeded(
        ChromaTransformer2DModel,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=2,
    )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, "use_beta_sigmas": True} | scheduler),
        vae=flux_vae(),
        text_encoder=t5(3),
        tokenizer=t5_tokenizer(),
        transformer=network,
    )


def flux_kontext():
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**_parts(flux()))


def flux_fill():
    """Its autoencoder says what it means: the pipeline draws from its distribution, whose deviation is e^-15 here."""
    from diffusers import FluxFillPipeline, FluxTransformer2DModel

    parts = _parts(flux())
    config = {name: value for name, value in parts["transformer"].config.items() if not name.startswith("_")}
    parts["transformer"] = seeded(FluxTransformer2DModel, **config | {"in_channels": 48, "out_channels": 16})
    last = parts["vae"].encoder.conv_out
    with torch.no_grad():
        last.weight[4:] = 0
        last.bias[4:] = -30
    return FluxFillPipeline(**parts)


def _parts(pipeline: Any) -> dict[str, Any]:
    return {name: part for name, part in pipeline.components.items() if part is not None}


def llama_tokenizer():
    from transformers import LlamaTokenizer

    pieces = ["<unk>", "<s>", "</s>", "▁", *LETTERS]
    tokenizer = LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def auraflow():
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )  # fmt: skip
    network = seeded(
        AuraFlowTransformer2DModel,
        sample_size=16,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=64 * 64,
    )
    with torch.no_grad():  # 256 tokens of text, most of them zeros, would be seen too little
        network.context_embedder.weight.mul_(10)
        for name, weight in network.named_parameters():
            if "to_out" in name or "to_v" in name:
                weight.mul_(5)
    return AuraFlowPipeline(
        tokenizer=llama_tokenizer(),
        text_encoder=seeded(UMT5EncoderModel, config, seed=3),
        vae=vae(4, scaling_factor=0.13025),
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def fast_tokenizer(first: str, side: str):
    """A token for every letter, after `first`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", *first.split(), "<unk>"]
    vocabulary = {piece: i for i, piece in enumerate([*special, " ", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(piece, vocabulary[piece]) for piece in first.split()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side=side
    )


def cogview4(**scheduler: Any):
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import GlmConfig, GlmModel

    config = GlmConfig(**LANGUAGE, head_dim=8, partial_rotary_factor=0.5, pad_token_id=0, eos_token_id=1)
    network = seeded(
        CogView4Transformer2DModel,
        sample_size=16,
        num_layers=2,
        in_channels=4,
        out_channels=4,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(64, 64),
    )
    dynamic = {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}
    return CogView4Pipeline(
        tokenizer=fast_tokenizer("[gMASK] <sop>", "left"),
        text_encoder=seeded(GlmModel, config, seed=3),
        vae=vae(4, scaling_factor=1.0),
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(**dynamic | scheduler),
    )


def hidream():
    from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**LANGUAGE, pad_token_id=0, eos_token_id=1, max_position_embeddings=256)
    network = seeded(
        HiDreamImageTransformer2DModel,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=24,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=[0, 1, 2, 2],
    )
    pipeline = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flux_vae(),
        text_encoder=clip(1, projected=True, positions=128),
        tokenizer=clip_tokenizer(length=128),
        text_encoder_2=clip(2, projected=True, positions=128),
        tokenizer_2=clip_tokenizer("!", length=128),
        text_encoder_3=t5(3),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=seeded(LlamaForCausalLM, config, seed=4),
        tokenizer_4=fast_tokenizer("<bos>", "right"),
        transformer=network,
    )
    pipeline.default_sample_size = 16  # the side that it brings every picture's area to, here for a tiny one
    return pipeline


def lumina2(**scheduler: Any):
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    network = seeded(
        Lumina2Transformer2DModel,
        sample_size=16,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 64, 64),
        cap_feat_dim=16,
    )
    tokenizer, encoder = gemma()
    return Lumina2Pipeline(
        network, FlowMatchEulerDiscreteScheduler(**{"shift": 6.0} | scheduler), flux_vae(), encoder, tokenizer
    )


def sd35():
    """Stable Diffusion 3.5 medium's kind: norms of queries and keys, and a second attention in the first blocks."""
    parts = _parts(sd3())
    parts["transformer"] = transformer(
        "SD3Transformer2DModel",
        num_layers=4,
        in_channels=8,
        out_channels=8,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
        dual_attention_layers=(0, 1),
    )
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(**parts)


def sana_sprint():
    from diffusers import SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler

    parts = _parts(sana())
    config = {name: value for name, value in parts["transformer"].config.items() if not name.startswith("_")}
    parts["transformer"] = seeded(
        SanaTransformer2DModel, **config | {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    )
    return SanaSprintPipeline(**parts | {"scheduler": SCMScheduler()})


def chatglm():
    """(tokenizer of letters, encoder) of Kolors."""
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(LETTERS), "äé a cat on the moon, 3 dogs."] * 20), model_writer=model,
        model_type="char", vocab_size=50, hard_vocab_limit=False, character_coverage=1.0, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "tokenizer.model"
    file.write_bytes(model.getvalue())
    tokenizer = ChatGLMTokenizer(str(file))
    tokenizer.folder = folder  # saving copies the file, which goes with the tokenizer
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=64,
        hidden_size=16,
        ffn_hidden_size=24,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=512,
        add_qkv_bias=True,
        multi_query_attention=True,
        original_rope=True,
    )
    encoder = ChatGLMModel(config, empty_init=False).eval()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():  # the norms are made without values
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2 + (parameter.ndim == 1))
    return tokenizer, encoder


def kolors():
    from diffusers import EulerDiscreteScheduler, KolorsPipeline

    tokenizer, encoder = chatglm()
    network = unet(
        cross_attention_dim=32,
        encoder_hid_dim=16,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        transformer_layers_per_block=(1, 1),
    )
    noise = {"beta_start": 0.00085, "beta_end": 0.014, "beta_schedule": "scaled_linear", "num_train_timesteps": 1100}
    return KolorsPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=network,
        scheduler=EulerDiscreteScheduler(**noise, timestep_spacing="leading", steps_offset=1),
    )
