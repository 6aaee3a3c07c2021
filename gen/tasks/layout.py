"""Layouts: several prompts on one picture, each in its own region. `gen.tasks.layout_file` reads them from files.

    layout = {"background": "blue", "regions": [{"prompt": "a red heart", "box": [0, 0, 0.5, 1]}, ...]}
    generator.layout(layout, seed=7)

A layout is brought to the size of a picture before anything else; what that gives, `LayoutRecord`, is in the picture's recipe,
so that a replay needs no file. Boxes are (left, top, width, height); masks lie on the grid of latents.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from gen.nn.conditions import pad_tokens, with_picture_size
from gen.nn.registry import describe
from gen.pipeline.output import Output
from gen.pipeline.recipe import LayoutRecord, Recipe, RegionRecord
from gen.pipeline.types import Caller, Item, SamplingBatch, Settings, Task
from samplers.denoiser import Condition
from samplers.multi_model.masks import Box, rest, soften
from samplers.multi_model.regions import Bootstrap, Region, Regions

if TYPE_CHECKING:
    from gen.models.model import Model
    from samplers.denoiser import Denoiser

MAX_REGIONS = 64
MAX_MASK = 100_000  # characters
BACKGROUND = "background"
LEAST = 1 / 512  # of a background that is worth evaluating
# grey levels and colours that regions begin on: (red, green, blue) in [-1, 1]
COLOURS = ((1.0, 1.0, 1.0), (0.6, 0.6, 0.6), (0.7, 0.85, 1.0), (0.8, 1.0, 0.8), (1.0, 0.9, 0.7), (1.0, 0.8, 0.8))
Number = Annotated[float, Field(ge=0, le=16_384)]


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


class LayoutSpec(_Strict):
    """A whole layout, before it is brought to a picture's size.

    height, width: pixels, None for the model's. background: the prompt of what no region covers (None: regions cover all).
    prompts: texts by name, for `use`. painting: a picture whose colours say where regions are. soft: of regions without their
    own. bootstrap: the log-SNR up to which regions begin on a plain background, None for never. window: the side in pixels of
    what the network sees at once, None for what it was trained at. at_once: how many regions go through the network together.
    """

    height: int | None = Field(None, ge=1, le=16_384)
    width: int | None = Field(None, ge=1, le=16_384)
    background: str | None = Field(None, max_length=10_000)
    prompts: dict[str, str] = {}
    painting: Any = None
    regions: tuple[RegionSpec, ...] = Field(min_length=1, max_length=MAX_REGIONS)
    soft: float = Field(0.0, ge=0, le=1024)
    bootstrap: float | None = Field(None, ge=-20, le=20)
    window: int | None = Field(None, ge=1, le=16_384)
    at_once: int | None = Field(None, ge=1, le=MAX_REGIONS)


class UnknownPrompt(ValueError):
    """A region uses a prompt that the layout lacks; `region` is its number."""

    def __init__(self, region: int, name: str, known: Sequence[str]):
        from samplers.lookup import nearest

        near = nearest(name, known)
        hint = f" Did you mean {near!r}?" if near else ""
        there = f"it has {', '.join(known)}" if known else "it has none"
        super().__init__(f"region {region} uses the prompt {name!r}, which the layout's prompts lack ({there}).{hint}")
        self.region = region


def read_spec(layout: Any) -> LayoutSpec:
    """A layout from a mapping; ValueError says which key is wrong."""
    if isinstance(layout, LayoutSpec):
        return layout
    if not isinstance(layout, Mapping):
        raise ValueError(
            f"layout is {type(layout).__name__}; give a dict, or read a file with gen.tasks.layout_file.read_layout."
        )
    try:
        return LayoutSpec(**layout)
    except ValidationError as error:
        raise ValueError(f"The layout is not valid: {describe(error)}.") from None


def place(spec: LayoutSpec, height: int, width: int, factor: int) -> LayoutRecord:
    """The layout on a picture of (height, width) pixels, `factor` to a latent: as recipes hold it."""
    painted = None
    if spec.painting is not None:
        from gen.tasks.layout_file import colour_masks

        painted = colour_masks(spec.painting, [r.colour for r in spec.regions if r.colour], height, width)
    records = []
    for i, region in enumerate(spec.regions):
        if region.use is not None and region.use not in spec.prompts:
            raise UnknownPrompt(i, region.use, list(spec.prompts))
        box = mask = None
        if region.box is not None:
            box = _pixels(region.box, height, width, i)
        else:
            if region.colour is not None and painted is None:
                raise ValueError(f"Region {i} has the colour {region.colour!r}, but the layout has no painting; give one.")
            found = _read_mask(region.mask, i) if region.colour is None else painted[region.colour]  # type: ignore[index]
            mask = pack_mask(_to_latents(found, height, width, factor), i)
        prompt = region.prompt if region.use is None else spec.prompts[region.use]
        assert prompt is not None  # a region without one is refused
        records.append(
            RegionRecord(
                prompt=prompt,
                negative_prompt=region.negative_prompt,
                box=box,
                mask=mask,
                soft=spec.soft if region.soft is None else region.soft,
                weight=region.weight,
                guidance_scale=region.guidance_scale,
                adapters=region.adapters,
            )
        )
    return LayoutRecord(
        background=spec.background, regions=tuple(records), bootstrap=spec.bootstrap, window=spec.window, at_once=spec.at_once
    )


@dataclass(frozen=True)
class Layout(Task):
    """A layout at work: the record, and the regions that a batch is sampled from."""

    layout: LayoutRecord
    height: int
    width: int
    always_guided = True
    chooses_size = True

    @classmethod
    def from_call(cls, model: Model, args: Mapping[str, Any], settings: Settings) -> tuple[Layout, Settings]:
        layout = make_layout(args["layout"], settings.height, settings.width, model, settings.guidance)
        adapters = model.active_adapters({**layout.adapters(), **settings.adapters})
        return layout, replace(settings, adapters=adapters)

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"layout": recipe.layout}

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        composition = getattr(settings.tasks.get("composition"), "name", "merge")
        if composition != "merge":
            raise ValueError(
                f"A layout says which adapters act where; leave out the composition {composition!r}, or the layout."
            )
        if "tweak" in settings.tasks:
            raise ValueError("A layout has prompts of its own for its regions; leave out negtome, reference and the like.")

    @property
    def prompts(self) -> list[str]:
        return [region.prompt for region in self.layout.regions]

    def adapters(self) -> dict[str, float]:
        """Every adapter that some region uses, at weight 0: what a run must know of."""
        return {name: 0.0 for region in self.layout.regions for name in region.adapters or {}}

    def masks(self, factor: int) -> list[Tensor]:
        """(1, 1, h, w) on the grid of latents, the background's last where it has one. ValueError for what is left over."""
        record, size = self.layout, (self.height // factor, self.width // factor)
        masks = []
        for i, region in enumerate(record.regions):
            own = _box_mask(region.box, self.height, self.width, factor) if region.box else unpack_mask(region.mask, size, i)
            masks.append(soften(own, region.soft / factor))
        left = rest(masks)
        left = torch.where(left < LEAST, 0.0, left)  # what rounding leaves between soft edges needs no network
        if record.background is not None:
            return [*masks, left] if bool((left > 0).any()) else masks
        if bool((torch.stack(masks).sum(0) == 0).any()):
            share = float((torch.stack(masks).sum(0) == 0).double().mean())
            raise ValueError(f"{share:.0%} of the picture belongs to no region; give the layout a background, or enlarge them.")
        return masks

    def make_denoiser(self, batch: SamplingBatch) -> Denoiser:
        """The regions of a batch around the network, guidance inside. Its negative is for regions without their own."""
        model, settings, noise, negative = batch.model, batch.settings, batch.noise, batch.negative
        record, factor = self.layout, model.factor
        masks = self.masks(factor)
        side = (record.window or model.config.sample_size) // factor
        conditions = _conditions(model, record, settings, bool(len(masks) > len(record.regions)), negative)
        regions = []
        for i, (mask, (own, refused)) in enumerate(zip(masks, conditions, strict=True)):
            spec = record.regions[i] if i < len(record.regions) else None
            for window, seen in windows(mask, side):
                told = _sized(own, model, settings, window)
                regions.append(
                    Region(
                        mask=seen.to(noise.device),
                        condition=told,
                        negative=refused if refused is None else replace(refused, extra=told.extra),
                        weight=1.0 if spec is None else spec.weight,
                        guidance_scale=None if spec is None else spec.guidance_scale,
                        adapters=None if spec is None or spec.adapters is None else {**settings.adapters, **spec.adapters},
                        window=window,
                        bootstrap=spec is not None,
                        name=BACKGROUND if spec is None else spec.prompt[:40],
                    )
                )
        _share_extra(regions)

        def guide(inner: Denoiser, scale: Any, refused: Condition | None) -> Denoiser:
            return settings.guidance.build(inner, settings.solver, scale, refused, settings.interval, guided=True)[0]

        bootstrap = None
        if record.bootstrap is not None:
            bootstrap = Bootstrap(plain_latents(model), noise, record.bootstrap, tuple(batch.seeds))
        return Regions(model.denoiser, tuple(regions), guide, settings.scale, bootstrap, record.at_once)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"layout": self.layout}


def make_layout(layout: Any, height: int, width: int, model: Model, rules: Any) -> Layout:
    """A checked layout: a spec, a mapping or, for a replay, a record."""
    if isinstance(layout, LayoutRecord):
        record = layout
    else:
        spec = read_spec(layout)
        if (spec.height or height, spec.width or width) != (height, width):
            raise ValueError(
                f"The layout is for other sides than {width} x {height}; call Generator.layout, which takes them from it."
            )
        record = place(spec, height, width, model.factor)
        regions = tuple(
            one
            if one.guidance_scale is None
            else one.model_copy(update={"guidance_scale": rules.effective_scale(one.guidance_scale)})
            for one in record.regions
        )
        record = record.model_copy(update={"regions": regions})
    if rules.names[0] in ("cfg++", "embedded"):
        raise ValueError(f"A layout guides every region by itself, which {rules.names[0]} cannot; choose other guidance.")
    if rules.keeps_both:
        raise ValueError("A layout guides every region by itself, which a sampler under CFG++ cannot; choose another sampler.")
    made = Layout(record, height, width)
    made.masks(model.factor)
    side = record.window or model.config.sample_size
    step = model.factor * model.network.config.patch
    if side % step:
        raise ValueError(f"The layout's window is {side} pixels; give a multiple of {step}.")
    return made


def windows(mask: Tensor, side: int) -> list[tuple[Box | None, Tensor]]:
    """(window, mask) pairs that show the network a mask (1, 1, H, W) of a canvas piece by piece, `side` cells each way at most.

    One window about the mask where that is small enough, else several that overlap by half and fade into one another. On a
    canvas of at most `side` each way there is one, the canvas itself (None). What counts is where the mask has half of its most
    or more: an edge that fades beyond one window is cut there, which is cheaper and looks better than an object in several.
    """
    height, width = mask.shape[-2:]
    if height <= side and width <= side:
        return [(None, mask)]
    rows = _spans(mask[0, 0].amax(1), min(side, height))
    columns = _spans(mask[0, 0].amax(0), min(side, width))
    shown: list[tuple[Box | None, Tensor]] = []
    for top, tall in rows:
        for left, wide in columns:
            fade = _taper(top, tall, height, len(rows) > 1)[:, None] * _taper(left, wide, width, len(columns) > 1)[None]
            seen = mask * F.pad(fade, (left, width - left - wide, top, height - top - tall))
            if bool((seen > 0).any()):
                shown.append(((top, left, tall, wide), seen))
    return shown


def _spans(profile: Tensor, side: int) -> list[tuple[int, int]]:
    """(start, side) pairs along one axis: one that covers the half above, or several that cover all."""
    length = len(profile)
    low, high = _ends(profile >= profile.max() / 2)
    if high - low <= side:
        return [(min(max((low + high - side) // 2, 0), length - side), side)]
    low, high = _ends(profile > 0)
    count = math.ceil((high - low - side) / max(side // 2, 1)) + 1
    return [(low + round(i * (high - low - side) / (count - 1)), side) for i in range(count)]


def _ends(inside: Tensor) -> tuple[int, int]:
    where = inside.nonzero()[:, 0]
    return int(where[0]), int(where[-1]) + 1


def _taper(start: int, side: int, length: int, several: bool) -> Tensor:
    """(side,) weights that fall towards ends where another window goes on."""
    place = torch.arange(side, dtype=torch.float32) + 0.5
    fade = torch.ones(side)
    if several and start > 0:
        fade = torch.minimum(fade, place / (side / 2))
    if several and start + side < length:
        fade = torch.minimum(fade, (side - place) / (side / 2))
    return fade


# ---- conditions ----


def _conditions(
    model: Model, record: LayoutRecord, settings: Settings, background: bool, negative: Condition | None
) -> list[tuple[Condition, Condition | None]]:
    """(condition, negative) of every region, one row each, with equally many tokens; the background last."""
    asked: list[tuple[str, str | None, dict[str, float]]] = [
        (r.prompt, r.negative_prompt, {**settings.adapters, **(r.adapters or {})}) for r in record.regions
    ]
    if background:
        asked.append((record.background or "", None, settings.adapters))
    own = [read_prompt(model, prompt, adapters) for prompt, _, adapters in asked]
    refused = [
        negative if text is None else read_prompt(model, text, adapters, negative=True) if text.strip() else None
        for _, text, adapters in asked
    ]
    everyone = [c for c in (*own, *refused) if c is not None]
    length = max((c.tokens.shape[1] for c in everyone if c.tokens is not None), default=0)
    padded = {id(c): pad_tokens(c, length) for c in everyone}  # the batch's negative stays one object for all
    return [(padded[id(c)], None if n is None else padded[id(n)]) for c, n in zip(own, refused, strict=True)]


def read_prompt(model: Model, prompt: str, adapters: Mapping[str, float], negative: bool = False) -> Condition:
    """A text model's prompt, or a class model's class."""
    if model.text_encoder is not None:
        return model.encode_prompt([prompt], adapters, negative=negative)
    from gen.pipeline.subjects import read_labels

    label = read_labels([prompt], model.config.classes, model.classes) if prompt and not negative else [-1]
    return Condition(label=torch.tensor(label, device=model.device))


def _sized(condition: Condition, model: Model, settings: Settings, window: Box | None) -> Condition:
    """With the size of the window, for a network that asks for one."""
    sides = settings.seen
    if window is not None:
        sides = window[2] * model.factor, window[3] * model.factor
    return with_picture_size(condition, model, 1, sides)


def _share_extra(regions: list[Region]) -> None:
    """Give regions with equal sizes the very same tensors of it, by which they are known to share the unconditional part."""
    by_window: dict[Any, Mapping[str, Tensor]] = {}
    for i, region in enumerate(regions):
        assert region.condition is not None
        extra = by_window.setdefault(region.window and region.window[2:], region.condition.extra)
        regions[i] = replace(region, condition=replace(region.condition, extra=extra))


@torch.no_grad()
def plain_latents(model: Model) -> Tensor:
    """(K, C, 1, 1): what plain pictures of `COLOURS` are to the denoiser."""
    colours = torch.tensor(COLOURS, device=model.device).reshape(-1, 3, 1, 1)
    if model.autoencoder is None:
        return colours
    side = 8 * model.factor
    latents = model.autoencoder.encode(colours.expand(-1, -1, side, side)).float() * model.config.latent_scale
    return latents[..., 2:-2, 2:-2].mean((2, 3), keepdim=True)


# ---- masks ----


def _pixels(box: tuple[float, float, float, float], height: int, width: int, region: int) -> tuple[float, float, float, float]:
    """(left, top, width, height) in pixels, inside the picture."""
    left, top, wide, tall = box
    if max(box) <= 1:
        left, top, wide, tall = left * width, top * height, wide * width, tall * height
    if wide <= 0 or tall <= 0:
        raise ValueError(f"The box {list(box)} of region {region} is empty; give [left, top, width, height].")
    if left + wide > width + 1e-6 or top + tall > height + 1e-6:
        raise ValueError(
            f"The box {list(box)} of region {region} reaches outside the picture of {width} x {height}; "
            "[left, top, width, height] are pixels, or shares of the picture where all are at most 1."
        )
    return left, top, wide, tall


def _box_mask(box: tuple[float, float, float, float], height: int, width: int, factor: int) -> Tensor:
    """How much of each latent cell a box of pixels covers."""

    def covered(start: float, length: float, cells: int) -> Tensor:
        edge = torch.arange(cells + 1, dtype=torch.float64) * factor
        inside = (torch.clamp(edge[1:], max=start + length) - torch.clamp(edge[:-1], min=start)).clamp(min=0)
        return (inside / factor).clamp(max=1)

    left, top, wide, tall = box
    mask = covered(top, tall, height // factor)[:, None] * covered(left, wide, width // factor)[None]
    mask = torch.where(mask < 1e-6, 0.0, mask)
    return mask[None, None].float()


def _read_mask(mask: Any, region: int) -> Tensor:
    """(1, 1, H, W) in [0, 1]."""
    from gen.io.images import read_picture

    return read_picture(f"The mask of region {region}", mask, "L")


def _to_latents(mask: Tensor, height: int, width: int, factor: int) -> Tensor:
    """A picture's mask on the grid of latents; ValueError unless it has the picture's size or that of its latents."""
    size = tuple(mask.shape[-2:])
    if size == (height, width):
        return F.avg_pool2d(mask, factor)
    if size == (height // factor, width // factor):
        return mask
    raise ValueError(
        f"A mask is {size[1]} x {size[0]} pixels, but the picture {width} x {height}; scale one of them so that they agree."
    )


def pack_mask(mask: Tensor, region: int) -> str:
    """A mask as text: its bytes, compressed."""
    values = (mask * 255).round().to(torch.uint8)
    if not bool(values.any()):
        raise ValueError(f"The mask of region {region} is empty; paint where it is to be, or leave it out.")
    text = base64.b64encode(zlib.compress(values.contiguous().numpy().tobytes(), 9)).decode()
    if len(text) > MAX_MASK:
        raise ValueError(f"The mask of region {region} is too intricate to be kept in a recipe; smooth it, or use fewer greys.")
    return text


def unpack_mask(text: str | None, size: tuple[int, int], region: int) -> Tensor:
    """(1, 1, h, w) floats in [0, 1]; ValueError for text that is not a mask of this size."""
    count = size[0] * size[1]
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(text or "", validate=True), count + 1)  # never more than is needed
    except (ValueError, zlib.error):
        raise ValueError(f"The mask of region {region} is damaged; make the picture anew from its layout.") from None
    if len(raw) != count:
        raise ValueError(f"The mask of region {region} is not of {size[0]} x {size[1]} cells; its recipe is damaged.")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(1, 1, *size).float() / 255


# ---- the method of `Generator` ----


def layout(generator: Caller, layout: Any, **call: Any) -> Output:
    """Pictures with a prompt for every region: `layout` is a mapping (`gen.tasks.layout_spec.LayoutSpec`), or the path of a
    YAML or
    JSON file of one. Their recipes replay without it. Other arguments are those of a call; height and width come from the
    layout where it has them, and what no region covers from its background."""
    from gen.tasks.layout_file import read_layout

    spec = read_layout(layout) if isinstance(layout, str | Path) else read_spec(layout)
    for name, own in (("height", spec.height), ("width", spec.width)):
        if own is not None and call.setdefault(name, own) != own:
            raise ValueError(f"The layout has {name} {own}, and {name} {call[name]} is asked for; give one of them.")
    if generator.text_encoder is not None:
        call.setdefault("prompt", spec.background)
    return generator(**call, layout=spec)
