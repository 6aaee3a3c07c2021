"""What a run is made of: the pictures asked for, the batch under way, the settings of a call, and the protocol of tasks.

B pictures, latents (B, C, h, w), pictures (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from gen.io.images import cut_to
from gen.models.prompt_reading import USUAL, Reading
from gen.pipeline.guidance_stack import GuidanceStack
from gen.tasks.declaration import Frame
from samplers.denoiser import Condition, Denoiser
from samplers.noise import NoiseSource, seeded_noise
from samplers.path import NoiseLevel
from samplers.sample import Solver

if TYPE_CHECKING:
    from gen.models.folder import ModelConfig
    from gen.models.model import Model
    from gen.pipeline.output import Output
    from gen.pipeline.recipe import Recipe

ReadPrompts = Callable[[list[str]], Condition]  # B prompts -> their text features


@dataclass(frozen=True)
class Crop:
    """What decoded pictures are brought to.

    size: height and width in pixels.
    corner: cut from the top left, as a canvas is; else scaled and cut about the middle.
    """

    size: tuple[int, int]
    corner: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        return images[..., : self.size[0], : self.size[1]] if self.corner else cut_to(images, self.size)


Decode = Callable[[Tensor, Crop | None], Tensor]  # latents (B, C, h, w) -> pictures (B, 3, H, W) in [0, 1]


@dataclass(frozen=True)
class Item:
    """One picture to make. label -1 is unconditional; `latent` (C, h, w) is its unit noise where the caller gave it; others,
    negative_others: prompts of the second and third text encoder, None where they read the first's; variation: a seed that its
    noise is turned towards; turns: further ones, and by how much, that a
    search found."""

    prompt: str
    negative_prompt: str
    label: int
    seed: int
    latent: Tensor | None = None
    others: tuple[str | None, ...] = (None, None)
    negative_others: tuple[str | None, ...] = (None, None)
    variation: int | None = None
    turns: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class SamplingBatch:
    """Pictures that go through the network together.

    noise: (B, C, h, w) of unit variance.
    condition: what the pictures should be.
    negative: what they should not be, None without negative prompts.
    guided: guidance has something to do.
    x: what the first noise level begins with, (copies x B, C, h, w).
    source: the noise of stochastic steps.
    """

    model: Model
    items: Sequence[Item]
    settings: Settings
    noise: Tensor
    condition: Condition
    negative: Condition | None
    guided: bool
    x: Tensor
    source: NoiseSource

    @property
    def prompts(self) -> list[str]:
        return [item.prompt for item in self.items]

    @property
    def seeds(self) -> list[int]:
        return [item.seed for item in self.items]

    def seeded_noise(self) -> NoiseSource:
        """Noise for stochastic steps, drawn by the pictures' seeds."""
        return seeded_noise(self.seeds, self.noise, self.settings.noise_kind)


class Caller(Protocol):
    """A model that can be called: what the methods that tasks add to `Generator` take."""

    config: ModelConfig
    text_encoder: Any

    @property
    def classes(self) -> int: ...

    @property
    def factor(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, prompt: Any = None, **call: Any) -> Output: ...


@dataclass(frozen=True)
class TaskTraits:
    """What a run must know of a task.

    always_guided: guided whatever the call's prompts are.
    guides_itself: what it puts around the network is guided already, so that neither caches nor guidance go around that.
    by_level: what it puts around the network goes inside of a task that guides itself as well: it only says at which noise
        levels a condition is there.
    chooses_size: it sees to the size of pictures itself, so that nothing needs to be said of it.
    one_prompt: a picture has one prompt, which cannot be several that are joined.
    one_seed: all pictures of a call have its first seed, unless it gives one for each.
    copies: rows of x for one picture.
    more_steps: steps of a second run.
    label: its name in this run, for messages.
    unrecorded: what took part and is in no recipe.
    """

    always_guided: bool = False
    guides_itself: bool = False
    by_level: bool = False
    chooses_size: bool = False
    one_prompt: bool = False
    one_seed: bool = False
    copies: int = 1
    more_steps: int = 0
    label: str = ""
    unrecorded: tuple[str, ...] = ()


class Task:
    """What a run does beside plain generation. This base changes nothing; a task overrides what it needs.

    A task is a folder in `gen.tasks` and a row in `gen.tasks.table`. An argument `frame` of its declared ones says what the
    network sees at once.
    """

    @property
    def traits(self) -> TaskTraits:
        """What a run must know of it."""
        return TaskTraits()

    # ---- from a call, or from a recipe ----

    @classmethod
    def choose_size(
        cls, model: Model, args: Any, height: int | None, width: int | None, multiple: int
    ) -> tuple[Any, int | None, int | None]:
        """(arguments, height, width) of a call that does not say both sides: those of the picture that it begins with."""
        return args, height, width

    @classmethod
    def from_call(cls, model: Model, args: Any, settings: Settings) -> tuple[Task | None, Settings]:
        """The task, and the settings as it changes them, from its declared arguments (`TaskOptions.arguments`).

        The task is None where they ask for nothing. Tasks inside it are made with the changed settings.
        Raises ValueError with what is wrong.
        """
        raise NotImplementedError

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> Any:
        """The arguments that make what the recipe says, None where it says nothing. keywords: of the replay, for what no recipe
        holds."""
        raise NotImplementedError

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        """ValueError for what it does not go with, now that all tasks are known. recipe: of a replay; ValueError if this is not
        what its picture was made with."""

    def change_items(self, items: list[Item], per_prompt: int, recipe: Recipe | None = None) -> list[Item]:
        """The pictures asked for, `per_prompt` of each prompt in a row, with what it adds to them. recipe: of a replay, whose
        batch is copies of one picture unless pictures depend on others."""
        return items

    def map_texts(self, read: Callable[[str], str]) -> Task:
        """The task with `read(text)` in the place of every prompt of its own, all of which may change on the way."""
        return self

    def halve(self) -> Task:
        """The task with half the need for memory; itself where it cannot do with less."""
        return self

    # ---- at work on a batch ----

    def read_prompts(self, model: Model, prompts: list[str], adapters: Mapping[str, float], read: ReadPrompts) -> Condition:
        """Text features (B, L, D) of B prompts; `read` is what the text encoder, and tasks further in, make of them."""
        return read(prompts)

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        """The batch before anything is built around the network: other conditions, say, or another beginning."""
        return batch

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        """Around the network and its caches, under guidance."""
        return denoiser

    def wrap_guided(self, denoiser: Denoiser, solver: Solver, batch: SamplingBatch) -> tuple[Denoiser, Solver]:
        """Around guidance, and around the solver."""
        return denoiser, solver

    def second_run(self, model: Model, latents: Tensor, settings: Settings) -> Settings | None:
        """The settings of another run that goes on from these latents (B, C, h, w), and whose pictures are shown; None for
        none."""
        return None

    def second_model(self, model: Model) -> Model:
        """The model that makes the second run."""
        return model

    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        """Pictures (B, 3, H, W) of latents, cropped; `decode` is what the model, and tasks before this one, make of them."""
        return decode(latents, crop)

    def record(self, items: Sequence[Item]) -> Mapping[str, Any]:
        """Fields of the batch's recipes (`gen.pipeline.recipe.Recipe`)."""
        return {}

    def record_one(self, item: Item) -> Mapping[str, Any]:
        """Fields of one picture's recipe, where those of a batch differ."""
        return {}


@dataclass(frozen=True)
class Settings:
    """What all pictures of a call share.

    height, width: pixels that pictures are made at.
    seen: height and width that the network sees at once.
    shown: height and width that pictures are cut to: about the middle, on a canvas from the top left.
    steps: of the schedule.
    scale: of guidance.
    interval: (low, high) in log-SNR where guidance acts.
    adapters: name -> weight of those that act.
    levels: those that are run, of the schedule's `steps` + 1.
    grid: all of the schedule's, by which prompts change; a hundred steps of it where the solver chooses its own.
    own_steps: the solver chooses its own.
    reading: how text encoders read prompts.
    prompt_syntax: what of prompts is more than words: "full" or "weights" (`gen.models.prompt_syntax`).
    noise_kind: how noise is drawn (`samplers.noise.normal`).
    brownian: noise comes from one Brownian path per picture.
    batch_invariant: no bit of a picture depends on its batch (`gen.nn.batch_invariance`).
    stop_at: end after this many steps, as an interrupted run did.
    frame: of a canvas.
    tasks: by name, from the network outwards.
    """

    height: int
    width: int
    seen: tuple[int, int]
    shown: tuple[int, int] | None
    steps: int
    scale: float
    interval: tuple[float, float] | None
    sampler: str
    sampler_options: dict[str, Any]
    schedule: str
    schedule_options: dict[str, Any]
    guidance: GuidanceStack
    adapters: dict[str, float]
    solver: Solver
    levels: tuple[NoiseLevel, ...]
    grid: tuple[NoiseLevel, ...] = ()
    own_steps: bool = False
    reading: Reading = USUAL
    prompt_syntax: str = "full"
    noise_kind: str = "torch"
    brownian: bool = False
    batch_invariant: bool = False
    unrecorded: tuple[str, ...] = ()
    stop_at: int | None = None
    frame: Frame | None = None
    tasks: dict[str, Task] = field(default_factory=dict)

    @property
    def at_once(self) -> int | None:
        """How many pictures may go through a solver together, None for any number: one where each takes steps of its own."""
        return None if getattr(self.solver, "together", True) else 1

    @property
    def copies(self) -> int:
        """Rows of x for one picture."""
        return max((task.traits.copies for task in self.tasks.values()), default=1)

    def halve(self) -> Settings:
        """With less at once; itself where there is nothing to halve."""
        smaller = {name: task.halve() for name, task in self.tasks.items()}
        same = all(smaller[name] is task for name, task in self.tasks.items())
        return self if same else replace(self, tasks=smaller)


def texts_of(task: Task) -> tuple[str, ...]:
    """Every prompt of a task's own."""
    texts: list[str] = []
    task.map_texts(lambda text: texts.append(text) or text)  # type: ignore[func-returns-value]
    return tuple(texts)
