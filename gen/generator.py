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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from PIL import Image
from torch import Tensor, nn

from gen.io import validators as request
from gen.io.images import cut_to
from gen.io.threads import exclusive
from gen.models.buckets import made_at, remark_on_size
from gen.models.decoding import decoded
from gen.models.folder import ModelConfig, Pipeline, model_config
from gen.models.options import ModelOptions
from gen.models.pretrained import find_model, load_model, resolve_device, resolve_dtype
from gen.models.prompt_cache import PromptMemory, fingerprint
from gen.models.prompt_syntax import warn_foreign
from gen.nn.batch_invariance import EachRow
from gen.nn.conditions import join
from gen.pipeline.callback import check_inputs
from gen.pipeline.guidance_stack import remark_on_layers
from gen.pipeline.output import TYPES, Output, to_pil
from gen.pipeline.recipe import Recipe
from gen.pipeline.run import make_all, make_batch, progress_bar
from gen.pipeline.settings import Sampling, make_settings, remark_on_sampler
from gen.pipeline.task import Asked, asked_again, asked_of, check_names, frame_of
from gen.pipeline.work import check_work
from gen.tasks.edit import with_own_size
from gen.tasks.tweak_options import TweakOptions
from gen.with_adapters import WithAdapters
from gen.with_canvas import WithCanvas
from gen.with_kinds import WithKinds
from samplers.denoiser import Condition, NetworkDenoiser
from samplers.path import NoiseLevel
from samplers.sample import Solver

if TYPE_CHECKING:
    from gen.adapters.model import ModelAdapters
    from gen.tasks.energies import EnergyInfo

__all__ = ["Generator", "Output", "to_pil"]

UNBOUNDED = 4.0  # extent of latents of unit variance without a bound: a normal value is outside once in 16,000
BATCH = 8  # pictures per network call unless the caller says otherwise
PROMPT_MEMORY = 256 << 20  # bytes of text features that a generator keeps


class Generator(WithAdapters, WithKinds, WithCanvas):
    """A model ready to make pictures. `from_pretrained` opens one; the constructor takes networks that you have.

    config: a `ModelConfig` or its plain values. The denoiser network is converted to `dtype` in place; the sampler's own
    arithmetic and the other networks stay float32. `interrupt = True`, set from a callback, ends the call early. Threads may
    share a Generator: one works at a time, and `interrupt` is that call's (`gen.io.threads`).
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
        batch_invariant: bool | None = None,
    ):
        self.batch_invariant = batch_invariant
        self.config, self.name = model_config(config), name
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.network = network.to(self.device, self.dtype).eval()
        self.autoencoder = autoencoder and autoencoder.to(self.device, memory_format=torch.channels_last).eval()
        self.text_encoder = text_encoder and text_encoder.to(self.device).eval()
        self.denoiser: NetworkDenoiser = self.config.denoiser(EachRow(self.network), self.dtype)
        self.adapters: dict[str, float] = {}
        self.energies: dict[str, EnergyInfo] = {}  # of other packages, beside `gen.tasks.energies`
        self.interrupt = False
        self.in_tiles = False  # whether the last pictures had to be decoded so
        self.pipeline: Pipeline | None = None
        self.weights = dict(weights or {})
        self._encoded = PromptMemory(PROMPT_MEMORY)
        self._text_weights: tuple | None = None
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
        variant: str | None = None,
        model_options: Mapping[str, Any] | None = None,
        batch_invariant: bool | None = None,
    ) -> Generator:
        """Open a model: "default" or its few-step student "fast" (they come with the package), a model folder of ours or of
        diffusers, a checkpoint of a U-ViT, DiT or PixArt (a safetensors file, or its folder), or a hub id "owner/name".

        device: "cuda", "mps", "cpu", or None for the best there is. dtype: "float32", "bfloat16", "float16", or None for
        bfloat16 where the device is fast at it, else float16 on a GPU and float32 on a CPU.
        vae, text_encoder: folders or hub ids of what a checkpoint lacks, an autoencoder of diffusers and a text encoder of
        transformers; vae also replaces a diffusers pipeline's own. native: run a diffusers pipeline's denoiser in our network,
        which is faster and takes every cache and guidance (True), or in diffusers' (False); None: in ours where it computes the
        same (DiT, PixArt). model_options: what a checkpoint does not tell (docs/formats.md).
        variant: the weights of a diffusers pipeline by the name in their files, such as "fp16"; None: those of half the size
        where they are there and dtype is half precision, else the full ones.
        batch_invariant: that of calls which do not say (`__call__`).
        Raises ValueError with the reason if the model cannot be used.
        """
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        name, folder = find_model(model, revision, variant, dtype)
        opened = load_model(folder, dtype, ModelOptions(vae, text_encoder, native, variant, model_options or {}))
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
            batch_invariant=batch_invariant,
        )
        generator.pipeline = opened.pipeline
        return generator

    @exclusive
    def save_pretrained(
        self, folder: Path | str, dtype: torch.dtype | None = None, *, format: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write the model in one piece, with a model card; weights in `dtype`, or as they are in memory.

        format: "fewstep", a folder of ours; "diffusers", a pipeline's folder, which diffusers opens too; None: of these the
        one that fits the network. Or a published format of the network alone (`gen.models.formats.FORMATS`), a file or folder.
        A model
        that is there already is replaced only if `overwrite` says so. ValueError says what a format cannot hold.
        """
        from gen.models.saving import save_model

        return save_model(self, Path(folder), dtype, format, overwrite)

    @property
    def channels(self) -> int:
        return self.network.config.channels

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, each way; 1 for a model of pixels."""
        return self.autoencoder.factor if self.autoencoder is not None else 1

    @property
    def limit(self) -> float:
        """How far from 0 the values lie that the denoiser works on: 1 for pictures, the bound of the autoencoder's latents
        where it has one, else four standard deviations of latents of unit variance."""
        if self.autoencoder is None:
            return 1.0
        bound = getattr(self.autoencoder, "bound", None)
        return UNBOUNDED if bound is None else bound * self.config.latent_scale

    @property
    def classes(self) -> int:
        """How many classes the network knows; 0 for a network that takes no label."""
        return getattr(self.network.config, "num_classes", 0) or 0

    @exclusive
    @torch.no_grad()
    def encode_prompt(
        self, prompts: Sequence[str], adapters: Mapping[str, float] | None = None, *, negative: bool = False
    ) -> Condition:
        """Text features of B prompts; an empty prompt gives the unconditional row. Each distinct prompt is read once.

        adapters: name -> weight of those in force, `generator.adapters` if None.
        """
        if self.text_encoder is None:
            raise ValueError(request.no_text(self))
        if (written := fingerprint(self.text_encoder)) != self._text_weights:  # what was read with other weights is stale
            self._encoded.clear()
            self._text_weights = written
        active = {} if self._loaded is None else self._loaded.on_text(self.adapters if adapters is None else adapters)
        which = tuple(sorted(active.items()))
        keys = {prompt: (prompt, negative, which) for prompt in prompts}
        warn_foreign(
            [prompt for prompt, key in keys.items() if key not in self._encoded],
            any(getattr(module, "breaks", False) for module in self.text_encoder.modules()),
        )
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
        width, about the middle where it is given. Where memory runs out, one at a time, then in tiles
        (`gen.models.decoding`)."""
        images = latents.to(self.device).float()
        if self.autoencoder is not None:
            images = decoded(images / self.config.latent_scale, self.autoencoder.decode, self.factor, self._note_tiles)
        images = images if size is None else cut_to(images.float(), size)
        return (images.float() / 2 + 0.5).clamp(0, 1).contiguous()

    def _note_tiles(self) -> None:
        self.in_tiles = True
        warnings.warn("Memory ran out, so pictures are decoded in tiles, whose colours may differ slightly.", stacklevel=5)

    @exclusive
    def preview(self, latents: Tensor) -> list[Image.Image]:
        """Small pictures, one pixel per latent pixel, of what a callback gets as `denoised` (B, C, h, w); see
        `gen.pipeline.preview`."""
        from gen.pipeline import preview

        if self.autoencoder is not None and self._colours is None:
            self._colours = preview.fit(self.autoencoder, self.device)
        scaled = latents.to(self.device).float() / self.config.latent_scale
        return preview.pictures(preview.to_rgb(scaled, self._colours))

    @exclusive
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
        batch_invariant: bool | None = None,
        progress: bool = True,
        on_images: Callable[[Output], None] | None = None,
        layout: Any = None,
        _asked: Asked | None = None,
        **tweaks: Unpack[TweakOptions],
    ) -> Output:
        """Make pictures. What is left out comes from the model's own defaults.

        prompt, negative_prompt: a string or one per picture; an empty prompt is unconditional, without guidance.
        height, width: pixels; where an image is given, its own shape. guidance_scale: 0 and 1 are none. guidance_interval:
        (low, high) in log-SNR where guidance acts.
        seed: the first picture's; the next get seed + 1, ... seeds: one each. generator: seeds are drawn from it.
        latents: starting noise (B, C, h, w) of unit variance instead of the seeds' own.
        class_labels: integers or class names, -1 for unconditional. sampler, schedule: names with options, or a solver and
        noise levels of your own. guidance, cache: names from `fewstep samplers`, several with + between, and their options.
        composition: how several adapters act: merge, switch, composite, contrast or cached (`samplers.composition`), with
        composition_options. regions: adapter -> mask (white: there it acts); the others act everywhere.
        image: a picture to start from (file, PIL, array or tensor), noised by `strength` (0.8; 1 is from noise alone); where
        mask is 0 (black) it stays as it is, to the pixel. use_resolution_binning: make the picture at the nearest of the sizes
        that the model was trained at, then scale and cut it to height and width; None: as the model does by default.
        guide: an energy's name (`gen.tasks.energies`), or a function (pictures (B, 3, H, W) in [0, 1], condition) ->
        log-densities
        (B,); with the attribute space = "latents" it gets what the denoiser works on. guide_method, guide_strength,
        guide_options: how, how strongly, and options of method and energy (`samplers.guidance.energy_methods`).
        layout: prompts by region (`gen.tasks.layout`); `Generator.layout` takes its size from it, and reads files.
        tweaks: negtome, reference, concepts, aesthetic, greedy and their options (`gen.tasks.training_free.TweakOptions`).
        batch_size: pictures per network call; halved by itself when memory runs out. batch_invariant: no bit of a picture
        depends on it (docs/recipes.md); None: as the Generator was made, else on a CPU.
        callback_on_step_end(generator, step, t, kwargs) gets the tensors named in callback_on_step_end_tensor_inputs (of
        latents and denoised) and may return the latents changed; generator.preview(kwargs["denoised"]) gives small pictures.
        on_images is called with every batch that is done; its pictures are then not kept, and what the call returns has none.
        Raises ValueError in a sentence for anything it cannot do.
        """
        given = locals()
        check_names(tweaks)
        asked = {**asked_of({**given, **tweaks}), **(_asked or {})}
        prompts, negatives, classes = request.subjects(self, prompt, negative_prompt, class_labels)
        per_prompt = request.whole("num_images_per_prompt", num_images_per_prompt, 1, request.MAX_IMAGES)
        total = len(prompts) * per_prompt
        request.whole("the number of pictures", total, 1, request.MAX_IMAGES)
        if output_type not in TYPES:
            raise ValueError(f"output_type is {output_type!r}; choose one of {', '.join(TYPES)}.")
        batch_size = BATCH if batch_size is None else request.whole("batch_size", batch_size, 1, 1024)
        inputs = check_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)

        frame = frame_of(asked)
        multiple = self.factor * (1 if frame else self.network.config.patch)
        noise = request.unit_noise(latents, total, self.channels, self.factor, multiple)
        if noise is not None:
            own = tuple(side * self.factor for side in noise.shape[2:])
            if (height or own[0], width or own[1]) != own:
                raise ValueError(f"latents are for {own[1]} x {own[0]} pixels, but {width} x {height} is asked for; give one.")
            height, width = own
        if noise is None and frame is None:
            asked, height, width = with_own_size(self, asked, height, width, multiple)
        binned = use_resolution_binning if noise is None and frame is None else False
        height, width, shown = made_at(self, height, width, binned)
        settings = make_settings(self, Sampling.of(given), height, width, frame.shown if frame else shown, asked)
        if frame is None and not {"layout", "restoration", "image"} & settings.kinds.keys():  # these see to sizes themselves
            remark_on_size(self, settings.height, settings.width)
        remark_on_layers(self.network, settings.rules)
        remark_on_sampler(settings.sampler, settings.steps)
        if any(negatives) and not settings.rules.negatives:
            warnings.warn(
                f"negative_prompt has no effect under the guidance {settings.rules.name!r}; use cfg for it.", stacklevel=3
            )
        elif settings.scale == settings.rules.off and any(negatives):
            warnings.warn(
                f"negative_prompt has no effect at guidance_scale {settings.scale:g}; raise the scale to use it.", stacklevel=3
            )
        items = request.items(prompts, negatives, classes, per_prompt, request.draw_seeds(total, seed, seeds, generator), noise)
        callback = None if callback_on_step_end is None else (callback_on_step_end, inputs)
        return make_all(self, items, settings, batch_size, output_type, callback, progress, on_images)

    @exclusive
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
        max_work: float | None = None,
        **tweaks: Unpack[TweakOptions],
    ) -> Output:
        """The picture of a recipe again: to the last bit on the machine, threads and weights that made it.

        Its batch is rebuilt with copies of it, because kernels round differently at other batch sizes. A recipe knows the
        image, mask and regions that it began with by their sha256 only: give them again, and the guide (with the options that
        name its files) where it was a function or model of its maker's own; likewise the pictures and functions of tweaks.
        max_work: megapixel evaluations that it may ask for (`gen.pipeline.work`), 4000 if None.
        """
        given = locals()
        check_names(tweaks)
        check_work(recipe, max_work)
        asked = asked_again(self, recipe, {**given, **tweaks})
        made = recipe.made_at or (recipe.height, recipe.width)
        shown = None if recipe.made_at is None else (recipe.height, recipe.width)
        settings = make_settings(self, Sampling.of(recipe), *made, shown, asked, self._as_recorded(recipe))
        for kind in settings.kinds.values():
            kind.verify(recipe)
        size, row = recipe.batch.size, recipe.batch.row
        if row >= size:
            raise ValueError(f"The recipe says picture {row} of a batch of {size}, which has none.")
        label = [-1 if recipe.class_label is None else recipe.class_label] if self.classes else None
        subjects = request.subjects(self, recipe.prompt, recipe.negative_prompt, label)
        batch = request.items(*subjects, 1, [recipe.seed], None) * size
        for kind in settings.kinds.values():
            batch = kind.rebuilt(recipe, batch)
        settings = replace(settings, stop_at=recipe.stopped_at)
        self.interrupt = False
        with progress_bar(settings, 1, progress) as bar:
            done = make_batch(self, batch, settings, output_type, None, bar)
        return Output.of(done.shown[row : row + 1], [done.recipes[row]], output_type)
