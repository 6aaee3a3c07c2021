"""Image prompts through IP-Adapters (`gen.models.bridge.ip_adapter`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.images import digest, read_picture
from gen.io.validators import check_interval
from gen.models.bridge.ip_adapter.attention import MASK, PREFIXES, SCALE, TOKENS, ImagePrompt
from gen.models.bridge.ip_adapter.encoder import open_encoder
from gen.models.bridge.ip_adapter.file import IPAdapter, open_ip_adapter, places
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.image_prompt.options import ImagePromptKeywords, ImagePromptRecord
from gen.tasks.image_prompt.scales import by_layer, by_picture, factors
from gen.tasks.ranges import WithinRanges
from gen.tasks.several import listed, read_masks
from samplers.denoiser import NULL, Condition, Denoiser
from samplers.interval import EVERYWHERE

if TYPE_CHECKING:
    from gen.models.model import Model

MOST_ADAPTERS, MOST_PICTURES = 8, 16
KEYWORDS = tuple(vars(ImagePromptKeywords()))


@dataclass(frozen=True)
class Shown:
    """The pictures of one adapter: the name of its prompt in the network's, tokens (1, N, L, D) and what stands in for them,
    scale (1, 1 or N), masks (1, N f^2, h, w) or None, and what recipes say of it."""

    name: str
    tokens: Tensor
    null: Tensor
    scale: Tensor
    masks: Tensor | None
    record: ImagePromptRecord


@dataclass(frozen=True)
class ImagePrompts(Task):
    """The image prompts of a call, one for each adapter."""

    shown: tuple[Shown, ...]

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(always_guided=True, by_level=True)

    @classmethod
    def from_call(cls, model: Model, args: ImagePromptKeywords, settings: Settings) -> tuple[ImagePrompts | None, Settings]:
        files = listed(args.ip_adapter)
        if not files:
            orphan = next((name for name, value in vars(args).items() if value is not None and value != []), None)
            if orphan is not None:
                raise ValueError(f"{orphan} was given without ip_adapter; give the file of an IP-Adapter.")
            return None, settings
        if not getattr(model.network, "takes_image_prompts", False):
            raise ValueError(
                "This model takes no IP-Adapter: Stable Diffusion 1 and 2, SDXL and FLUX.1 in diffusers' network do; leave "
                "ip_adapter out."
            )
        if len(files) > MOST_ADAPTERS:
            raise ValueError(f"ip_adapter has {len(files)} files; give {MOST_ADAPTERS} at most.")
        rows = {name: _by_adapter(name, getattr(args, name), len(files)) for name in KEYWORDS[1:]}
        shown = tuple(
            _show(model, settings, i, Path(file), **{name: values[i] for name, values in rows.items()})
            for i, file in enumerate(map(_path, files))
        )
        return cls(shown), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> ImagePromptKeywords:
        records = recipe.image_prompts
        given = listed(keywords.get("ip_adapter"))
        if len(given) != len(records):
            raise ValueError(
                f"The picture was made with {len(records)} IP-Adapter{'' if len(records) == 1 else 's'}, which its recipe does "
                "not hold; give the file and its pictures again (ip_adapter, ip_adapter_image; --ip-adapter, --image-prompt)."
                if records
                else "The picture was made without image prompts; leave ip_adapter out."
            )
        recorded = [name for name in ("ip_adapter_scale", "ip_adapter_range") if keywords.get(name) is not None]
        if recorded:
            raise ValueError(f"The recipe says how the image prompts act already; leave {', '.join(recorded)} out.")
        return ImagePromptKeywords(
            **{name: keywords.get(name) for name in KEYWORDS if name not in ("ip_adapter_scale", "ip_adapter_range")},
            ip_adapter_scale=[_Recorded(one.scale, one.layers) for one in records],
            ip_adapter_range=[one.interval or EVERYWHERE for one in records],
        )

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        for record, one in zip(recipe.image_prompts if recipe is not None else (), self.shown, strict=recipe is not None):
            for part in ("adapter", "encoder", "images", "embeds", "masks"):
                if getattr(record, part) != getattr(one.record, part):
                    keyword = "ip_adapter" if part == "adapter" else f"ip_adapter_{RECORDED_AS[part]}"
                    raise ValueError(f"This {keyword} is not what the picture was made with: its sha256 differs.")

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        negative = batch.negative and self._on(batch.negative, asked=False)
        return replace(batch, condition=self._on(batch.condition), negative=negative)

    def _on(self, condition: Condition, asked: bool = True) -> Condition:
        """With the pictures, one row for each of the condition's; what stands in for them where they are not asked for."""
        assert condition.tokens is not None
        rows, device, extra = len(condition.tokens), condition.tokens.device, dict(condition.extra)
        for one in self.shown:
            own = {
                TOKENS: one.tokens if asked else one.null,
                NULL + TOKENS: one.null,
                SCALE: one.scale,
                **({} if one.masks is None else {MASK: one.masks}),
            }
            for prefix, value in own.items():
                extra[prefix + one.name] = value.to(device).expand(rows, *value.shape[1:])
        return replace(condition, extra=extra)

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        ranges = {one.name: one.record.interval for one in self.shown if one.record.interval is not None}
        return WithinRanges(denoiser, ranges, PREFIXES) if ranges else denoiser

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"image_prompts": tuple(one.record for one in self.shown)}


RECORDED_AS = {"encoder": "encoder", "images": "image", "embeds": "image_embeds", "masks": "mask"}


@dataclass(frozen=True)
class _Recorded:
    """The strength of a recipe's prompt."""

    scale: tuple[float, ...]
    layers: Mapping[str, float]


def _path(file: Any) -> str | Path:
    if not isinstance(file, str | Path):
        raise ValueError(f"ip_adapter is {file!r:.100}; give the file of an IP-Adapter.")
    return file


def _by_adapter(name: str, value: Any, count: int) -> list[Any]:
    """One for each adapter. With one adapter a list is its own, unless it holds that alone."""
    if value is None:
        return [None] * count
    if name == "ip_adapter_range" and isinstance(value, tuple) and not isinstance(value[0], Sequence):
        return [value] * count
    if not isinstance(value, list | tuple):
        if count > 1 and name in ("ip_adapter_image", "ip_adapter_image_embeds", "ip_adapter_mask"):
            raise ValueError(f"{name} is one where ip_adapter has {count} files; give a list of {count}.")
        return [value] * count
    if count == 1:
        return [value[0] if len(value) == 1 else value]
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries where ip_adapter has {count} files; give one for each.")
    return list(value)


def _show(
    model: Model,
    settings: Settings,
    number: int,
    file: Path,
    ip_adapter_image: Any,
    ip_adapter_scale: Any,
    ip_adapter_mask: Any,
    ip_adapter_image_embeds: Any,
    ip_adapter_encoder: Any,
    ip_adapter_range: Any,
) -> Shown:
    embeds = None if ip_adapter_image_embeds is None else _check_embeds(ip_adapter_image_embeds)
    pictures = [read_picture("ip_adapter_image", one, "RGB") for one in listed(ip_adapter_image)]
    if len(pictures) > MOST_PICTURES:
        raise ValueError(f"ip_adapter_image has {len(pictures)} pictures; give {MOST_PICTURES} at most.")
    adapter = _opened(model, file, ip_adapter_encoder, bool(pictures))
    with torch.no_grad():
        tokens, null = _tokens(adapter, pictures, embeds, model)
    count = tokens.shape[1]
    layers: Mapping[str, float] = {}
    if isinstance(ip_adapter_scale, _Recorded):
        scale, layers = ip_adapter_scale.scale, ip_adapter_scale.layers
    elif isinstance(ip_adapter_scale, Mapping):
        scale, layers = (1.0,), by_layer(ip_adapter_scale)
    else:
        scale = by_picture(ip_adapter_scale, count)
    masks = read_masks("ip_adapter_mask", "an adapter", model, settings, ip_adapter_mask, count)
    record = ImagePromptRecord(
        adapter=adapter.digest,
        encoder=adapter.encoder.digest if adapter.encoder is not None and pictures else None,
        images=tuple(digest(one) for one in pictures),
        embeds=None if embeds is None else hashlib.sha256(embeds.numpy().tobytes()).hexdigest(),
        masks=() if masks is None else tuple(digest(one) for one in masks),
        scale=scale,
        layers=dict(layers),
        interval=None if ip_adapter_range in (None, EVERYWHERE) else check_interval("ip_adapter_range", ip_adapter_range),
    )
    if masks is None and len(set(scale)) > 1:  # pictures of unequal strength are attended to each by itself
        masks = torch.ones(count, 1, settings.height, settings.width)
    where = [name for _, name, _ in places(adapter, model.network.network)]
    prompt = ImagePrompt(adapter, factors(layers, where) if layers else ())
    # runs that share forward passes share the network's table: one name means one adapter on the same layers
    by_layers = hashlib.sha256(repr(prompt.layers).encode()).hexdigest()[:8] if layers else "everywhere"
    name = f"{number} {adapter.digest[:16]} {by_layers}"
    model.network.image_prompts[name] = prompt
    strengths = torch.tensor([scale if masks is None or len(scale) == count else scale * count], dtype=torch.float32)
    laid = None if masks is None else F.pixel_unshuffle(masks[:, 0][None], model.factor)
    return Shown(name, tokens, null, strengths, laid, record)


def _tokens(adapter: IPAdapter, pictures: list[Tensor], embeds: Tensor | None, model: Model) -> tuple[Tensor, Tensor]:
    """(tokens, what stands in for them), (1, N, L, D) each."""
    projection, device = adapter.projection, model.device
    faces = projection.reads.startswith("face")
    if faces and embeds is None:
        raise ValueError(
            "This IP-Adapter reads embeddings of faces, which another network makes (insightface's antelopev2 or buffalo_l); "
            "give them as ip_adapter_image_embeds."
        )
    if not pictures and (embeds is None or projection.reads == "face states"):
        raise ValueError("ip_adapter was given without a picture; give ip_adapter_image.")
    if pictures and embeds is not None and projection.reads != "face states":
        raise ValueError("ip_adapter_image and ip_adapter_image_embeds say the same twice; give one of them.")
    states = null_states = None
    if embeds is not None:
        null_features, features = embeds.to(device, model.dtype)
        if features.shape[-1] != projection.given:
            raise ValueError(
                f"ip_adapter_image_embeds are of width {features.shape[-1]}, and this IP-Adapter reads {projection.given}."
            )
    if pictures:
        encoder = adapter.encoder
        assert encoder is not None
        pixels = torch.cat([encoder.pixels(one) for one in pictures])
        if projection.reads in ("embeds", "pooled"):
            features = encoder.embeds(pixels)
            null_features = torch.zeros_like(features)
            if adapter.black:
                null_features = encoder.embeds(encoder.pixels(torch.zeros_like(pictures[0]))).expand_as(features)
        else:
            states, null_states = encoder.states(pixels), encoder.states(torch.zeros_like(pixels))
    if projection.reads == "face states":
        if len(features) != len(pictures):
            raise ValueError(f"There are {len(pictures)} pictures and {len(features)} embeddings of faces; give one for each.")
        return projection(features, states)[None], projection(null_features, null_states)[None]
    if states is not None and null_states is not None:
        features, null_features = states, null_states
    return projection(features)[None], projection(null_features)[None]


def _check_embeds(value: Any) -> Tensor:
    """(2, N, ...): of no picture, and of the pictures."""
    if not isinstance(value, Tensor) or value.ndim not in (2, 3, 4) or not value.is_floating_point():
        raise ValueError("ip_adapter_image_embeds must be a tensor (N, E), or (2, N, E) with what stands for no picture first.")
    value = value.detach().float().cpu().contiguous()
    if value.ndim == 2:
        value = torch.stack([torch.zeros_like(value), value])
    if len(value) != 2 or not 0 < value.shape[1] <= MOST_PICTURES or not bool(value.isfinite().all()):
        raise ValueError(
            f"ip_adapter_image_embeds are {tuple(value.shape)}; give finite numbers (N, E) of 1 to {MOST_PICTURES} pictures, "
            "or (2, N, E) with what stands for no picture first."
        )
    return value


def _opened(model: Model, file: Path, encoder: Any, sees: bool) -> IPAdapter:
    """An adapter that the model has open already, or from its file, with the encoder that it needs."""
    key = (str(file.resolve()), "" if encoder is None else str(encoder))
    opened = model.network.opened_ip_adapters
    if key not in opened:
        opened[key] = open_ip_adapter(file, model.network.network, model.dtype, model.device)
    adapter = opened[key]
    if sees and adapter.encoder is None and adapter.projection.reads != "face":
        found = _encoder(model, file, encoder, adapter)
        adapter = opened[key] = replace(adapter, encoder=found)
    return adapter


def _encoder(model: Model, file: Path, source: Any, adapter: IPAdapter) -> Any:
    """The encoder given, or the first near the file whose features are as wide as the adapter reads."""
    folder = file.parent
    near = [place / "image_encoder" for place in (folder, folder.parent, folder.parent / "models")]
    folders = [source] if source is not None else [place for place in near if (place / "config.json").is_file()]
    width, reads, seen = adapter.projection.width, adapter.projection.reads, []
    for place in folders:
        found = open_encoder(place, model.dtype, model.device)
        if found.widths.get(reads) == width:
            return found
        given = found.widths.get(reads)
        seen.append(f"{place} gives {given}" if given else f"{place} holds a {found.kind}")
    if not folders:
        raise ValueError(
            f"There is no folder image_encoder near {file}; give ip_adapter_encoder (--ip-adapter-encoder), the vision encoder "
            "that the adapter was trained with."
        )
    kind = "SigLIP's pooled output" if reads == "pooled" else "features"
    raise ValueError(f"The IP-Adapter reads {kind} of width {width}, and {'; '.join(seen)}; give another ip_adapter_encoder.")
