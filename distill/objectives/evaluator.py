"""Training of the evaluation network: pictures are classified among all labels, and matched with their captions.

Loss = cross-entropy of the cosines with every label's sentence embedding, with label smoothing, plus w times the symmetric
contrastive loss between the batch's pictures and captions (Radford et al. 2021, arXiv 2103.00020, figure 3), which makes
colours and backgrounds count. Sentence embeddings come from a frozen text encoder. Pictures are changed strongly, so that
vendors never seen are recognised as well; those of the held-out archive are only measured on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from distill.networks.evaluator.augment import NUMBERS, augment
from distill.networks.evaluator.pictures import read_pictures
from distill.objectives.bases.objective import Objective
from distill.types import Batch, Draws, Phase, Role
from gen.models.components import load_component
from gen.nn.registry import Config

if TYPE_CHECKING:
    from distill.data.source import Source


class EvaluatorObjectiveConfig(Config):
    """Where the text encoder and the held-out pictures are, and the weights of the loss."""

    text_encoder: str = Field(
        default="gen/weights/default/text_encoder", description="component folder of the frozen text encoder"
    )
    held_out: str | None = Field(
        default="data/emoji/emoji-test.zip", description="archive of a vendor that training does not see"
    )
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    caption_weight: NonNegativeFloat = Field(default=0.3, description="weight of the contrastive loss with captions")


def contrastive(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric cross-entropy of scaled cosines between unit vectors (B, E); `same` (B, B) is True where two captions are
    equal, and such pairs off the diagonal are left out rather than pushed apart."""
    logits = (scale * images @ texts.T).masked_fill(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), -1e4)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class EvaluatorObjective(Objective):
    """Role "evaluator" trains, with an average; role "text_encoder" is fixed."""

    def __init__(self, config: EvaluatorObjectiveConfig, network: nn.Module, source: Source | None = None):
        if source is None or not getattr(source, "concepts", None):
            raise ValueError("The evaluation network learns a data source's labels; give data of type emoji.")
        text_encoder: Any = load_component(config.text_encoder, "text_encoder")
        with torch.no_grad():
            concepts: Any = getattr(source, "concepts", None)
            evaluator: Any = network
            evaluator.set_labels(concepts, text_encoder.pooled(concepts))
        self.config, self.text_encoder = config, text_encoder
        self.roles = {"evaluator": Role(network), "text_encoder": Role(text_encoder, trains=False, ema=False)}
        self._held_out: tuple[Tensor, Tensor] | None = None

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        network: Any = self.roles["evaluator"].network
        images = network.resize(batch.images)
        with torch.autocast(images.device.type, enabled=False):
            noise = draws.normal_like("noise", images)
            images = augment(images.float(), draws.uniform("augment", (NUMBERS,), images.device), noise)
        with torch.no_grad():
            captions = self.text_encoder.pooled(batch.captions)
        count = len(network.labels)
        embedded, texts, scale = models["evaluator"](images, torch.cat([network.label_sentences, captions]))
        embedded, labels, texts = embedded.float(), texts[:count].float(), texts[count:].float()

        logits = scale * embedded @ labels.T
        classification = F.cross_entropy(logits, torch.as_tensor(batch.labels), label_smoothing=self.config.label_smoothing)
        texts_given = batch.captions or ()
        rows = [i for i, caption in enumerate(texts_given) if caption.strip()]
        same = torch.tensor([[texts_given[i] == texts_given[j] for j in rows] for i in rows], device=logits.device)
        matching = contrastive(embedded[rows], texts[rows], scale, same) if len(rows) > 1 else logits.new_zeros(())
        top1 = (logits.argmax(1) == batch.labels).float().mean()
        loss = classification + self.config.caption_weight * matching
        return loss, {"classification": classification.detach(), "matching": matching.detach(), "top1": top1}

    @torch.no_grad()
    def measure(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """Top-1 and top-5 accuracy, among all labels, on the held-out archive's pictures on white."""
        if self.config.held_out is None:
            return {}
        network: Any = models["evaluator"]
        if self._held_out is None:
            pictures, labels = read_pictures(self.config.held_out, network.config.size)
            known = {label: index for index, label in enumerate(network.labels)}
            rows = [i for i, label in enumerate(labels) if label in known]
            self._held_out = pictures[rows], torch.tensor([known[labels[i]] for i in rows])
        pictures, target = self._held_out
        device = next(network.parameters()).device
        scores = torch.cat([network.classify(part.to(device)).float().cpu() for part in pictures.split(128)])
        right = scores.topk(min(5, scores.shape[1])).indices == target[:, None]
        return {"top1": right[:, 0].float().mean().item(), "top5": right.any(1).float().mean().item()}

    def export(self, models: Mapping[str, nn.Module], folder) -> None:
        from gen.models.components import save_component

        save_component(models["evaluator"], folder, torch.bfloat16)
