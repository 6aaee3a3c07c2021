"""A picture and a map of it as one joint distribution (UniCon, arXiv 2410.11439), through an adapter trained for the model.

Pictures and maps are rows of one batch. What is given keeps its noise level, and the other, or both, are drawn
(`samplers.multi_model.joint`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gen.io.images import digest, read_picture
from gen.io.validators import check_float
from gen.models.control_pictures import KINDS, check_kind
from gen.models.joint import JoinedRows, OpenedJoint, find_joint, open_joint
from gen.nn.joint import STREAMS
from gen.pipeline.output import Output
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Caller, Crop, Decode, Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.edit.options import EditKeywords
from gen.tasks.edit.task import encode, fit_and_warn, own_size, size_tolerance
from gen.tasks.joint.options import SHOWN, JointKeywords, JointRecord
from samplers.brownian import brownian_noise
from samplers.denoiser import Condition, Denoiser
from samplers.editing import start_at
from samplers.lookup import nearest
from samplers.multi_model.joint import JointStreams
from samplers.noise import fold, normal, seeded_noise
from samplers.path import NoiseLevel
from samplers.rows import stack_conditions

if TYPE_CHECKING:
    from gen.models.model import Model

WITH = ("encoding",)  # tasks that it goes with
HELD = ("joint_strength", "joint_scale", "joint_shown")  # by the recipe


@dataclass(frozen=True)
class JointTask(Task):
    """opened: the adapter. latents: of what is given (1, C, h, w), as the denoiser sees them, None for nothing. level: that it
    waits at, None where it is as good as not there."""

    opened: OpenedJoint
    latents: Tensor | None
    level: NoiseLevel | None
    record_: JointRecord

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(copies=2, chooses_size=self.latents is not None)

    @classmethod
    def choose_size(
        cls, model: Model, args: JointKeywords, height: int | None, width: int | None, multiple: int
    ) -> tuple[JointKeywords, int | None, int | None]:
        name = "joint_map" if args.joint_map is not None else "joint_picture"
        edit, height, width = own_size(model, EditKeywords(getattr(args, name)), height, width, multiple, name=name)
        return replace(args, **{name: edit.image}), height, width

    @classmethod
    def from_call(cls, model: Model, args: JointKeywords, settings: Settings) -> tuple[JointTask | None, Settings]:
        if args.joint is None:
            orphan = next((name for name, value in vars(args).items() if value is not None), None)
            if orphan is not None:
                raise ValueError(f"{orphan} was given without joint; give the kind of map, such as {next(reversed(KINDS))!r}.")
            return None, settings
        kind = check_kind(args.joint)
        if args.joint_map is not None and args.joint_picture is not None:
            raise ValueError("joint_map and joint_picture are both given, so nothing is left to draw; leave one of them out.")
        opened = open_joint(find_joint(args.joint_adapter), model)
        if opened.kind != kind:
            raise ValueError(
                f"This joint adapter draws {opened.kind}, not {kind}; ask for {opened.kind}, or give the folder of "
                "another as joint_adapter (--joint-adapter)."
            )
        given = "map" if args.joint_map is not None else "picture" if args.joint_picture is not None else None
        strength = check_float("joint_strength", args.joint_strength or 0.0, 0, 1)
        if given is None and args.joint_strength is not None:
            raise ValueError(
                "joint_strength is how much of a given map or picture may change; give joint_map or joint_picture."
            )
        latents, level, image = None, None, None
        if given is not None:
            picture = _read(args, given, kind, model, settings)
            image, latents = digest(picture), encode(model, picture.to(model.device) * 2 - 1)
            waits = model.denoiser.path(0.0) if strength == 0 else start_at(settings.levels, strength)[0]
            level = waits if waits.logsnr > settings.levels[0].logsnr else None
        record = JointRecord(
            adapter=opened.digest,
            kind=kind,
            given=given,  # type: ignore[arg-type]
            image=image,
            strength=strength,
            scale=check_float("joint_scale", 1.0 if args.joint_scale is None else args.joint_scale, -100, 100),
            shown=_shown(args.joint_shown, given),
        )
        return cls(opened, latents, level, record), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> JointKeywords | None:
        record, own = recipe.joint, {name: keywords.get(name) for name in vars(JointKeywords())}
        wanted = None if record is None or record.given is None else f"joint_{record.given}"
        for name in ("joint_map", "joint_picture"):
            if name == wanted and own[name] is None:
                raise ValueError(f"The picture was drawn of a {name[6:]}, which its recipe does not hold; give it as {name}.")
            if name != wanted and own[name] is not None:
                raise ValueError(f"The picture was made without {name}; leave it out.")
        if said := next((name for name in HELD if own[name] is not None), None):
            raise ValueError(f"The recipe says how a map and a picture were joined already; leave {said} out.")
        if record is None:
            return JointKeywords(**own)
        strength = None if record.given is None else record.strength
        return replace(
            JointKeywords(**own), joint=record.kind, joint_strength=strength, joint_scale=record.scale, joint_shown=record.shown
        )

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        for name in settings.tasks:
            if name not in (*WITH, "joint"):
                raise ValueError(f"A picture drawn with its map goes without {name}; leave one of them out.")
        recorded = None if recipe is None else recipe.joint
        if recorded is not None and recorded != self.record_:
            changed = "joint_adapter" if recorded.adapter != self.record_.adapter else f"joint_{recorded.given}"
            raise ValueError(f"This {changed} is not what the picture was made with: its sha256 differs.")

    # ---- two streams ----

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        """With a row for the map of every picture, whose noise is another function of its seed."""
        settings, shape = batch.settings, batch.noise.shape[1:]
        seeds = [fold(seed, "map") for seed in batch.seeds]
        maps = normal(seeds, shape, "latents", device=batch.noise.device, dtype=batch.noise.dtype, kind=settings.noise_kind)
        noise = torch.cat([batch.noise, maps])
        draw: Any = brownian_noise if settings.brownian else seeded_noise
        source = draw([*batch.seeds, *seeds], noise, kind=settings.noise_kind)
        x, count = settings.levels[0].sigma * noise, len(maps)
        if self.level is not None:
            rows = slice(self.stream * count, (self.stream + 1) * count)
            x[rows] = settings.levels[0].mix(self.clean(noise)[rows], noise[rows])
        return replace(
            batch,
            noise=noise,
            x=x,
            source=source,
            condition=_twice(batch.condition),
            negative=batch.negative and _twice(batch.negative),
        )

    @property
    def stream(self) -> int:
        """The number of the stream that is given."""
        return STREAMS.index(cast("str", self.record_.given))

    def clean(self, noise: Tensor) -> Tensor:
        """What is given, in the rows of both streams; zeros for nothing."""
        return torch.zeros_like(noise) if self.latents is None else self.latents.to(noise).expand_as(noise)

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        count, scale = len(batch.noise) // 2, self.record_.scale
        apart = None if scale == 1 else JoinedRows(denoiser, self.opened, count, 0.0)
        held = {} if self.level is None else {self.stream: self.level}
        joined = JoinedRows(denoiser, self.opened, count)
        return JointStreams(joined, count, self.clean(batch.noise), batch.noise, held, apart, scale)

    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        """What is shown, (B, 3, H, W), or side by side (B, 3, H, 2 W)."""
        pictures, maps = latents.unflatten(0, (2, -1))
        shown = {"picture": (pictures,), "map": (maps,), "both": (pictures, maps)}[self.record_.shown]
        return torch.cat([decode(one, crop) for one in shown], dim=3)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"joint": self.record_}


def _twice(condition: Condition) -> Condition:
    return stack_conditions([condition, condition])


def _shown(asked: str | None, given: str | None) -> Any:
    """What is shown: what was not given, or both, unless something else is asked for."""
    if asked is None:
        return {None: "both", "map": "picture", "picture": "map"}[given]
    if asked not in SHOWN:
        near = nearest(asked, SHOWN)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"joint_shown is {asked!r:.80}; choose one of {', '.join(SHOWN)}.{hint}")
    return asked


def _read(args: JointKeywords, given: str, kind: str, model: Model, settings: Settings) -> Tensor:
    """What is given (1, 3, H, W) in [0, 1], brought to size; a map as maps were trained on."""
    name = f"joint_{given}"
    picture = read_picture(name, getattr(args, name), "RGB")
    picture = fit_and_warn(name, picture, settings.height, settings.width, size_tolerance(model))
    return KINDS[kind][1](picture.float()) if given == "map" else picture


def estimate(
    generator: Caller, image: Any, prompt: str | Sequence[str] | None = None, kind: str = "segments", **call: Any
) -> Output:
    """The map of a picture, drawn by a model with a joint adapter. Its recipe replays, given the picture again.

    image: the picture (file, PIL, array or tensor). kind: of the map; other arguments are those of a call.
    """
    return generator(prompt, **call, joint=kind, joint_picture=image)
