"""Words that a text encoder was taught: a name in a prompt is read as vectors in place of word embeddings.

That is textual inversion (arXiv 2208.01618). A name is found as a whole, whatever its case, before the text around it is cut
into word pieces; of its n vectors each takes one token's place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MAX_NAME, MAX_VECTORS = 100, 256
Read = tuple[list[int], list[tuple[int, int]]]  # token ids, and where in the text each begins and ends


def check_name(name: str) -> str:
    """The name itself; ValueError where prompts could not hold it."""
    if not name or len(name) > MAX_NAME or not name.isprintable() or any(c.isspace() for c in name):
        raise ValueError(f"{name[:50]!r} is no name for a word: give printable characters without spaces, at most {MAX_NAME}.")
    if set(name) & set("()[]\\"):
        raise ValueError(
            f"{name!r} has brackets that prompts read as weights; call the word <{name.strip('()[]')}>, for example."
        )
    return name


class LearnedTokens(nn.Module):
    """vectors: name -> (n, D), which stay the very parameters or tensors given. first: the id of the first vector, above all
    ids of the vocabulary."""

    def __init__(self, vectors: Mapping[str, Tensor], first: int):
        super().__init__()
        self.first, self.ids, at = first, dict[str, list[int]](), first
        for name, value in vectors.items():
            check_name(name)
            if value.ndim != 2 or not 0 < len(value) <= MAX_VECTORS:
                raise ValueError(
                    f"The word {name!r} has vectors of shape {tuple(value.shape)}; (n, width) is needed, n to 256."
                )
            if name.lower() in (other.lower() for other in self.ids):
                raise ValueError(f"The word {name!r} is given twice; names differ in more than their case.")
            self.ids[name] = list(range(at, at + len(value)))
            at += len(value)
        self.vectors = nn.ParameterList(
            value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False) for value in vectors.values()
        )
        names = sorted(self.ids, key=len, reverse=True)  # of two that fit, the longer
        self._named = {name.lower(): ids for name, ids in self.ids.items()}
        self._pattern = re.compile("|".join(_whole(name) for name in names) or "(?!)", re.IGNORECASE)

    def read(self, text: str, tokenize: Callable[[str], Read]) -> Read:
        """A text's tokens: those of `tokenize` for what lies between the learned words."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end, learned_ids in self._pieces(text):
            if learned_ids is not None:
                ids += learned_ids
                offsets += [(start, end)] * len(learned_ids)
            elif text[start:end].strip():
                more, places = tokenize(text[start:end])
                ids += more
                offsets += [(start + a, start + b) for a, b in places]
        return ids, offsets

    def _pieces(self, text: str) -> Iterator[tuple[int, int, list[int] | None]]:
        at = 0
        for match in self._pattern.finditer(text):
            yield at, match.start(), None
            yield match.start(), match.end(), self._named[match[0].lower()]
            at = match.end()
        yield at, len(text), None

    def safe(self, ids: Tensor) -> Tensor:
        """Ids with an ordinary one in the place of each learned."""
        return torch.where(ids >= self.first, 0, ids)

    def fill(self, embedded: Tensor, ids: Tensor) -> Tensor:
        """Embeddings (B, L, D) of `safe(ids)` with the vectors in their places."""
        learned = ids >= self.first
        table = torch.cat([vector.to(embedded.device) for vector in self.vectors]).to(embedded.dtype)
        return torch.where(learned[..., None], table[(ids - self.first).clamp_min(0)], embedded)

    @contextmanager
    def in_place(self, embedding: nn.Module, ids: Tensor) -> Iterator[Tensor]:
        """The ids to give to a text encoder, whose embedding layer meanwhile fills in the vectors."""
        handle = embedding.register_forward_hook(lambda module, args, output: self.fill(output, ids))
        try:
            yield self.safe(ids)
        finally:
            handle.remove()


def _whole(name: str) -> str:
    """A pattern for a name that is not part of a longer word."""
    before, after = (r"(?<!\w)" if name[0].isalnum() else ""), (r"(?!\w)" if name[-1].isalnum() else "")
    return f"{before}{re.escape(name)}{after}"
