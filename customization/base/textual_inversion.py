"""New words for a model's text encoders: their vectors as parameters, and where they start.

Textual inversion (arXiv 2208.01618) trains these alone; with an adapter beside them it is pivotal tuning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gen.adapters.words import embedding_of, readers_of, teach
from gen.generator import Generator
from gen.nn.learned_tokens import MAX_VECTORS, LearnedTokens, check_name
from gen.nn.registry import Config
from gen.nn.wordpiece import UNK
from samplers.noise import fold

PREFIX = "words_"  # of the parts that hold them


class TokenConfig(Config):
    """init: known words that its vectors start as, one vector per word piece, over again where there are more vectors; None:
    near the mean of all. vectors: how many tokens it takes; None: as many as init has word pieces, or 1."""

    init: str | None = Field(default=None, min_length=1)
    vectors: int | None = Field(default=None, ge=1, le=MAX_VECTORS)


def learn_words(
    generator: Generator, parts: Mapping[str, nn.Module], words: Mapping[str, TokenConfig], seed: int
) -> dict[str, LearnedTokens]:
    """Teach the readers of a model new words; part -> the vectors, which are parameters. ValueError where a word or its start
    cannot be."""
    readers = readers_of(generator.text_encoder, parts)
    if not readers:
        raise ValueError(f"The text encoder of {generator.name!r} cannot learn words: ours and CLIP can. Leave tokens out.")
    starts: dict[str, dict[str, Tensor]] = {}
    for word, config in words.items():
        check_name(word)
        starts[word] = {}
        for part, reader in readers.items():
            own = _pieces(reader, word)
            if len(own) == 1 and not _unknown(reader, own):
                raise ValueError(f"{word!r} is a word that the text encoder knows; choose one it does not, such as <{word}>.")
            starts[word][part] = _start(reader, word, config, fold(seed, "word", word, part))
        counts = {len(vectors) for vectors in starts[word].values()}
        if len(counts) > 1:
            raise ValueError(
                f"{config.init!r} has different numbers of word pieces for the text encoders; say vectors of {word}."
            )
    return teach(readers, {word: {part: nn.Parameter(v) for part, v in own.items()} for word, own in starts.items()})


def _pieces(reader: Any, text: str) -> list[int]:
    if hasattr(reader, "tokenizer"):
        return reader.tokenizer(text, add_special_tokens=False)["input_ids"]
    return next(iter(reader.word_pieces([text], MAX_VECTORS)))[0]


def _unknown(reader: Any, ids: list[int]) -> bool:
    unknown = reader.tokenizer.unk_token_id if hasattr(reader, "tokenizer") else UNK
    end = getattr(getattr(reader, "tokenizer", None), "eos_token_id", None)  # CLIP's stands for what is unknown too
    return unknown in ids or end in ids


def _start(reader: Any, word: str, config: TokenConfig, seed: int) -> Tensor:
    """(n, D) float32."""
    table = embedding_of(reader).weight.detach().float()
    if config.init is None:
        noise = torch.randn(config.vectors or 1, table.shape[1], generator=torch.Generator().manual_seed(seed))
        return (table.mean(0) + 0.1 * table.std(0) * noise.to(table.device)).clone()
    ids = _pieces(reader, config.init)
    if not ids or _unknown(reader, ids):
        raise ValueError(f"The text encoder does not know {config.init!r}, as which {word} is to start; give ordinary words.")
    return table[torch.tensor([ids[i % len(ids)] for i in range(config.vectors or len(ids))], device=table.device)].clone()


def used_in(words: Mapping[str, Any], captions: list[str]) -> None:
    """ValueError where no caption has one of the words, which would then learn nothing."""
    for word in words:
        if not any(word.lower() in caption.lower() for caption in captions):
            raise ValueError(
                f"No caption has the word {word}, so it would learn nothing; write it into the prompt or captions."
            )


def unlearned(words: Mapping[str, Any], captions: list[str]) -> str | None:
    """A word in angle brackets that captions have and that is not among those to learn; None for none."""
    known = {word.lower() for word in words}
    return next((w for caption in captions for w in re.findall(r"<[^<>\s]+>", caption) if w.lower() not in known), None)


def file_name(word: str) -> str:
    """A word as the name of a file: <my-cat> -> my-cat."""
    return re.sub(r"[^\w-]+", "_", word).strip("_") or "word"


def collect(learned: Mapping[str, LearnedTokens], values: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Trained vectors as `Adapter.words`: word -> part -> (n, D)."""
    found: dict[str, dict[str, Tensor]] = {}
    for part, words in learned.items():
        for i, word in enumerate(words.ids):
            found.setdefault(word, {})[part] = values[f"{PREFIX}{part}.vectors.{i}"].detach().float().cpu().clone()
    return found
