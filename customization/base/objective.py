"""What methods that teach a model something have in common: the frozen model, what trains inside of it, the loss, the file.

A method subclasses `CustomizationObjective` and overrides what differs:

    attach()                     puts parameters into `self.parts` and returns them, "<part>.<name>" -> parameter
    rates()                      name -> factor on the learning rate
    error(prediction, x0, eps, step)   the error of a prediction per sample and place, (B, C, h, w)
    to_adapter(values)           what trained values come to, as an `Adapter` to be written

It has one role, "adapter", the network `TrainableSubset`, which holds the trained parameters and nothing else. Latents x are
(B, C, h, w); levels hold one value per sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from customization.base.config import CustomizationConfig
from customization.base.export import export_adapter, values_of
from customization.base.huber import pseudo_huber_of
from customization.base.metadata import describe_training
from customization.base.pyramid_noise import add_pyramid
from customization.base.start import start_from
from customization.base.textual_inversion import PREFIX, collect, learn_words
from customization.base.trainable_subset import TrainableSubset, frozen
from distill.checkpointing.digests import digest
from distill.losses.levels import TimeConfig, draw_levels
from distill.networks.lora.peft_injection import AdapterConfig, inject, to_adapter
from distill.objectives.bases.objective import Objective
from distill.objectives.diffusion import DiffusionConfig, DiffusionObjective
from distill.types import Batch, Draws, Phase, Preview, Role, pictures_of
from gen.adapters import Adapter, read_adapter
from gen.adapters.apply import inner
from gen.adapters.model import parts_of
from gen.adapters.resolve import Index
from gen.generator import Generator
from gen.io.weights import write_bytes
from gen.models.folder import RectifiedFlowPath
from gen.nn.conditions import join
from gen.nn.learned_tokens import LearnedTokens
from samplers.denoiser import Condition, Context
from samplers.path import NoiseLevel, expand
from samplers.prediction import Prediction


class CustomizationObjective(Objective):
    """See the module. generator: the opened model, whose networks are changed in place. run: the whole run's settings, for the
    metadata. average: keep averaged parameters, which are then what is exported."""

    makes_network = True
    config: CustomizationConfig

    def __init__(
        self, config: Any, generator: Generator, seed: int = 0, run: Mapping[str, Any] | None = None, average: bool = False
    ):
        self.config, self.generator, self.seed, self.run = config, generator, seed, dict(run or {})
        given = parts_of(generator.network, generator.text_encoder)
        self.parts = frozen({part: inner(network) for part, network in given.items()})
        if generator.autoencoder is not None:
            generator.autoencoder.requires_grad_(False)
        self.diffusion = DiffusionObjective(self._diffusion(), nn.Identity())
        self.words: dict[str, LearnedTokens] = {}
        self.started: str | None = None  # sha256 of the LoRA that training begins as
        self.trains: dict[str, nn.Parameter] = self.attach()
        if not self.trains:
            raise ValueError("Nothing is set to train: give an adapter, a text_adapter or tokens.")
        self.reads = any(not name.startswith("denoiser.") for name in self.trains)  # does what a caption gives change
        self.roles = {"adapter": Role(TrainableSubset(self.parts, self.trains, self.rates()), ema=average)}
        self._read: dict[str, Condition] = {}

    def _diffusion(self) -> DiffusionConfig:
        config, model = self.config, self.generator.config
        flows = isinstance(model.path, RectifiedFlowPath)
        usual = TimeConfig(type="log_normal", mean=-1.2, std=1.2) if model.prediction == "edm" else TimeConfig(
            type="logit_normal" if flows else "uniform"
        )  # fmt: skip
        return DiffusionConfig(
            path=model.path,
            prediction=model.prediction,
            loss=config.loss,
            weighting=config.weighting,
            time=config.time or usual,
            clock="t",
            sigma_data=model.sigma_data,
        )

    def inputs(self) -> dict[str, str]:
        start = {} if self.started is None else {"start": self.started}
        return {"model": digest(sorted(self.generator.weights.items()), self.generator.config.model_dump_json())} | start

    # ---- what a method decides ----

    def attach(self) -> dict[str, nn.Parameter]:
        """Put what trains into the parts of the model; "<part>.<name>" -> parameter."""
        trained: dict[str, nn.Parameter] = {}
        if self.config.tokens:  # before the text encoder changes
            self.words = learn_words(self.generator, self.parts, self.config.tokens, self.seed)
            self.parts |= {f"{PREFIX}{part}": words for part, words in self.words.items()}
            trained |= {f"{PREFIX}{part}.{n}": p for part, words in self.words.items() for n, p in words.named_parameters()}
        adapted = self.adapted()
        indices = {part: Index(self.parts[part]) for part in adapted if self.config.start is not None}  # before peft's names
        for part, settings in adapted.items():
            made = inject(self.parts[part], settings, self.seed, part.replace("_", " "))
            trained |= {f"{part}.{name}": parameter for name, parameter in made.items()}
        if self.config.start is not None:
            begun = read_adapter(self.config.start)
            start_from(begun, indices, self.parts, trained)
            self.started = begun.sha256
        return trained

    def adapted(self) -> dict[str, AdapterConfig]:
        """The parts that get an adapter from peft, and which."""
        config = self.config
        text = [part for part in self.parts if part.startswith("text_encoder")]
        if config.text_adapter is not None and not text:
            raise ValueError(f"The model {self.generator.name!r} reads no text, so it has no text encoder to train.")
        own = {"denoiser": config.adapter} if config.adapter is not None else {}
        return own | (dict.fromkeys(text, config.text_adapter) if config.text_adapter is not None else {})

    def rates(self) -> dict[str, float]:
        """Factors on the learning rate, of the parameters that have one."""
        factors = {"text_encoder": self.config.text_rate, PREFIX: self.config.token_rate}
        found = {name: rate for name in self.trains for begin, rate in factors.items() if name.startswith(begin)}
        if self.config.up_rate != 1:  # arXiv 2402.12354: eta_B = lambda eta_A
            found |= {name: self.config.up_rate * found.get(name, 1.0) for name in self.trains if ".lora_B." in name}
        return found

    def error(self, prediction: Prediction, x0: Tensor, eps: Tensor, step: int) -> Tensor:
        """(B, C, h, w): the squared error of the network's own output, weighted as the config says."""
        a, b = (expand(value, x0) for value in prediction.row)
        weight = torch.as_tensor(self.diffusion.weight(prediction.level), device=x0.device)
        squared = (prediction.raw.float() - (a * x0 + b * eps)).square()
        if (huber := self.config.huber) is not None:
            squared = pseudo_huber_of(squared, expand(torch.as_tensor(huber.at(prediction.level)).to(x0), x0))
        # w |raw - (a x0 + b eps)|^2, which is arXiv 2208.12242's and 2208.01618's loss where the network predicts eps
        return expand(weight, x0) ** 2 * squared

    def to_adapter(self, values: Mapping[str, Tensor]) -> Adapter:
        """Trained values, by the names of `attach`, as an adapter."""
        layers: dict[str, Any] = {}
        metadata: dict[str, str] = {}
        for part, settings in self.adapted().items():
            made = to_adapter(self.parts[part], values_of(part, values), settings, self.config.name, part)
            layers, metadata = layers | dict(made.layers), metadata | dict(made.metadata)
        return Adapter(self.config.name, layers, metadata, words=collect(self.words, values))

    # ---- a step ----

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return models["adapter"](self.compute, batch, draws, step)

    def compute(self, batch: Batch, draws: Draws, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what is logged; called with the trained values in the model.

        Pictures of the class (extra["prior"] (B,)) count `prior_weight`; where extra["mask"] (B, 1, h, w) is 0, nothing counts.
        """
        x0 = self.clean(batch)
        level = self.levels(draws, x0.device, step)
        eps = self.noise(draws, x0)
        prediction = self.predict(level.mix(x0, eps), level, self.condition(batch, x0))
        error = self.error(prediction, x0, eps, step)
        each = error.flatten(1).mean(1)
        if (mask := batch.extra.get("mask")) is not None:
            mask = mask.to(error)
            each = (error * mask).flatten(1).sum(1) / (error.shape[1] * mask.flatten(1).sum(1)).clamp_min(1e-8)
        if (prior := batch.extra.get("prior")) is None:
            return each.mean(), {}
        prior = prior.to(each.device)
        weight = torch.where(prior, self.config.prior_weight, 1.0)
        own, taught = each.detach(), (~prior).float()
        # arXiv 2208.12242, equation 2: the prior-preservation loss, lambda = prior_weight
        return (weight * each).mean(), {"loss_instance": (own * taught).sum() / taught.sum().clamp_min(1)}

    def levels(self, draws: Draws, device: torch.device, step: int) -> NoiseLevel:
        """One level per sample, (B,)."""
        return draw_levels(self.diffusion.config.time, self.diffusion.path, draws, device)

    def noise(self, draws: Draws, like: Tensor) -> Tensor:
        eps = draws.normal("eps", like.shape[1:], like.device)
        if self.config.noise_pyramid is not None:
            eps = add_pyramid(eps, draws, self.config.noise_pyramid)
        if not self.config.noise_offset:
            return eps
        return eps + self.config.noise_offset * draws.normal("offset", (like.shape[1], 1, 1), like.device)

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        """The model's prediction, differentiable."""
        return self.generator.denoiser(x, level, condition, Context())

    @torch.no_grad()
    def clean(self, batch: Batch) -> Tensor:
        """The x0 of a batch (B, C, h, w), float32: scaled latents, or the pictures themselves."""
        if batch.latents is not None:
            return batch.latents.float() * self.generator.config.latent_scale
        images = pictures_of(batch)
        if self.generator.autoencoder is None:
            return images
        with torch.autocast(images.device.type, enabled=False):
            return self.generator.autoencoder.encode(images).float() * self.generator.config.latent_scale

    def condition(self, batch: Batch, x0: Tensor) -> Condition:
        """What the captions of a batch say, or its labels."""
        generator = self.generator
        if generator.text_encoder is None:
            labels = batch.labels if generator.classes else None
            return Condition(label=None if labels is None else labels.to(x0.device))
        if batch.captions is None:
            raise ValueError("The data have no captions, and this model reads text; give a prompt for all pictures.")
        return self._sized(join(self.read(batch.captions)), x0)

    def read(self, captions: Sequence[str]) -> list[Condition]:
        """One condition per caption, with a batch of 1; each distinct one is read once, and kept where the text encoder does
        not change."""
        encoder: Any = self.generator.text_encoder

        def one(caption: str) -> Condition:
            made = encoder.condition(literal(caption))
            return made.map(lambda v: v.to(self.generator.dtype) if v.is_floating_point() else v)

        if self.reads:
            made = {caption: one(caption) for caption in dict.fromkeys(captions)}
            return [made[caption] for caption in captions]
        with torch.no_grad(), torch.autocast(self.generator.device.type, enabled=False):
            for caption in dict.fromkeys(captions):
                if caption not in self._read:
                    if len(self._read) >= 4096:
                        self._read.clear()
                    self._read[caption] = one(caption)
            return [self._read[caption] for caption in captions]

    def _sized(self, condition: Condition, x0: Tensor) -> Condition:
        """With height, width and their ratio in pixels, for a network that asks for them."""
        if not getattr(self.generator.network.config, "size_conditions", False):
            return condition
        height, width = (side * self.generator.factor for side in x0.shape[2:])
        size = torch.tensor([[height, width]] * len(x0), dtype=torch.float32, device=x0.device)
        return replace(condition, extra={**condition.extra, "size": size, "aspect": size[:, :1] / size[:, 1:]})

    # ---- pictures and the result ----

    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview | None:
        prompts = self.config.preview.prompts or self._own_prompts()
        return models["adapter"](self.draw, prompts, seed) if prompts else None

    def _own_prompts(self) -> tuple[str, ...]:
        """What the pictures are called, where no other prompts were given for previews."""
        own = self.run.get("trigger")
        return (own,) if isinstance(own, str) and "{}" not in own and self.generator.text_encoder is not None else ()

    def draw(self, prompts: Sequence[str], seed: int) -> Preview:
        """Pictures (N, 3, H, W) in [-1, 1] by the model's own sampler."""
        settings = self.config.preview
        self.generator._encoded.clear()
        made = self.generator(
            list(prompts) if self.generator.text_encoder is not None else None,
            seed=seed,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            output_type="pt",
            progress=False,
        )
        self.generator._encoded.clear()
        return made.images * 2 - 1, prompts

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """The adapter in the config's format, and in peft's own where no other holds it."""
        network = models["adapter"]
        assert isinstance(network, TrainableSubset)
        values = {name: value.detach() for name, value in network.named.items()}
        oft = {part: self.parts[part] for part, settings in self.adapted().items() if settings.type == "oft"}
        export_adapter(self.to_adapter(values), values, self.config, self.metadata(), oft, folder)
        write_bytes(folder / "README.md", self.card().encode())

    def metadata(self) -> dict[str, str]:
        """What the adapter's file says of its training."""
        return describe_training(self.config, self.generator, self.run)

    def card(self) -> str:
        """The text of README.md."""
        return f"# {self.config.name}\n\nAn adapter for {self.generator.name!r}.\n"


def literal(caption: str) -> str:
    """A caption such that a reader of prompts takes its brackets as text, not as weights."""
    return "".join(f"\\{c}" if c in "()[]\\" else c for c in caption)
