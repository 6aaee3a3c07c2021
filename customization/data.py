"""Pictures of what is to be learned: with captions or one prompt, with masks, with pictures of its class beside them.

With class pictures (DreamBooth's prior preservation, arXiv 2208.12242) even samples of a run are pictures to learn,
odd ones pictures of the class, so that a batch has as many of the one as of the other. A sample is a function of the seed and
its number.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.data.decode import MAX_BYTES, decode, open_picture
from distill.data.errors import DataError
from distill.data.files import read_below, sha256_of
from distill.data.images import ImageFolder, ImagesConfig
from distill.data.latent_files import opened_digest
from distill.data.latents import Latents, LatentsConfig
from distill.data.pictures import BucketConfig, stack
from distill.data.report import Unusable
from distill.data.source import Source, make_source
from distill.data.transform import Resize, choose_view, render
from distill.registry import SOURCES
from distill.types import Batch
from gen.generator import Generator
from gen.io.images import alpha
from gen.io.weights import write_bytes
from gen.nn.registry import Config, from_registry
from samplers.noise import fold

NONE_GIVEN = "Write NAME.txt beside each picture, or give one prompt for all."


class PriorConfig(Config):
    """Pictures that are to stay what they are: of the class, what the prompt gives without the concept, or, with several
    prompts, of other things. folder: where they are or will be; in the run's folder if None. count: how many there must be;
    what is missing the model makes, with these steps and this guidance (its own if None), by the prompts in turn. With several,
    NAME.txt beside each picture has its caption."""

    prompt: (
        Annotated[str, Field(min_length=1)] | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    )
    folder: Path | None = None
    count: int = Field(default=50, gt=0, le=100_000)
    num_inference_steps: int | None = Field(default=None, gt=0)
    guidance_scale: float | None = Field(default=None, ge=0)
    batch_size: int = Field(default=8, gt=0)

    def prompt_of(self, number: int) -> str:
        """The prompt of a picture that the model makes."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[number % len(self.prompt)]


class ConceptConfig(Config):
    """images: a folder (`distill.data.images`). prompt: of all pictures; {} in it stands for a picture's own caption. masks:
    a folder of pictures of the same names as PNG, white where to learn; or "alpha", the pictures' own. size: in pixels; the
    model's if None. variants: how many views of a picture are encoded, the plain one included; None: 8 where views differ,
    else 1. latents: a folder to keep them in from run to run."""

    images: Path
    prompt: str | None = None
    captions: Literal["auto", "metadata", "txt", "folder", "none"] = "auto"
    prior: PriorConfig | None = None
    masks: Path | Literal["alpha"] | None = None
    size: int | None = Field(default=None, ge=8, le=4096)
    buckets: BucketConfig | None = None
    resize: Resize = "crop"
    random_crop: bool = False
    flip: float = Field(default=0.0, ge=0, le=1)
    drop_caption: float = Field(default=0.0, ge=0, le=1)
    background: tuple[int, int, int] = (255, 255, 255)
    variants: int | None = Field(default=None, ge=1, le=1024)
    latents: Path | None = None
    on_error: Literal["skip", "raise"] = "raise"

    @model_validator(mode="after")
    def _together(self) -> ConceptConfig:
        if self.prior is not None and self.buckets is not None:
            raise ValueError("class pictures are square; leave prior or buckets out")
        return self


FOLDERS, WRAPPERS = ("images", "webdataset", "huggingface"), ("latents", "grouped")

OWN_SOURCES: dict[str, tuple[str, str, str]] = {
    "concept": ("customization.data", "ConceptConfig", "ConceptData"),
    "sizes": ("customization.size_sampling", "SizesConfig", "Sizes"),
}


def make_data(
    config: dict[str, Any], seed: int, batch_size: int, generator: Generator, output: Path | None = None, make: bool = True
) -> Source:
    """The data of a run: `type: concept`, or any source of `distill.data`. make: the class pictures that are missing."""
    if config.get("type") in SOURCES:
        return make_source(keeping_captions(config), seed, batch_size)
    kind, checked = from_registry({**OWN_SOURCES, **SOURCES}, "data source", config)
    if kind is not ConceptData:
        return kind(checked, seed, generator).grouped(batch_size)
    folder = None
    if checked.prior is not None:
        folder = checked.prior.folder or (output or Path()) / "class"
        if make:
            make_class_pictures(checked.prior, folder, generator)
    return ConceptData(checked, seed, generator, folder).grouped(batch_size)


def keeping_captions(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a source of pictures that drops no captions unless it says so: a model that is taught has learned already
    what nothing in particular looks like."""
    if config.get("type") in WRAPPERS and isinstance(config.get("source"), dict):
        return {**config, "source": keeping_captions(config["source"])}
    return {"drop_caption": 0.0, **config} if config.get("type") in FOLDERS else config


def make_class_pictures(config: PriorConfig, folder: Path, generator: Generator) -> int:
    """Let the model make what a folder lacks of `count` pictures; returns how many those were. Picture i has seed i, so that an
    interrupted run goes on with the rest."""
    if generator.text_encoder is None:
        raise ValueError(f"The model {generator.name!r} reads no text, so it cannot make pictures of {config.prompt!r}.")
    there = (
        sum(path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") for path in folder.glob("*")) if folder.is_dir() else 0
    )
    _check_made_of(config, folder, generator)
    missing = [i for i in range(config.count) if not (folder / f"{i:05d}.png").exists()][: max(config.count - there, 0)]
    if missing:
        from gen.pipeline.png import save_image

        folder.mkdir(parents=True, exist_ok=True)

        def save(batch: Any) -> None:
            for picture, recipe in zip(batch.images, batch.recipes, strict=True):
                if not isinstance(config.prompt, str):
                    write_bytes(folder / f"{recipe.seed:05d}.txt", config.prompt_of(recipe.seed).encode())
                save_image(picture, folder / f"{recipe.seed:05d}.png", recipe)

        generator(
            [config.prompt_of(number) for number in missing],
            seeds=missing,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            batch_size=config.batch_size,
            on_images=save,
        )
    return len(missing)


def _check_made_of(config: PriorConfig, folder: Path, generator: Generator) -> None:
    """ValueError where pictures in the folder are another prompt's or another model's, as their recipes say; pictures without a
    recipe are their owner's."""
    from gen.io.errors import RecipeError
    from gen.pipeline.png import read_recipe

    prompts = (config.prompt,) if isinstance(config.prompt, str) else config.prompt
    for path in sorted(folder.glob("*.png")) if folder.is_dir() else ():
        try:
            recipe = read_recipe(path)
        except RecipeError:
            continue
        if recipe.prompt not in prompts:
            wanted = repr(prompts[0]) if len(prompts) == 1 else f"one of {', '.join(map(repr, prompts[:3]))}, ..."
            what = f"was made of {recipe.prompt!r}, and the prompt of the class is {wanted}"
        elif generator.weights and recipe.model.weights and dict(recipe.model.weights) != dict(generator.weights):
            what = f"was made by another model than {generator.name!r}"
        else:
            continue
        raise ValueError(f"{path} {what}; delete the folder, or give another in prior.folder.")


class Encoded(Latents):
    """Latents of a source of pictures by a model's own autoencoder, in memory, and in a folder where one is given."""

    def __init__(self, source: ImageFolder, generator: Generator, variants: int, folder: Path | None):
        device = str(generator.device)
        self.config = LatentsConfig(source={}, autoencoder=Path(), variants=variants, folder=folder or Path(), device=device)
        self.source: Any = source
        assert generator.autoencoder is not None
        known = generator.weights.get("autoencoder") or generator.weights.get("vae") or ""
        self.weights = opened_digest(generator.autoencoder, known)
        self._autoencoder: nn.Module | None = generator.autoencoder
        self._paths: dict[int, Path] = {}
        self._made: dict[int, tuple[int, Tensor]] = {}
        self.kept = folder is not None and bool(self.weights)
        self._full = not self.kept

    def latents(self, index: int) -> tuple[int, Tensor]:
        if index not in self._made:
            self._made[index] = super().latents(index) if self.kept else self._encode(index)
        return self._made[index]


class ConceptData:
    """A data source (see distill.data.Source). Batches have extra["prior"] (B,) with class pictures, extra["mask"] (B, 1, h, w)
    with masks."""

    def __init__(self, config: ConceptConfig, seed: int, generator: Generator, prior: Path | None = None):
        self.config, self.seed = config, seed
        self.generator = generator
        if config.prompt is None and config.captions == "none" and generator.text_encoder is not None:
            raise DataError(f"{config.images} is to be read without captions, and there is no prompt. {NONE_GIVEN}")
        differ = config.flip > 0 or config.random_crop
        self.taught = self._open(config.images, config.captions, config.variants or (8 if differ else 1))
        self.report = self.taught.report
        self._check_captions()
        self.prior = None if prior is None else self._open(prior, self._prior_captions(), 1)
        uncaptioned = [] if self.prior is None else [item.name for item in self.prior.items if not item.caption]
        if uncaptioned and not self._class_prompt:
            raise DataError(f"{prior}: {uncaptioned[0]} has no caption; write NAME.txt beside it, or give one prompt for all.")
        self.latents, self.prior_latents = self._encoded(self.taught), self._encoded(self.prior)
        if config.masks is not None:
            self._check_masks()
        self._masks: dict[tuple[int, int], Tensor] = {}

    def _prior_captions(self) -> str:
        """Pictures of one prompt need no caption each."""
        return "none" if self._class_prompt else "txt"

    @property
    def _class_prompt(self) -> str:
        prompt = "" if self.config.prior is None else self.config.prior.prompt
        return prompt if isinstance(prompt, str) else ""

    def _open(self, folder: Path, captions: str, variants: int) -> ImageFolder:
        config = self.config
        settings = ImagesConfig(
            folder=folder,
            captions=captions,  # type: ignore[arg-type]
            size=config.size or self.generator.config.sample_size,
            buckets=config.buckets,
            resize=config.resize,
            random_crop=config.random_crop,
            flip=config.flip,
            background=config.background,
            variants=variants,
            on_error=config.on_error,
            min_side=8,
        )
        return ImageFolder(settings, self.seed)

    def _encoded(self, source: ImageFolder | None) -> Encoded | None:
        if source is None or self.generator.autoencoder is None:
            return None
        return Encoded(source, self.generator, source.config.variants or 1, self.config.latents)

    def _check_captions(self) -> None:
        prompt = self.config.prompt
        if self.generator.text_encoder is None or (prompt is not None and "{}" not in prompt):
            return
        without = [item.name for item in self.taught.items if not item.caption]
        if without:
            some = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
            raise DataError(
                f"{self.config.images}: {len(without)} of {len(self)} pictures have no caption ({some}). {NONE_GIVEN}"
            )

    def _check_masks(self) -> None:
        masks = self.config.masks
        if isinstance(masks, Path) and masks.resolve().is_relative_to(self.config.images.resolve()):
            raise DataError(f"{masks} lies inside of {self.config.images}, whose pictures are all learned; move it out.")
        for index in range(len(self)):
            extremes: Any = self._mask_image(index).getextrema()
            if not extremes[0][1]:
                raise DataError(f"The mask of {self.taught.items[index].name} is black everywhere, so it would teach nothing.")

    def __len__(self) -> int:
        return len(self.taught)

    def grouped(self, batch_size: int) -> ConceptData:
        self.taught.grouped(batch_size)
        return self

    def split(self, share: float) -> tuple[ConceptData, ConceptData]:
        """(the rest, a share of the pictures to learn); pictures of the class go with the first."""
        parts = []
        for taught in self.taught.split(share):
            parts.append(copy.copy(self))
            parts[-1].taught, parts[-1]._masks = taught, {}  # type: ignore[assignment]
            parts[-1].latents = parts[-1]._encoded(taught)  # type: ignore[arg-type]
        parts[1].prior, parts[1].prior_latents = None, None
        return parts[0], parts[1]

    def digest(self) -> str:
        """A hash of the pictures, of the class pictures and of the masks."""
        parts = [self.taught.digest(), self.prior.digest() if self.prior is not None else ""]
        if isinstance(self.config.masks, Path):
            names = [str(PurePosixPath(item.name).with_suffix(".png")) for item in self.taught.items]
            parts += [sha256_of(read_below(self.config.masks, name, MAX_BYTES)) for name in names]
        return sha256_of(repr(parts).encode())

    # ---- samples ----

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        numbers = [int(counter) for counter in counters]
        rows = [self._sample(counter) for counter in numbers]
        pictures, captions, masks, prior = zip(*rows, strict=True)
        extra: dict[str, Tensor] = {}
        if self.prior is not None:
            extra["prior"] = torch.tensor(prior)
        if self.config.masks is not None:
            side = pictures[0].shape[-2:]
            whole = torch.ones(1, *side)
            extra["mask"] = torch.stack([whole if mask is None else F.adaptive_avg_pool2d(mask, side) for mask in masks])
        stacked = stack(pictures)
        return Batch(
            index=torch.tensor(numbers),
            images=stacked if self.generator.autoencoder is None else None,
            latents=None if self.generator.autoencoder is None else stacked,
            captions=list(captions),
            labels=torch.full((len(numbers),), -1) if self.generator.classes else None,
            extra=extra,
        )

    def _sample(self, counter: int) -> tuple[Tensor, str, Tensor | None, bool]:
        """(latents or picture, caption, mask (1, H, W) in pixels, is it one of the class)."""
        if self.prior is None:
            return *self._taught(counter, counter), False
        half, odd = divmod(counter, 2)
        if not odd:
            return *self._taught(half, counter), False
        [(index, _)] = self.prior.choose([half])
        picture = self._seen(self.prior, self.prior_latents, index, 0)
        return picture, self._dropped(self.prior.items[index].caption or self._class_prompt, counter), None, True

    def _taught(self, number: int, counter: int) -> tuple[Tensor, str, Tensor | None]:
        [(index, k)] = self.taught.choose([number])
        picture = self._seen(self.taught, self.latents, index, k)
        mask = None if self.config.masks is None else self.mask(index, k)
        return picture, self._dropped(self.caption(index), counter), mask

    def _seen(self, source: ImageFolder, encoded: Encoded | None, index: int, k: int) -> Tensor:
        return source.variant(index, k)[1] if encoded is None else encoded.latents(index)[1][k].float()

    def _dropped(self, caption: str, counter: int) -> str:
        share = self.config.drop_caption
        return "" if share and fold(self.seed, "caption", counter) % (1 << 30) < share * (1 << 30) else caption

    def caption(self, index: int) -> str:
        own, prompt = self.taught.items[index].caption, self.config.prompt
        return own if prompt is None else prompt.replace("{}", own)

    # ---- masks ----

    def mask(self, index: int, k: int) -> Tensor:
        """(1, H, W) in [0, 1]: what of variant k of a picture is learned, cut as the picture is."""
        if (index, k) not in self._masks:
            taught, config = self.taught, self.taught.config
            image, item = self._mask_image(index), taught.items[index]
            target = taught.sizes[taught.bucket_of[index]]
            rng = random.Random(fold(0, "variant", item.name, k)) if k else None
            view = choose_view(image.size, target, config.resize, rng, config.random_crop, config.flip)
            cut = render(image, view, target, config.resize, (0, 0, 0))
            self._masks[index, k] = (cut[:1] / 2 + 0.5).clamp(0, 1)
        return self._masks[index, k]

    def _mask_image(self, index: int) -> Image.Image:
        item = self.taught.items[index]
        if self.config.masks == "alpha":
            data = self.taught.read(item)
            decode(data)  # Unusable where it is not a picture
            opacity = alpha(open_picture(data))
            if opacity is None:
                raise DataError(f"{item.name} has no alpha channel to be its mask; save it as PNG with one, or give masks.")
            return opacity.convert("RGB")
        assert isinstance(self.config.masks, Path)
        name = str(PurePosixPath(item.name).with_suffix(".png"))
        try:
            image = decode(read_below(self.config.masks, name, MAX_BYTES)).convert("L").convert("RGB")
        except Unusable as error:
            raise DataError(f"{self.config.masks}: the mask {name} {error}; every picture needs one.") from None
        if not math.isclose(image.width / image.height, item.width / item.height, rel_tol=0.02):
            raise DataError(
                f"The mask {name} is {image.width}x{image.height} and its picture {item.width}x{item.height}; "
                "give both one shape."
            )
        return image.resize((item.width, item.height))
