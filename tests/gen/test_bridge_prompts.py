"""Prompts of bridged models: chunks, weights, truncation, the empty prompt, and what is kept."""

from __future__ import annotations

import warnings

import pytest
import torch

from gen.models.bridge.prompts import ClipReader, Sentence
from gen.models.prompt_cache import PromptCache, size_of
from samplers.denoiser import Condition, Context
from tests.gen import pipelines


@pytest.fixture(scope="module")
def clip() -> ClipReader:
    return ClipReader(pipelines.clip_tokenizer(), pipelines.clip(1))


@pytest.fixture(scope="module")
def t5() -> Sentence:
    return Sentence(pipelines.t5_tokenizer(), pipelines.t5(3), 12, masked=True)


def encoded(clip: ClipReader, text: str) -> torch.Tensor:
    """transformers' own way for a text that fits."""
    ids = clip.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return clip.encoder(ids).last_hidden_state


@torch.no_grad()
def test_clip_reads_long_prompts_in_chunks_of_75_tokens(clip):
    """One letter is one token here; each chunk is read as if it stood alone, pooled is the first's."""
    first, second = "a " * 75, "b " * 4
    tokens, pooled = clip.read(first + second)
    assert tokens.shape == (1, 154, 16)
    torch.testing.assert_close(tokens, torch.cat([encoded(clip, first), encoded(clip, second)], dim=1))
    torch.testing.assert_close(pooled, clip.read(first)[1])
    with pytest.warns(UserWarning, match="longer than the 75 tokens.*not read: 'b b b b'"):
        cut, _ = clip.read(first + second, chunks=1)
    assert torch.equal(cut, clip.read(first)[0])
    assert clip.read("a " * 76)[0].shape[1] == 154 and clip.read("a " * 75)[0].shape[1] == 77


@torch.no_grad()
def test_break_begins_a_chunk(clip):
    tokens, _ = clip.read("a cat BREAK on (the:2) moon")
    plain, _ = clip.read("on the moon")
    torch.testing.assert_close(tokens[:, :77], encoded(clip, "a cat "))
    weights = torch.ones(77)
    weights[3:6] = 2.0  # start, o, n, t, h, e, ...
    torch.testing.assert_close(tokens[:, 77:], plain * weights[:, None])
    assert clip.read("breakfast BREAKFAST")[0].shape[1] == 77 and clip.read("BREAK")[0].shape[1] == 77


@torch.no_grad()
def test_a_weight_multiplies_its_tokens_and_leaves_the_rest(clip, t5):
    plain, weighed = clip.read("a red cat")[0], clip.read("a (red:1.5) [cat]")[0]
    scale = torch.ones(77)
    scale[2:5], scale[5:8] = 1.5, 1 / 1.1
    torch.testing.assert_close(weighed, plain * scale[:, None])
    assert torch.equal(clip.read(r"a \(red\)")[0], encoded(clip, "a (red)"))
    plain, mask = t5.read("a red")
    weighed, same = t5.read("a (red:0.5)")
    letters = t5.tokenizer.convert_ids_to_tokens(t5.tokenizer("a red").input_ids)
    scale = torch.ones(12)
    scale[letters.index("r") - 1 : letters.index("d") + 1] = 0.5  # with the mark of a beginning word, a token of its own here
    assert torch.equal(mask, same)
    torch.testing.assert_close(weighed, plain * scale[:, None])


@torch.no_grad()
def test_a_sentence_is_padded_and_says_what_it_cannot_read(t5):
    tokens, mask = t5.read("cat")
    ids = t5.tokenizer("cat", padding="max_length", max_length=12, return_tensors="pt")
    assert torch.equal(mask.long(), ids.attention_mask)
    torch.testing.assert_close(tokens, t5.encoder(ids.input_ids, attention_mask=ids.attention_mask)[0])
    with pytest.warns(UserWarning, match="longer than the 12 tokens"):
        assert t5.read("a very long sentence")[0].shape == (1, 12, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        t5.read("cat")
        t5.read("")


@torch.no_grad()
def test_capitals_are_lowered_with_their_weights():
    lower = Sentence(pipelines.t5_tokenizer(), pipelines.t5(3), 12, masked=True, lower=True)
    assert torch.equal(lower.read("  (A:2) Cat ")[0], lower.read("(a:2) cat")[0])
    assert not torch.equal(lower.read("(a:2) cat")[0], lower.read("a cat")[0])


def test_rows_without_a_real_token_read_the_empty_prompt(bridged):
    """`Condition.null()`, which guidance and training use, is what the empty prompt gives, at any length."""
    _, generator = bridged("sdxl", zeros=False)
    condition = generator.encode_prompt(["a cat", "moon " * 40])
    assert condition.tokens.shape[1] == 3 * 77
    x, time = torch.randn(2, 4, 16, 16), torch.tensor([500.0, 300.0])
    empty = generator.encode_prompt(["", ""])
    with torch.no_grad():
        null = generator.network(x, time, condition.null(), Context())
        torch.testing.assert_close(null, generator.network(x, time, empty, Context()), atol=1e-5, rtol=1e-4)
        nothing = generator.network(x, time, Condition(), Context())
        torch.testing.assert_close(nothing, generator.network(x, time, empty, Context()), atol=1e-5, rtol=1e-4)
        full = generator.network(x, time, condition, Context())
    assert (full - null).abs().max() > 1e-3


def test_padding_of_a_short_prompt_beside_a_long_one_is_not_seen(bridged):
    _, generator = bridged("sdxl")
    both = generator.encode_prompt(["a cat", "moon " * 40])
    assert both.mask.sum(1).tolist() == [77, 231]
    x, time = torch.randn(1, 4, 16, 16), torch.tensor([500.0])
    with torch.no_grad():
        alone = generator.network(x, time, generator.encode_prompt(["a cat"]), Context())
        torch.testing.assert_close(generator.network(x, time, both[:1], Context()), alone, atol=1e-5, rtol=1e-4)


def test_prompts_are_read_once_and_forgotten_when_there_are_too_many(bridged, monkeypatch):
    _, generator = bridged("sdxl")
    calls = []
    read = generator.text_encoder.condition
    monkeypatch.setattr(
        generator.text_encoder, "condition", lambda prompt, negative=False: calls.append(prompt) or read(prompt, negative)
    )
    monkeypatch.setattr(generator, "_encoded", PromptCache(1 << 30))
    generator.encode_prompt(["one", "two", "one"])
    generator.encode_prompt(["two"])
    assert calls == ["one", "two"]
    generator._encoded.limit = 3 * size_of(generator.encode_prompt(["one"]))
    generator.encode_prompt(["three"])
    generator.encode_prompt(["one"])  # asked for again: "two" is now the oldest
    generator.encode_prompt(["four"])
    assert len(generator._encoded) == 3 and calls == ["one", "two", "three", "four"]
    generator.encode_prompt(["one", "three", "four"])
    assert calls == ["one", "two", "three", "four"]
    generator.encode_prompt(["two"])  # was forgotten
    assert calls[4:] == ["two"]
    many = [f"prompt {i}" for i in range(9)]  # what one call needs is kept for it, and given up after it
    assert generator.encode_prompt(many).tokens.shape[0] == 9 and len(generator._encoded) == 9
    generator.encode_prompt(["five"])
    assert len(generator._encoded) == 3


def test_sana_reads_its_instruction_before_prompts_only(bridged):
    pipeline, generator = bridged("sana")
    import inspect

    lines = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
    with torch.no_grad():
        told, mask, alone, alone_mask = pipeline.encode_prompt(
            ["A cat"], negative_prompt="A cat", device="cpu", complex_human_instruction=lines
        )
    positive, negative = generator.encode_prompt(["A cat"]), generator.encode_prompt(["A cat"], negative=True)
    torch.testing.assert_close(positive.tokens, told)
    torch.testing.assert_close(negative.tokens, alone)
    assert torch.equal(positive.mask.long(), mask) and torch.equal(negative.mask.long(), alone_mask)
    assert (told - alone).abs().max() > 1e-3


def test_inputs_go_where_an_offloaded_encoder_runs():
    """Its weights wait elsewhere; the hook that moves them says where."""
    from types import SimpleNamespace

    from gen.models.bridge.load import device_of

    encoder = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert device_of(encoder) == torch.device("cpu")
    encoder[0]._hf_hook = SimpleNamespace(execution_device="meta")
    assert device_of(encoder) == torch.device("meta")
