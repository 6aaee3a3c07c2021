"""The recipe of a picture: everything it takes to make it again, kept inside its PNG.

Two text chunks: `parameters`, the line that image viewers and AUTOMATIC1111 read (`gen.pipeline.infotext`), and `fewstep`, the
recipe as JSON, from which `Generator.replay` and `fewstep replay` work. There is no date and no path in it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gen.io.errors import RecipeError

MAX_WHOLE = 10**300  # larger whole numbers have no floating-point value


def _has_float(value: object) -> object:
    for number in value if isinstance(value, list | tuple) else (value,):
        if isinstance(number, int) and abs(number) > MAX_WHOLE:
            raise ValueError("a whole number is larger than any that is used")
    return value


Option = Annotated[bool | int | float | str | tuple[int | float, ...], AfterValidator(_has_float)]
Text = Annotated[str, Field(max_length=10_000)]
Name = Annotated[str, Field(max_length=300)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=16_384)]
Extent = Annotated[int, Field(ge=0, le=16_384)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelRecord(_Part):
    """name: "default", a hub id or a folder's own name; weights: part -> sha256 of its file (empty: made in memory)."""

    name: Name
    weights: dict[Name, Digest] = {}


class BatchRecord(_Part):
    """How many pictures went through the network together and which one this was: rounding depends on the number."""

    size: int = Field(default=1, ge=1, le=1024)
    row: int = Field(default=0, ge=0, lt=1024)


class Machine(_Part):
    """What the numbers were computed with. threads is 0 where the device has no such setting."""

    device: Name
    dtype: Name
    attention: Name
    threads: int = Field(0, ge=0, le=4096)
    torch: Name
    fewstep: Name


class Start(_Part):
    """What an edit began with: sha256 of the image's bytes and the mask's, brought to the picture's size, and the strength;
    none where an editing network read the image and the run began with noise."""

    image: Digest
    mask: Digest | None = None
    strength: float | None = Field(None, ge=0, le=1)


class GuideRecord(_Part):
    """Guidance by an energy of the closed table; energy is "" for the maker's own code or models, which no recipe names."""

    energy: Name = ""
    method: Name
    strength: float = Field(ge=0, le=1e6)
    options: dict[Name, Option] = {}


class RestoreRecord(_Part):
    """What a restoration began with: sha256 of the picture's bytes and the mask's, brought to size, and how it was measured."""

    task: Name
    image: Digest
    mask: Digest | None = None
    options: dict[Name, Option] = {}


class RegionRecord(_Part):
    """A region of a layout: box (left, top, width, height) in pixels, or a mask of latents as compressed bytes in base64."""

    prompt: Text
    negative_prompt: Text | None = None
    box: tuple[float, float, float, float] | None = None
    mask: Annotated[str, Field(max_length=100_000)] | None = None
    soft: float = Field(0.0, ge=0, le=1024)
    weight: float = Field(1.0, gt=0, le=1e6)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    adapters: dict[Name, float] | None = None


class LayoutRecord(_Part):
    """Prompts by region (`gen.tasks.layout`).

    background: the prompt of the rest.
    bootstrap: a log-SNR.
    window: pixels.
    """

    background: Text | None = None
    regions: tuple[RegionRecord, ...] = Field(min_length=1, max_length=64)
    bootstrap: float | None = None
    window: int | None = Field(None, ge=1, le=16_384)
    at_once: int | None = Field(None, ge=1, le=64)


class First(_Part):
    """The first picture of a batch, where the others were made to differ from it."""

    prompt: Text = ""
    negative_prompt: Text = ""
    class_label: int = Field(-1, ge=-1)
    seed: int = Field(ge=0, lt=1 << 63)


class TrainingFreeRecord(_Part):
    """A change of the run beside guidance (`gen.tasks.training_free`): sha256 of its pictures or embedding and of their masks,
    its texts, an energy of the closed table ("" for none, or the maker's own code), numbers, and the picture that the batch
    began with."""

    digests: tuple[Digest, ...] = ()
    masks: tuple[Digest, ...] = ()
    texts: tuple[Text, ...] = ()
    energy: Name = ""
    options: dict[Name, Option] = {}
    first: First | None = None


class CanvasRecord(_Part):
    """A canvas of windows, in pixels, height before width.

    circular: vertically, horizontally.
    batch: rows per network call, at most.
    shift_from: the log-SNR from which windows move at every step.
    prompts: several, spread along the width.
    sync: the strength of SyncDiffusion, sync_distance "" for the maker's own function.
    recurrence: passes of every step.
    extend: left, top, right, bottom of the picture that was painted around.
    """

    kind: Literal["panorama", "outpaint", "upscale"]
    window: tuple[Side, Side]
    stride: tuple[Side, Side]
    weights: Name = "linear"
    circular: tuple[bool, bool] = (False, False)
    batch: int = Field(8, ge=1, le=1024)
    prompts: tuple[Text, ...] = Field((), max_length=100)
    sync: float = Field(0.0, ge=0, le=1e6)
    sync_distance: Name = "latent"
    recurrence: int = Field(1, ge=1, le=100)
    extend: tuple[Extent, Extent, Extent, Extent] | None = None
    shift_from: float | None = Field(None, ge=-20, le=20)

    @model_validator(mode="after")
    def _says_where(self) -> CanvasRecord:
        if (self.kind == "outpaint") != (self.extend is not None):
            raise ValueError("extend belongs to outpaint, and only to it")
        return self


class ViewsRecord(_Part):
    """A picture that is read in several ways (`gen.tasks.views`): the prompts of its views, beside the picture's own."""

    prompts: tuple[Text, ...] = Field(min_length=1, max_length=8)
    views: tuple[Name, ...] = Field(min_length=1, max_length=8)
    pixels_from: float = Field(ge=-20, le=20)


class Recipe(_Part):
    """One picture's recipe. `unrecorded` names what took part and is not in here: with any of it, a replay will differ."""

    version: Literal[1, 2, 3] = Field(3, description="1, 2: before some defaults changed (`gen.pipeline.recipe_versions`)")
    prompt: Text = ""
    negative_prompt: Text = ""
    prompt_syntax: Literal["full", "weights"] = Field("weights", description="what of them is more than words")
    class_label: int | None = Field(None, ge=-1)
    seed: int = Field(ge=0, lt=1 << 63)
    height: Side
    width: Side
    made_at: tuple[Side, Side] | None = Field(None, description="height and width it was made at, where it was cut afterwards")
    num_inference_steps: int = Field(ge=1, le=1000)
    sampler: Name
    sampler_options: dict[Name, Option] = {}
    schedule: Name
    schedule_options: dict[Name, Option] = {}
    guidance_scale: float = Field(ge=0, le=100)
    guidance_interval: tuple[float, float] | None = None
    guidance: Name = "cfg"
    guidance_options: dict[Name, Option] = {}
    cache: Name = ""
    cache_options: dict[Name, Option] = {}
    start: Start | None = None
    guide: GuideRecord | None = None
    restore: RestoreRecord | None = None
    layout: LayoutRecord | None = None
    tweaks: dict[Name, TrainingFreeRecord] = {}
    canvas: CanvasRecord | None = None
    views: ViewsRecord | None = None
    adapters: dict[Name, float] = {}
    composition: Name = Field("", description="how several adapters act; merged where it is empty")
    composition_options: dict[Name, Option] = {}
    regions: dict[Name, Digest] = Field({}, description="adapter -> sha256 of the mask that it acts in")
    adapter_files: dict[Name, Digest] | None = Field(None, description="name -> sha256 of the adapter's file")
    stopped_at: int | None = Field(None, ge=1, description="steps done when the run was interrupted")
    imports: dict[Name, Digest] | None = Field(
        None, description="the maker's own Python files that were imported: name -> sha256"
    )
    own_tasks: dict[Name, dict[Name, Option]] | None = Field(
        None, description="tasks that the maker registered: name -> their keywords"
    )
    unrecorded: tuple[Name, ...] = ()
    nfe: float = Field(ge=0, description="network evaluations for this picture")
    model: ModelRecord
    batch: BatchRecord = BatchRecord()
    batch_invariant: bool = Field(False, description="no bit of it depends on the batch")
    machine: Machine

    def to_json(self) -> str:
        """ASCII JSON on one line: safe in any text chunk."""
        import json

        return json.dumps(self.model_dump(mode="json", exclude_none=True), ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """A recipe from its JSON; RecipeError says what is wrong with it."""
        from gen.pipeline.recipe_versions import upgraded

        try:
            return upgraded(cls.model_validate_json(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the text"
            if where == "version" and isinstance(first.get("input"), int) and first["input"] > 3:
                raise RecipeError(
                    f"the recipe has version {first['input']}; this fewstep reads versions 1 to 3, a newer one reads it."
                ) from None
            raise RecipeError(f"the recipe is damaged or not ours ({where}: {first['msg'].lower()}).") from None
