"""Training of a reference encoder for a model: what pictures show goes into the picture beside the prompt.

The model stays as it is; keys and values that its attentions find in the pictures' tokens are added (IP-Adapter, arXiv
2308.06721, equation 5), and a word of the prompt may stand for the pictures (MM-Diff, arXiv 2403.15059; ProFusion's PromptNet,
arXiv 2305.13579). The loss is the model's own, of its prediction at a noise level. Data may bring references with each picture
(`emoji` with `references`); of other data a picture is its own reference, mirrored now and then, as IP-Adapter trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.levels import TimeConfig, draw_levels
from distill.losses.loss_weighting import bounded_level, factor_on_x0
from distill.networks.referenced import ReferencedNetwork, shows
from distill.objectives.bases.objective import Objective
from distill.objectives.bases.student_sampling import sample_by, unit_noise
from distill.objectives.bases.teacher import Teacher, TeacherConfig
from distill.types import Batch, Draws, Phase, Preview, Role, drop_labels, knows_no_label, pictures_of
from gen.io.weights import write_bytes
from gen.models.components import save_component
from gen.models.reference import check_fits, features_of
from gen.nn.backbones.dit import DiT
from gen.nn.reference import WORD, SubjectTokens
from gen.nn.reference_encoder import ReferenceEncoder, ReferenceEncoderConfig, attention_sizes
from gen.nn.registry import Config
from samplers.denoiser import Condition, Context
from samplers.path import expand

PREVIEWED = 6  # pictures
MIRRORED = 0.5  # share of the pictures that are their own references
CLEAN = 0.0  # the time that copied blocks are at


class ReferenceConfig(Config):
    """teacher: the model. The sizes of an encoder that is made here: depth, tokens, resampler_depth, subject as of
    `ReferenceEncoderConfig`; decoupled: it adds to the attentions; attention: those to text, or "joint", the patches' own, with
    whose keys it begins.

    features: "latents", or "clip" with the folder or hub id of CLIP's vision network as `vision`. subject_word: whose embedding
    the word begins with. time: how noise levels are drawn. loss: the reading whose error is measured, the predicted one if not
    given; min_sigma bounds the weight of the cleanest levels. drop_reference: share of samples without pictures. drop_label:
    share of the samples without their label; empty captions are the data's (`drop_caption`).
    """

    teacher: TeacherConfig = TeacherConfig()
    depth: int = Field(default=2, ge=0)
    tokens: int = Field(default=0, ge=0)
    resampler_depth: int = Field(default=0, ge=0)
    subject: Literal["none", "fused", "word"] = "none"
    decoupled: bool = True
    attention: Literal["cross", "joint"] = "cross"
    features: Literal["latents", "clip"] = "latents"
    vision: Path | None = None
    subject_word: str = "thing"
    time: TimeConfig = TimeConfig()
    loss: Literal["eps", "x0", "v", "flow", "edm"] | None = None
    min_sigma: float = Field(default=0.05, gt=0)
    drop_reference: float = Field(default=0.1, ge=0, le=1)
    drop_label: float = Field(default=0.1, ge=0, le=1)


class ReferenceObjective(Objective):
    """See the module. Role `reference` trains; `teacher` is frozen. The data must be pictures."""

    makes_network = True
    source: ClassVar[str] = "arXiv 2308.06721, 2403.15059"

    def __init__(self, config: ReferenceConfig, network: nn.Module, source: Any = None, teacher: Teacher | None = None):
        self.config = config
        self.teacher = teacher or Teacher.load(config.teacher)
        self.path, self.autoencoder, self.text_encoder = self.teacher.path, self.teacher.autoencoder, self.teacher.text_encoder
        base: Any = self.teacher.network
        if not hasattr(getattr(base, "config", None), "heads"):
            raise ValueError(
                f"The model {self.teacher.name!r} is a {type(base).__name__}, and a reference encoder is trained for a network "
                "of ours with attention; choose another teacher."
            )
        encoder: Any = self._made(base) if isinstance(network, nn.Identity) else network
        check_fits(encoder, _ModelOf(base), Path(self.teacher.name))
        if encoder.config.subject != "none" and not hasattr(self.text_encoder, "word"):
            raise ValueError(
                f"subject is {encoder.config.subject!r}, and {self.teacher.name!r} has no text encoder of ours, which reads "
                "the word; choose another teacher, or subject: none."
            )
        referenced = ReferencedNetwork(base, encoder.train().requires_grad_(True), self.text_encoder)
        self.roles = {"reference": Role(referenced), "teacher": Role(base, trains=False, ema=False)}
        device = next(base.parameters()).device
        self.features, self.seen_by = features_of(
            encoder, self.autoencoder, self.teacher.model.latent_scale, config.vision, device
        )

    def _made(self, base: Any) -> ReferenceEncoder:
        """A fresh encoder for the teacher's network, its blocks copies of the network's where those are a DiT's."""
        config, sizes = self.config, attention_sizes(base, self.config.attention)
        own: dict[str, Any] = {name: getattr(config, name) for name in ("depth", "tokens", "resampler_depth", "subject")}
        if config.subject != "none":
            own["text_dim"] = getattr(self.text_encoder, "dim", 0)
        own |= {"attention": sizes["attention"]} if config.decoupled else {"layers": 0}
        side = self.teacher.model.sample_size // getattr(self.autoencoder, "factor", 1)
        if config.features == "clip":
            from gen.models.bridge.ip_adapter.encoder import open_encoder

            if config.vision is None:
                raise ValueError("features is 'clip'; give vision, the folder or hub id of CLIP's vision network.")
            width = open_encoder(config.vision, torch.float32, torch.device("cpu")).network.config.hidden_size
            own |= {"features": "clip", "channels": width, "patch": 1, "size": 1}
        if isinstance(base, DiT):
            encoder = ReferenceEncoder.of(base, side, CLEAN, **own)
        else:
            alike = {"channels": base.config.channels, "patch": base.config.patch, "size": side, "dim": base.config.dim,
                     "heads": base.config.heads}  # fmt: skip
            encoder = ReferenceEncoder(ReferenceEncoderConfig(**{**alike, **sizes, **own}))
        if config.subject != "none":
            with torch.no_grad():
                ids, mask = self.text_encoder.tokenize([config.subject_word])
                inside = ids[0][mask[0]][1:-1]  # between the marks of beginning and end
                encoder.subject_start.copy_(self.text_encoder.word.weight[inside].mean(0))
        return encoder

    def clean(self, batch: Batch) -> Tensor:
        return self.teacher.clean(batch)

    # ---- what is shown ----

    def shown(self, batch: Batch, draws: Draws, drop: bool = True) -> tuple[Tensor, Tensor]:
        """(references (B, N, 3, H, W) in [-1, 1], which of them are there (B, N) bool). drop: a share of samples has none."""
        images = pictures_of(batch)
        given = batch.extra.get("references")
        if given is None:
            turned = draws.uniform("mirrored", device=images.device) < MIRRORED
            given = torch.where(turned.view(-1, 1, 1, 1), images.flip(-1), images)[:, None]
        given = given.to(images.device)
        present = batch.extra.get("present", torch.ones(given.shape[:2], dtype=torch.bool)).to(images.device)
        dropped = draws.uniform("reference", device=images.device) < (self.config.drop_reference if drop else 0.0)
        return given, present & ~dropped[:, None]

    def condition(self, batch: Batch, draws: Draws, device: torch.device, drop: bool = True) -> Condition:
        """What captions or labels say, and the pictures that are shown."""
        references, present = self.shown(batch, draws, drop)
        with torch.autocast(device.type, enabled=False):
            seen = self.features((references.flatten(0, 1).float() + 1) / 2).unflatten(0, present.shape)
        trained: Any = self.roles["reference"].network
        if trained.encoder.config.subject == "none" or batch.captions is None:
            plain = self.teacher.condition(_without_word(batch), device)
            return replace(plain, extra={**plain.extra, **shows(seen.to(device), present)})
        encoder: Any = self.text_encoder.to(device)
        start = trained.encoder.subject_start.detach()
        encoder.learn(SubjectTokens({WORD: start[None, None]}, encoder.word.weight.shape[0]))
        try:
            with torch.no_grad():
                ids, mask = encoder.tokenize(batch.captions)
                tokens = encoder(ids, mask).float()
        finally:
            encoder.learn(None)
        return Condition(tokens=tokens, mask=mask, extra=shows(seen.to(device), present, ids))

    # ---- the loss ----

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, model = self.config, self.teacher.model
        if knows_no_label(self.teacher.network):
            batch = drop_labels(batch, config.drop_label, draws)
        x0 = self.clean(batch)
        level = draw_levels(config.time, self.path, draws, x0.device)
        eps = draws.normal_like("eps", x0)
        x = level.mix(x0, eps)
        denoiser = self.teacher.denoiser(models["reference"], self.teacher.dtype)
        prediction = denoiser(x, level, self.condition(batch, draws, x0.device), Context())
        a, b = prediction.row
        error = (prediction.raw.float() - expand(a, x) * x0 - expand(b, x) * eps).square().flatten(1).mean(1)
        bounded = bounded_level(level, config.min_sigma)
        kinds = (config.loss or model.prediction, model.prediction)
        measured, predicted = (factor_on_x0(kind, bounded, self.path, model.sigma_data) for kind in kinds)
        return ((measured / predicted) ** 2 * error).mean(), {"raw_error": error.detach().mean()}

    # ---- what is shown and written ----

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview:
        """References, and what the model draws of the captions with them."""
        index = batch.index[:PREVIEWED]
        count = len(index)
        cut = {name: value[:count] for name, value in batch.extra.items()}
        captions = None if batch.captions is None else batch.captions[:count]
        labels = None if batch.labels is None else batch.labels[:count]
        batch = Batch(index, pictures_of(batch)[:count], captions=captions, labels=labels, extra=cut)
        like, draws = self.clean(batch), Draws(seed, index, "preview")
        condition = self.condition(batch, draws, like.device, drop=False)
        denoiser = self.teacher.denoiser(models["reference"], self.teacher.dtype)
        x0 = sample_by(denoiser, self.teacher.model.defaults, unit_noise(range(seed, seed + count), like), condition)
        drawn = self.teacher.decode(x0).float().clamp(-1, 1)
        references = self.shown(batch, draws)[0][:, 0]
        said = None if captions is None else [*["reference"] * count, *captions]
        return torch.cat([references.to(drawn), drawn]), said

    def inputs(self) -> dict[str, str]:
        return {"teacher": self.teacher.files_digest(), **({"vision": self.seen_by} if self.seen_by else {})}

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """The encoder's folder, in bfloat16, for `--reference-encoder`."""
        trained: Any = models["reference"]
        save_component(trained.encoder, folder, torch.bfloat16)
        word = WORD if trained.encoder.config.subject != "none" else "cat"
        use = f'fewstep image "a blue {word}" --model {self.teacher.name} --reference cat.png --reference-encoder THIS_FOLDER'
        text = f"# A reference encoder for {self.teacher.name}\n\n{self.source}.\n\n    {use}\n"
        write_bytes(folder / "README.md", text.encode())


class _ModelOf:
    """What `check_fits` asks of a model."""

    def __init__(self, network: Any):
        self.network = network


def _without_word(batch: Batch) -> Batch:
    """The batch without the word for the pictures, which nothing reads."""
    if batch.captions is None:
        return batch
    return replace(batch, captions=[caption.replace(WORD, "thing") for caption in batch.captions])
