"""Distillation of the text encoder: a shallow student gives the tokens and the sentence embeddings of its teacher.

Loss = mean over valid tokens of (1 - cos) plus w |difference|^2 / D, and the same of the sentence embedding (the mean token,
which is what the teacher was trained to make meaningful; Reimers and Gurevych 2019, arXiv 1908.10084). Half of the texts are
captions; the other half are made of common words, so that words which no caption uses keep their meaning too.
The student starts from some of the teacher's own layers (Sanh et al. 2019, arXiv 1910.01108, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from distill.objectives.bases.objective import Objective
from distill.types import Batch, Draws, Phase, Role
from gen.models.components import load_component
from gen.nn.registry import Config
from gen.nn.text_encoder import TextEncoder, mean_token

if TYPE_CHECKING:
    from distill.data.source import Source

# how a phrase of common words is put together; {} is a word
PATTERNS = (
    "{}",
    "{} {}",
    "a {}",
    "a {} {}",
    "{} {} {}",
    "{} and {}",
    "a {} on a {}",
    "{} with {}",
    "{}, {}, {}",
    "the {} of {}",
)
HELD_OUT_SEED = 20_201_225


class TextObjectiveConfig(Config):
    """Where the teacher is, which of its layers the student starts from, and the weights of the loss."""

    teacher: str = Field(default="data/text-teacher", description="component folder of the teacher")
    layers: tuple[int, ...] = Field(default=(0, 2, 5), description="the teacher's layers that the student starts from")
    phrases: float = Field(default=0.5, ge=0, le=1, description="share of the texts that are made of common words")
    square_weight: NonNegativeFloat = Field(default=1.0, description="weight of the squared differences, per dimension")
    sentence_weight: NonNegativeFloat = Field(default=1.0, description="weight of the sentence embedding")


def picked_layers(teacher: TextEncoder, layers: Sequence[int]) -> dict[str, Tensor]:
    """The state of a shallower encoder made of some of the teacher's layers, in order: where a student starts."""
    state = {name: value for name, value in teacher.state_dict().items() if not name.startswith("layers.")}
    for target, source in enumerate(layers):
        if not 0 <= source < len(teacher.layers):
            raise ValueError(f"The teacher has layers 0 to {len(teacher.layers) - 1}, not {source}.")
        state |= {f"layers.{target}.{n}": v for n, v in teacher.layers[source].state_dict().items()}
    return state


def common_words(encoder: TextEncoder) -> list[str]:
    """The whole lower-case words of an encoder's vocabulary, the most frequent first."""
    assert encoder.word_pieces is not None
    return [piece for piece in encoder.word_pieces.pieces if piece.isascii() and piece.isalpha() and len(piece) > 2]


def phrases(words: Sequence[str], numbers: Tensor) -> list[str]:
    """One phrase per row of `numbers` (B, 4) in [0, 1): the first chooses a pattern, the others its words."""
    made = []
    for row in numbers.tolist():
        pattern = PATTERNS[int(row[0] * len(PATTERNS))]
        made.append(pattern.format(*(words[int(u * len(words))] for u in row[1:])))
    return made


def distance(a: Tensor, b: Tensor, square_weight: float) -> Tensor:
    """1 - cos plus the weighted mean square of the difference of vectors (..., D); shape (...)."""
    return 1 - F.cosine_similarity(a, b, dim=-1) + square_weight * (a - b).square().mean(-1)


class TextObjective(Objective):
    """Role "text_encoder" trains, with an average; role "teacher" is fixed."""

    def __init__(self, config: TextObjectiveConfig, network: nn.Module, source: Source | None = None):
        teacher: Any = load_component(config.teacher, "text_encoder")
        student: Any = network
        if len(config.layers) != student.config.layers:
            raise ValueError(
                f"layers names {len(config.layers)} layers of the teacher; the student has {student.config.layers}."
            )
        try:
            network.load_state_dict(picked_layers(teacher, config.layers))
        except RuntimeError as error:
            raise ValueError(f"The student's sizes are not those of the teacher in {config.teacher}: {error}") from None
        student.set_vocabulary(teacher.word_pieces.pieces)
        self.config, self.encoder, self.words = config, student, common_words(teacher)
        self.roles = {"text_encoder": Role(network), "teacher": Role(teacher, trains=False, ema=False)}

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        made = phrases(self.words, draws.uniform("phrase", (4,)))
        use = draws.uniform("source") < self.config.phrases
        texts = [p if u or not c else c for p, c, u in zip(made, batch.captions or (), use.tolist(), strict=True)]
        ids, mask = self.encoder.tokenize(texts)
        with torch.no_grad():
            target = models["teacher"](ids, mask).float()
        tokens = models["text_encoder"](ids, mask).float()

        token = (distance(tokens, target, self.config.square_weight) * mask).sum() / mask.sum().clamp_min(1)
        sentence = distance(mean_token(tokens, mask), mean_token(target, mask), self.config.square_weight).mean()
        return token + self.config.sentence_weight * sentence, {"token": token.detach(), "sentence": sentence.detach()}

    @torch.no_grad()
    def measure(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """Mean cosine between student and teacher on 512 phrases that training almost surely never makes."""
        numbers = torch.rand(512, 4, generator=torch.Generator().manual_seed(HELD_OUT_SEED))
        ids, mask = self.encoder.tokenize(phrases(self.words, numbers))
        tokens, target = models["text_encoder"](ids, mask).float(), models["teacher"](ids, mask).float()
        token = (F.cosine_similarity(tokens, target, dim=-1) * mask).sum() / mask.sum()
        sentence = F.cosine_similarity(mean_token(tokens, mask), mean_token(target, mask), dim=-1).mean()
        return {"token_cosine": token.item(), "sentence_cosine": sentence.item()}
