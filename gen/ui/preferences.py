"""Which of two pictures of one prompt was preferred: rows of a file beside the pictures, from which models are tuned."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from gen.calls.call import Call
from gen.ui.checks import FieldError, whole_in

NAME = "preferences.jsonl"
MOST_PAIRS = 200


@dataclass(frozen=True)
class Preference:
    """A row of the file. chosen, rejected: names of pictures in the file's own folder."""

    prompt: str
    chosen: str
    rejected: str

    def line(self) -> str:
        """As the file has it."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


class Preferences:
    """The file of a folder. It is made with its first row, and only ever added to, but for rows that are taken back."""

    def __init__(self, folder: Path):
        self.file = folder / NAME
        self._lock = threading.Lock()

    def add(self, row: Preference) -> None:
        """Another row; ValueError for a picture that is preferred to itself."""
        if row.chosen == row.rejected:
            raise ValueError(f"{row.chosen} cannot be preferred to itself; take two pictures.")
        with self._lock:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "ab") as file:
                file.write(row.line().encode())  # one write: no half of a row

    def take_back(self, row: Preference) -> None:
        """Without the last row that is this one; ValueError if there is none."""
        from samplers.atomic import written

        with self._lock:
            lines = self.file.read_bytes().splitlines(keepends=True) if self.file.is_file() else []
            wanted = row.line().encode()
            place = next((i for i in reversed(range(len(lines))) if lines[i] == wanted), None)
            if place is None:
                raise ValueError("That choice is not in the file any more.")
            with written(self.file, overwrite=True) as temporary:
                temporary.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))

    def count(self) -> int:
        """How many rows there are."""
        with self._lock:
            return self.file.read_bytes().count(b"\n") if self.file.is_file() else 0


@dataclass
class PairSettings:
    """prompt: one a line, taken in turn. pairs: how many are drawn."""

    prompt: str = ""
    pairs: int | None = 5

    def to_calls(self, base: Call) -> list[Call]:
        """A call of two pictures for each pair; FieldError names the field that holds what cannot be.

        base: what the tab "Draw" says of everything else.
        """
        prompts = [line.strip() for line in self.prompt.splitlines() if line.strip()]
        prompts = prompts or [str(base.arguments.get("prompt") or "").strip()]
        if not prompts[0]:
            raise FieldError("prompt", "Say what to draw, a prompt a line.")
        count = whole_in("pairs", self.pairs, 1, MOST_PAIRS) or 5
        seed = base.arguments.get("seed")
        return [
            base.with_arguments(
                prompt=prompts[number % len(prompts)], num_images_per_prompt=2, seed=None if seed is None else seed + 2 * number
            )
            for number in range(count)
        ]
