"""Layouts: several prompts on one picture, each in its own region. `gen.tasks.layout.file` reads them from files.

    layout = {"background": "blue", "regions": [{"prompt": "a red heart", "box": [0, 0, 0.5, 1]}, ...]}
    generator.layout(layout, seed=7)

A layout is brought to the size of a picture before anything else; what that gives, `LayoutRecord`, is in the picture's recipe,
so that a replay needs no file. Boxes are (left, top, width, height); masks lie on the grid of latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.models.prompt_reading import USUAL, Reading
from gen.nn.conditions import pad_tokens, with_picture_size
from gen.pipeline.output import Output
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Caller, Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.layout.masks import box_in_pixels, box_mask, mask_on_latents, pack_mask, read_region_mask, unpack_mask
from gen.tasks.layout.options import LayoutKeywords, LayoutRecord, RegionRecord
from gen.tasks.layout.spec import LayerSpec, LayoutSpec, UnknownPrompt, read_spec
from samplers.denoiser import Condition
from samplers.multi_model.late import Late
from samplers.multi_model.masks import Box, rest, soften
from samplers.multi_model.regional_attention import AttentionRegion, RegionalAttention
from samplers.multi_model.regions import Bootstrap, Region, Regions

if TYPE_CHECKING:
    from gen.models.model import Model
    from samplers.denoiser import Denoiser

BACKGROUND = "background"
LEAST = 1 / 512  # of a background that is worth evaluating
# grey levels and colours that regions begin on: (red, green, blue) in [-1, 1]
COLOURS = ((1.0, 1.0, 1.0), (0.6, 0.6, 0.6), (0.7, 0.85, 1.0), (0.8, 1.0, 0.8), (1.0, 0.9, 0.7), (1.0, 0.8, 0.8))


def place(spec: LayoutSpec, height: int, width: int, factor: int) -> LayoutRecord:
    """The layout on a picture of (height, width) pixels, `factor` to a latent: as recipes hold it."""
    painted = None
    if spec.painting is not None:
        from gen.tasks.layout.file import colour_masks

        painted = colour_masks(spec.painting, [r.colour for r in spec.parts if r.colour], height, width)
    records = []
    for i, region in enumerate(spec.parts):
        if region.use is not None and region.use not in spec.prompts:
            raise UnknownPrompt(i, region.use, list(spec.prompts), "layer" if spec.layers else "region")
        box = mask = None
        if region.box is not None:
            box = box_in_pixels(region.box, height, width, i)
        elif isinstance(region, LayerSpec) and region.mask is None and region.colour is None:
            box = (0.0, 0.0, float(width), float(height))
        else:
            if region.colour is not None and painted is None:
                raise ValueError(f"Region {i} has the colour {region.colour!r}, but the layout has no painting; give one.")
            pixel_mask = read_region_mask(region.mask, i) if region.colour is None else painted[region.colour]  # type: ignore[index]
            mask = pack_mask(mask_on_latents(pixel_mask, height, width, factor), i)
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
                opacity=region.opacity if isinstance(region, LayerSpec) and region.opacity != 1 else None,
            )
        )
    return LayoutRecord(
        background=spec.background,
        regions=tuple(records),
        bootstrap=spec.bootstrap,
        window=spec.window,
        at_once=spec.at_once,
        attention=spec.attention or None,
        layered=True if spec.layers else None,
        until=spec.until,
        start=spec.start,
    )


@dataclass(frozen=True)
class Layout(Task):
    """A layout at work: the record, and the regions that a batch is sampled from."""

    layout: LayoutRecord
    height: int
    width: int

    @classmethod
    def from_call(cls, model: Model, args: LayoutKeywords, settings: Settings) -> tuple[Layout, Settings]:
        layout = make_layout(args.layout, settings.height, settings.width, model, settings.guidance)
        adapters = model.active_adapters({**layout.adapters(), **settings.adapters})
        return layout, replace(settings, adapters=adapters)

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> LayoutKeywords:
        return LayoutKeywords(recipe.layout)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        composition = getattr(settings.tasks.get("composition"), "name", "merge")
        if composition != "merge":
            raise ValueError(
                f"A layout says which adapters act where; leave out the composition {composition!r}, or the layout."
            )
        if "training_free" in settings.tasks:
            raise ValueError("A layout has prompts of its own for its regions; leave out negtome, reference and the like.")

    @property
    def prompts(self) -> list[str]:
        return [region.prompt for region in self.layout.regions]

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(always_guided=True, guides_itself=True, chooses_size=True, one_prompt=True)

    def map_texts(self, read: Callable[[str], str]) -> Layout:
        def optional(text: str | None) -> str | None:
            return text and read(text)

        regions = tuple(
            region.model_copy(update={"prompt": read(region.prompt), "negative_prompt": optional(region.negative_prompt)})
            for region in self.layout.regions
        )
        record = self.layout.model_copy(update={"regions": regions, "background": optional(self.layout.background)})
        return replace(self, layout=record)

    def adapters(self) -> dict[str, float]:
        """Every adapter that some region uses, at weight 0: what a run must know of."""
        return {name: 0.0 for region in self.layout.regions for name in region.adapters or {}}

    def own_masks(self, factor: int) -> list[Tensor]:
        """(1, 1, h, w) on the grid of latents, of every region."""
        size, masks = (self.height // factor, self.width // factor), []
        for i, region in enumerate(self.layout.regions):
            region_mask = (
                box_mask(region.box, self.height, self.width, factor) if region.box else unpack_mask(region.mask, size, i)
            )
            masks.append(soften(region_mask, region.soft / factor))
        return masks

    def masks(self, factor: int) -> list[Tensor]:
        """Those of regions, the background's last where it has one. ValueError for what is left over."""
        record, masks = self.layout, self.own_masks(factor)
        if record.attention:  # elsewhere it is the run's own prompt
            return masks
        left = rest(masks)
        left = torch.where(left < LEAST, 0.0, left)  # what rounding leaves between soft edges needs no network
        if record.background is not None:
            return [*masks, left] if bool((left > 0).any()) else masks
        if bool((torch.stack(masks).sum(0) == 0).any()):
            share = float((torch.stack(masks).sum(0) == 0).double().mean())
            raise ValueError(f"{share:.0%} of the picture belongs to no region; give the layout a background, or enlarge them.")
        return masks

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        """The regions of a batch around the network, guidance inside. Its negative is for regions without their own."""
        model, settings, noise, negative = batch.model, batch.settings, batch.noise, batch.negative
        record, factor = self.layout, model.factor
        masks = self.masks(factor)
        if record.attention:
            return self._late(self._in_attention(denoiser, batch, masks), denoiser, batch)
        side = (record.window or model.config.sample_size) // factor
        conditions = _conditions(model, record, settings, bool(len(masks) > len(record.regions)), negative)
        regions = []
        for i, (mask, (text, refused)) in enumerate(zip(masks, conditions, strict=True)):
            spec = record.regions[i] if i < len(record.regions) else None
            for window, window_mask in windows(mask, side):
                condition = _sized(text, model, settings, window)
                regions.append(
                    Region(
                        mask=window_mask.to(noise.device),
                        condition=condition,
                        negative=refused if refused is None else replace(refused, extra=condition.extra),
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
        inside = Regions(denoiser, tuple(regions), guide, settings.scale, bootstrap, record.at_once)
        return self._late(inside, denoiser, batch)

    def _late(self, inside: Denoiser, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        """Regions from the layout's `start` on, before it the run's own prompt as without a layout."""
        start = self.layout.start
        return inside if start is None else Late(inside, self._as_run(denoiser, batch), start)

    def _as_run(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        """Under the run's guidance."""
        settings, (scale, span) = batch.settings, (batch.settings.scale, batch.settings.interval)
        return settings.guidance.build(denoiser, settings.solver, scale, batch.negative, span, guided=batch.guided)[0]

    def _in_attention(self, denoiser: Denoiser, batch: SamplingBatch, masks: list[Tensor]) -> Denoiser:
        """Regions as parts of attention to text, under the run's guidance."""
        model, settings, device = batch.model, batch.settings, batch.noise.device
        texts = [text for text, _ in _conditions(model, self.layout, settings, False, None)]
        regions = tuple(
            AttentionRegion(
                mask.to(device),
                text,
                None if spec.adapters is None else {**settings.adapters, **spec.adapters},
                spec.prompt[:40],
            )
            for spec, mask, text in zip(self.layout.regions, masks, texts, strict=True)
        )
        return self._as_run(RegionalAttention(denoiser, regions), batch)

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
            region
            if region.guidance_scale is None
            else region.model_copy(update={"guidance_scale": rules.effective_scale(region.guidance_scale)})
            for region in record.regions
        )
        record = record.model_copy(update={"regions": regions})
    if rules.names[0] in ("cfg++", "embedded"):
        raise ValueError(f"A layout guides every region by itself, which {rules.names[0]} cannot; choose other guidance.")
    if rules.keeps_both:
        raise ValueError("A layout guides every region by itself, which a sampler under CFG++ cannot; choose another sampler.")
    if record.layered:
        from gen.tasks.layout.layers import LayeredLayout

        layout_task: Layout = LayeredLayout(record, height, width)
    else:
        layout_task = Layout(record, height, width)
    layout_task.masks(model.factor)
    side = record.window or model.config.sample_size
    step = model.factor * model.network.config.patch
    if side % step:
        raise ValueError(f"The layout's window is {side} pixels; give a multiple of {step}.")
    return layout_task


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
            faded_mask = mask * F.pad(fade, (left, width - left - wide, top, height - top - tall))
            if bool((faded_mask > 0).any()):
                shown.append(((top, left, tall, wide), faded_mask))
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


def _taper(start: int, side: int, length: int, fades: bool) -> Tensor:
    """(side,) weights that fall towards ends where another window goes on."""
    place = torch.arange(side, dtype=torch.float32) + 0.5
    fade = torch.ones(side)
    if fades and start > 0:
        fade = torch.minimum(fade, place / (side / 2))
    if fades and start + side < length:
        fade = torch.minimum(fade, (side - place) / (side / 2))
    return fade


# ---- conditions ----


def _conditions(
    model: Model, record: LayoutRecord, settings: Settings, background: bool, negative: Condition | None
) -> list[tuple[Condition, Condition | None]]:
    """(condition, negative) of every region, one row each, with equally many tokens; the background last."""
    prompts_of_regions: list[tuple[str, str | None, dict[str, float]]] = [
        (r.prompt, r.negative_prompt, {**settings.adapters, **(r.adapters or {})}) for r in record.regions
    ]
    if background:
        prompts_of_regions.append((record.background or "", None, settings.adapters))
    how = settings.reading
    texts = [read_prompt(model, prompt, adapters, reading=how) for prompt, _, adapters in prompts_of_regions]
    refused = [
        negative if text is None else read_prompt(model, text, adapters, True, how) if text.strip() else None
        for _, text, adapters in prompts_of_regions
    ]
    everyone = [c for c in (*texts, *refused) if c is not None]
    length = max((c.tokens.shape[1] for c in everyone if c.tokens is not None), default=0)
    padded = {id(c): pad_tokens(c, length) for c in everyone}  # the batch's negative stays one object for all
    return [(padded[id(c)], None if n is None else padded[id(n)]) for c, n in zip(texts, refused, strict=True)]


def read_prompt(
    model: Model, prompt: str, adapters: Mapping[str, float], negative: bool = False, reading: Reading = USUAL
) -> Condition:
    """A text model's prompt, or a class model's class."""
    if model.text_encoder is not None:
        return model.encode_prompt([prompt], adapters, negative=negative, reading=reading)
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


# ---- the method of `Generator` ----


def layout(generator: Caller, layout: Any, **call: Any) -> Output:
    """Pictures with a prompt for every region: `layout` is a mapping (`gen.tasks.layout.spec.LayoutSpec`), or the path of a
    YAML or JSON file of one. Their recipes replay without it. Other arguments are those of a call; height and width come from
    the layout where it has them, and the prompt from its background, or from the scene of its layers."""
    from gen.tasks.layout.file import read_layout

    spec = read_layout(layout) if isinstance(layout, str | Path) else read_spec(layout)
    for name, side in (("height", spec.height), ("width", spec.width)):
        if side is not None and call.setdefault(name, side) != side:
            raise ValueError(f"The layout has {name} {side}, and {name} {call[name]} is asked for; give one of them.")
    if generator.text_encoder is not None:
        call.setdefault("prompt", spec.prompt)
    return generator(**call, layout=spec)
