"""Learned words: what they are read as, in our encoder and in CLIP, and the files that they come in."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from customization.base.config import CustomizationConfig
from customization.base.objective import CustomizationObjective
from gen.adapters import Adapter, AdapterError, from_tensors, read_adapter, write_adapter
from gen.adapters.words import embedding_of
from gen.generator import Generator
from gen.models.bridge.prompts import ClipReader
from gen.nn.learned_tokens import LearnedTokens
from tests.gen.conftest import tiny_text_encoder
from tests.gen.pipelines import clip, clip_tokenizer


@pytest.fixture
def own():
    return tiny_text_encoder().requires_grad_(False)


def rows(encoder, *words: str) -> torch.Tensor:
    ids = [encoder.word_pieces.pieces.index(word) for word in words]
    return encoder.word.weight[ids].clone()


@pytest.mark.parametrize(
    "text, same", [("a <new> cat", "a red cat"), ("<NEW> moon!", "red moon!"), ("cat <new><new>", "cat red red")]
)
def test_a_word_with_another_ones_vector_reads_as_that(own, text, same):
    wanted = own.encode([same])
    own.learn(LearnedTokens({"<new>": rows(own, "red")}, 16))
    made = own.encode([text])
    assert torch.equal(made[0], wanted[0]) and torch.equal(made[1], wanted[1])
    own.learn(None)
    assert own.tokenize(["<new>"])[0].max() < 16


def test_several_vectors_take_several_tokens_and_the_longer_name_wins(own):
    wanted = own.encode(["red blue cat on the moon"])[0]
    wide = {"<new": rows(own, "dog"), "<new>": rows(own, "red", "blue"), "on-the": rows(own, "on", "the")}
    own.learn(LearnedTokens(wide, 16))
    with pytest.warns(UserWarning, match="not read: 'moon'"):  # of 8 tokens two are [CLS] and [SEP]
        cut = own.encode(["<new> <new> cat on-the moon"])[0]
    assert torch.equal(own.encode(["<new> cat on-the moon"])[0], wanted)
    assert not torch.equal(cut, wanted)
    assert own.tokenize(["an on-them"])[0].max() < 16  # part of a longer word


def test_weights_in_brackets_reach_all_tokens_of_a_word(own):
    own.learn(LearnedTokens({"<new>": rows(own, "red", "blue")}, 16))
    plain, weighted = own.condition("a <new> cat").tokens[0], own.condition("a (<new>:1.5) cat").tokens[0]
    assert_close(weighted[2:4], 1.5 * plain[2:4])
    assert torch.equal(weighted[[0, 1, 4, 5]], plain[[0, 1, 4, 5]])


@pytest.mark.parametrize("legacy", [False, True])
def test_clip_reads_words_and_pools_at_the_end_of_the_text(legacy):
    """Published encoders with eos_token_id 2 pool at the highest id, which a new word's must not be."""
    encoder = clip(1)
    if legacy:
        for module in encoder.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = 2
    reader = ClipReader(clip_tokenizer(), encoder)
    vector = encoder.get_input_embeddings().weight.detach()[reader.tokenizer("x", add_special_tokens=False)["input_ids"]]
    wanted = reader.read("a x (cat:1.2)")
    reader.learn(LearnedTokens({"<New>": vector}, len(reader.tokenizer)))
    made = reader.read("a <new> (cat:1.2)")
    assert torch.equal(made[0], wanted[0]) and torch.equal(made[1], wanted[1])
    assert not encoder.get_input_embeddings()._forward_hooks


def test_gradients_reach_the_vectors_and_nothing_else(own):
    vectors = torch.nn.Parameter(rows(own, "red", "blue"))
    own.learn(LearnedTokens({"<new>": vectors}, 16))
    own.encode(["a <new> cat"])[0].square().sum().backward()
    assert vectors.grad.abs().min() > 0 and own.word.weight.grad is None


FORMS = {
    "diffusers": {"<new>": (2, 16)},
    "flat": {"<new>": (16,)},
    "a1111": {"emb_params": (2, 16)},
    "bundle": {"bundle_emb.<new>.string_to_param.*": (2, 16)},
    "lora_bundle": {"lora_bundle_emb.<new>.clip_l": (2, 16)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_is_read_and_comes_back(form, tmp_path):
    tensors = {key: torch.randn(shape) for key, shape in FORMS[form].items()}
    save_file(tensors, tmp_path / "<new>.safetensors")
    adapter = read_adapter(tmp_path / "<new>.safetensors")
    assert adapter.words.keys() == {"<new>"} and adapter.words["<new>"].keys() == {"text_encoder"}
    [value] = tensors.values()
    assert torch.equal(adapter.words["<new>"]["text_encoder"].flatten(), value.flatten())
    again = read_adapter(write_adapter(adapter, tmp_path / "again.safetensors"))
    assert again.words.keys() == adapter.words.keys() or form == "a1111"  # which the file's name says


def test_a_word_acts_while_its_adapter_is_in_force(tiny_model, tmp_path):
    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
    encoder = generator.text_encoder
    save_file({"<new>": rows(encoder, "red")}, tmp_path / "new.safetensors")
    plain, red = generator.encode_prompt(["a <new> cat"]).tokens, generator.encode_prompt(["a red cat"]).tokens
    report = generator.load_adapter(tmp_path / "new.safetensors")
    assert report.text() == "new: the learned word <new> (1)"
    assert torch.equal(generator.encode_prompt(["a <new> cat"]).tokens, red)
    assert encoder.learned is None
    generator.set_adapters({})
    assert torch.equal(generator.encode_prompt(["a <new> cat"]).tokens, plain)
    generator.set_adapters({"new": 1.0})
    made = generator("a <new> cat", seed=1, output_type="latent", progress=False)
    assert torch.equal(made.images, generator("a red cat", seed=1, output_type="latent", progress=False).images)
    assert made.recipes[0].adapter_files["new"] == generator.loaded_adapters.loaded["new"].sha256
    with pytest.raises(AdapterError, match="without fusing"):
        generator.fuse_adapters()
    generator.unload_adapter("new")
    assert torch.equal(generator.encode_prompt(["a <new> cat"]).tokens, plain)


BAD = {
    "another model": ({"<new>": torch.zeros(1, 20)}, "is for another model"),
    "another encoder": ({"clip_l": torch.zeros(1, 16), "clip_g": torch.zeros(1, 16)}, "has no such encoder"),
    "no such encoder": ({"bundle_emb.<new>.clip_q": torch.zeros(1, 16)}, "known: clip_l, clip_g"),
    "brackets": ({"(new)": torch.zeros(1, 16)}, "brackets"),
    "integers": ({"<new>": torch.zeros(1, 16, dtype=torch.int64)}, "int64"),
    "too many": ({"<new>": torch.zeros(300, 16)}, "up to 256"),
    "not alike": ({"clip_l": torch.zeros(1, 16), "clip_g": torch.zeros(2, 16)}, "different numbers"),
    "nan": ({"<new>": torch.full((1, 16), torch.nan)}, "NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_used_are_refused_in_a_sentence(case, tiny_model, tmp_path):
    tensors, reason = BAD[case]
    save_file(tensors, tmp_path / "new.safetensors")
    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
    with pytest.raises(ValueError, match=reason):
        generator.load_adapter(tmp_path / "new.safetensors")
    assert generator.adapters == {} and generator.text_encoder.learned is None


def test_the_same_word_twice_is_refused(tiny_model):
    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
    words = {"<new>": {"text_encoder": torch.zeros(1, 16)}}
    generator.load_adapter(Adapter("one", {}, words=words))
    with pytest.raises(AdapterError, match=r"'<new>' is one of 'one' already"):
        generator.load_adapter(Adapter("two", {}, words={"<NEW>": words["<new>"]}))
    with pytest.raises(AdapterError, match="is there twice"):
        from_tensors({"bundle_emb.a.clip_l": torch.zeros(1, 4), "bundle_emb.a.string_to_param.*": torch.zeros(1, 4)})


def settings(tiny_model, **tokens) -> CustomizationConfig:
    return CustomizationConfig(model=str(tiny_model), adapter=None, tokens=tokens)


def test_vectors_start_as_the_words_that_they_are_told(tiny_model):
    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
    config = settings(tiny_model, **{"<one>": {"init": "red cats"}, "<two>": {"init": "moon", "vectors": 2}, "<three>": {}})
    objective = CustomizationObjective(config, generator)
    words = objective.to_adapter(objective.roles["adapter"].network.named).words
    assert torch.equal(words["<one>"]["text_encoder"], rows(generator.text_encoder, "red", "cat", "##s"))
    assert torch.equal(words["<two>"]["text_encoder"], rows(generator.text_encoder, "moon", "moon"))
    table = embedding_of(generator.text_encoder).weight
    assert (words["<three>"]["text_encoder"] - table.mean(0)).abs().max() < table.std(0).max()


@pytest.mark.parametrize(
    "tokens, reason",
    [({"cat": {}}, "choose one it does not"), ({"<new>": {"init": "zebra"}}, "does not know 'zebra'"), ({"a b": {}}, "spaces")],
)
def test_words_that_cannot_be_learned_are_refused(tiny_model, tokens, reason):
    with pytest.raises(ValueError, match=reason):
        CustomizationObjective(settings(tiny_model, **tokens), Generator.from_pretrained(tiny_model, "cpu", "float32"))
