import json
import string
import warnings

import pytest
import torch

from gen.io.weights import CheckpointError
from gen.models.components import load_component, save_component
from gen.nn.text_encoder import TextEncoder, TextEncoderConfig, mean_token
from gen.nn.wordpiece import CLS, SEP, SPECIAL, UNK, WordPiece

PIECES = [*SPECIAL, *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), "red", "heart", "##s", "[", "]"]
PIECES = list(dict.fromkeys(PIECES))
ID = {piece: index for index, piece in enumerate(PIECES)}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    network = TextEncoder(TextEncoderConfig(vocab_size=len(PIECES), dim=16, heads=2, hidden=32, layers=2, max_tokens=8))
    for parameter in network.parameters():  # away from the symmetric start, so that every weight matters
        torch.nn.init.normal_(parameter, std=0.3)
    network.set_vocabulary(PIECES)
    return network.eval().requires_grad_(False)


def ids_of(encoder, text):
    ids, mask = encoder.tokenize([text])
    return ids[0][mask[0]].tolist()


def test_word_pieces(encoder):
    assert ids_of(encoder, "Red  HEARTS") == [CLS, ID["red"], ID["heart"], ID["##s"], SEP]
    assert ids_of(encoder, "réd") == [CLS, ID["red"], SEP]  # accents go, as in BERT's lower-casing
    assert ids_of(encoder, "❤") == [CLS, UNK, SEP]


def test_special_tokens_cannot_be_typed(encoder):
    assert ids_of(encoder, "[SEP]") == [CLS, ID["["], ID["s"], ID["##e"], ID["##p"], ID["]"], SEP]


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\x00"])
def test_an_empty_text_has_an_empty_mask_and_finite_zeros(encoder, text):
    tokens, mask = encoder.encode([text, "red"])
    assert not mask[0].any() and mask[1].sum() == 3
    assert torch.equal(tokens[0], torch.zeros_like(tokens[0]))
    assert torch.equal(encoder.pooled([text])[0], torch.zeros(16))


def test_tokens_do_not_depend_on_neighbours_or_padding(encoder):
    alone = encoder.encode(["red heart"])[0][0]
    beside = encoder.encode(["a b c d e f", "red heart", ""])[0][1]
    torch.testing.assert_close(alone, beside, atol=1e-6, rtol=1e-5)


def test_padding_is_not_read(encoder):
    ids, mask = encoder.tokenize(["red heart"])
    other = torch.where(mask, ids, ID["x"])
    torch.testing.assert_close(encoder(ids, mask), encoder(other, mask))


def test_a_long_text_is_cut_with_a_warning_that_quotes_the_rest(encoder):
    with pytest.warns(UserWarning, match="6 word pieces.*not read: 'g h'"):
        ids, mask = encoder.tokenize(["a b c d e f g h"])
    assert ids[0].tolist() == [CLS, *(ID[c] for c in "abcdef"), SEP] and mask.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.tokenize(["a b c d e f"])


@pytest.mark.filterwarnings("ignore:A prompt is longer")
@pytest.mark.parametrize(
    "text",
    ["\ud800 red", "a" * 1_000_000, "red " * 250_000, "👩‍👩‍👧 ❤️", "שלום עולם", "日本語", "\u202e\u200b\x01", "a\u0301" * 9000],
)
def test_odd_texts_are_read_without_harm(encoder, text):
    tokens, mask = encoder.encode([text])
    assert tokens.shape == (1, 8, 16) and tokens.isfinite().all() and mask.shape == (1, 8)


def test_a_single_string_and_other_types_are_refused(encoder):
    with pytest.raises(ValueError, match="list of texts"):
        encoder.encode("red")
    with pytest.raises(ValueError, match="must be a text, not int"):
        encoder.encode([3])


def test_pooled_is_the_mean_over_read_tokens(encoder):
    tokens, mask = encoder.encode(["red heart"])
    torch.testing.assert_close(encoder.pooled(["red heart"])[0], tokens[0, :4].mean(0))
    assert mask[0].sum() == 4
    assert torch.equal(mean_token(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool)), torch.zeros(1, 3))


def test_saved_and_loaded_with_its_vocabulary(encoder, tmp_path):
    save_component(encoder, tmp_path)
    loaded = load_component(tmp_path, "text_encoder")
    assert loaded.word_pieces.pieces == tuple(PIECES)
    assert torch.equal(loaded.encode(["red hearts"])[0], encoder.encode(["red hearts"])[0])


def test_the_saved_tokenizer_is_one_that_tokenizers_reads_alike(encoder, tmp_path):
    from tokenizers import Tokenizer

    save_component(encoder, tmp_path)
    found = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("Red hearts x", add_special_tokens=False).ids
    assert [CLS, *found, SEP] == ids_of(encoder, "Red hearts x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(type="BPE"), "model is not a WordPiece"),
        (lambda t: t.update(normalizer=None), "normalizer is not a BertNormalizer"),
        (lambda t: t["normalizer"].update(lowercase=False), "upper case"),
        (lambda t: t["model"]["vocab"].update(red=999), "without gaps"),
        (lambda t: t["model"]["vocab"].pop("heart"), "without gaps"),
        (lambda t: t["model"]["vocab"].update(red="x"), "not a table"),
        (lambda t: t["model"].pop("vocab"), "not a table"),
        (lambda t: t["model"]["vocab"].update({PIECES[-1] + "y": len(PIECES)}), "word pieces; the text encoder needs"),
        (lambda t: t["model"]["vocab"].update({"[CLS]": 0, "[PAD]": 2}), "starts with"),
    ],
)
def test_foreign_or_damaged_tokenizers_are_refused(encoder, tmp_path, change, message):
    save_component(encoder, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_component(tmp_path)


def test_a_giant_tokenizer_is_refused(encoder, tmp_path):
    save_component(encoder, tmp_path)
    with open(tmp_path / "tokenizer.json", "a") as file:
        file.write(" " * 1_000_001)
    with pytest.raises(CheckpointError, match="larger than 1 MB"):
        load_component(tmp_path)


def test_vocabularies_must_fit_and_be_free_of_repeats():
    with pytest.raises(ValueError, match="'red' twice"):
        WordPiece([*SPECIAL, "red", "red"])
    with pytest.raises(ValueError, match="no vocabulary yet"):
        TextEncoder(TextEncoderConfig(vocab_size=9, dim=8, heads=2, hidden=8, layers=1)).encode(["red"])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="5 heads do not divide"):
        TextEncoderConfig(dim=16, heads=5)


@torch.no_grad()
def test_a_weight_multiplies_the_pieces_of_its_word(encoder):
    """[CLS] a red heart ##s [SEP]: hearts is two pieces, and both are weighed."""
    plain, weighed = encoder.condition("a red hearts"), encoder.condition("a [red]  (hearts:1.5)")
    scale = torch.tensor([1.0, 1.0, 1 / 1.1, 1.5, 1.5] + [1.0] * (encoder.max_tokens - 5))
    torch.testing.assert_close(weighed.tokens, plain.tokens * scale[:, None])
    assert torch.equal(weighed.mask, plain.mask)
    assert torch.equal(encoder.condition("a red hearts").tokens, encoder.encode(["a red hearts"])[0])  # bit for bit
    assert torch.equal(encoder.condition(r"a \[red\]").tokens, encoder.encode(["a [red]"])[0])
    odd = encoder.condition(" \ud800 (a:2)\t\n red ")
    twice = torch.tensor([1.0, 2.0, *[1.0] * (encoder.max_tokens - 2)])
    torch.testing.assert_close(odd.tokens, encoder.encode(["a red"])[0] * twice[:, None])
    assert not encoder.condition("()").mask.any()
    with pytest.raises(ValueError, match="weighs a word 20 times"):
        encoder.condition("(red:20)")
