"""What became of an adapter's layers when it was loaded."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from gen.adapters.adapter import Adapter

SHOWN = 5


@dataclass(frozen=True)
class Report:
    """matched: layer -> modules that it changes. unmatched: layers without a module, each with the nearest module's name, or
    why there is none. mismatched: layers whose module has another shape, each with a sentence. notes: what else to know."""

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
        count = f"{total} layers" if self.complete else f"{len(self.matched)} of {total} layers"
        return f"{adapter.name}: {count} ({types}){rank}, on the {on or 'nothing'}"

    def problems(self) -> str:
        """What did not fit, the first few of each kind; empty where everything did."""
        parts = []
        if self.unmatched:
            lines = [f"{layer}{f' (nearest: {near})' if near else ''}" for layer, near in self.unmatched.items()]
            parts.append(f"{len(lines)} layers have no module in this model: {_some(lines)}")
        if self.mismatched:
            lines = [f"{layer} {why}" for layer, why in self.mismatched.items()]
            parts.append(f"{len(lines)} layers do not fit their modules: {_some(lines)}")
        return "; ".join(parts)

    def text(self) -> str:
        """All of it, for people."""
        return "\n".join([self.summary(), *filter(None, [self.problems()]), *(f"Note: {note}" for note in self.notes)])


def nearest(path: str, names: Sequence[str]) -> str:
    """The module name most like a path, "" for none; both are compared with underscores for dots."""
    plain = {name.replace(".", "_"): name for name in names}
    found = difflib.get_close_matches(path.replace(".", "_"), plain, 1, cutoff=0.5)
    return plain[found[0]] if found else ""


def _some(lines: Sequence[str]) -> str:
    return ", ".join(lines[:SHOWN]) + (f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
