"""InstantX's IP-Adapters for FLUX, against their attention written again for diffusers' pipeline, and SigLIP's processor."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from gen.io.weights import CheckpointError
from tests.gen import ip_adapters
from tests.gen.test_bridge_parity import CLOSE, NEGATIVE, noise, pack
from tests.gen.test_image_prompts import CALL, OTHER, SEEN, picture, rounded

SIDES = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def adapter(bridged, tmp_path_factory):
    """(tensors, file with its encoder beside it)."""
    tensors = ip_adapters.instantx(bridged("flux")[0].transformer)
    return tensors, ip_adapters.save(tmp_path_factory.mktemp("instantx"), tensors, encoder=ip_adapters.siglip())


def tokens_of(tensors, vectors):
    """Two layers with a GELU between, cut into tokens, each normalised."""
    weights = {name.removeprefix("image_proj."): value for name, value in tensors.items()}
    hidden = F.gelu(F.linear(vectors, weights["proj.0.weight"], weights["proj.0.bias"]))
    tokens = F.linear(hidden, weights["proj.2.weight"], weights["proj.2.bias"])
    dim = len(weights["norm.weight"])
    return F.layer_norm(tokens.view(len(vectors), -1, dim), (dim,), weights["norm.weight"], weights["norm.bias"])


class Attention:
    """Of one block, for diffusers: queries before they are turned look at the picture; what they find is added before the
    attention's output is projected."""

    def __init__(self, k, v, tokens, scale):
        self.k, self.v, self.tokens, self.scale = k, v, tokens, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        from diffusers.models.embeddings import apply_rotary_emb

        def heads(x):
            return x.unflatten(-1, (attn.heads, -1))

        q, k, v = (heads(row(hidden_states)) for row in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        keys = heads(F.linear(self.tokens, self.k))
        keys = keys / (keys.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        values = heads(F.linear(self.tokens, self.v))
        weights = torch.einsum("blhd,bmhd->bhlm", q, keys) / q.shape[-1] ** 0.5
        seen = torch.einsum("bhlm,bmhd->blhd", weights.softmax(-1), values).flatten(2)
        length = 0
        if encoder_hidden_states is not None:
            length = encoder_hidden_states.shape[1]
            text = [heads(row(encoder_hidden_states)) for row in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
            q = torch.cat([attn.norm_added_q(text[0]), q], 1)
            k, v = torch.cat([attn.norm_added_k(text[1]), k], 1), torch.cat([text[2], v], 1)
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out + self.scale * seen
        return attn.to_out[0](out[:, length:] + self.scale * seen), attn.to_add_out(out[:, :length])


def with_adapter(pipeline, tensors, tokens, scales):
    """A pipeline of its own whose blocks attend to these tokens."""
    made = type(pipeline)(**{**pipeline.components, "transformer": copy.deepcopy(pipeline.transformer)})
    made.set_progress_bar_config(disable=True)
    blocks = [*made.transformer.transformer_blocks, *made.transformer.single_transformer_blocks]
    for i, (block, scale) in enumerate(zip(blocks, scales, strict=True)):
        k, v = (tensors[f"ip_adapter.{i}.to_{row}_ip.weight"] for row in "kv")
        block.attn.processor = Attention(k, v, tokens, scale)
    return made


def test_it_is_their_attention_in_diffusers_pipeline(bridged, adapter):
    """Of equal strength everywhere, and by block; the vector is SigLIP's of what its own processor makes of the picture."""
    from transformers import SiglipImageProcessor

    pipeline, generator = bridged("flux")
    tensors, file = adapter
    wide = torch.cat([SEEN, OTHER], dim=2)  # all of which is seen
    processor = SiglipImageProcessor(size={"height": 24, "width": 24})
    pixels = processor(images=picture(wide), return_tensors="pt").pixel_values
    with torch.no_grad():
        vectors = ip_adapters.siglip()(pixels).pooler_output
    tokens, x = tokens_of(tensors, vectors), noise(generator, 1)
    joint, single = len(pipeline.transformer.transformer_blocks), len(pipeline.transformer.single_transformer_blocks)
    assert joint and single
    call = {**SIDES, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    asked = {"ip_adapter": file, "ip_adapter_image": rounded(wide), "latents": x, "progress": False}
    for scale, factors in (
        (0.7, [0.7] * (joint + single)),
        ({"block_0": 0.9, "single_0": 0.4}, [0.9, *[0.0] * (joint - 1), 0.4, *[0.0] * (single - 1)]),
    ):
        reference = with_adapter(pipeline, tensors, tokens, factors)("a cat", latents=pack(x), **call).images
        found = generator("a cat", ip_adapter_scale=scale, **asked, **call).images
        torch.testing.assert_close(found, reference, **CLOSE)
    assert (generator("a cat", latents=x, progress=False, **call).images - found).abs().max() > 1e-3


def test_masks_and_a_negative_prompt(bridged, adapter):
    """Masks of one are no masks; two pictures, of which the masks show one, are that one, and its picture of a negative prompt
    is the vector of zeros."""
    pipeline, generator = bridged("flux")
    tensors, file = adapter
    x, whole = noise(generator, 1), torch.ones(1, 32, 32)
    call = {**SIDES, "num_inference_steps": 2, "output_type": "latent", "latents": x, "progress": False}
    both = {"ip_adapter": file, "ip_adapter_image": [SEEN, OTHER], "ip_adapter_mask": [whole, 0 * whole]}
    one = generator("a cat", ip_adapter=file, ip_adapter_image=SEEN, **call).images[0]
    torch.testing.assert_close(generator("a cat", **both, **call).images[0], one, **CLOSE)
    half = torch.cat([whole[..., :16], 0 * whole[..., 16:]], dim=-1)
    left = generator("a cat", ip_adapter=file, ip_adapter_image=SEEN, ip_adapter_mask=half, **call).images[0]
    assert bool(left.isfinite().all()) and (left - one).abs().max() > 1e-4
    guided = {"guidance": "cfg", "guidance_scale": 2.0, "negative_prompt": NEGATIVE}
    found = generator("a cat", ip_adapter=file, ip_adapter_image=SEEN, **{**call, "output_type": "pt"}, **guided).images
    made = []
    with torch.no_grad():
        vector = ip_adapters.siglip()(_seen()).pooler_output
    for vectors in (vector, torch.zeros_like(vector)):
        blocks = len(pipeline.transformer.transformer_blocks) + len(pipeline.transformer.single_transformer_blocks)
        made.append(with_adapter(pipeline, tensors, tokens_of(tensors, vectors), [1.0] * blocks).transformer)
    calls = []

    class Two(torch.nn.Module):  # the pipeline asks for the prompt first and for the negative one then
        config, dtype, device = pipeline.transformer.config, torch.float32, torch.device("cpu")

        def forward(self, *given, **named):
            calls.append(0)
            return made[(len(calls) - 1) % 2](*given, **named)

        def cache_context(self, name):
            import contextlib

            return contextlib.nullcontext()

    parts = dict(pipeline.components)
    whole_pipeline = type(pipeline)(**parts)
    whole_pipeline.set_progress_bar_config(disable=True)
    whole_pipeline.transformer = Two()
    reference = whole_pipeline(
        "a cat", latents=pack(x), **SIDES, num_inference_steps=2, output_type="pt", true_cfg_scale=2.0, negative_prompt=NEGATIVE
    ).images
    torch.testing.assert_close(found, reference, **CLOSE)


def _seen():
    from transformers import SiglipImageProcessor

    processor = SiglipImageProcessor(size={"height": 24, "width": 24})
    return processor(images=picture(SEEN), return_tensors="pt").pixel_values


@pytest.mark.parametrize("cache", ["reuse", "first_block"])
def test_with_caches_and_nag(bridged, adapter, cache):
    _, generator = bridged("flux")
    call = {**CALL, **SIDES, "ip_adapter": adapter[1], "ip_adapter_image": SEEN}
    plain = generator("a cat", **call).images[0]
    options = {"cache_options": {"threshold": 1e-9}} if cache == "first_block" else {}
    cached = generator("a cat", cache=cache, **options, **call).images[0]
    assert bool(cached.isfinite().all()) and (cache == "reuse" or torch.equal(cached, plain))
    nagged = generator("a cat", negative_prompt="blurry", guidance="nag", **call).images[0]
    assert bool(nagged.isfinite().all()) and (nagged - plain).abs().max() > 1e-4


def test_the_whole_of_siglip_is_taken_for_its_half_that_sees(bridged, adapter, tmp_path):
    from safetensors.torch import save_file
    from transformers import SiglipConfig

    _, generator = bridged("flux")
    half, folder = ip_adapters.siglip(), tmp_path / "siglip"
    SiglipConfig(vision_config=half.config.to_dict()).save_pretrained(folder)
    text = {"text_model.embeddings.token_embedding.weight": torch.zeros(3, 4), "logit_scale": torch.zeros(1)}
    seeing = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in half.state_dict().items()}
    save_file({**seeing, **text}, folder / "model.safetensors", {"format": "pt"})
    call = {**CALL, **SIDES, "ip_adapter": adapter[1], "ip_adapter_image": SEEN}
    whole = generator("a cat", ip_adapter_encoder=folder, **call).images[0]
    torch.testing.assert_close(whole, generator("a cat", **call).images[0], **CLOSE)


def test_wrong_files_and_encoders_are_one_sentence(bridged, adapter, tmp_path):
    _, generator = bridged("flux")
    tensors, file = adapter
    clip = tmp_path / "clip"
    ip_adapters.image_encoder().save_pretrained(clip, safe_serialization=True)
    with pytest.raises(ValueError, match=r"reads SigLIP's pooled output of width 20, and .* holds a CLIPVision"):
        generator("a cat", ip_adapter=file, ip_adapter_image=SEEN, ip_adapter_encoder=clip, **CALL)
    fewer = {name: value for name, value in tensors.items() if not name.startswith("ip_adapter.1.")}
    with pytest.raises(CheckpointError, match="is for a network of"):
        generator("a cat", ip_adapter=ip_adapters.save(tmp_path / "fewer", fewer), ip_adapter_image=SEEN, **CALL)
    biased = {**tensors, "ip_adapter.0.to_k_ip.bias": torch.zeros(4)}
    with pytest.raises(CheckpointError, match=r"has the unknown 0\.to_k_ip\.bias"):
        generator("a cat", ip_adapter=ip_adapters.save(tmp_path / "biased", biased), ip_adapter_image=SEEN, **CALL)
    with pytest.raises(ValueError, match=r"names 'single_transformer_blocks\.9'"):
        generator("a cat", ip_adapter=file, ip_adapter_image=SEEN, ip_adapter_scale={"single_9": 1.0}, **CALL)
