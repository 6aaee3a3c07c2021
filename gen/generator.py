"""`Generator`: prompts in, pictures and their recipes out.

    generator = Generator.from_pretrained("default")
    generator("a red heart", seed=7).images[0].save("heart.png")

The arguments are diffusers' where diffusers has them. A picture depends on its seed and recipe, not on the pictures beside
it. Latents are (B, C, h, w), pictures (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from PIL import Image
from torch import Tensor

from gen.io.threads import exclusive
from gen.io.user_code import check_imported
from gen.io.validators import MAX_IMAGES, check_int
from gen.models.buckets import made_at, warn_size
from gen.models.model import Model
from gen.pipeline.callback import check_inputs
from gen.pipeline.guidance_stack import GuidanceRule, warn_layers
from gen.pipeline.output import TYPES, Output, to_pil
from gen.pipeline.recipe import Recipe
from gen.pipeline.recording import recorded_adapters
from gen.pipeline.run import make_all, make_batch, progress_bar
from gen.pipeline.scenes import adapters_for, check_prompts, check_syntax
from gen.pipeline.settings import Sampling, make_settings, warn_sampler
from gen.pipeline.subjects import draw_seeds, make_items, read_subjects, unit_noise
from gen.pipeline.task_table import (
    METHODS,
    TaskArgs,
    TaskMethod,
    args_from_recipe,
    args_of_call,
    check_keywords,
    frame_of,
    with_chosen_size,
)
from gen.pipeline.types import Item, Settings
from gen.pipeline.work import check_work
from samplers.denoiser import Denoiser
from samplers.path import NoiseLevel
from samplers.sample import Solver

__all__ = ["Generator", "Output", "to_pil"]

BATCH = 8  # pictures per network call unless the caller says otherwise


class Generator(Model):
    """A model ready to make pictures. `from_pretrained` opens one; the constructor takes networks that you have.

    config: a `ModelConfig` or its plain values. The denoiser network is converted to `dtype` in place; the sampler's own
    arithmetic and the other networks stay float32. `interrupt = True`, set from a callback, ends the call early. Threads may
    share a Generator: one works at a time, and `interrupt` is that call's (`gen.io.threads`).
    """

    if TYPE_CHECKING:  # the methods of tasks, set below

        def __getattr__(self, name: str) -> Any: ...

    _colours: Tensor | None = None  # the map of previews, once one was asked for

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str | None = None) -> Self:
        """Any diffusers pipeline that you have built, as it is: quantised, offloaded, compiled, with ControlNet, IP-Adapter or
        LoRAs loaded. It runs as a whole, with our samplers, schedules and guidance in the place of its scheduler; called with
        nothing but prompt and seed it gives its own picture of `generator=torch.Generator().manual_seed(seed)`.

        pipe: the pipeline; it stays where it is, and is usable as ever between calls.
        name: for recipes; the pipeline's class, if None.
        Raises ValueError for one whose scheduler we have no equal of, or that has none. docs/pipelines.md says what goes with
        it.
        """
        from gen.models.bridge.generic.network import PipelineNetwork, pipeline_config, pipeline_dtype

        network, kind = PipelineNetwork(pipe), type(pipe).__name__
        device = getattr(pipe, "_execution_device", None) or pipe.device
        return cls(pipeline_config(pipe, kind), network, name=name or kind, device=device, dtype=pipeline_dtype(pipe))

    @exclusive
    def save_pretrained(
        self, folder: Path | str, dtype: torch.dtype | None = None, *, format: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write the model in one piece, with a model card; weights in `dtype`, or as they are in memory.

        format: "fewstep", a folder of ours; "diffusers", a pipeline's folder, which diffusers opens too; None: of these the
        one that fits the network. Or a published format of the network alone (`gen.models.formats.FORMATS`), a file or folder.
        A model that is there already is replaced only if `overwrite` says so. ValueError says what a format cannot hold.
        """
        from gen.models.saving import save_model

        return save_model(self, Path(folder), dtype, format, overwrite)

    @exclusive
    def preview(self, latents: Tensor) -> list[Image.Image]:
        """Small pictures, one pixel per latent pixel, of what a callback gets as `denoised` (B, C, h, w); see
        `gen.pipeline.preview`. Of a model with a `preview_decoder` pictures of full size."""
        from gen.pipeline import preview

        if getattr(self.network, "whole", False):
            from gen.tasks.whole_pipeline.run import preview_pipeline

            return preview_pipeline(self, latents)
        if self.preview_decoder is not None:
            shown = self.preview_decoder.decode(latents.to(self.device).float() / self.config.latent_scale)
            return preview.pictures((shown / 2 + 0.5).clamp(0, 1))
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
        guidance: str | Sequence[str] | GuidanceRule | None = None,
        guidance_options: Mapping[str, Any] | None = None,
        cache: str | Sequence[str] | Callable[[Denoiser], Denoiser] | None = None,
        cache_options: Mapping[str, Any] | None = None,
        use_resolution_binning: bool | None = None,
        batch_size: int | None = None,
        batch_invariant: bool | None = None,
        prompt_syntax: str | None = None,
        noise_kind: str | None = None,
        lora_dir: str | Path | None = None,
        progress: bool = True,
        on_images: Callable[[Output], None] | None = None,
        _task_args: TaskArgs | None = None,
        _check_only: bool = False,
        **tasks: Any,
    ) -> Output:
        """Make pictures. What is left out comes from the model's own defaults.

        prompt, negative_prompt: a string or one per picture; an empty prompt is unconditional, without guidance.
        height, width: pixels; where an image is given, its own shape.
        guidance_scale: 0 and 1 are none.
        guidance_interval: (low, high) in log-SNR where guidance acts.
        seed: the first picture's; the next get seed + 1, ...
        seeds: one each.
        generator: seeds are drawn from it.
        latents: starting noise (B, C, h, w) of unit variance instead of the seeds' own.
        class_labels: integers or class names, -1 for unconditional.
        sampler, schedule: names with options, or a solver and noise levels of your own.
        guidance, cache: names from `fewstep samplers`, several with + between, and their options; or functions of your own
            (`gen.pipeline.guidance_stack.GuidanceRule`; denoiser -> denoiser), which no recipe holds.
        composition: how several adapters act: merge, switch, composite, contrast or cached (`samplers.composition`), with
            composition_options.
        regions: adapter -> mask (white: there it acts); the others act everywhere.
        image: a picture to start from (file, PIL, array or tensor), noised by `strength` (0.8; 1 is from noise alone). A model
            that was trained to edit reads it, and starts from noise unless a strength or mask is given.
        clip_skip, max_sequence_length: how prompts are read, as in diffusers, by the models that have it (docs/prompts.md).
        prompt_2, prompt_3, negative_prompt_2, negative_prompt_3: what the second and third text encoder read instead.
        original_size, crops_coords_top_left, target_size, negative_original_size, negative_crops_coords_top_left,
            negative_target_size: what SDXL is told, height (top) first.
        control, controlnet: pictures to follow and folders of ControlNets, with control_weight, control_range (log-SNR) and
            control_mode (of a union); one of each, or lists.
        ip_adapter, ip_adapter_image: files of IP-Adapters and pictures as prompts, with ip_adapter_scale, ip_adapter_mask,
            ip_adapter_range, ip_adapter_encoder and ip_adapter_image_embeds (docs/control.md).
        references: pictures to resemble, for which <ref> stands in a prompt, with references_scale, references_mask,
            references_range, references_encoder, references_vision, references_fusion and references_fusion_options
            (docs/reference.md).
        mask: where it is 0 (black) the image stays as it is, to the pixel.
        use_resolution_binning: make the picture at the nearest of the sizes that the model was trained at, then scale and cut
            it to height and width; None: as the model does by default.
        guide: an energy's name (`gen.tasks.energies`), or a function (pictures (B, 3, H, W) in [0, 1], condition) ->
            log-densities (B,); with the attribute space = "latents" it gets what the denoiser works on.
        guide_method, guide_strength, guide_options: how, how strongly, and options of method and energy
            (`samplers.guidance.energy_methods`).
        layout: prompts by region (`gen.tasks.layout.task`); `Generator.layout` takes its size from it, and reads files.
        negtome, reference, concepts, aesthetic, greedy: training-free changes, with their options
            (`gen.tasks.training_free.options.TrainingFreeOptions`).
        hires: draw, enlarge so many times, draw on, with hires_strength, hires_steps, hires_window and hires_upscaler
            ("picture", "latent").
        refiner, refiner_at: a model (folder, file, hub id, or open) that finishes pictures from the latents that are left when
            so much of the schedule is done (0.8), as SDXL's refiner.
        translate, translator: a picture to translate in one step and the folder of what does it ("default" for the model
            "fast"), with translate_direction and translate_strength (docs/translate.md).
        joint, joint_map, joint_picture: a kind of map drawn with the picture; a map that it is drawn of; a picture of which the
            map is drawn. With joint_strength, joint_scale, joint_shown and joint_adapter (docs/joint.md).
        variation_seed, variation_strength: pictures near that of the seed, which all of them have: its noise turned towards
            that of variation_seed, the next picture's of variation_seed + 1, by a strength from 0 to 1 (0.2).
        transparent: the thing alone, with alpha: pictures have four channels ("RGBA"); transparency: folder of the network that
            finds the opacity, the shipped one if None (docs/layers.md).
        batch_size: pictures per network call; halved by itself when memory runs out.
        batch_invariant: no bit of a picture depends on the batch size (docs/recipes.md); None: as the Generator was made, else
            on a CPU.
        noise_kind: "torch", or None: drawn by torch's generator of the CPU; "philox": on the device (docs/devices.md).
        prompt_syntax: "full" reads prompts that change on the way, join others or name LoRAs (docs/prompts.md); "weights" only
            weights in brackets; None: "full".
        lora_dir: a folder of LoRA files, which prompts name as <lora:NAME:WEIGHT>; those that are loaded need none.
        callback_on_step_end: called as (generator, step, t, kwargs) with the tensors named in
            callback_on_step_end_tensor_inputs (of latents and denoised); may return the latents changed.
            generator.preview(kwargs["denoised"]) gives small pictures.
        on_images: called with every batch that is done; its pictures are then not kept, and what the call returns has none.
        pipeline_options: what else a pipeline that runs as a whole is given (`from_pipeline`), pictures as files or PIL.
        Raises ValueError in a sentence for anything it cannot do.
        """
        keywords = {name: value for name, value in locals().items() if name not in ("self", "tasks")}
        check_keywords(tasks, _KEYWORDS)
        if getattr(self.network, "whole", False):
            if _check_only:  # only the pipeline itself knows what it refuses
                return Output(None, [], [], 0.0)
            from gen.tasks.whole_pipeline.run import call_pipeline

            return call_pipeline(self, keywords, tasks)
        sampling = Sampling.of(keywords)
        task_args = {**args_of_call(tasks), **(_task_args or {})}
        prompts, negatives, classes = read_subjects(self, prompt, negative_prompt, class_labels)
        per_prompt = check_int("num_images_per_prompt", num_images_per_prompt, 1, MAX_IMAGES)
        total = len(prompts) * per_prompt
        check_int("the number of pictures", total, 1, MAX_IMAGES)
        if output_type not in TYPES:
            raise ValueError(f"output_type is {output_type!r}; choose one of {', '.join(TYPES)}.")
        batch_size = BATCH if batch_size is None else check_int("batch_size", batch_size, 1, 1024)
        inputs = check_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)

        frame = frame_of(task_args)
        multiple = self.factor * (1 if frame else self.network.config.patch)
        noise = unit_noise(latents, total, self.channels, self.factor, multiple)
        if noise is not None:
            noise_size = tuple(side * self.factor for side in noise.shape[2:])
            if (height or noise_size[0], width or noise_size[1]) != noise_size:
                raise ValueError(
                    f"latents are for {noise_size[1]} x {noise_size[0]} pixels, but {width} x {height} is asked for; give one."
                )
            height, width = noise_size
        if noise is None and frame is None:
            task_args, height, width = with_chosen_size(self, task_args, height, width, multiple)
        binned = use_resolution_binning if noise is None and frame is None else False
        height, width, shown = made_at(self.config, self.name, height, width, binned)
        adapters = adapters_for(self, prompts, lora_dir, check_syntax(prompt_syntax))
        settings = make_settings(self, sampling, height, width, frame.shown if frame else shown, task_args, adapters)
        if frame is None and not any(task.traits.chooses_size for task in settings.tasks.values()):
            warn_size(self.config, self.name, settings.height, settings.width)
        warn_layers(self.network, settings.guidance)
        warn_sampler(settings.sampler, settings.steps)
        if any(negatives) and not settings.guidance.reads_negatives:
            nag = getattr(self.network, "takes_nag", True)
            others = "nag" if settings.guidance.name == "embedded" else "cfg or nag"  # cfg gives the network no scale
            others = others if nag else "cfg"
            warnings.warn(
                f"negative_prompt has no effect under the guidance {settings.guidance.name!r}; use {others} for it.",
                stacklevel=3,
            )
        elif settings.scale == settings.guidance.neutral_scale and any(negatives) and not settings.guidance.negatives_always:
            warnings.warn(
                f"negative_prompt has no effect at guidance_scale {settings.scale:g}; raise the scale to use it, or use the "
                "guidance nag.",
                stacklevel=3,
            )
        drawn = draw_seeds(total, seed, seeds, generator)
        if seeds is None and generator is None and any(task.traits.one_seed for task in settings.tasks.values()):
            drawn = drawn[:1] * total
        items = make_items(prompts, negatives, classes, per_prompt, drawn, noise)
        for task in settings.tasks.values():
            items = task.change_items(items, per_prompt)
        check_prompts(self, items, settings)
        self.allow(items, settings)
        if _check_only:
            return Output(None, [], [item.seed for item in items], 0.0)
        callback = None if callback_on_step_end is None else (callback_on_step_end, inputs)
        return make_all(self, items, settings, batch_size, output_type, callback, progress, on_images)

    allowed: Callable[[Sequence[Item], Settings], None] | None = None  # refuses, with ValueError, a call that asks for too much

    def allow(self, items: Sequence[Item], settings: Settings) -> None:
        """Called before a call draws, once all of it is checked."""
        if self.allowed is not None:
            self.allowed(items, settings)

    def check(self, prompt: str | Sequence[str] | None = None, **call: Any) -> None:
        """ValueError, or warnings, as a call with these arguments gives them before it draws; nothing is drawn.

        Pictures that the call begins with are read. A pipeline that runs as a whole checks nothing ahead.
        """
        self(prompt, **call, _check_only=True)

    @exclusive
    def replay(
        self, recipe: Recipe, output_type: str = "pil", progress: bool = True, *, max_work: float | None = None, **tasks: Any
    ) -> Output:
        """The picture of a recipe again: to the last bit on the machine, threads and weights that made it.

        Its batch is rebuilt with copies of it, because kernels round differently at other batch sizes. A recipe knows the
        image, mask and regions that it began with by their sha256 only: give them again, and the guide (with the options that
        name its files) where it was a function or model of its maker's own; likewise the pictures and functions of tweaks.
        max_work: megapixel evaluations that it may ask for (`gen.pipeline.work`), 4000 if None.
        """
        check_keywords(tasks, inspect.signature(Generator.replay).parameters)
        check_work(recipe, max_work)
        check_imported(recipe.imports or {})
        if getattr(self.network, "whole", False):
            from gen.tasks.whole_pipeline.run import replay_pipeline

            return replay_pipeline(self, recipe, output_type, progress, tasks)
        if recipe.machine.quantize != self.quantize:
            made_by, here = (kind or "none" for kind in (recipe.machine.quantize, self.quantize))
            warnings.warn(
                f"The recipe was made with quantize: {made_by}, and here it is {here}; the picture will differ.", stacklevel=3
            )
        task_args = args_from_recipe(self, recipe, tasks)
        made = recipe.made_at or (recipe.height, recipe.width)
        shown = None if recipe.made_at is None else (recipe.height, recipe.width)
        settings = make_settings(self, Sampling.of(recipe), *made, shown, task_args, recorded_adapters(self, recipe))
        for task in settings.tasks.values():
            task.check(settings, recipe)
        size, row = recipe.batch.size, recipe.batch.row
        if row >= size:
            raise ValueError(f"The recipe says picture {row} of a batch of {size}, which has none.")
        label = [-1 if recipe.class_label is None else recipe.class_label] if self.classes else None
        subjects = read_subjects(self, recipe.prompt, recipe.negative_prompt, label)
        batch = make_items(*subjects, 1, [recipe.seed], None) * size
        for task in settings.tasks.values():
            batch = task.change_items(batch, len(batch), recipe)
        check_prompts(self, batch, settings)
        settings = replace(settings, stop_at=recipe.stopped_at)
        self.interrupt = False
        with progress_bar(settings, 1, progress) as bar:
            done = make_batch(self, batch, settings, output_type, None, bar)
        return Output.of(done.shown[row : row + 1], [done.recipes[row]], output_type)


for _name, _row in METHODS.items():  # panorama, restore and the like
    setattr(Generator, _name, TaskMethod(_row, _name))

_KEYWORDS = inspect.signature(Generator.__call__).parameters  # for "did you mean"
