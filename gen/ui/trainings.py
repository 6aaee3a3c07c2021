"""Teaching a LoRA from the page: `fewstep lora train` as a process of its own, watched through what it prints and writes.

Nothing here knows the page. The package that trains stands above this one and is never imported: the command line hands over.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gen.calls.names import slug
from gen.ui.checks import FieldError, whole_in
from gen.ui.models import AUTOMATIC, PACKAGED

if TYPE_CHECKING:
    from gen.ui.jobs import JobWatch
    from gen.ui.studio import Studio

KEPT = ".training"  # in the gallery's folder: pictures and runs
MOST_PICTURES = 500
_STEP = re.compile(r"(\d+)/(\d+) \[[^\]\r\n]*(?:step/s|s/step)")
_PATIENCE = 60.0  # seconds that a run has to save its step after it is asked to end
_LOOK = 0.2  # seconds between two looks


@dataclass
class TrainingPicture:
    """file: of the pictures that were given. caption: what it shows; "" for the prompt of all."""

    file: str
    caption: str = ""


@dataclass
class TrainingSettings:
    """None is the command's own. word: a new one to learn, as "<new>"; starts_as: known words that it starts as."""

    name: str = ""
    prompt: str = ""
    word: str = ""
    starts_as: str = ""
    class_prompt: str = ""
    steps: int | None = None
    rank: int | None = None
    style: bool = False
    pictures: list[TrainingPicture] = field(default_factory=list)

    def to_job(self, model: str) -> TrainingJob:
        """The job; FieldError names the field that holds what cannot be. model: that the tab "Draw" has."""
        if not self.pictures:
            raise FieldError("pictures", "Drop the pictures to learn from: five to twenty are enough for a subject.")
        if len(self.pictures) > MOST_PICTURES:
            raise FieldError("pictures", f"At most {MOST_PICTURES} pictures are taken here; use `fewstep lora train` for more.")
        if not self.name.strip():
            raise FieldError("name", "Give the LoRA a name.")
        captions = [one.caption.strip() or self.prompt.strip() for one in self.pictures]
        if not all(captions):
            raise FieldError("prompt", "Say what the pictures show, or write a caption for each.")
        word, starts_as = self.word.strip(), self.starts_as.strip()
        if word and not any(word in caption for caption in captions):
            raise FieldError("prompt", f"Write the new word {word} where the pictures are described, or teach no new word.")
        options = {"steps": whole_in("steps", self.steps, 1, 100_000), "rank": whole_in("rank", self.rank, 1, 256)}
        words = [f"--{name}={value}" for name, value in options.items() if value is not None]
        words += [f"--token={word}={starts_as}" if starts_as else f"--token={word}"] if word else []
        words += [f"--class-prompt={self.class_prompt.strip()}"] if self.class_prompt.strip() else []
        words += ["--all-layers"] if self.style else []
        words += ["--model=default" if model in (AUTOMATIC, *PACKAGED) else f"--model={model}"]
        return TrainingJob(
            slug(self.name), tuple((one.file, text) for one, text in zip(self.pictures, captions, strict=True)), words
        )


@dataclass
class TrainingJob:
    """What the queue of trainings works on.

    pictures: (file, caption). words: options of the command.
    made: the finished file, once there is one.
    """

    name: str
    pictures: tuple[tuple[str, str], ...]
    words: list[str]
    made: Path | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """Of the first picture: a prompt to try it with."""
        return self.pictures[0][1]

    def folder(self, studio: Studio) -> Path:
        """The pictures with their captions beside them, written if they are not there: the same ones have the same folder."""
        key = hashlib.sha256(repr((self.pictures, self.words, self.name)).encode()).hexdigest()[:16]
        folder = studio.gallery.folder / KEPT / f"{self.name}-{key}" / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        for number, (file, caption) in enumerate(self.pictures):
            if not (target := folder / f"{number:03}.png").exists():
                shutil.copyfile(file, target)
            target.with_suffix(".txt").write_text(caption + "\n", "utf-8")
        return folder

    def command(self, studio: Studio, target: Path) -> list[str]:
        """The words after `fewstep`."""
        folder = self.folder(studio)
        return ["lora", "train", str(folder), *self.words, f"--output={target}", f"--run={folder.parent / 'run'}"]

    def as_command(self, studio: Studio) -> str:
        """The line for a shell."""
        return shlex.join(["fewstep", *self.command(studio, _free(studio.loras, self.name))])

    def work(self, studio: Studio, watch: JobWatch) -> None:
        """Train; ValueError in the words of the command where it does not come to an end. A run that is stopped is kept, and
        goes on when the same one is asked for again."""
        studio.loras.mkdir(parents=True, exist_ok=True)
        target = _free(studio.loras, self.name)
        words = self.command(studio, target)
        watch.stage("Opening the model")
        process = subprocess.Popen(
            [sys.executable, "-m", "gen", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        heard = _Heard(process.stderr)
        try:
            samples = studio.gallery.folder / KEPT / Path(words[2]).parent.name / "run" / "samples"
            shown: Path | None = None
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK)
                if watch.stopped:
                    break
                newest = max(samples.glob("*.png"), default=None)
                if heard.steps:
                    preview = newest.read_bytes() if newest is not None and newest != shown else None
                    shown = newest
                    watch.step(heard.step, heard.steps, heard.step / heard.steps, preview)
        finally:
            _end(process)
            heard.thread.join(5)
        if watch.stopped:
            return
        if process.returncode:
            raise ValueError(heard.reason or f"The training ended with code {process.returncode}; run its command to see why.")
        self.made = target


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, wait, and insist."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Heard:
    """What a run prints: how far it is, and why it ended."""

    def __init__(self, stream: IO[bytes] | None):
        self.step = self.steps = 0
        self.reason = ""
        self.stream = stream
        self.thread = threading.Thread(target=self._listen, name="training", daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        rest = ""
        while self.stream is not None and (data := self.stream.read1(65536)):  # type: ignore[attr-defined]
            *lines, rest = re.split(r"[\r\n]", rest + data.decode("utf-8", "replace"))
            for line in lines:
                self.hear(line)
            self.hear(rest)
            rest = rest[-2000:]

    def hear(self, line: str) -> None:
        """A line, or the beginning of one."""
        if found := _STEP.search(line):
            self.step, self.steps = int(found[1]), int(found[2])
        elif line.startswith("fewstep: "):
            self.reason = line.removeprefix("fewstep: ")


def _free(folder: Path, name: str) -> Path:
    """The first name that is not taken."""
    names = (f"{name}.safetensors" if n == 1 else f"{name}-{n}.safetensors" for n in range(1, 100_000))
    return next(path for one in names if not (path := folder / one).exists())
