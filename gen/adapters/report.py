"""What became of an adapter's layers when it was loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gen.adapters.adapter import Adapter
from samplers.lookup import nearest as lookup_nearest

SHOWN = 5


@dataclass(frozen=True)
class LoadReport:
    """matched: layer -> modules that it changes. unmatched: layers without a module; the first few with the nearest module's
    name, or why there is none. mismatched: layers that do not fit their module, each with a sentence. notes: what else to know.
    """

    adapter: Adapter
    matched: dict[str, tuple[str, ...]]
    unmatched: dict[str, str]
    mismatched: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.unmatched and not self.mismatched

    def summary(self) -> str:
        """One line: style: 96 layers (LoRA), rank 16, on the denoiser."""
        adapter = self.adapter
        types = ", ".join(name if len(adapter.types) == 1 else f"{count} {name}" for name, count in adapter.types.items())
        rank = f", rank {'/'.join(map(str, adapter.ranks))}" if adapter.ranks else ""
        on = " and ".join(sorted({layer.partition(".")[0].replace("_", " ") for layer in self.matched}))
        total = len(adapter.layers)
        if adapter.words and not total:
            return f"{adapter.name}: {self._words()}"
        count = f"{'' if self.complete else f'{len(self.matched)} of '}{total} layer{'s' * (total != 1)}"
        return f"{adapter.name}: {count} ({types}){rank}, on the {on or 'nothing'}" + (
            f", and {self._words()}" if adapter.words else ""
        )

    def _words(self) -> str:
        """the learned words, with their numbers of vectors."""
        counted = [f"{word} ({len(next(iter(parts.values())))})" for word, parts in self.adapter.words.items()]
        return f"the learned word{'s' * (len(counted) > 1)} {', '.join(counted)}"

    def problems(self) -> str:
        """What did not fit, the first few of each kind; empty where everything did."""
        parts = []
        if self.unmatched:
            lines = [f"{layer}{f' ({hint})' if hint else ''}" for layer, hint in self.unmatched.items()]
            parts.append(f"{_count(lines, 'has', 'have')} no module in this model: {_some(lines)}")
        if self.mismatched:
            lines = [f"{layer} {why}" for layer, why in self.mismatched.items()]
            parts.append(f"{_count(lines, 'does', 'do')} not fit: {_some(lines)}")
        return "; ".join(parts)

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """All of it, for people."""
        return "\n".join([self.summary(), *filter(None, [self.problems()]), *(f"Note: {note}" for note in self.notes)])


def nearest(path: str, names: Sequence[str]) -> str:
    """ "nearest: " and the module name, or the beginning of some, most like a path; "" for none."""
    parts = path.count(".") + 1
    near = lookup_nearest(path, [*names, *dict.fromkeys(".".join(name.split(".")[:parts]) for name in names)])
    return f"nearest: {near}" if near else ""


def _count(lines: Sequence[str], singular: str, plural: str) -> str:
    return f"1 layer {singular}" if len(lines) == 1 else f"{len(lines)} layers {plural}"


def _some(lines: Sequence[str]) -> str:
    return ", ".join(lines[:SHOWN]) + (f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
