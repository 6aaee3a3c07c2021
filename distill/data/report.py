"""What a source kept, what it dropped and why. Nothing is dropped without a line here, and keeping nothing is an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distill.data.errors import DataError

EXAMPLES = 5
OnError = Literal["skip", "raise"]


class Unusable(ValueError):
    """A file or row that cannot be used. The text is the reason, without the name."""


def shown(name: str) -> str:
    """A name as a terminal can show it."""
    return name if name.isprintable() and len(name) <= 200 else ascii(name)[:200]


@dataclass
class Report:
    """Counts and a few examples for every reason. `where` is the folder or file that the source reads."""

    where: str
    on_error: OnError = "skip"
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def drop(self, name: str, reason: str) -> None:
        """Count one; DataError at once under on_error: raise."""
        if self.on_error == "raise":
            raise DataError(f"{self.where}: {shown(name)}: {reason}. Mend or remove it, or use on_error: skip.")
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(shown(name))

    def note(self, text: str) -> None:
        self.notes[text] = self.notes.get(text, 0) + 1

    def require_some(self) -> None:
        if not self.kept:
            why = "; ".join(self.lines()[1:]) or "there is no file of a kind that is read"
            raise DataError(f"{self.where} gives no samples: {why}.")

    def lines(self) -> list[str]:
        total = sum(self.dropped.values())
        lines = [f"{self.where}: {self.kept} kept, {total} dropped"]
        for reason, count in sorted(self.dropped.items(), key=lambda row: -row[1]):
            more = ", ..." if count > len(self.examples[reason]) else ""
            lines.append(f"dropped {count}: {reason} ({', '.join(self.examples[reason])}{more})")
        return lines + [f"noted {count}: {text}" for text, count in self.notes.items()]
