"""A small BERT-style text encoder that loads in milliseconds: plain torch, with `tokenizers` for the word pieces.

Texts become tokens (B, L, D) with a mask (B, L), True where a token was read; L is always `max_tokens`, so what a prompt
gives does not depend on the prompts beside it. The network is BERT's: word and position embeddings, then post-norm layers
of self-attention and a GELU feed-forward (Devlin et al. 2019, arXiv 1810.04805; Vaswani et al. 2017, section 3).
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from gen.io.errors import read_text
from gen.io.weights import CheckpointError, read_json, write_bytes
from gen.nn.backbones.blocks import mean_token
from gen.nn.initialisation import initialise
from gen.nn.other_names import OtherNames
from gen.nn.prompt_weights import token_weights, weighted
from gen.nn.registry import Config
from gen.nn.wordpiece import CLS, LONGEST_TEXT, PAD, SEP, UNK, WordPiece, cleaned
from samplers.denoiser import Condition
from samplers.lookup import nearest

if TYPE_CHECKING:
    from gen.nn.learned_tokens import LearnedTokens


CAPTION_WORDS = "caption_words.txt"
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{3,}")  # of Latin letters: of other scripts the pieces are characters
_ENDINGS = ("s", "es", "ed", "ing", "ly", "y", "er")


class TextEncoderConfig(Config):
    """Sizes; the defaults are those of MiniLM-L6-H384 with half its layers and a vocabulary cut to 8,192 word pieces."""

    vocab_size: int = Field(default=8192, ge=8, le=1_000_000)
    dim: int = Field(default=384, ge=8, le=16384)
    layers: int = Field(default=3, ge=1, le=96)
    heads: PositiveInt = 12
    hidden: int = Field(default=1536, ge=8, le=65536, description="width of the feed-forward")
    max_tokens: int = Field(default=16, ge=3, le=512, description="tokens read of a text, [CLS] and [SEP] included")

    @model_validator(mode="after")
    def _check(self) -> TextEncoderConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim is {self.dim}, which {self.heads} heads do not divide")
        return self


class Layer(nn.Module):
    """One post-norm transformer layer."""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.project = nn.Linear(config.dim, config.dim)
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-12)
        self.up = nn.Linear(config.dim, config.hidden)
        self.down = nn.Linear(config.hidden, config.dim)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-12)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(dim // self.heads) + bias
        attended = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(batch, length, dim)
        x = self.norm1(x + self.project(attended))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


def _unaccented(word: str) -> str:
    """Lower case and without accents, as the word pieces are."""
    return "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")


class TextEncoder(nn.Module):
    """`encode` texts to tokens and a mask, `pooled` to sentence embeddings. Needs a vocabulary: see `set_vocabulary`.

    learned: words beside the vocabulary (`gen.nn.learned_tokens`), which are no part of the weights."""

    learned: LearnedTokens | None

    def __init__(self, config: TextEncoderConfig | None = None):
        super().__init__()
        self.config = config = config or TextEncoderConfig()
        self.dim, self.max_tokens = config.dim, config.max_tokens
        self.word = nn.Embedding(config.vocab_size, config.dim)
        self.position = nn.Embedding(config.max_tokens, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.word_pieces: WordPiece | None = None
        self.caption_words: frozenset[str] | None = None  # words of its training that it spells; None: nobody wrote them down
        self.other_names: OtherNames | None = None  # emoji and words of other languages, exchanged before a text is read
        self.learn(None)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                initialise(nn.init.normal_, module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                initialise(nn.init.zeros_, module.bias)

    def set_vocabulary(self, pieces: Sequence[str]) -> None:
        """The word pieces in the order of their embeddings: [PAD], [UNK], [CLS], [SEP], then the rest ("##" marks a piece
        that continues a word). ValueError if their number is not the config's."""
        if len(pieces) != self.config.vocab_size:
            raise ValueError(f"The vocabulary has {len(pieces)} word pieces; the text encoder needs {self.config.vocab_size}.")
        self.word_pieces = WordPiece(pieces)

    def learn(self, learned: LearnedTokens | None) -> None:
        """Read these words too from now on, or no more."""
        object.__setattr__(self, "learned", learned)  # not a submodule

    def unseen_words(self, text: str) -> list[str]:
        """The words of a text that stood in no caption of the training and that the vocabulary can only spell; none where
        `caption_words` does not say which stood there."""
        if self.word_pieces is None or self.caption_words is None:
            return []
        words = dict.fromkeys(_WORD.findall(cleaned(self.respell(text))[:LONGEST_TEXT]))
        return [word for word in words if not self._seen(_unaccented(word))]

    def spelled_like(self, word: str) -> str | None:
        """A word of the captions, or one that is a single piece, that is spelled nearly like another; None where none is."""
        if self.word_pieces is None or self.caption_words is None:
            return None
        pieces = (piece for piece in self.word_pieces.pieces if len(piece) > 3 and piece.isalpha())
        return nearest(word, [*sorted(self.caption_words), *pieces])

    def respell(self, text: str) -> str:
        """The text with names of `other_names` exchanged for those that the encoder knows ("eine Katze" for "cat")."""
        if self.other_names is None or not isinstance(text, str):
            return text
        return self.other_names.respell(text, lambda word: self._has(_unaccented(word.lower())))

    def _has(self, word: str) -> bool:
        return word in (self.caption_words or ()) or (self.word_pieces is not None and self.word_pieces.has(word))

    def _seen(self, word: str) -> bool:
        assert self.word_pieces is not None and self.caption_words is not None
        forms = {word, *(word.removesuffix(ending) for ending in _ENDINGS)}
        return bool(forms & self.caption_words) or any(self.word_pieces.has(form) for form in forms if len(form) > 2)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids (B, L) int64, mask (B, L) bool, both on the network's device); an empty text has an all-False mask.

        A text longer than L - 2 word pieces is cut, with a warning that quotes what is not read.
        """
        if self.word_pieces is None:
            raise ValueError("The text encoder has no vocabulary yet: load it from its folder, or call set_vocabulary.")
        if isinstance(texts, str):
            raise ValueError("The text encoder takes a list of texts, not one string; put it in a list.")
        texts = [self.respell(text) for text in texts]
        room = self.max_tokens - 2
        ids = torch.full((len(texts), self.max_tokens), PAD)
        lengths = torch.zeros(len(texts), dtype=torch.long)
        for row, (pieces, unread) in enumerate(self.word_pieces(texts, room, self.learned)):
            if UNK in pieces:
                self._warn_unknown(texts[row], pieces)
            if unread:
                warnings.warn(
                    f"A prompt is longer than the {room} word pieces that the text encoder reads; "
                    f"not read: {unread[:200] + '…' * (len(unread) > 200)!r}",
                    stacklevel=3,
                )
            tokens = [CLS, *pieces, SEP]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            lengths[row] = len(tokens) if pieces else 0
        mask = torch.arange(self.max_tokens) < lengths[:, None]
        return ids.to(self.word.weight.device), mask.to(self.word.weight.device)

    def _warn_unknown(self, text: str, pieces: Sequence[int]) -> None:
        assert self.word_pieces is not None
        text = cleaned(text)
        places = self.word_pieces.offsets(text, len(pieces), self.learned)
        unknown = dict.fromkeys(text[a:b] for piece, (a, b) in zip(pieces, places, strict=False) if piece == UNK)
        listed = ", ".join(map(repr, unknown))
        warnings.warn(
            f"The text encoder does not know {listed[:200]}{'…' * (len(listed) > 200)}, of which a prompt keeps only that "
            "something stands there; use other words.",
            stacklevel=4,
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, L, D) from ids (B, L) and their mask (B, L); rows beyond the mask are zero."""
        words = self.word(ids) if self.learned is None else self.learned.fill(self.word(self.learned.safe(ids)), ids)
        x = self.norm(words + self.position.weight[: ids.shape[1]])
        # a finite bias, so that an empty text (all masked) gives numbers and not NaN
        bias = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, torch.finfo(torch.bfloat16).min / 2)
        for layer in self.layers:
            x = layer(x, bias[:, None, None, :])
        return (x * mask[..., None]).to(self.word.weight.dtype)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(tokens (B, L, D), mask (B, L) bool) of B texts; an empty text has an all-False mask and zero tokens."""
        ids, mask = self.tokenize(texts)
        return self(ids, mask), mask

    def condition(self, prompt: str, negative: bool = False) -> Condition:
        """What one prompt says to a network, with a batch of 1. A word's weight, as in `(word:1.2)` (`gen.nn.prompt_weights`),
        multiplies the features of its word pieces."""
        plain, weights = weighted(self.respell(prompt))
        tokens, mask = self.encode([plain])
        if any(weight != 1 for weight in weights):
            tokens = tokens * self._scale(plain, weights).to(tokens)[:, None]
        return Condition(tokens=tokens, mask=mask)

    def ids(self, prompt: str) -> Tensor:
        """(1, L): the tokens that `condition` reads of a prompt."""
        return self.tokenize([weighted(self.respell(prompt))[0]])[0]

    def _scale(self, plain: str, weights: list[float]) -> Tensor:
        """(L,): the weight of every token; 1 for those that no word made."""
        assert self.word_pieces is not None
        text = cleaned(plain)
        spread, at = [], 0
        for character in text:  # the weights of the characters that cleaning leaves
            if not character.isspace():
                while plain[at] != character:
                    at += 1
                at += 1
            spread.append(weights[at - 1])
        token_scales = token_weights(text, spread, self.word_pieces.offsets(text, self.max_tokens - 2, self.learned))
        return torch.tensor([1.0, *token_scales, *[1.0] * (self.max_tokens - 1 - len(token_scales))])

    def pooled(self, texts: Sequence[str]) -> Tensor:
        """Sentence embeddings (B, D): the mean of each text's tokens, zero for an empty text."""
        return mean_token(*self.encode(texts))

    def save_extra(self, folder: Path) -> None:
        if self.word_pieces is None:
            raise ValueError("The text encoder has no vocabulary to save; call set_vocabulary first.")
        self.word_pieces.save(Path(folder) / "tokenizer.json")
        if self.other_names is not None:
            self.other_names.save(folder)
        if self.caption_words is not None:
            write_bytes(Path(folder) / CAPTION_WORDS, "".join(f"{word}\n" for word in sorted(self.caption_words)).encode())

    def load_extra(self, folder: Path) -> None:
        path = Path(folder) / "tokenizer.json"
        pieces = WordPiece.pieces_in(path, read_json(path))
        try:
            self.set_vocabulary(pieces)
        except ValueError as error:
            raise CheckpointError(path, str(error)) from None
        if (words := path.with_name(CAPTION_WORDS)).exists():
            self.caption_words = frozenset(read_text(words).split())
        self.other_names = OtherNames.load(Path(folder))


__all__ = ["PAD", "UNK", "Layer", "TextEncoder", "TextEncoderConfig", "mean_token"]
