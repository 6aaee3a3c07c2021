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

from distill.networks.referenced import ReferencedNetwork, shows
from distill.objectives.bases.attachment import AttachmentConfig, AttachmentObjective
from distill.objectives.bases.student_sampling import sample_by, unit_noise
from distill.objectives.bases.teacher import Teacher
from distill.types import Batch, Draws, Preview, Role, pictures_of
from gen.io.weights import write_bytes
from gen.models.components import save_component
from gen.models.reference import check_fits, features_of
from gen.nn.backbones.dit import DiT
from gen.nn.reference import WORD, SubjectTokens
from gen.nn.reference_encoder import ReferenceEncoder, ReferenceEncoderConfig, attention_sizes
from samplers.denoiser import Condition

PREVIEWED = 6  # pictures
MIRRORED = 0.5  # share of the pictures that are their own references
CLEAN = 0.0  # the time that copied blocks are at


class ReferenceConfig(AttachmentConfig):
    """The sizes of an encoder that is made here: depth, tokens, resampler_depth, subject as of
    `ReferenceEncoderConfig`; decoupled: it adds to the attentions; attention: those to text, or "joint", the patches' own, with
    whose keys it begins.

    features: "latents", or "clip" with the folder or hub id of CLIP's vision network as `vision`. subject_word: whose embedding
    the word begins with. drop_reference: share of samples without pictures. The rest is of `AttachmentConfig`.
    """

    depth: int = Field(default=2, ge=0)
    tokens: int = Field(default=0, ge=0)
    resampler_depth: int = Field(default=0, ge=0)
    subject: Literal["none", "fused", "word"] = "none"
    decoupled: bool = True
    attention: Literal["cross", "joint"] = "cross"
    features: Literal["latents", "clip"] = "latents"
    vision: Path | None = None
    subject_word: str = "thing"
    drop_reference: float = Field(default=0.1, ge=0, le=1)


class ReferenceObjective(AttachmentObjective):
    """See the module. Role `reference` trains; `teacher` is frozen. The data must be pictures."""

    trained = "reference"
    source: ClassVar[str] = "arXiv 2308.06721, 2403.15059"

    def __init__(self, config: ReferenceConfig, network: nn.Module, source: Any = None, teacher: Teacher | None = None):
        super().__init__(config, teacher)
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

    # ---- what is shown and written ----

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview:
        """References, and what the model draws of the captions with them."""
        batch = batch.first(PREVIEWED)
        count, captions = len(batch), batch.captions
        like, draws = self.clean(batch), Draws(seed, batch.index, "preview")
        condition = self.condition(batch, draws, like.device, drop=False)
        denoiser = self.teacher.denoiser(models["reference"], self.teacher.dtype)
        x0 = sample_by(denoiser, self.teacher.model.defaults, unit_noise(range(seed, seed + count), like), condition)
        drawn = self.teacher.decode(x0).float().clamp(-1, 1)
        references = self.shown(batch, draws)[0][:, 0]
        said = None if captions is None else [*["reference"] * count, *captions]
        return torch.cat([references.to(drawn), drawn]), said

    def inputs(self) -> dict[str, str]:
        return {**super().inputs(), **({"vision": self.seen_by} if self.seen_by else {})}

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
