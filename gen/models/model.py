"""`Model`: a model in memory, with its networks, encoders and adapters, on one device and in one dtype.

Latents are (B, C, h, w), pictures (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from gen.io.images import cut_to
from gen.io.threads import exclusive
from gen.io.validators import check_float, check_int
from gen.models.attention_choice import switch
from gen.models.decoding import decoded, decoded_in_tiles
from gen.models.folder import ModelConfig, Pipeline, model_config
from gen.models.offload import check_offload, offload_parts
from gen.models.options import ModelOptions
from gen.models.pretrained import find_model, load_model, resolve_device, resolve_dtype
from gen.models.prompt_cache import PromptCache, fingerprint
from gen.models.prompt_reading import USUAL, Reading
from gen.models.prompt_syntax import warn_foreign
from gen.models.prompt_words import warn_words
from gen.nn.batch_invariance import BatchInvariantNetwork
from gen.nn.conditions import join
from gen.nn.initialisation import opening_on
from samplers.denoiser import Condition, NetworkDenoiser

if TYPE_CHECKING:
    from gen.adapters import Adapter, LoadReport
    from gen.adapters.model import ModelAdapters

UNBOUNDED = 4.0  # extent of latents of unit variance without a bound: a normal value is outside once in 16,000
PROMPT_CACHE_BYTES = 256 << 20  # bytes of text features that a model keeps


class Model:
    """Networks ready to run, and what is loaded beside them. Everything that makes pictures takes one.

    config: a `ModelConfig` or its plain values.
    network: the denoiser; converted to `dtype` in place.
    autoencoder: pictures to latents and back, None for a model of pixels.
    text_encoder: None for a model that reads no text.
    adapters: name -> weight of those that act.
    energies: name -> energy of other packages, beside `gen.tasks.energies`.
    interrupt: end the call under way early.
    in_tiles: the last pictures had to be decoded in tiles.
    vae_tile: pixels on the side of the tiles that pictures are decoded in, None for whole pictures.
    preview_decoder: a tiny decoder (`gen.models.bridge.tiny`), which decodes pictures too where `decoder` is "tiny".
    quantize: how the denoiser's linear layers were quantised on opening.
    refiners: models that finish its pictures, by where they are from; translators: what changes it, by their digests.
    transparencies: networks that make its pictures transparent, by folder (`gen.models.transparency`).
    offload: what comes to the device only when it is used, and residency: which part is there (`gen.models.offload`).
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
        offload: str | None = None,
    ):
        self.batch_invariant = batch_invariant
        self.config, self.name = model_config(config), name
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        if offload is not None and getattr(network, "whole", False):
            raise ValueError(
                "A pipeline that runs as a whole is offloaded by its own enable_model_cpu_offload; build it with diffusers, "
                "and give it to Generator.from_pipeline."
            )
        check_offload(offload, self.device)
        home = self.device if offload is None else torch.device("cpu")
        self.network: Any = network.to(home, self.dtype).eval()
        self.autoencoder: Any = autoencoder and _channels_last(autoencoder.to(home)).eval()
        self.text_encoder: Any = text_encoder and text_encoder.to(home).eval()
        self.offload = offload
        self.residency = (
            None if offload is None else offload_parts(offload, self.device, self.network, self.autoencoder, self.text_encoder)
        )
        self.denoiser: NetworkDenoiser = self.config.denoiser(BatchInvariantNetwork(self.network), self.dtype)
        self.adapters: dict[str, float] = {}
        self.energies: dict[str, Any] = {}
        self.interrupt = self.in_tiles = False
        self.vae_tile: int | None = None
        self.preview_decoder: Any = None
        self.decoder: str | None = None
        self.pipeline: Pipeline | None = None
        self.quantize: str | None = None
        self.refiners: dict[str, Model] = {}
        self.transparencies, self.translators = dict[str, Any](), dict[str, Any]()
        self.opened_joints: dict[str, Any] = {}  # folder -> joint adapter
        self.opened_references: dict[tuple[str, str], Any] = {}  # (folder, vision network) -> reference encoder
        self.compiled: tuple[Any, ...] = ()
        self.weights = dict(weights or {})
        self._encoded = PromptCache(PROMPT_CACHE_BYTES)
        self.loaded_adapters: ModelAdapters | None = None
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
        quantize: str | None = None,
        offload: str | None = None,
        vae_tile: int | None = None,
        preview_decoder: str | Path | None = None,
        decoder: str | None = None,
        attention_backend: str | None = None,
        model_options: Mapping[str, Any] | None = None,
        batch_invariant: bool | None = None,
        compile: str | bool | None = None,
        cuda_graphs: bool = False,
    ) -> Self:
        """Open a model: "default", its few-step student "fast" or "upscale" (they come with the package), a model folder of
        ours or of diffusers, a checkpoint of a U-ViT, DiT, PixArt or ADM (a file, or its folder), or a hub id "owner/name".

        device: "cuda", "mps", "cpu", or None for the best there is.
        dtype: "float32", "bfloat16", "float16", or None for bfloat16 where the device is fast at it, else float16 on a GPU and
            float32 on a CPU.
        vae, text_encoder: folders or hub ids of what a checkpoint lacks, an autoencoder of diffusers and a text encoder of
            transformers; vae also replaces a diffusers pipeline's own, and text_encoder is the one that HiDream's lack.
        native: run a diffusers pipeline's denoiser in our network, which takes every cache and guidance (True), or in
            diffusers' (False); None: in ours where that is the default (DiT, PixArt; docs/pipelines.md has the others).
        model_options: what a checkpoint does not tell (docs/formats.md).
        variant: the weights of a diffusers pipeline by the name in their files, such as "fp16"; None: those of half the size
            where they are there and dtype is half precision, else the full ones.
        quantize: the denoiser's linear layers in "int8", "fp8", "int4" or "nf4" (docs/formats.md), which takes less memory.
        offload: "model", "group", "sequential" or "disk": what comes to the device only when it is used
            (`gen.models.offload`).
        vae_tile: decode one picture at a time, in tiles of so many pixels a side, at least 64: less memory, and colours that
            may differ slightly between tiles. None: whole, and in tiles only where memory runs out.
        preview_decoder: a tiny decoder such as TAESD for previews, a folder, hub id or safetensors file (docs/pipelines.md).
        decoder: "tiny": it decodes finished pictures too.
        attention_backend: how the denoiser computes attention: auto, math, sdpa, xformers, flex, flash, flash3, sage or cudnn
            (docs/devices.md); None: auto, and for a network of diffusers its own.
        batch_invariant: that of calls which do not say (`__call__`).
        compile: the denoiser by torch.compile, its blocks ("regional") or all of it ("full", which may take cuda_graphs;
            docs/devices.md).
        Raises ValueError with the reason if the model cannot be used.
        """
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        name, folder = find_model(model, revision, variant, dtype)
        with opening_on(device if offload is None else torch.device("cpu")):
            opened = load_model(folder, dtype, ModelOptions(vae, text_encoder, native, variant, quantize, model_options or {}))
        parts = opened.parts
        opened_model = cls(
            opened.config,
            parts["denoiser"],
            parts.get("autoencoder"),
            parts.get("text_encoder"),
            name=name,
            device=device,
            dtype=dtype,
            weights=opened.weights,
            batch_invariant=batch_invariant,
            offload=offload,
        )
        opened_model.pipeline, opened_model.quantize = opened.pipeline, quantize
        opened_model.vae_tile = None if vae_tile is None else check_int("vae_tile", vae_tile, 64, 1 << 16)
        switch(opened_model, preview_decoder, decoder, attention_backend, compile, cuda_graphs)
        return opened_model

    @property
    def channels(self) -> int:
        return self.network.config.channels

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, each way; 1 for a model of pixels."""
        return self.autoencoder.factor if self.autoencoder is not None else 1

    @property
    def limit(self) -> float:
        """How far from 0 the denoiser's values lie: 1 for pictures, the bound of the autoencoder's latents, else 4 units."""
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
        self,
        prompts: Sequence[str],
        adapters: Mapping[str, float] | None = None,
        *,
        negative: bool = False,
        reading: Reading = USUAL,
        others: Sequence[Sequence[str | None]] = (),
    ) -> Condition:
        """Text features of B prompts; an empty prompt gives the unconditional row. Each distinct prompt is read once.

        adapters: name -> weight of those in force, `generator.adapters` if None.
        reading: how text encoders read.
        others: of each prompt, those that the second and third text encoder read, None for the same.
        """
        if self.text_encoder is None:
            raise ValueError(no_text(self))
        # weights that move look new every time
        self._encoded.read_with(None if self.offload else fingerprint(self.text_encoder))
        active = (
            {}
            if self.loaded_adapters is None
            else self.loaded_adapters.on_text(self.adapters if adapters is None else adapters)
        )
        which = tuple(sorted(active.items()))
        readings = [replace(reading, prompt_2=second, prompt_3=third) for second, third in others] or [reading] * len(prompts)
        keys = [(prompt, negative, which, own) for prompt, own in zip(prompts, readings, strict=True)]
        fresh = list(dict.fromkeys(key[0] for key in keys if key not in self._encoded))
        warn_foreign(fresh)
        if not negative:
            warn_words(fresh, self.text_encoder, self.adapters if adapters is None else adapters, self.loaded_adapters)
        for key in keys:
            if key not in self._encoded:
                prompt, own = key[0], key[3]
                # one at a time: what a prompt gives must not depend on the prompts beside it
                with self.loaded_adapters.reading_with(active) if self.loaded_adapters and active else nullcontext():
                    asked = () if own == USUAL else (own,)  # which a text encoder of the user's own need not know
                    condition = self.text_encoder.condition(prompt, negative, *asked)
                condition = condition.map(lambda v: v.to(self.dtype) if v.is_floating_point() else v)
                self._encoded.add(key, condition, keys)
        return join([self._encoded[key] for key in keys])

    def read_null(self, adapters: Mapping[str, float], reading: Reading = USUAL) -> None:
        """Tell a network that has no empty prompt of its own what the text encoders, under these adapters, make of one."""
        if getattr(self.network, "reads_null", False) and self.text_encoder is not None:
            self.network.set_null(self.encode_prompt([""], adapters, negative=True, reading=reading))

    @torch.no_grad()
    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], float32, of what the denoiser works on (B, C, h, w); cut to `size`, a height and
        width, about the middle where it is given. Where memory runs out, one at a time, then in tiles
        (`gen.models.decoding`)."""
        images = latents.to(self.device).float()
        if self.autoencoder is not None:
            images, decode = (
                images / self.config.latent_scale,
                (self.preview_decoder if self.decoder else self.autoencoder).decode,
            )
            if self.vae_tile is None:
                images = decoded(images, decode, self.factor, self._note_tiles)
            else:
                images = decoded_in_tiles(images, decode, self.factor, self.vae_tile)
        images = images if size is None else cut_to(images.float(), size)
        return (images.float() / 2 + 0.5).clamp(0, 1).contiguous()

    def _note_tiles(self) -> None:
        self.in_tiles = True
        warnings.warn("Memory ran out, so pictures are decoded in tiles, whose colours may differ slightly.", stacklevel=5)

    # ---- adapters: LoRA and its relatives; the weights stay as they are, unless adapters are fused into them ----

    @exclusive
    def load_adapter(
        self,
        adapter: str | Path | Adapter,
        name: str | None = None,
        weight: float = 1.0,
        strict: bool = True,
        allow_nonfinite: bool = False,
    ) -> LoadReport:
        """Load a LoRA or a relative of it (`gen.adapters`), or learned words, from a safetensors file or folder, to act with
        `weight`.

        name: by which `set_adapters` and recipes call it; the file's own if None. The model's weights stay as they are.
        Raises ValueError for a file that is damaged or fits nothing, and where layers are left over unless strict=False.
        NaN and infinite values are refused unless allow_nonfinite=True. Returns what matched.
        """
        from gen.adapters import Adapter, read_adapter

        if getattr(self.network, "whole", False):
            raise ValueError(
                f"{self.network.call.name} runs as a whole, so adapters are loaded into the pipeline itself, with its own "
                "load_lora_weights."
            )
        if not isinstance(adapter, Adapter):
            adapter = read_adapter(adapter, name, strict, allow_nonfinite)
        elif name is not None:
            adapter = replace(adapter, name=name)
        weight = check_float("weight", weight, -100, 100)
        if self.loaded_adapters is None:
            from gen.adapters.model import ModelAdapters, parts_of
            from gen.adapters.words import readers_of

            parts = parts_of(self.network, self.text_encoder)
            self.loaded_adapters = ModelAdapters(parts, readers_of(self.text_encoder, parts))
        report = self.loaded_adapters.load(adapter, strict)
        self._encoded.clear()
        self.set_adapters({**self.adapters, adapter.name: weight})
        return report

    @exclusive
    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; ValueError if there is none of this name."""
        self._with_any(name).remove(name)
        self._encoded.clear()
        self.adapters.pop(name, None)

    @exclusive
    def set_adapters(self, weights: Mapping[str, float]) -> None:
        """Which of the loaded adapters act from now on, and how strongly; those left out stay loaded and do nothing."""
        self.adapters = self.active_adapters(weights)

    @exclusive
    def fuse_adapters(self, weights: Mapping[str, float] | None = None) -> None:
        """Write adapters into the model's weights, those in force if None: pictures then cost what they cost without.

        The original weights are kept for `unfuse_adapters`. Until then the fused always act, and `adapters` leaves them out.
        """
        weights = self.active_adapters(self.adapters if weights is None else weights)
        if not weights:
            raise ValueError("No adapter is in force, so there is nothing to fuse; load one with load_adapter.")
        self._with_any(next(iter(weights))).fuse(weights)
        self._encoded.clear()
        self.adapters = {name: weight for name, weight in self.adapters.items() if name not in weights}

    @exclusive
    def unfuse_adapters(self) -> None:
        """The model's weights as they were, to the last bit; the adapters go on acting beside them."""
        if self.loaded_adapters is None or not self.loaded_adapters.fused:
            raise ValueError("No adapter is fused into the weights.")
        self.adapters = {**self.loaded_adapters.fused, **self.adapters}
        self.loaded_adapters.unfuse()
        self._encoded.clear()

    @exclusive
    def save_adapter(
        self, name: str, path: str | Path, format: str = "diffusers", dtype: torch.dtype | None = None, fold: bool = False
    ) -> Path:
        """Write a loaded adapter as kohya, diffusers, peft (a folder) or ai-toolkit, by the names that this model's layers
        have; as it was read, where that is the format and these are the names. fold: multiply scales into the factors, for
        ai-toolkit. Layers that found no module are left out."""
        from gen.adapters import write_adapter

        loaded = self._with_any(name)
        loaded.check({name: 1.0})
        adapter = loaded.loaded[name]
        if format != "kohya" or adapter.format != "kohya":
            named = loaded.renamed(name)
            adapter = adapter if format == adapter.format and named.layers.keys() == adapter.layers.keys() else named
        if fold:
            adapter = replace(adapter, layers={layer: delta.folded() for layer, delta in adapter.layers.items()})
        return write_adapter(adapter, path, format, dtype)

    def _with_any(self, name: str) -> ModelAdapters:
        if self.loaded_adapters is None:
            raise ValueError(f"No adapter named {name!r} is loaded; none is.")
        return self.loaded_adapters

    def active_adapters(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Checked weights of loaded adapters."""
        if self.loaded_adapters is not None:
            return self.loaded_adapters.check(weights)
        if weights:
            raise ValueError(f"No adapter named {next(iter(weights))!r} is loaded; load it with load_adapter (--lora).")
        return {}


def _channels_last(network: nn.Module) -> nn.Module:
    """With the weights of its two-dimensional convolutions channels last; others, as of videos, have no such order. All are
    copied, so that no small one holds the whole file in memory."""
    for tensor in (*network.parameters(), *network.buffers()):
        last = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        tensor.data = tensor.data.clone(memory_format=last)
    return network


def no_text(model: Model) -> str:
    """Why a model takes no prompt, and what to do."""
    instead = "give class_labels instead" if model.classes else "it is unconditional, so leave the prompt out"
    return f"The model {model.name!r} reads no text; {instead}."
