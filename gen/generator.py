"""`Generator`: prompts in, pictures and their recipes out.

    generator = Generator.from_pretrained("default")
    generator("a red heart", seed=7).images[0].save("heart.png")

The arguments are diffusers' where diffusers has them. A picture depends on its seed and recipe, not on the pictures beside
it. Latents are (B, C, h, w), pictures (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gen import request
from gen.backbones.fused import pack
from gen.bins import nearest
from gen.compose import check_recorded, make_composition, recorded_regions
from gen.conditions import join
from gen.edit import cut_to, make_edit
from gen.field import Rules
from gen.model_folder import ModelConfig, Pipeline, model_config
from gen.pretrained import ModelOptions, find_model, load_model, resolve_device, resolve_dtype
from gen.prompt_memory import PromptMemory
from gen.recipe import Recipe, save_image
from gen.run import Settings, check_inputs, counting, is_guided, make_batch, progress_bar
from gen.with_adapters import WithAdapters
from gen.with_canvas import WithCanvas
from samplers.denoiser import Condition, NetworkDenoiser
from samplers.path import NoiseLevel
from samplers.registry import get_grid, get_solver, grid_info, parse_sampler, solver_info
from samplers.sample import Solver

if TYPE_CHECKING:
    from gen.adapters.model import ModelAdapters
    from gen.energies import EnergyInfo
    from gen.guide import Guide
    from gen.tweaks import TweakOptions, Tweaks

BATCH = 8  # pictures per network call unless the caller says otherwise
OUTPUTS = ("pil", "np", "pt", "latent")
RESTORE_SCALE = 2.0  # of guidance, at most: more pulls a picture from its measurement, and seams and stains show
PROMPT_MEMORY = 256 << 20  # bytes of text features that a generator keeps


@dataclass
class Output:
    """What a call returns: pictures in the order asked for, their recipes and seeds, and evaluations per picture.

    images: PIL pictures, a numpy array (B, H, W, 3) or a tensor (B, 3, H, W) in [0, 1], or latents (B, C, h, w).
    An interrupted call holds the pictures it got to.
    """

    images: Any
    recipes: list[Recipe]
    seeds: list[int]
    nfe: float
    interrupted: bool = False

    def save(self, path: Path | str, overwrite: bool = False) -> list[Path]:
        """Write PIL pictures as PNG with their recipes: heart.png, or heart-0.png, heart-1.png, ... for several."""
        if not isinstance(self.images, list):
            raise ValueError('Only PIL pictures are saved with their recipes; call with output_type="pil".')
        path = Path(path)
        names = [path] if len(self.images) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(len(self.images))]
        return [save_image(*one, overwrite) for one in zip(self.images, names, self.recipes, strict=True)]


class Generator(WithAdapters, WithCanvas):
    """A model ready to make pictures. `from_pretrained` opens one; the constructor takes networks that you have.

    config: a `ModelConfig` or its plain values. The denoiser network is converted to `dtype` in place; the sampler's own
    arithmetic and the other networks stay float32. `interrupt = True`, set from a callback, ends the call early.
    """

    def __init__(
        self,
        config: ModelConfig | Mapping[str, Any],
        network: nn.Module,
        autoencoder: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
        *,
        name: str = "unnamed",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        weights: Mapping[str, str] | None = None,
    ):
        self.config, self.name = model_config(config), name
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.network = network.to(self.device, self.dtype).eval()
        self.autoencoder = autoencoder and autoencoder.to(self.device, memory_format=torch.channels_last).eval()
        self.text_encoder = text_encoder and text_encoder.to(self.device).eval()
        self.denoiser: NetworkDenoiser = self.config.denoiser(self.network, self.dtype)
        self.adapters: dict[str, float] = {}
        self.energies: dict[str, EnergyInfo] = {}  # of other packages, beside `gen.energies`
        self.interrupt = False
        self.pipeline: Pipeline | None = None
        self.weights = dict(weights or {})
        self._encoded = PromptMemory(PROMPT_MEMORY)
        self._loaded: ModelAdapters | None = None
        self._colours: Tensor | None = None
        self.read_null({})

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "default",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        *,
        vae: str | Path | None = None,
        text_encoder: str | Path | None = None,
        native: bool | None = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> Generator:
        """Open a model: "default" or its few-step student "fast" (they come with the package), a model folder of ours or of
        diffusers, a checkpoint of a U-ViT, DiT or PixArt (a safetensors file, or its folder), or a hub id "owner/name".

        device: "cuda", "mps", "cpu", or None for the best there is. dtype: "float32", "bfloat16", "float16", or None for
        bfloat16 where the device is fast at it, else float32.
        vae, text_encoder: folders or hub ids of what a checkpoint lacks, an autoencoder of diffusers and a text encoder of
        transformers; vae also replaces a diffusers pipeline's own. native: run a diffusers pipeline's denoiser in our network,
        which is faster and takes every cache and guidance (True), or in diffusers' (False); None: in ours where it computes the
        same (DiT, PixArt). model_options: what a checkpoint does not tell (docs/formats.md).
        Raises ValueError with the reason if the model cannot be used.
        """
        name, folder = find_model(model, revision)
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        opened = load_model(folder, dtype, ModelOptions(vae, text_encoder, native, model_options or {}))
        parts = opened.parts
        generator = cls(
            opened.config,
            parts["denoiser"],
            parts.get("autoencoder"),
            parts.get("text_encoder"),
            name=name,
            device=device,
            dtype=dtype,
            weights=opened.weights,
        )
        generator.pipeline = opened.pipeline
        return generator

    def save_pretrained(
        self, folder: Path | str, dtype: torch.dtype | None = None, *, format: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write the model in one piece, with a model card; weights in `dtype`, or as they are in memory.

        format: "fewstep", a folder of ours; "diffusers", a pipeline's folder, which diffusers opens too; None: of these the
        one that fits the network. Or a published format of the network alone (`gen.formats.FORMATS`), a file or folder. A model
        that is there already is replaced only if `overwrite` says so. ValueError says what a format cannot hold.
        """
        from gen.saving import save_model

        return save_model(self, Path(folder), dtype, format, overwrite)

    @property
    def channels(self) -> int:
        return self.network.config.channels

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, each way; 1 for a model of pixels."""
        return self.autoencoder.factor if self.autoencoder is not None else 1

    @property
    def classes(self) -> int:
        """How many classes the network knows; 0 for a network that takes no label."""
        return getattr(self.network.config, "num_classes", 0) or 0

    @torch.no_grad()
    def encode_prompt(
        self, prompts: Sequence[str], adapters: Mapping[str, float] | None = None, *, negative: bool = False
    ) -> Condition:
        """Text features of B prompts; an empty prompt gives the unconditional row. Each distinct prompt is read once.

        adapters: name -> weight of those in force, `generator.adapters` if None.
        """
        if self.text_encoder is None:
            raise ValueError(f"The model {self.name!r} reads no text; {self._instead()}.")
        active = {} if self._loaded is None else self._loaded.on_text(self.adapters if adapters is None else adapters)
        which = tuple(sorted(active.items()))
        keys = {prompt: (prompt, negative, which) for prompt in prompts}
        for prompt, key in keys.items():
            if key not in self._encoded:
                # one at a time: what a prompt gives must not depend on the prompts beside it
                with self._loaded.reading_with(active) if self._loaded and active else nullcontext():
                    condition = self.text_encoder.condition(prompt, negative)
                condition = condition.map(lambda v: v.to(self.dtype) if v.is_floating_point() else v)
                self._encoded.add(key, condition, keys.values())
        return join([self._encoded[keys[prompt]] for prompt in prompts])

    def read_null(self, adapters: Mapping[str, float]) -> None:
        """Tell a network that has no empty prompt of its own what the text encoders, under these adapters, make of one."""
        if hasattr(self.network, "set_null") and self.text_encoder is not None:
            self.network.set_null(self.encode_prompt([""], adapters, negative=True))

    @torch.no_grad()
    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], float32, of what the denoiser works on (B, C, h, w); cut to `size`, a height and
        width, about the middle where it is given."""
        images = latents.float()
        if self.autoencoder is not None:
            images = self.autoencoder.decode(images / self.config.latent_scale)
        images = images if size is None else cut_to(images.float(), size)
        return (images.float() / 2 + 0.5).clamp(0, 1).contiguous()

    def preview(self, latents: Tensor) -> list[Image.Image]:
        """Small pictures, one pixel per latent pixel, of what a callback gets as `denoised` (B, C, h, w); see `gen.preview`."""
        from gen import preview

        if self.autoencoder is not None and self._colours is None:
            self._colours = preview.fit(self.autoencoder, self.device)
        scaled = latents.to(self.device).float() / self.config.latent_scale
        return preview.pictures(preview.to_rgb(scaled, self._colours))

    def _instead(self) -> str:
        return "give class_labels instead" if self.classes else "it is unconditional, so leave the prompt out"

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., Mapping[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        class_labels: int | str | Sequence[int | str] | None = None,
        sampler: str | Solver | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        schedule: str | Sequence[NoiseLevel] | None = None,
        schedule_options: Mapping[str, Any] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance: str | Sequence[str] | None = None,
        guidance_options: Mapping[str, Any] | None = None,
        cache: str | Sequence[str] | None = None,
        cache_options: Mapping[str, Any] | None = None,
        composition: str | None = None,
        composition_options: Mapping[str, Any] | None = None,
        regions: Mapping[str, Any] | None = None,
        image: Any = None,
        mask: Any = None,
        strength: float | None = None,
        guide: str | Callable[..., Tensor] | None = None,
        guide_strength: float | None = None,
        guide_method: str | None = None,
        guide_options: Mapping[str, Any] | None = None,
        use_resolution_binning: bool | None = None,
        batch_size: int | None = None,
        progress: bool = True,
        on_images: Callable[[Output], None] | None = None,
        layout: Any = None,
        _restore: tuple | None = None,
        _views: tuple | None = None,
        _canvas: tuple | None = None,
        **tweaks: Unpack[TweakOptions],
    ) -> Output:
        """Make pictures. What is left out comes from the model's own defaults.

        prompt, negative_prompt: a string or one per picture; an empty prompt is unconditional, without guidance.
        height, width: pixels. guidance_scale: 1 is none. guidance_interval: (low, high) in log-SNR where guidance acts.
        seed: the first picture's; the next get seed + 1, ... seeds: one each. generator: seeds are drawn from it.
        latents: starting noise (B, C, h, w) of unit variance instead of the seeds' own.
        class_labels: integers or class names, -1 for unconditional. sampler, schedule: names with options, or a solver and
        noise levels of your own. guidance, cache: names from `fewstep samplers`, several with + between, and their options.
        composition: how several adapters act: merge, switch, composite, contrast or cached (`samplers.composition`), with
        composition_options. regions: adapter -> mask (white: there it acts); the others act everywhere.
        image: a picture to start from (file, PIL, array or tensor), noised by `strength` (0.8; 1 is from noise alone); where
        mask is 0 (black) it stays as it is, to the pixel. use_resolution_binning: make the picture at the nearest of the sizes
        that the model was trained at, then scale and cut it to height and width; None: as the model does by default.
        guide: an energy's name (`gen.energies`), or a function (pictures (B, 3, H, W) in [0, 1], condition) -> log-densities
        (B,); with the attribute space = "latents" it gets what the denoiser works on. guide_method, guide_strength,
        guide_options: how, how strongly, and options of method and energy (`samplers.guidance.training_free`).
        layout: prompts by region (`gen.layout`); `Generator.layout` takes its size from it, and reads files.
        tweaks: negtome, reference, concepts, aesthetic, greedy and their options (`gen.tweaks.TweakOptions`).
        batch_size: pictures per network call; halved by itself when memory runs out.
        callback_on_step_end(generator, step, t, kwargs) gets the tensors named in callback_on_step_end_tensor_inputs (of
        latents and denoised) and may return the latents changed; generator.preview(kwargs["denoised"]) gives small pictures.
        on_images is called with every batch that is done.
        Raises ValueError in a sentence for anything it cannot do.
        """
        prompts, negatives, classes = self._subjects(prompt, negative_prompt, class_labels)
        per_prompt = request.whole("num_images_per_prompt", num_images_per_prompt, 1, request.MAX_IMAGES)
        total = len(prompts) * per_prompt
        request.whole("the number of pictures", total, 1, request.MAX_IMAGES)
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type is {output_type!r}; choose one of {', '.join(OUTPUTS)}.")
        batch_size = BATCH if batch_size is None else request.whole("batch_size", batch_size, 1, 1024)
        inputs = check_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)

        multiple = self.factor * (1 if _canvas else self.network.config.patch)
        noise = request.unit_noise(latents, total, self.channels, self.factor, multiple)
        if noise is not None:
            own = tuple(side * self.factor for side in noise.shape[2:])
            if (height or own[0], width or own[1]) != own:
                raise ValueError(f"latents are for {own[1]} x {own[0]} pixels, but {width} x {height} is asked for; give one.")
            height, width = own
        binned = use_resolution_binning if noise is None and _canvas is None else False
        height, width, shown = self._made_at(height, width, binned)
        settings = self._settings(
            height=height,
            width=width,
            shown=_canvas[2] if _canvas else shown,
            steps=num_inference_steps,
            scale=guidance_scale,
            interval=guidance_interval,
            sampler=sampler,
            sampler_options=sampler_options,
            schedule=schedule,
            schedule_options=schedule_options,
            rules=self._rules(guidance, guidance_options, cache, cache_options),
            edit=(image, mask, strength),
            adapters=self.adapters,
            compose=(composition, composition_options, regions),
            guide=self._guide(guide, guide_strength, guide_method, guide_options),
            restore=_restore,
            layout=layout,
            tweaks=dict(tweaks),
            canvas=_canvas and _canvas[:2],
            views=_views,
        )
        if any(negatives) and not settings.rules.negatives:
            warnings.warn(
                f"negative_prompt has no effect under the guidance {settings.rules.name!r}; use cfg for it.", stacklevel=2
            )
        elif settings.scale == settings.rules.off and any(negatives):
            warnings.warn(
                f"negative_prompt has no effect at guidance_scale {settings.scale:g}; raise the scale to use it.", stacklevel=2
            )
        items = request.items(prompts, negatives, classes, per_prompt, request.draw_seeds(total, seed, seeds, generator), noise)
        callback = None if callback_on_step_end is None else (callback_on_step_end, inputs)
        return self._make(items, settings, batch_size, output_type, callback, progress, on_images)

    def replay(
        self,
        recipe: Recipe,
        output_type: str = "pil",
        progress: bool = True,
        *,
        image: Any = None,
        mask: Any = None,
        regions: Mapping[str, Any] | None = None,
        guide: Callable[..., Tensor] | None = None,
        guide_options: Mapping[str, Any] | None = None,
        **tweaks: Unpack[TweakOptions],
    ) -> Output:
        """The picture of a recipe again: to the last bit on the machine, threads and weights that made it.

        Its batch is rebuilt with copies of it, because kernels round differently at other batch sizes. A recipe knows the
        image, mask and regions that it began with by their sha256 only: give them again, and the guide (with the options that
        name its files) where it was a function or model of its maker's own; likewise the pictures and functions of tweaks.
        """
        start = recipe.start or recipe.restore
        if recipe.canvas is not None:
            from gen.canvas import replayed_pictures

            image, mask = replayed_pictures(recipe, image, mask)
        for name, given, needed in (("image", image, start is not None), ("mask", mask, bool(start and start.mask))):
            if needed and given is None:
                raise ValueError(f"The picture was made from {'an' if name == 'image' else 'a'} {name}, which is not in its "
                                 f"recipe; give it as {name} (--{name}).")  # fmt: skip
            if given is not None and not needed:
                raise ValueError(f"The picture was made without {'an' if name == 'image' else 'a'} {name}; leave it out.")
        made = recipe.made_at or (recipe.height, recipe.width)
        settings = self._settings(
            height=made[0],
            width=made[1],
            shown=None if recipe.made_at is None else (recipe.height, recipe.width),
            steps=recipe.num_inference_steps,
            scale=recipe.guidance_scale,
            interval=recipe.guidance_interval,
            sampler=recipe.sampler,
            sampler_options=recipe.sampler_options,
            schedule=recipe.schedule,
            schedule_options=recipe.schedule_options,
            rules=Rules.of(recipe.guidance, recipe.guidance_options, recipe.cache, recipe.cache_options),
            edit=(image, mask, recipe.start.strength) if recipe.start else (None, None, None),
            adapters=self._as_recorded(recipe),
            compose=(recipe.composition, recipe.composition_options, recorded_regions(recipe, regions)),
            guide=self._replayed_guide(recipe, guide, guide_options),
            tweaks=(recipe.tweaks, dict(tweaks)) if recipe.tweaks or tweaks else {},
            restore=recipe.restore and (recipe.restore.task, image, mask, recipe.restore.options),
            layout=recipe.layout,
            canvas=recipe.canvas and (recipe.canvas, None),
            views=recipe.views,
        )
        check_recorded(recipe, settings.composition)
        used = settings.restore.record if settings.restore else settings.edit and settings.edit.start
        if start is not None and used != start:
            changed = "image" if used.image != start.image else "mask"
            raise ValueError(f"This {changed} is not the one that the picture was made from: its sha256 differs.")
        if recipe.batch.row >= recipe.batch.size:
            raise ValueError(f"The recipe says picture {recipe.batch.row} of a batch of {recipe.batch.size}, which has none.")
        label = [-1 if recipe.class_label is None else recipe.class_label] if self.classes else None
        prompts, negatives, labels = self._subjects(recipe.prompt, recipe.negative_prompt, label)
        [item] = request.items(prompts, negatives, labels, 1, [recipe.seed], None)
        settings = replace(settings, stop_at=recipe.stopped_at)
        self.interrupt = False
        size, row = recipe.batch.size, recipe.batch.row
        batch = [item] * size
        if recipe.tweaks:
            batch[0] = self._first(recipe) or item
        with progress_bar(len(settings.levels) - 1, progress) as bar:
            made = make_batch(self, batch, settings, output_type, None, counting(bar, settings, 1))
        return _output(made.shown[row : row + 1], [made.recipes[row]], output_type, False)

    def restore(
        self, image: Any, task: str, prompt: str | Sequence[str] | None = None, *, mask: Any = None, **call: Any
    ) -> Output:
        """Pictures that explain a damaged one. Their recipes replay, given the image (and mask) again.

        task: inpaint (mask: white is made anew, black stays, to the pixel), superres (image is a `factor`-th of the size, 4),
        colorize, deblur (a Gaussian blur of `radius` pixels, 2). image and mask as in a call. Options of all tasks: noise, the
        standard deviation of the picture's noise in [0, 1] (0.02); kind, how the posterior is approximated (exact, pigdm,
        projection; by default pigdm for a model of pixels, projection for one of latents), weight, spread and iterations of
        `samplers.guidance.Posterior`; simulate: the image is whole, and is damaged first. Other arguments are those of a call;
        guidance_scale is 2 at most where it is not given.
        """
        from gen.restore import COMMON, TASKS

        known = {*COMMON, *(name for options in TASKS.values() for name in options)}
        options = {name: call.pop(name) for name in list(call) if name in known}
        if call.get("strength") is not None:
            raise ValueError("A restoration takes no strength; leave it out, or give weight.")
        guidable = self.text_encoder is not None or self.classes
        if guidable and call.get("guidance_scale") is None and call.get("guidance") is None:
            call["guidance_scale"] = min(RESTORE_SCALE, self.config.defaults.guidance_scale)
        return self(prompt, **call, _restore=(task, image, mask, options))

    def layout(self, layout: Any, **call: Any) -> Output:
        """Pictures with a prompt for every region: `layout` is a mapping (`gen.layout.LayoutSpec`), or the path of a YAML or
        JSON file of one. Their recipes replay without it. Other arguments are those of a call; height and width come from the
        layout where it has them, and what no region covers from its background."""
        from gen.layout import read_spec
        from gen.layout_file import read_layout

        spec = read_layout(layout) if isinstance(layout, str | Path) else read_spec(layout)
        for name, own in (("height", spec.height), ("width", spec.width)):
            if own is not None and call.setdefault(name, own) != own:
                raise ValueError(f"The layout has {name} {own}, and {name} {call[name]} is asked for; give one of them.")
        if self.text_encoder is not None:
            call.setdefault("prompt", spec.background)
        return self(**call, layout=spec)

    def ambiguous(
        self,
        prompt: str,
        others: str | Sequence[str],
        view: str | Sequence[str] = "rotate180",
        *,
        pixels_from: float | None = None,
        **call: Any,
    ) -> Output:
        """Pictures of `prompt` that show `others` when they are seen as `view` says: one of `gen.views.VIEWS`, or one for each
        of several others. pixels_from: the log-SNR from which the views agree as decoded pictures rather than as latents
        (-1.5; lower is slower). Other arguments are those of a call, and recipes replay. latents that come back, or reach a
        callback, are those of the picture as it is, and of all views one after another."""
        from gen.views import check_pixels_from

        names = [view] if isinstance(view, str) else list(view)
        prompts = request.texts("others", others)
        subject = {"prompt": prompt} if self.text_encoder is not None else {"class_labels": prompt}
        return self(**subject, **call, _views=(prompts, names, check_pixels_from(pixels_from)))

    def _guide(self, guide: Any, strength: object, method: object, options: object) -> Guide | None:
        if guide is None and strength is None and method is None and not options:
            return None
        from gen.guide import make_guide

        return make_guide(guide, strength, method, options, self.energies)  # type: ignore[arg-type]

    def _replayed_guide(self, recipe: Recipe, given: Any, options: Mapping[str, Any] | None) -> Guide | None:
        if recipe.guide is None and given is None:
            return None
        from gen.guide import replayed_guide

        return replayed_guide(recipe.guide, given, self.energies, options)

    def _tweaks(self, given: Any, height: int, width: int) -> Tweaks | None:
        """given: the keywords of a call; or a recipe's records and the keywords of a replay."""
        if not given:
            return None
        from gen.tweaks import check_names, make_tweaks, replayed_tweaks

        if isinstance(given, tuple):
            return replayed_tweaks(self, given[0], check_names(given[1]), height, width)
        named = check_names(given)
        return make_tweaks(self, named, height, width) if named else None

    def _first(self, recipe: Recipe) -> request.Item | None:
        """The first picture of the recipe's batch, where it is recorded."""
        from gen.tweaks import first_of

        first = first_of(recipe.tweaks)
        return first and request.Item(first.prompt, first.negative_prompt, first.class_label, first.seed, None)

    def _subjects(self, prompt: object, negative: object, class_labels: object) -> tuple[list[str], list[str], list[int]]:
        """(prompts, negative prompts, labels) of equal length."""
        prompts = [""] if prompt is None else request.texts("prompt", prompt)
        labels = [-1]
        if class_labels is not None:
            if not self.classes:
                raise ValueError(f"The model {self.name!r} takes no class_labels; leave them out.")
            labels = request.labels(class_labels, self.config.classes, self.classes)
        if self.text_encoder is None and any(prompts):
            raise ValueError(f"The model {self.name!r} reads no text; {self._instead()}.")
        count = max(len(prompts), len(labels))
        negatives = [""] if negative is None else request.texts("negative_prompt", negative)
        if self.text_encoder is None and any(negatives):
            raise ValueError(f"The model {self.name!r} reads no text; leave negative_prompt out.")
        for name, values in (("prompt", prompts), ("class_labels", labels), ("negative_prompt", negatives)):
            if len(values) not in (1, count):
                raise ValueError(f"{name} has {len(values)} entries where {count} are asked for; give one for all, or {count}.")
        return tuple(values * count if len(values) == 1 else values for values in (prompts, negatives, labels))

    def _rules(self, guidance: object, guidance_options: object, cache: object, cache_options: object) -> Rules:
        defaults = self.config.defaults
        if guidance is None and guidance_options is None:
            guidance_options = defaults.guidance_options
        return Rules.of(defaults.guidance if guidance is None else guidance, guidance_options, cache, cache_options)

    def _made_at(
        self, height: int | None, width: int | None, binned: object
    ) -> tuple[int | None, int | None, tuple[int, int] | None]:
        """(height, width to make a picture at, height and width to cut it to: None where they are the same)."""
        binned = self.config.defaults.use_resolution_binning if binned is None else binned
        if not isinstance(binned, bool):
            raise ValueError(f"use_resolution_binning is {binned!r}; give True or False.")
        table = self.config.size_bins
        if not binned:
            return height, width, None
        if table is None:
            raise ValueError(
                f"The model {self.name!r} has no list of sizes that it was trained at; leave use_resolution_binning (--bins) "
                "out."
            )
        asked = request.size(height, width, self.config.sample_size, 1)
        made = nearest(*asked, table)
        return *made, asked if made != asked else None

    def _settings(
        self,
        *,
        height,
        width,
        steps,
        scale,
        interval,
        sampler,
        sampler_options,
        schedule,
        schedule_options,
        rules,
        edit,
        adapters,
        guide=None,
        restore=None,
        canvas=None,
        shown=None,
        layout=None,
        views=None,
        compose=(None, None, None),
        tweaks=None,
    ) -> Settings:
        """Everything that all pictures of a call share; the model's defaults fill what is None."""
        defaults = self.config.defaults
        patch = self.factor * self.network.config.patch
        height, width = request.size(height, width, self.config.sample_size, self.factor if canvas else patch)
        if canvas is not None:
            from gen.canvas import make_canvas

            canvas = make_canvas(self, *canvas, height, width)
        seen = (height, width) if canvas is None else canvas.record.window  # by the network, at once
        if rules.always and not getattr(self.network, "embeds", False):
            raise ValueError(f"The model {self.name!r} reads no guidance scale; choose other guidance than {rules.name!r}.")
        if steps is None:
            own = schedule_options if schedule == "table" and isinstance(schedule_options, Mapping) else {}
            values, pure = own.get("values", ()), bool(own.get("pure_noise"))
            steps = len(values) + pure if values and isinstance(values, Sequence) else defaults.num_inference_steps
        steps = request.whole("num_inference_steps", steps, 1, request.MAX_STEPS)
        unconditional = self.text_encoder is None and not self.classes
        if scale is not None:
            scale = request.real("guidance_scale", scale, 0, request.MAX_SCALE)
            if unconditional and scale != rules.off:
                raise ValueError(f"The model {self.name!r} is unconditional and cannot be guided; leave guidance_scale out.")
        elif unconditional:
            scale = rules.off
        else:
            scale = defaults.guidance_scale if rules.usual is None else rules.usual
        interval = defaults.guidance_interval if interval is None else request.interval("guidance_interval", interval)
        unrecorded = [name for name, own in (("sampler", sampler), ("schedule", schedule)) if own and not isinstance(own, str)]
        if sampler_options is None:
            sampler_options = defaults.sampler_options if sampler is None else {}
        sampler_options = request.options("sampler_options", sampler_options)
        sampler = defaults.sampler if sampler is None else sampler
        solver, brownian = sampler, False
        if isinstance(sampler, str):  # "DPM++ 2M Karras" names both
            sampler, own_schedule = parse_sampler(sampler)
            schedule = own_schedule if schedule is None else schedule
            solver, info = get_solver(sampler, **sampler_options), solver_info(sampler)
            brownian, steps = info.brownian, 2 if info.adaptive else steps  # an adaptive solver chooses its own steps
        if schedule_options is None:
            schedule_options = defaults.schedule_options if schedule is None else {}
        schedule_options = request.options("schedule_options", schedule_options)
        schedule = defaults.schedule if schedule is None else schedule
        levels = schedule
        if isinstance(schedule, str):
            schedule = grid_info(schedule).name
            if "tokens" in grid_info(schedule).options:  # that grid depends on the picture's size
                schedule_options = {"tokens": seen[0] * seen[1] // patch**2, **schedule_options}
            levels = get_grid(schedule, self.denoiser.path, steps, **schedule_options)
        levels, steps = tuple(levels), len(levels) - 1
        start = make_edit(self, *edit, height, width)
        if start is not None:
            levels = start.levels(levels)
            if start.mask is not None and rules.guidance[0] == "cfg++":
                raise ValueError("cfg++ moves the whole picture, also what a mask keeps; choose other guidance for inpainting.")
        restoration = None
        if restore is not None:
            from gen.restore import make_restoration

            restoration = make_restoration(*restore, height, width)
            restoration.build(self, self.denoiser)  # options are checked here
        rules.build(self.denoiser, solver, scale, None, interval, guided=scale != rules.off)  # options are checked here
        adapters = self._in_force(adapters)
        composition = make_composition(self, *compose, adapters, levels, *seen)
        if canvas is not None and composition.masks:
            raise ValueError("The masks of regions are for one picture, not for windows of a canvas; leave regions out.")
        regions = None
        if layout is not None:
            from gen.layout import make_layout

            if composition.name != "merge":
                raise ValueError(
                    f"A layout says which adapters act where; leave out the composition {composition.name!r}, or the layout."
                )
            if tweaks:
                raise ValueError("A layout has prompts of its own for its regions; leave out negtome, reference and the like.")
            regions = make_layout(layout, height, width, self, rules)
            adapters = self._in_force({**regions.adapters(), **adapters})
        readings = None
        if views is not None:
            from gen.views import make_views

            readings = make_views(views, height, width, rules)
            beside = {"an image": start, "a guide": guide, "a restoration": restoration, "a layout": regions}
            beside |= {"a composition": None if composition.name == "merge" else composition, "a tweak": tweaks or None}
            if other := next((name for name, value in beside.items() if value is not None), None):
                raise ValueError(f"A picture with several views takes no {other.split()[-1]}; leave it out.")
        return Settings(
            height=height,
            width=width,
            shown=shown,
            steps=steps,
            scale=scale,
            interval=interval,
            sampler=sampler if isinstance(sampler, str) else type(sampler).__name__,
            sampler_options=sampler_options,
            schedule=schedule if isinstance(schedule, str) else "custom",
            schedule_options=schedule_options,
            rules=rules,
            edit=start,
            adapters=adapters,
            composition=composition,
            solver=solver,
            levels=levels,
            brownian=brownian,
            unrecorded=tuple(unrecorded),
            guide=guide,
            restore=restoration,
            layout=regions,
            tweaks=self._tweaks(tweaks, height, width),
            canvas=canvas,
            views=readings,
        )

    def _make(
        self,
        items: list[request.Item],
        settings: Settings,
        batch_size: int,
        output_type: str,
        callback: tuple | None,
        progress: bool,
        on_images: Callable[[Output], None] | None,
    ) -> Output:
        """All pictures, batch by batch; those with and without guidance apart, so that neither changes the other."""
        self.interrupt = False
        pack(self.network)
        guided = [i for i, item in enumerate(items) if is_guided(item, settings)]
        plain = sorted(set(range(len(items))) - set(guided))
        queue = [group[i : i + batch_size] for group in (guided, plain) for i in range(0, len(group), batch_size)]
        queue.sort()
        done: dict[int, tuple[Tensor, Recipe]] = {}
        with progress_bar((len(settings.levels) - 1) * len(queue), progress) as bar:
            bar = counting(bar, settings, len(queue))
            while queue and not self.interrupt:
                rows = queue.pop(0)
                try:
                    made = make_batch(self, [items[i] for i in rows], settings, output_type, callback, bar)
                except torch.OutOfMemoryError:
                    made = None  # halved below, once the traceback has let go of the batch's memory
                if made is None:
                    queue[:0], settings = self._halved(rows, settings)
                    continue
                done |= zip(rows, zip(made.shown, made.recipes, strict=True), strict=True)
                if on_images is not None:
                    on_images(_output(made.shown, made.recipes, output_type, self.interrupt))
        order = sorted(done)
        return _output(torch.stack([done[i][0] for i in order]), [done[i][1] for i in order], output_type, self.interrupt)

    def _halved(self, rows: list[int], settings: Settings) -> tuple[list[list[int]], Settings]:
        """Half as many pictures at once, and on a canvas half as many windows."""
        canvas = settings.canvas
        if len(rows) == 1 and (canvas is None or canvas.record.batch == 1):
            raise ValueError(
                f"One picture of {settings.width} x {settings.height} does not fit in the memory of {self.device}; "
                "make it smaller, or use another device or dtype."
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = (len(rows) + 1) // 2
        parts = [part for part in (rows[:middle], rows[middle:]) if part]
        return parts, settings if canvas is None else replace(settings, canvas=canvas.halved())


def _output(shown: Tensor, recipes: list[Recipe], output_type: str, interrupted: bool) -> Output:
    nfe = sum(recipe.nfe for recipe in recipes) / len(recipes)
    return Output(_as_type(shown, output_type), recipes, [recipe.seed for recipe in recipes], nfe, interrupted)


def _as_type(shown: Tensor, output_type: str) -> Any:
    if output_type in ("latent", "pt"):
        return shown
    array = shown.permute(0, 2, 3, 1).cpu().numpy()
    return array if output_type == "np" else to_pil(array)


def to_pil(array: np.ndarray) -> list[Image.Image]:
    """8-bit pictures of an array (B, H, W, 3) in [0, 1]."""
    return [Image.fromarray(picture) for picture in (array * 255).round().astype("uint8")]
