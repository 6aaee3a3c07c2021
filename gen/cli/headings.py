"""The headings under which `--help` lists the options of long commands: one table for all of them."""

from __future__ import annotations

from collections.abc import Iterable

EVERYDAY = "Options"
OTHER = "Other options"  # of tasks that --import registers, which no table knows
ENOUGH = 15  # options that need no headings

# heading -> options, in the order of the help. What stands first are a dozen that most uses need.
HEADINGS: dict[str, tuple[str, ...]] = {
    EVERYDAY: (
        *("--number", "--seed", "--steps", "--size", "--negative", "--guidance-scale", "--model", "--fast", "--lora"),
        *("--output", "--help"),
    ),
    "What is made": (
        *("--prompts", "--wildcards", "--prompt", "--prompt-syntax", "--vary", "--cells", "--samplers", "--schedules"),
        *("--column", "--extra", "--combinatorial", "--templates", "--background", "--colour", "--view", "--pixels-from"),
        *("--task", "--simulate", "--option", "--direction", "--fill", "--flatten", "--base", "--kind"),
        *("--prompt-2", "--prompt-3", "--negative-2", "--negative-3", "--clip-skip", "--max-sequence-length"),
        *("--transparent", "--transparency"),
        *("--reward", "--reward-option", "--method", "--tries", "--children", "--parents"),
    ),
    "Size, canvas and second pass": (
        *("--height", "--width", "--bins", "--scale", "--left", "--right", "--top", "--bottom", "--circular"),
        *("--noise-level", "--low"),
        *("--hires", "--hires-strength", "--hires-steps", "--hires-upscaler", "--hires-window", "--refiner", "--refiner-at"),
        *("--window", "--stride", "--weights", "--shift-from", "--window-batch", "--sync", "--sync-distance", "--recurrence"),
        *("--original-size", "--target-size", "--crop"),
        *("--negative-original-size", "--negative-target-size", "--negative-crop"),
    ),
    "From a picture": (
        *("--image", "--mask", "--strength", "--translate", "--translator", "--translate-direction", "--translate-strength"),
        *("--variation-seed", "--variation-strength"),
    ),
    "Like a picture": (
        *("--reference", "--reference-mask", "--reference-scale", "--reference-range", "--reference-encoder"),
        *("--reference-vision", "--reference-fusion", "--reference-fusion-option"),
        *("--image-prompt", "--ip-adapter", "--image-prompt-mask", "--image-prompt-range", "--ip-adapter-encoder"),
        *("--free-custom", "--free-custom-mask", "--free-custom-prompt", "--negtome", "--negtome-mask"),
    ),
    "Control and composition": (
        *("--control", "--controlnet", "--control-weight", "--control-range", "--control-mode"),
        *("--joint", "--joint-map", "--joint-picture", "--joint-strength", "--joint-scale", "--joint-shown", "--joint-adapter"),
        *("--lora-dir", "--embedding", "--compose", "--compose-option", "--region", "--concept", "--allow-nonfinite"),
        *("--use", "--segment", "--start", "--grow", "--keep-outside"),
    ),
    "Sampler and guidance": (
        *("--sampler", "--sampler-option", "--schedule", "--schedule-option", "--noise-kind"),
        *("--guidance", "--guidance-option", "--guidance-interval", "--cache", "--cache-option"),
        *("--guide", "--guide-strength", "--guide-method", "--guide-option", "--aesthetic", "--greedy"),
        *("--training-free-option", "--pipeline-option", "--step-policy"),
    ),
    "Who may ask, and for what": (
        *("--host", "--port", "--api-key", "--api-key-file", "--allow-host", "--cors"),
        *("--max-rows", "--max-queue", "--max-pixels", "--max-steps", "--max-pictures", "--max-work", "--timeout", "--grace"),
    ),
    "Files": (
        *("--name", "--to", "--per-file", "--format", "--quality", "--metadata", "--grid", "--show", "--save", "--save-all"),
        *("--preview", "--skip-existing", "--overwrite", "--retry-errors", "--strict", "--check", "--json", "--quiet"),
        *("--save-layout",),
    ),
    "The model's parts": (
        *("--vae", "--text-encoder", "--variant", "--native", "--decoder", "--preview-decoder", "--model-option"),
        *("--quantize", "--offload", "--vae-tile", "--attention", "--compile", "--cuda-graphs", "--memory"),
    ),
    "The machine": (
        *("--device", "--dtype", "--batch-size", "--batch-invariant", "--plan", "--shard", "--ray", "--actors"),
        *("--cpus-per-actor", "--import"),
    ),
}  # fmt: skip
_PLACES = {option: heading for heading, options in HEADINGS.items() for option in options}


def heading_of(options: Iterable[str]) -> str:
    """The heading of an option, by any of its names."""
    return next((_PLACES[name] for name in options if name in _PLACES), OTHER)


def place_of(options: Iterable[str]) -> int:
    """Its place under that heading; those without one come last."""
    names = list(_PLACES)
    return min((names.index(name) for name in options if name in _PLACES), default=len(names))
