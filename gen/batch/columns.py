"""Columns of a table as keywords of a call: what each says, which mean nothing, and errors in their words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gen.batch.readers import RowSource
from gen.calls.command import OPTIONS
from gen.calls.keywords import FOLDERS, keywords_of
from gen.calls.respell import respell
from samplers.lookup import nearest

OTHER_NAMES = {
    "text": "prompt",
    "caption": "prompt",
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "class_label": "class_labels",
    "label": "class_labels",
}
OF_THE_BATCH = ("num_images_per_prompt", "seeds", "batch_size", "batch_invariant", *FOLDERS)  # no columns
KNOWN = (*(name for name in keywords_of("image") if name not in OF_THE_BATCH), "lora")


@dataclass
class Columns:
    """What columns say.

    named: keyword -> the column that has it, as --column says.
    extra: columns that say nothing are carried along, not refused.
    words: keyword -> what it was called: an option of the command, or a column.
    """

    named: Mapping[str, str]
    extra: bool = False
    words: dict[str, str] = field(default_factory=dict)

    def check(self, source: RowSource) -> None:
        """ValueError for what is wrong with the columns of all rows, where the source tells them beforehand."""
        if unknown := next((keyword for keyword in self.named if keyword not in KNOWN), None):
            raise ValueError(f"--column {unknown}={self.named[unknown]}: there is no keyword {unknown!r}.{_hint(unknown)}")
        columns = source.columns()
        if columns is None:
            return
        for keyword, column in self.named.items():
            if column not in columns:
                near = nearest(column, columns)
                hint = f" Did you mean {near!r}?" if near else ""
                there = f"{source.name} has no such column; it has {', '.join(columns)}."
                raise ValueError(f"--column {keyword}={column}: {there}{hint}")
        try:
            taken = self.keywords(columns)
            if self.extra and not {"prompt", "class_labels"} & set(taken.values()):
                self._check_carried(column for column in columns if column not in taken)
        except ValueError as error:
            sentence = f"{source.name}: {error}"
            raise ValueError(sentence if sentence.endswith((".", "?")) else f"{sentence}.") from None

    def _check_carried(self, columns: Iterable[str]) -> None:
        """ValueError where one that is carried along is nearly the prompt, which no column is."""
        if slip := next((column for column in columns if nearest(column, ("prompt", "text", "caption"))), None):
            raise ValueError(f"no column is the prompt, and {slip!r} is nearly called so; say --column prompt={slip}")

    def keywords(self, columns: Iterable[str]) -> dict[str, str]:
        """column -> keyword, of those that say one. ValueError for two of one keyword, and for those that mean nothing."""
        by_column = {column: keyword for keyword, column in self.named.items()}
        taken = dict[str, str]()
        for column in columns:
            name = by_column.get(column) or (column if column in KNOWN else OTHER_NAMES.get(column, column))
            if name in KNOWN:
                if name in taken.values():
                    first = next(other for other, keyword in taken.items() if keyword == name)
                    raise ValueError(f"its columns {first!r} and {column!r} both say {name}; leave one of them out")
                taken[column] = name
            elif column in OF_THE_BATCH and not self.extra:
                raise ValueError(f"its column {column!r} is one for the whole batch; give it as an option of the command")
            elif not self.extra:
                raise ValueError(
                    f"its column {column!r} is no keyword of a call; rename it (--column), or carry it along (--extra)."
                    f"{_hint(column)}"
                )
        self.words.update({keyword: column for column, keyword in taken.items()})
        return taken

    def options(self, keywords: Iterable[str]) -> None:
        """Keywords that options of the command say, where no column does."""
        self.words.update({keyword: OPTIONS.get(keyword, keyword) for keyword in keywords})

    def respelt(self, sentence: str) -> str:
        """What is wrong with a row, in the words of its columns and of the options."""
        return respell(sentence, {keyword: word for keyword, word in self.words.items() if keyword != word})


def _hint(name: str) -> str:
    near = nearest(name, [*KNOWN, *OTHER_NAMES])
    return f" Did you mean {near!r}?" if near else ""
