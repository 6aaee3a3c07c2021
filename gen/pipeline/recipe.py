"""The recipe of a picture: everything it takes to make it again, kept inside its PNG.

Two text chunks: `parameters`, the line that image viewers and AUTOMATIC1111 read (`gen.pipeline.infotext`), and `fewstep`, the
recipe as JSON, from which `Generator.replay` and `fewstep replay` work. There is no date and no path in it. The fields of tasks
are declared where the tasks are (`gen.tasks.table`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationError, create_model

from gen.io.errors import RecipeError
from gen.io.record import Digest, Name, Option, Record, Side, Text
from gen.tasks.table import TASKS


class ModelRecord(Record):
    """name: "default", a hub id or a folder's own name; weights: part -> sha256 of its file (empty: made in memory)."""

    name: Name
    weights: dict[Name, Digest] = Field({})


class BatchRecord(Record):
    """How many pictures went through the network together and which one this was: rounding depends on the number."""

    size: int = Field(default=1, ge=1, le=1024)
    row: int = Field(default=0, ge=0, lt=1024)


class Machine(Record):
    """What the numbers were computed with. threads is 0 where the device has no such setting; quantize is how the
    denoiser was quantised on opening, vae_tile the side of the tiles that pictures were decoded in; compile how the denoiser
    was compiled, whose kernels round otherwise."""

    device: Name
    dtype: Name
    quantize: Name | None = None
    vae_tile: int | None = Field(None, ge=64, le=1 << 16)
    attention: Name
    compile: Literal["regional", "full"] | None = None
    threads: int = Field(0, ge=0, le=4096)
    torch: Name
    fewstep: Name


class PlainRecipe(Record):
    """The fields of every recipe.

    unrecorded: what took part and is not in here. With any of it, a replay will differ.
    """

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
    sampler_options: dict[Name, Option] = Field({})
    schedule: Name
    schedule_options: dict[Name, Option] = Field({})
    guidance_scale: float = Field(ge=0, le=100)
    guidance_interval: tuple[float, float] | None = None
    guidance: Name = "cfg"
    guidance_options: dict[Name, Option] = Field({})
    cache: Name = ""
    cache_options: dict[Name, Option] = Field({})
    noise_kind: Literal["philox"] | None = Field(None, description="how noise was drawn, where torch's CPU generator did not")
    adapters: dict[Name, float] = Field({})
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
        return json.dumps(self.named_values("json"), ensure_ascii=True, allow_nan=False)

    def named_values(self, mode: Literal["json", "python"] = "python") -> dict[str, Any]:
        """What it says, plain and by name, in the order of its JSON; fields that are None are left out."""
        values = self.model_dump(mode=mode, exclude_none=True)
        return {name: values[name] for name in JSON_ORDER if name in values}

    @classmethod
    def from_json(cls, text: str) -> Self:
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


_FIELDS = {name: field for row in TASKS.values() for name, field in row.options.fields.items()}

if TYPE_CHECKING:

    class Recipe(PlainRecipe):
        """One picture's recipe."""

        def __init__(self, **values: Any) -> None: ...

        def __getattr__(self, name: str) -> Any:
            """The fields of tasks."""

else:
    Recipe = create_model(
        "Recipe",
        __base__=PlainRecipe,
        __module__=__name__,
        __doc__="One picture's recipe: the fields of `PlainRecipe`, and those of tasks.",
        **{name: (field.type, Field(field.default, description=field.description)) for name, field in _FIELDS.items()},
    )


def _json_order() -> tuple[str, ...]:
    """The names of all fields: those of tasks behind the field that they say, by their places."""
    names: list[str] = []
    for name in PlainRecipe.model_fields:
        behind = [(field.place, own) for own, field in _FIELDS.items() if field.after == name]
        names += [name, *(own for _, own in sorted(behind))]
    return tuple(names)


JSON_ORDER = _json_order()
