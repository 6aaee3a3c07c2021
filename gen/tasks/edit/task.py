"""Pictures to start from: image to image, and inpainting under a mask (`samplers.editing` has the mathematics).

Networks that were trained to edit read the picture, or the picture and the mask, beside the noise. The run then begins with
noise, unless a strength (or, where the network reads no mask, a mask) says that it begins with the picture too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.images import digest, fit, read_picture, resize, same_shape
from gen.io.validators import check_float
from gen.models.prompt_reading import SeenPicture
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Crop, Decode, Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.edit.options import EditKeywords, Start
from gen.tasks.enlarge.options import EnlargementRecord
from gen.tasks.positional_query.options import AroundRecord
from gen.tasks.restore.options import RestoreArguments, RestoreRecord

if TYPE_CHECKING:
    from gen.models.model import Model
    from samplers.denoiser import Condition, Denoiser
    from samplers.sample import Solver

BeganWith = Start | RestoreRecord | EnlargementRecord | AroundRecord
REFERENCES = (
    "reference",
    *(f"reference_{k}" for k in range(2, 17)),
)  # where networks find what they read, in `Condition.extra`
LONG, SHORT = 4, 2  # times the model's own size: sides up to which a picture is made at its own size


@dataclass(frozen=True)
class Edit(Task):
    """An edit of one picture.

    picture: (1, 3, H, W) in [0, 1].
    latents: (1, C, h, w), as the denoiser sees them; None where the run begins with noise.
    mask: (1, 1, H, W), 1 where the picture is made anew; latent_mask: as latents see it.
    begun: its record, with how much of the schedule is run.
    references: (1, C, h', w') each, the latents that a network reads which was trained to edit pictures.
    seen: the pictures for a text encoder that sees them.
    filled: (1, C + f^2, h, w), what one reads that was trained to fill: the latents of the picture with grey where the mask is
        open, and the mask's f x f pixels.
    """

    picture: Tensor
    latents: Tensor | None
    mask: Tensor | None
    latent_mask: Tensor | None
    begun: Start
    references: tuple[Tensor, ...] = ()
    seen: tuple[SeenPicture, ...] = ()
    filled: Tensor | None = None

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(chooses_size=True)

    @classmethod
    def choose_size(
        cls, model: Model, args: EditKeywords, height: int | None, width: int | None, multiple: int
    ) -> tuple[EditKeywords, int | None, int | None]:
        return own_size(model, args, height, width, multiple)

    @classmethod
    def from_call(cls, model: Model, args: EditKeywords, settings: Settings) -> tuple[Edit | None, Settings]:
        edit = make_edit(model, args.image, args.mask, args.strength, settings.height, settings.width)
        if edit is None:
            return None, settings
        if edit.begun.strength is not None:
            settings = shortened(model, settings, edit.begun.strength)
        if edit.seen:
            settings = replace(settings, reading=replace(settings.reading, pictures=edit.seen))
        return edit, settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> EditKeywords | None:
        image, mask = keywords.get("image"), keywords.get("mask")
        if recipe.canvas is not None and recipe.enlargement is None:
            from gen.tasks.canvas.task import replayed_pictures

            image, mask = replayed_pictures(recipe, image, mask)
        check_given(recipe.start or recipe.restore or recipe.enlargement or recipe.around, image, mask)
        return None if recipe.start is None else EditKeywords(image, mask, recipe.start.strength)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        if recipe is not None:
            check_same(self.begun, recipe.start)
        other = next((name for name in ("layout", "views") if name in settings.tasks), None)
        if other and (self.references or self.filled is not None):
            raise ValueError(f"This model reads the picture that it edits, which goes without {other}; leave one of them out.")
        if (
            self.mask is not None
            and self.filled is None
            and (settings.guidance.names[0] == "cfg++" or settings.guidance.keeps_both)
        ):
            raise ValueError(
                "cfg++ moves the whole picture, also what a mask keeps; choose other guidance for inpainting, and a sampler "
                "other than *_cfg_pp."
            )

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        def beside(condition: Condition) -> Condition:
            if self.filled is not None:
                condition = replace(condition, image=_rows(self.filled, batch))
            read = {name: _rows(one, batch) for name, one in zip(REFERENCES, self.references, strict=False)}
            return replace(condition, extra={**condition.extra, **read}) if read else condition

        x = batch.x if self.latents is None else batch.settings.levels[0].mix(self.latents, batch.noise)
        return replace(batch, condition=beside(batch.condition), negative=batch.negative and beside(batch.negative), x=x)

    def wrap_guided(self, denoiser: Denoiser, solver: Solver, batch: SamplingBatch) -> tuple[Denoiser, Solver]:
        if self.latents is None or self.latent_mask is None or self.filled is not None:
            return denoiser, solver
        from samplers.editing import Inpaint

        return Inpaint(denoiser, self.latents, self.latent_mask, batch.noise), solver

    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        """With what the mask keeps put back, to the pixel."""
        images = decode(latents, None)
        if self.mask is not None:
            images = torch.lerp(self.picture.expand_as(images), images, self.mask)
        return images if crop is None else crop(images)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"start": self.begun}


def shortened(model: Model, settings: Settings, strength: float) -> Settings:
    """With the levels from which a picture is noised by a strength, 0 to 1."""
    from samplers.editing import start_at, start_at_level
    from samplers.registry import get_grid
    from samplers.solvers.adaptive import Adaptive

    levels = settings.levels
    if not isinstance(settings.solver, Adaptive) or settings.schedule in ("custom", "table"):
        return replace(settings, levels=start_at(levels, strength))
    # two steps are no measure of a strength: the level is that of the schedule's own hundred
    fine = get_grid(settings.schedule, model.denoiser.path, 100, **settings.schedule_options)
    return replace(settings, levels=start_at_level(levels, start_at(fine, strength)[0]))


def make_edit(model: Model, image: Any, mask: Any, strength: object, height: int, width: int) -> Edit | None:
    """None where no image is given. ValueError for anything that is not a usable picture, mask or strength."""
    if image is None:
        orphan = "mask" if mask is not None else "strength" if strength is not None else None
        if orphan:
            raise ValueError(f"{orphan} was given without an image to change; give image too.")
        return None
    reads = getattr(model.network, "reads", "")
    image, *others = image if isinstance(image, list | tuple) and image else [image]
    most = max(getattr(model.network, "most_pictures", 1), 1)
    if len(others) >= most:
        count = "one picture" if most == 1 else f"at most {most} pictures"
        raise ValueError(
            f"{len(others) + 1} images were given, and the model {model.name!r} takes {count} at a time; give fewer."
        )
    if reads == "mask" and mask is None:
        raise ValueError("This model fills in what a mask opens; give mask too (white is made anew).")
    amount = None
    if strength is not None or mask is not None or reads != "picture":
        usual = 0.8 if mask is None else 1.0
        amount = check_float("strength", usual if strength is None else strength, 0, 1)
    source = read_picture("image", image, "RGB")
    pixel_mask = None if mask is None else read_mask("mask", mask, source, "image")
    picture = fit_and_warn("image", source, height, width, size_tolerance(model))
    pixel_mask = None if pixel_mask is None else fit(pixel_mask, height, width)
    beside = [read_picture("image", one, "RGB") for one in others]
    start = Start(
        image=digest(picture),
        others=tuple(map(digest, beside)) or None,
        mask=None if pixel_mask is None else digest(pixel_mask),
        strength=amount,
    )

    picture = picture.to(model.device)
    pixel_mask = None if pixel_mask is None else pixel_mask.to(model.device)
    # a latent that touches any pixel to be made is made
    latent_mask = None if pixel_mask is None else F.max_pool2d(pixel_mask, model.factor)
    latents = None if amount is None else encode(model, picture * 2 - 1)
    edit = Edit(picture, latents, pixel_mask, latent_mask, start)
    if reads == "picture":
        pictures = (source, *beside)
        seen: tuple[SeenPicture, ...] = ()
        if getattr(model.text_encoder, "sees", False):
            sizes = [model.text_encoder.seen_size(*one.shape[-2:]) for one in pictures]
            seen = tuple(SeenPicture(digest(one), resize(one, *size)) for one, size in zip(pictures, sizes, strict=True))
        return replace(edit, references=tuple(_reference(model, one) for one in pictures), seen=seen)
    if reads == "mask" and pixel_mask is not None:
        opened = (pixel_mask >= 0.5).float()
        kept = encode(model, (picture * 2 - 1) * (1 - opened))
        return replace(edit, filled=torch.cat([kept, F.pixel_unshuffle(opened, model.factor)], dim=1))
    return edit


def _reference(model: Model, picture: Tensor) -> Tensor:
    """The latents of a picture (1, 3, H, W) in [0, 1] at the size that an editing network reads it at."""
    multiple = model.factor * model.network.config.patch
    size = model.network.picture_size(*picture.shape[-2:])
    sides = [max(side // multiple, 1) * multiple for side in size]
    scaled = fit(resize(picture, *size), *sides) if getattr(model.network, "crops", False) else resize(picture, *sides)
    return encode(model, scaled.to(model.device) * 2 - 1)


@torch.no_grad()
def encode(model: Model, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as the denoiser sees them."""
    if model.autoencoder is None:
        return pictures
    return model.autoencoder.encode(pictures).float() * model.config.latent_scale


def _rows(one: Tensor, batch: SamplingBatch) -> Tensor:
    """(1, ...) for every picture of a batch."""
    return one.expand(len(batch.noise), *one.shape[1:])


def check_given(start: BeganWith | None, image: Any, mask: Any) -> None:
    """ValueError unless a replay is given the image and mask that a recipe began with, and no others."""
    for name, picture, needed in (("image", image, start is not None), ("mask", mask, bool(start and start.mask))):
        article = "an" if name == "image" else "a"
        if needed and picture is None:
            raise ValueError(
                f"The picture was made from {article} {name}, which is not in its recipe; give it as {name} (--{name})."
            )
        if picture is not None and not needed:
            raise ValueError(f"The picture was made without {article} {name}; leave it out.")


def check_same(used: BeganWith, recorded: BeganWith | None) -> None:
    """ValueError unless a replay begins with the recipe's image and mask."""
    if recorded is not None and used != recorded:
        changed = "image" if used.image != recorded.image else "mask"
        raise ValueError(f"This {changed} is not the one that the picture was made from: its sha256 differs.")


def read_mask(name: str, source: Any, picture: Tensor, of: str) -> Tensor:
    """(1, 1, H, W) in [0, 1]; ValueError for one of another shape than the picture (1, 3, H, W) that it is of."""
    mask = read_picture(name, source, "L")
    check_shape(name, mask, tuple(picture.shape[-2:]), of)  # type: ignore[arg-type]
    return mask


def check_shape(name: str, mask: Tensor, size: tuple[int, int], of: str) -> None:
    """ValueError unless a mask has the shape of `size`, the height and width of what it is of."""
    rows, columns = mask.shape[-2:]
    if not same_shape((rows, columns), size):
        raise ValueError(
            f"{name} is {columns} x {rows} and the {of} {size[1]} x {size[0]}, which is another shape; give a mask that lies "
            f"over the whole {of}."
        )


def fit_and_warn(name: str, picture: Tensor, height: int, width: int, tolerance: int) -> Tensor:
    """`fit`, with a warning where more than `tolerance` pixels of the result are cut away, which rounding asks for."""
    rows, columns = picture.shape[-2:]
    scale = max(height / rows, width / columns)
    if max(rows * scale - height, columns * scale - width) > tolerance:
        warnings.warn(
            f"{name} is {columns} x {rows}, another shape than the {width} x {height} of the picture: what lies beside its "
            "middle is cut away.",
            stacklevel=2,
        )
    return fit(picture, height, width)


def size_tolerance(model: Model) -> int:
    """The pixels by which a picture's side may differ from its shape because the networks take multiples."""
    return model.factor * model.network.config.patch // 2 + 1


BeginsWith = TypeVar("BeginsWith", EditKeywords, RestoreArguments)


def own_size(
    model: Model, args: BeginsWith, height: int | None, width: int | None, multiple: int, enlarged: int = 1, name: str = "image"
) -> tuple[BeginsWith, int | None, int | None]:
    """(arguments, height, width) of a call that starts from `args.image` and does not say both sides: the picture's own shape,
    `enlarged` times. The picture is read once, and handed on in the arguments. name: the keyword it was given by."""
    if args.image is None or (height is not None and width is not None):
        return args, height, width
    first, *others = args.image if isinstance(args.image, list | tuple) and args.image else [args.image]
    picture = read_picture(name, first, "RGB")
    rows, columns = (side * enlarged for side in picture.shape[-2:])
    multiple, side = math.lcm(multiple, enlarged), model.config.sample_size
    made = nearest_size((rows, columns), height, width, side, multiple)
    if height is None and width is None and made != (rows, columns):
        would = f", {columns} x {rows} when enlarged" if enlarged > 1 else ""
        if max(abs(made[0] - rows), abs(made[1] - columns)) < multiple:
            why = f"as sides are multiples of {multiple} here"
        else:
            why = f"nearer to the {side} x {side} that the model was made for"
        warnings.warn(
            f"The image is {picture.shape[-1]} x {picture.shape[-2]}{would}; the picture is made at {made[1]} x {made[0]}, "
            f"{why}. Give height and width for another size.",
            stacklevel=2,
        )
    return replace(args, image=[picture, *others] if others else picture), made[0], made[1]


def nearest_size(size: tuple[int, ...], height: int | None, width: int | None, usual: int, multiple: int) -> tuple[int, int]:
    """The height and width nearest to a picture's own that the networks take: its own where the model can make that, else of
    its shape with as many pixels as the model knows; of its shape too where one of them is given. ValueError for a shape so
    long that its sides would be beyond LONG times, or below a LONG-th of, the model's own size."""
    rows, columns = size
    if max(size) > LONG**2 * min(size):
        raise ValueError(
            f"The image is {columns} x {rows}, and one side may be at most {LONG**2} times the other; cut a part out of it, or "
            "give height and width for the part about its middle."
        )
    if height is not None:
        scale = height / rows
    elif width is not None:
        scale = width / columns
    elif usual / SHORT <= min(size) < usual * SHORT and max(size) <= usual * LONG:
        scale = 1.0
    else:
        scale = usual / math.sqrt(rows * columns)
    sides = [max(round(side * scale / multiple), 1) * multiple for side in size]
    return height or sides[0], width or sides[1]
