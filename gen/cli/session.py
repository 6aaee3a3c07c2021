"""What `fewstep shell` keeps from line to line: open models, settings, and the pictures so far."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.calls.axes import SHORT, keyword_kinds, read_axis
from gen.calls.respell import respell
from gen.cli.choose import choose_model
from gen.cli.live_preview import LivePreview
from gen.cli.output import OutputTarget, save_free, say
from gen.cli.terminal_pictures import show
from samplers.lookup import nearest

if TYPE_CHECKING:
    from PIL.Image import Image

    from gen.pipeline.recipe import Recipe

_SETTING = re.compile(r"(?:^|\s)--(?=[A-Za-z])")
DENOISED = {"callback_on_step_end_tensor_inputs": ("denoised",)}
HELP = """\
a red heart                  draw it; a setting for this line: a red heart --steps 8 --sampler euler
:set steps 8                 a setting for all lines from now on; :set lists them, :unset steps forgets one
:seed 7                      the seed from now on; :seed random draws one for every picture
:again                       the last prompt once more, with settings behind it if you like: :again --steps 20
:undo                        back to the picture before
:save [FILE]                 save the picture, with its recipe
:help, :quit"""


@dataclass(frozen=True)
class DrawnPicture:
    """What a line left. settings: of that line, by keyword."""

    prompt: str
    settings: Mapping[str, Any]
    image: Image
    recipe: Recipe


@dataclass
class DrawingSession:
    """The arguments are the command's. preview: how pictures are shown (`gen.cli.terminal_pictures`)."""

    model: str | None
    fast: bool | None
    parts: Mapping[str, Any]
    device: str | None
    dtype: str | None
    lora: Sequence[str]
    lora_dir: Path | None
    target: OutputTarget
    save_all: bool
    preview: str
    settings: dict[str, Any] = field(default_factory=dict)
    drawn: list[DrawnPicture] = field(default_factory=list)
    open: dict[str, Any] = field(default_factory=dict)

    def handle(self, line: str) -> bool:
        """Do what a line says: a prompt, or a command after a colon. False for the one that ends the session; ValueError, in
        the words that are typed here, for what cannot be."""
        try:
            return self._handle(line)
        except ValueError as error:
            words = {keyword: f"--{typed(keyword)}" for keyword in keyword_kinds() if keyword != "prompt"}
            raise ValueError(respell(str(error), words)) from None

    def _handle(self, line: str) -> bool:
        line = line.strip()
        if not line:
            return True
        if not line.startswith(":"):
            self.draw(*split_line(line))
            return True
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "q", "exit"):
            return False
        commands: dict[str, Callable[[str], None]] = {
            "set": self.set,
            "unset": self.unset,
            "seed": self.seed,
            "again": self.again,
            "undo": self.undo,
            "save": self.save,
            "help": lambda _: say(HELP),
        }
        if name not in commands:
            near = nearest(name, [*commands, "quit"])
            hint = f" Did you mean :{near}?" if near else ""
            raise ValueError(f"There is no command :{name:.40}.{hint} :help lists them.")
        commands[name](rest.strip())
        return True

    def draw(self, prompt: str, own: Mapping[str, Any]) -> None:
        """Draw a prompt, with settings of its own."""
        call = {**self.settings, **own}
        if self.lora_dir is not None:
            call["lora_dir"] = self.lora_dir
        generator = self.generator(call)
        start = time.perf_counter()
        from gen.cli.image import subjects

        subject = subjects(generator, [prompt] if prompt else [])
        live = LivePreview(self.preview)
        watched = {} if self.preview == "none" else {"callback_on_step_end": live, **DENOISED}
        try:
            made = generator(**subject, **call, **watched, progress=True)
        finally:
            live.close()
        picture = DrawnPicture(prompt, dict(own), made.images[0], made.recipes[0])
        self.drawn.append(picture)
        self.show(picture)
        recipe = picture.recipe
        say(
            f"seed {recipe.seed}, {recipe.num_inference_steps} steps of {recipe.sampler}, by {generator.name}, "
            f"{time.perf_counter() - start:.1f} s"
        )
        if self.save_all:
            self.save("")

    def generator(self, call: Mapping[str, Any]) -> Any:
        """The model for a call, opened once."""
        name = choose_model(self.model, self.fast, {**call, **self.parts, "lora": self.lora})
        if name not in self.open:
            from gen.cli.image import add_energies
            from gen.generator import Generator

            generator = Generator.from_pretrained(name, self.device, self.dtype, **self.parts)
            add_energies(generator)
            if self.lora:
                from gen.cli.lora import load

                load(generator, self.lora, quiet=False)
            self.open[name] = generator
        return self.open[name]

    def show(self, picture: DrawnPicture) -> None:
        show(picture.image, self.preview)

    def set(self, text: str) -> None:
        """`steps 8`, or nothing, which lists the settings."""
        if not text:
            say("\n".join(f"{typed(name)} {value}" for name, value in self.settings.items()) or "Nothing is set.")
            return
        name, _, value = text.partition(" ")
        self.settings |= one_setting(name, value.strip())

    def unset(self, text: str) -> None:
        keyword = next(iter(one_setting(text, "1", of_any_kind=True)), text)
        if keyword not in self.settings:
            raise ValueError(f"{text or 'Nothing'} is not set; :set lists what is.")
        del self.settings[keyword]

    def seed(self, text: str) -> None:
        if text in ("", "random"):
            self.settings.pop("seed", None)
        else:
            self.settings |= one_setting("seed", text)

    def again(self, text: str) -> None:
        last = self.current()
        _, own = split_line(f" {text}")
        self.draw(last.prompt, {**last.settings, **own})

    def undo(self, text: str) -> None:
        self.current()
        if len(self.drawn) == 1:
            raise ValueError("This is the first picture; there is none before it.")
        self.drawn.pop()
        last = self.current()
        self.show(last)
        say(f"{last.prompt} (seed {last.recipe.seed})")

    def save(self, text: str) -> None:
        picture = self.current()
        target = self.place(Path(text).expanduser()) if text else self.target
        print(save_free(picture.image, target.of_recipe(picture.recipe, picture.prompt), picture.recipe), flush=True)

    def place(self, path: Path) -> OutputTarget:
        """Where :save is told to. A name without an ending is a PNG's; ValueError for a folder that is not there, which is
        nearly always a slip."""
        if not path.is_dir() and not path.suffix:
            path = path.with_name(f"{path.name}{self.target.suffix}")
        if not path.is_dir() and not path.parent.is_dir():
            raise ValueError(
                f"There is no folder {path.parent}; make it first, or save somewhere else. The picture is kept here."
            )
        return OutputTarget.of(path)

    def current(self) -> DrawnPicture:
        if not self.drawn:
            raise ValueError("No picture is drawn yet; type a prompt.")
        return self.drawn[-1]


def typed(keyword: str) -> str:
    """A keyword of a call as it is typed here."""
    short = next((name for name, whole in SHORT.items() if whole == keyword), keyword)
    return short.replace("_", "-")


def split_line(line: str) -> tuple[str, dict[str, Any]]:
    """(prompt, settings) of `a red heart --steps 8 --sampler=euler`. ValueError for a setting that no call takes."""
    begin = _SETTING.search(line)
    prompt, rest = (line, "") if begin is None else (line[: begin.start()], line[begin.start() :])
    prompt = prompt.strip()
    if len(prompt) > 1 and prompt[0] == prompt[-1] and prompt[0] in "\"'":
        prompt = prompt[1:-1]
    settings: dict[str, Any] = {}
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ValueError(f"{rest.strip()} cannot be read ({error}).") from None
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise ValueError(f"{name!r:.80} stands after the settings; write the prompt first, then --NAME VALUE.")
        if not equals:
            if not words or words[0].startswith("--"):
                raise ValueError(f"{name} has no value; write it as {name} VALUE.")
            value = words.pop(0)
        settings |= one_setting(name.removeprefix("--"), value)
    return prompt, settings


def one_setting(name: str, value: str, of_any_kind: bool = False) -> dict[str, Any]:
    """A keyword of a call with its value. ValueError for a name that is none, and for a value that does not fit or is several.

    of_any_kind: only the name counts.
    """
    if not name:
        return {}
    try:
        axis = read_axis(f'{name}="{value}"' if "," in value else f"{name}={value}")
    except ValueError as error:
        if of_any_kind and "no setting" not in str(error):
            return {name.replace("-", "_"): None}
        raise ValueError(str(error).replace("A sweep has", "There is")) from None
    if axis.keyword in ("lora", "prompt"):
        raise ValueError(f"{name} is no setting here; write the prompt first, and LoRAs in it as <lora:NAME:0.8>.")
    if len(axis.values) > 1:
        raise ValueError(f"{name} has several values; give one here, and several to fewstep sweep.")
    if axis.part:
        return {axis.keyword: {axis.part: axis.values[0]}}
    return {axis.keyword: axis.values[0]}
