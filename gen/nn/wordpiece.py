"""Texts to word pieces: BERT's lower-casing WordPiece (arXiv 1810.04805), from a list of pieces and nothing else.

Only the list is read from a tokenizer file. Normalisation and splitting are fixed here, so no file brings rules or regular
expressions of its own, and a text that spells "[SEP]" is read as those characters, not as the special token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.io.weights import CheckpointError, write_bytes

if TYPE_CHECKING:
    from gen.nn.learned_tokens import LearnedTokens, Read

PAD, UNK, CLS, SEP = range(4)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LONGEST_TEXT = 4000  # characters looked at: far more than any number of tokens the encoder reads

_KIND = {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer", "model": "WordPiece"}


def cleaned(text: str) -> str:
    """A text without halves of surrogate pairs, one space between its words."""
    return " ".join(text.encode("utf-8", "ignore").decode("utf-8").split())


class WordPiece:
    """Callable: texts to lists of piece ids. `pieces` starts with [PAD], [UNK], [CLS], [SEP]; ids are its positions."""

    def __init__(self, pieces: Sequence[str]):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        if tuple(pieces[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"A vocabulary starts with {', '.join(SPECIAL)}, not with {', '.join(map(repr, pieces[:4]))}.")
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        if len(vocabulary) != len(pieces):
            twice = next(piece for index, piece in enumerate(pieces) if vocabulary[piece] != index)
            raise ValueError(f"The vocabulary has {twice!r} twice.")
        self.pieces = tuple(pieces)
        self._words = frozenset(pieces)
        self._tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL[UNK], max_input_chars_per_word=100))
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def __call__(
        self, texts: Sequence[str], room: int, learned: LearnedTokens | None = None
    ) -> Iterator[tuple[list[int], str]]:
        """For each text its first `room` piece ids, and the part of the text that did not fit ("" if all did)."""
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"A prompt must be a text, not {type(text).__name__}.")
            text = cleaned(text)
            ids, offsets = self._read(text[:LONGEST_TEXT], learned)
            end = offsets[room - 1][1] if len(ids) >= room else LONGEST_TEXT
            cut = len(ids) > room or len(text) > LONGEST_TEXT
            yield ids[:room], text[end:].strip() if cut else ""

    def has(self, word: str) -> bool:
        """Is a lower-case word one piece?"""
        return word in self._words

    def offsets(self, text: str, room: int, learned: LearnedTokens | None = None) -> list[tuple[int, int]]:
        """Where in a cleaned text (`cleaned`) each of its first `room` pieces begins and ends."""
        return self._read(text[:LONGEST_TEXT], learned)[1][:room]

    def _read(self, text: str, learned: LearnedTokens | None) -> Read:
        if learned is not None:
            return learned.read(text, lambda part: self._read(part, None))
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def save(self, path: Path) -> None:
        """Write a tokenizer.json that `tokenizers` also reads."""
        write_bytes(path, (json.dumps(json.loads(self._tokenizer.to_str()), ensure_ascii=False) + "\n").encode())

    @staticmethod
    def pieces_in(path: Path, content: dict[str, Any]) -> list[str]:
        """The pieces of a tokenizer.json, in order of id. CheckpointError if it is of another kind, or ids have gaps."""
        for part, kind in _KIND.items():
            value = content.get(part)
            if not isinstance(value, dict) or value.get("type") != kind:
                raise CheckpointError(path, f"{part} is not a {kind}; only lower-casing WordPiece vocabularies are read.")
        if content["normalizer"].get("lowercase") is not True:
            raise CheckpointError(path, "keeps upper case; only lower-casing WordPiece vocabularies are read.")
        vocabulary = content["model"].get("vocab")
        if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
            raise CheckpointError(path, "model.vocab is not a table from word pieces to ids.")
        pieces = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[piece] for piece in pieces] != list(range(len(pieces))):
            raise CheckpointError(path, "the ids in model.vocab do not run from 0 without gaps.")
        return pieces
