"""An adapter: named changes of layers, as read from a file or made in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from gen.adapters.delta import Delta


@dataclass(frozen=True, eq=False)
class Adapter:
    """layers: "<part>.<path>" -> what it changes there; the part is denoiser or text_encoder (text_encoder_2, _3).

    The path is the module's own name with dots, or the name with underscores that kohya's format has instead. metadata: the
    file's own texts. format: the dialect it was read in ("" if made in memory). keys: (layer, factor) -> the file's own key,
    and notes: what a user should know about the file. sha256: of the file. words: learned word -> part -> its vectors (n, D).
    """

    name: str
    layers: Mapping[str, Delta]
    metadata: Mapping[str, str] = field(default_factory=dict)
    format: str = ""
    keys: Mapping[tuple[str, str], str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    words: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The networks that it changes."""
        return tuple(sorted({layer.partition(".")[0] for layer in self.layers}))

    @property
    def types(self) -> Counter[str]:
        """How many layers of each type: {"LoRA": 96, "DoRA LoHa": 2}."""
        return Counter(delta.type for delta in self.layers.values())

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({delta.rank for delta in self.layers.values() if delta.rank is not None}))
