"""Learned words (textual inversion, arXiv 2208.01618) in adapter files: beside the layers, or as a file of their own.

<cat>                                    diffusers: the word itself, (n, D) or (D,)
emb_params                               AUTOMATIC1111: the word is the file's name
clip_l, clip_g                           SDXL: one for each encoder; the word is the file's name, or the metadata's `token`
bundle_emb.<cat>.string_to_param.*       AUTOMATIC1111, ComfyUI: beside a LoRA in kohya's spelling
bundle_emb.<cat>.clip_l                  the same for models with several encoders (OneTrainer)
lora_bundle_emb.<cat>.clip_l             the same in a file of diffusers, which reads no key without "lora" in it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gen.adapters.adapter import Adapter
from gen.adapters.delta import AdapterError
from gen.adapters.foreign import foreign
from gen.nn.learned_tokens import MAX_VECTORS, LearnedTokens, check_name

Words = dict[str, dict[str, Tensor]]  # word -> part -> (n, D)
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "string_to_param.*": "text_encoder", "": "text_encoder"}
BUNDLES = ("bundle_emb.", "lora_bundle_emb.")
WHOLE = "emb_params"  # AUTOMATIC1111's
MAX_WORDS = 64  # in a file of nothing but words
KEY = "words"  # of `Adapter.keys`: (words.<word>, part) -> the file's key


def take_words(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str, known: Any
) -> tuple[dict[str, Tensor], Words, dict[tuple[str, str], str]]:
    """(the other tensors, the words, their keys) of a file. known(key): is it that of a layer?

    AdapterError for vectors that no prompt could use."""
    rest: dict[str, Tensor] = {}
    words: Words = {}
    keys: dict[tuple[str, str], str] = {}
    alone = all(key in (WHOLE, "clip_l", "clip_g") for key in tensors)
    for key, tensor in tensors.items():
        parsed = _parse(key, metadata.get("token") or name, alone)
        if (
            parsed is None
            and len(tensors) <= MAX_WORDS
            and "." not in key
            and tensor.ndim in (1, 2)
            and "lora" not in key
            and not foreign([key], by_shape=True)
            and not known(key)
        ):
            parsed = key, "text_encoder"
        if parsed is None:
            rest[key] = tensor
            continue
        word, part = parsed
        vectors = tensor.reshape(1, -1) if tensor.ndim == 1 else tensor
        try:
            check_name(word)
        except ValueError as error:
            raise AdapterError(f"its key {key[:100]!r} is of a word that cannot be: {error}") from None
        if vectors.ndim != 2 or not tensor.is_floating_point() or not 0 < len(vectors) <= MAX_VECTORS or not vectors.shape[1]:
            raise AdapterError(f"its word {word!r} has {tensor.dtype} of shape {tuple(tensor.shape)}, not up to 256 vectors.")
        if part in words.setdefault(word, {}):
            raise AdapterError(f"its word {word!r} is there twice.")
        words[word][part], keys[f"{KEY}.{word}", part] = vectors, key
    for word, parts in words.items():
        counts = {part: len(vectors) for part, vectors in parts.items()}
        if len(set(counts.values())) > 1:
            raise AdapterError(f"its word {word!r} has different numbers of vectors for the encoders: {counts}.")
    return rest, words, keys


def _parse(key: str, name: str, alone: bool) -> tuple[str, str] | None:
    for bundle in BUNDLES:
        if key.startswith(bundle):
            body = key.removeprefix(bundle)
            for end, part in ENCODERS.items():
                if end and body.endswith(f".{end}"):
                    return body.removesuffix(f".{end}"), part
            raise AdapterError(f"its key {key[:100]!r} is of a word for an encoder that is not known; known: clip_l, clip_g.")
    if alone:
        return name, ENCODERS.get(key, "text_encoder")
    return None


def words_to_tensors(adapter: Adapter, format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by key, metadata) of an adapter's words in a format; as they were read in its own."""
    tensors: dict[str, Tensor] = {}
    if adapter.words and format not in ("kohya", "diffusers"):
        raise AdapterError(
            f"The {format} format has no place for learned words ({', '.join(adapter.words)}); use kohya or diffusers."
        )
    many_encoders = any(set(parts) != {"text_encoder"} for parts in adapter.words.values())
    metadata: dict[str, str] = {}
    for word, parts in adapter.words.items():
        for part, vectors in parts.items():
            key = adapter.keys.get((f"{KEY}.{word}", part), "") if format == adapter.format else ""
            encoder = "clip_g" if part == "text_encoder_2" else "clip_l"
            if not key and not adapter.layers and not many_encoders:
                key = word
            elif not key and not adapter.layers and len(adapter.words) == 1:
                key, metadata = encoder, {"token": word}
            elif not key:
                end = encoder if many_encoders or format == "diffusers" else "string_to_param.*"
                key = f"{BUNDLES[format == 'diffusers']}{word}.{end}"
            tensors[key] = vectors
    return tensors, metadata


def rename_words(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    """The same adapter with other names for its learned words, in its trigger phrase too. names: old -> new.

    AdapterError for a word that it has not learned, one that it would have twice, and a name that cannot be one."""
    for old, new in names.items():
        if old not in adapter.words:
            known = ", ".join(adapter.words) or "none"
            raise AdapterError(f"{adapter.name} has not learned the word {old!r}; its words: {known}.")
        try:
            check_name(new)
        except ValueError as error:
            raise AdapterError(str(error)) from None
    words = {names.get(word, word): parts for word, parts in adapter.words.items()}
    if len({word.lower() for word in words}) < len(adapter.words):
        raise AdapterError(f"{adapter.name} would have a word twice; its words: {', '.join(adapter.words)}.")
    metadata = dict(adapter.metadata)
    for key in ("modelspec.trigger_phrase", "token"):
        for old, new in names.items():
            if key in metadata:
                metadata[key] = metadata[key].replace(old, new)
    keys = {place: key for place, key in adapter.keys.items() if place[0].removeprefix(f"{KEY}.") not in names}
    return replace(adapter, words=words, metadata=metadata, keys=keys)


def words_apart(adapter: Adapter, others: Iterable[Adapter]) -> tuple[Adapter, dict[str, str]]:
    """(the adapter, what of its words is called otherwise): those that another has too get a number, as <cat-2>, so that both
    can be in one prompt."""
    other_words = {word.lower() for other in others for word in other.words}
    names: dict[str, str] = {}
    for word in adapter.words:
        body, end = (word[:-1], word[-1]) if word[-1:] in [">", "]", ")"] else (word, "")
        new, n = word, 1
        while new.lower() in other_words:
            n += 1
            new = f"{body}-{n}{end}"
        other_words.add(new.lower())
        if new != word:
            names[word] = new
    return (rename_words(adapter, names) if names else adapter), names


# ---- in a model ----


def readers_of(text_encoder: nn.Module | None, parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    """part -> what reads its prompts and can learn words."""
    readers: dict[str, Any] = {}
    for module in text_encoder.modules() if text_encoder is not None else ():
        if hasattr(module, "learn"):
            network = getattr(module, "encoder", module)
            readers |= {part: module for part, part_network in parts.items() if part_network is network}
    return readers


def embedding_of(reader: Any) -> nn.Embedding:
    """The word embeddings that a reader looks up."""
    return reader.encoder.get_input_embeddings() if hasattr(reader, "encoder") else reader.word


def check_words(words: Mapping[str, Mapping[str, Tensor]], readers: Mapping[str, Any], name: str) -> None:
    """AdapterError where a model cannot read these."""
    for word, parts in words.items():
        if missing := sorted(readers.keys() - parts.keys()):
            raise AdapterError(
                f"{name} has no vectors of {word!r} for the {missing[0].replace('_', ' ')}, which this model has."
            )
        for part, vectors in parts.items():
            if part not in readers:
                raise AdapterError(
                    f"{name} has vectors of {word!r} for the {part.replace('_', ' ')}, and this model "
                    + ("has no such encoder." if readers else "has no text encoder that learns words (ours and CLIP do).")
                )
            width = embedding_of(readers[part]).weight.shape[1]
            if vectors.shape[1] != width:
                raise AdapterError(
                    f"{name} has vectors of {word!r} of width {vectors.shape[1]}, and the {part.replace('_', ' ')} of this "
                    f"model has {width}; it is for another model."
                )


def misfits(words: Mapping[str, Mapping[str, Tensor]], parts: Mapping[str, nn.Module]) -> list[str]:
    """Why networks, which need no weights, cannot read these words; empty where they can."""
    problems = []
    for word, vectors in words.items():
        for part, value in vectors.items():
            place = part.replace("_", " ")
            if part not in parts:
                problems.append(f"the word {word!r} is for the {place}, which this model does not have")
                continue
            network: Any = parts[part]
            table = (
                network.get_input_embeddings() if hasattr(network, "get_input_embeddings") else getattr(network, "word", None)
            )
            if table is not None and table.weight.shape[1] != value.shape[1]:
                problems.append(
                    f"the word {word!r} has vectors of width {value.shape[1]}, and the {place} of this model has "
                    f"{table.weight.shape[1]}"
                )
    return problems


def teach(readers: Mapping[str, Any], words: Mapping[str, Mapping[str, Tensor]]) -> dict[str, LearnedTokens]:
    """Let readers know words, part by part; {} lets them forget. part -> what they learned."""
    learned = {}
    for part, reader in readers.items():
        vectors = {word: parts[part] for word, parts in words.items() if part in parts}
        if vectors:
            # above the tokenizer's ids too, which may be more than there are embeddings
            tokenizer = getattr(reader, "tokenizer", None)
            first = max(embedding_of(reader).weight.shape[0], 0 if tokenizer is None else len(tokenizer))
            learned[part] = LearnedTokens(vectors, first)
        reader.learn(learned.get(part))
    return learned
