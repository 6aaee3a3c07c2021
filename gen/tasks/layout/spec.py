"""What a layout says: prompts by region, checked, before it is brought to a picture's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from samplers.lookup import nearest

MAX_REGIONS, MAX_LAYERS = 64, 16
Number = Annotated[float, Field(ge=0, le=16_384)]


class MisplacedKey(ValueError):
    """A key that does not go with the rest of a layout."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class RegionSpec(_Strict):
    """One region of a layout.

    prompt: its text, or use: the name of one in the layout's prompts. box: left, top, width, height, in pixels, or as shares of
    the picture where all four are at most 1; mask: an array (h, w) or tensor in [0, 1] instead, or a file in a layout file;
    colour: the colour that it has in the layout's painting. soft: how far its edge fades, pixels. weight: against others where
    they overlap. guidance_scale, negative_prompt, adapters: its own; None is the picture's.
    """

    prompt: str | None = Field(default=None, max_length=10_000)
    use: str | None = None
    box: tuple[Number, Number, Number, Number] | None = None
    mask: Any = None
    colour: str | None = None
    soft: float | None = Field(default=None, ge=0, le=1024)
    weight: float = Field(default=1.0, gt=0, le=1e6)
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    negative_prompt: str | None = Field(default=None, max_length=10_000)
    adapters: dict[str, float] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> RegionSpec:
        places = [name for name in ("box", "mask", "colour") if getattr(self, name) is not None]
        if len(places) != 1:
            given = " and ".join(places) or "no place"
            raise ValueError(f"the region has {given}; give one of box, mask and colour")
        if (self.prompt is None) == (self.use is None):
            raise ValueError("give the region a prompt, or use: the name of one of the layout's prompts")
        return self


class LayerSpec(RegionSpec):
    """One layer of a layout: a region that lies upon the layers before it, the whole picture where it has no place.

    opacity: of what is inside its place. A layer has no weight, guidance scale, negative prompt or adapters of its own.
    """

    opacity: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _one_place(self) -> LayerSpec:
        places = [name for name in ("box", "mask", "colour") if getattr(self, name) is not None]
        if len(places) > 1:
            raise ValueError(f"the layer has {' and '.join(places)}; give one of box, mask and colour, or none for all")
        if (self.prompt is None) == (self.use is None):
            raise ValueError("give the layer a prompt, or use: the name of one of the layout's prompts")
        own = ("guidance_scale", "negative_prompt", "adapters")
        other = next((name for name in own if getattr(self, name) is not None), "weight" if self.weight != 1 else None)
        if other is not None:
            raise MisplacedKey(other, f"a layer has no {other} of its own; leave it out, or give regions instead of layers")
        return self


class LayoutSpec(_Strict):
    """A whole layout, before it is brought to a picture's size.

    height, width: pixels, None for the model's. background: the prompt of what no region covers (None: regions cover all).
    prompts: texts by name, for `use`. painting: a picture whose colours say where regions are. soft: of regions without
    their own. layers: in the place of regions, things upon one another, the lowest first, each drawn on a canvas of its
    own; until: the log-SNR from which they are drawn on together (0), by the prompt `scene` (None: theirs). bootstrap: the
    log-SNR up to which regions begin on a plain background, None for never. window: the side in pixels of what the network
    sees at once, None for what it was trained at. at_once: how many regions go through the network together. attention: one
    picture, whose parts attend to the text of their regions (MultiBooth), in the place of one for each region. start: the
    log-SNR from which regions act; before it the picture is the background's (OMG), None for regions throughout.
    """

    height: int | None = Field(None, ge=1, le=16_384)
    width: int | None = Field(None, ge=1, le=16_384)
    background: str | None = Field(None, max_length=10_000)
    prompts: dict[str, str] = {}
    painting: Any = None
    regions: tuple[RegionSpec, ...] = Field((), max_length=MAX_REGIONS)
    layers: tuple[LayerSpec, ...] = Field((), max_length=MAX_LAYERS)
    until: float | None = Field(None, ge=-20, le=20)
    scene: str | None = Field(None, max_length=10_000)
    soft: float = Field(0.0, ge=0, le=1024)
    bootstrap: float | None = Field(None, ge=-20, le=20)
    window: int | None = Field(None, ge=1, le=16_384)
    at_once: int | None = Field(None, ge=1, le=MAX_REGIONS)
    attention: bool = False
    start: float | None = Field(None, ge=-20, le=20)

    @model_validator(mode="after")
    def _parts_of_one_picture(self) -> LayoutSpec:
        own: list[str] = [
            name for name in ("weight", "guidance_scale", "negative_prompt") for r in self.regions if name in r.model_fields_set
        ]
        own += [name for name in ("bootstrap", "window", "at_once") if getattr(self, name) is not None]
        if self.attention and own:
            raise ValueError(
                f"with attention the regions are parts of one picture, and have no {own[0]} of their own; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _regions_or_layers(self) -> LayoutSpec:
        if bool(self.regions) == bool(self.layers):
            raise ValueError(f"regions or layers make a layout; give {'one of them' if self.regions else 'some'}")
        wrong = ("background", "bootstrap", "window", "at_once", "attention", "start") if self.layers else ("until", "scene")
        # 0 is a log-SNR too
        if other := next(
            (name for name in wrong if getattr(self, name) is not None and getattr(self, name) is not False), None
        ):
            kind = "layers" if self.layers else "regions"
            raise MisplacedKey(other, f"{other} is not for a layout of {kind}; leave it out")
        return self

    @property
    def parts(self) -> tuple[RegionSpec, ...]:
        """Regions, or layers."""
        return self.layers or self.regions

    @property
    def prompt(self) -> str | None:
        """Of the call: what no region covers, or the whole scene."""
        if not self.layers:
            return self.background
        own = [layer.prompt if layer.use is None else self.prompts.get(layer.use) for layer in self.layers]
        return self.scene if self.scene is not None else ", ".join(text for text in reversed(own) if text)


def explained(problem: Any) -> tuple[tuple[str | int, ...], str]:
    """(where, a sentence) of one of the errors that pydantic finds in a layout."""
    where = tuple(problem["loc"])
    if problem["type"] == "extra_forbidden":
        model = {"regions": RegionSpec, "layers": LayerSpec}.get(str(where[0]) if len(where) > 1 else "", LayoutSpec)
        near = nearest(str(where[-1]), model.model_fields)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(model.model_fields)}."
        return where, f"There is no key {str(where[-1])!r:.80}; {hint}"
    if problem["type"] != "value_error":
        return where, f"{problem['msg'].removesuffix('.')}."
    error = problem["ctx"]["error"]  # a sentence of ours
    return (*where, error.key) if isinstance(error, MisplacedKey) else where, f"{error}."


class UnknownPrompt(ValueError):
    """A region or layer, by `kind`, uses a prompt that the layout lacks; `region` is its number."""

    def __init__(self, region: int, name: str, known: Sequence[str], kind: str = "region"):
        near = nearest(name, known)
        hint = f" Did you mean {near!r}?" if near else ""
        there = f"it has {', '.join(known)}" if known else "it has none"
        super().__init__(f"{kind} {region} uses the prompt {name!r}, which the layout's prompts lack ({there}).{hint}")
        self.region = region


def read_spec(layout: Any) -> LayoutSpec:
    """A layout from a mapping; ValueError says which key is wrong."""
    if isinstance(layout, LayoutSpec):
        return layout
    if not isinstance(layout, Mapping):
        raise ValueError(
            f"layout is {type(layout).__name__}; give a dict, or read a file with gen.tasks.layout.file.read_layout."
        )
    try:
        return LayoutSpec(**layout)
    except ValidationError as error:
        said = (explained(problem) for problem in error.errors())
        text = " ".join(f"{'.'.join(map(str, where))}: {sentence}" if where else sentence for where, sentence in said)
        raise ValueError(f"The layout is not valid: {text}") from None
