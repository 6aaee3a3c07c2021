"""Numbers of a run as it goes: what the averaged student draws at several numbers of steps, beside data and teacher.

The pictures are for samples of what is held out (the section `validation`), or else of the run's own data source, with counters
that training never reaches: their captions or labels are what is drawn, and their pictures are the real ones. Seeds are fixed,
so that numbers of different steps compare. Nothing here draws from a global generator or keeps state, so a run with evaluation
has the weights of one without, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill.config import EvaluationConfig, TrainConfig
from distill.objectives.bases.objective import Objective
from distill.optim.precision import autocast
from distill.run_folder import TrainingError
from distill.types import Batch

if TYPE_CHECKING:
    from distill.data.source import Source
    from distill.networks.evaluator.network import Evaluator

FIRST = 1 << 40  # sample counters from here on are for evaluation
Numbers = dict[str, float]


class TrainingEvaluation:
    """`measure` draws and scores; `sheet` shows what was drawn last. `prepare` reads the data and the teacher's pictures."""

    def __init__(self, run: TrainConfig, config: EvaluationConfig, objective: Objective, source: Source, device: torch.device):
        from distill.networks.features import load_features

        self.run, self.config, self.objective, self.source, self.device = run, config, objective, source, device
        if not objective.draws_pictures:
            raise TrainingError(f"{type(objective).__name__} draws no pictures to evaluate; leave the section evaluation out.")
        self.features = load_features(config.features).to(device)
        self.batches: list[tuple[Batch, range]] = []
        self.taught: list[Tensor] = []
        self.drawn: dict[int, list[Tensor]] = {}

    def prepare(self) -> None:
        """Read the samples, and draw what the teacher makes of them unless it is kept on disk."""
        count, group = self.config.pictures, self.run.batch_size
        size, start = min(self.config.batch_size, group), FIRST // group * group
        for number, done in enumerate(range(0, count, size)):  # no batch reaches over two of the source's own
            first = start + number * group
            batch = self.source.batch(range(first, first + min(size, count - done))).to(self.device)
            if batch.images is None and batch.latents is None:
                raise TrainingError("The data hold no pictures to evaluate against; leave the section evaluation out.")
            self.batches.append((batch, range(self.config.seed + done, self.config.seed + done + len(batch))))
        for steps in self.config.steps:
            self.objective.check_steps(steps)
        self.real = torch.cat([self.features(self.objective.decoded(batch)) for batch, _ in self.batches])
        self._teach()
        self.reader = _Reader.of(self)

    def _teach(self) -> None:
        from distill.checkpointing.digests import digest
        from distill.eval.references import ReferencePictures, in_8_bits

        teacher = self.objective.teacher_digest()
        if teacher is None:
            return
        kept = ReferencePictures(self.config.references)
        shared = (1, teacher, self.config.reference_steps, self.run.precision, self.device.type)
        for batch, seeds in tqdm(self.batches, desc="the teacher's pictures", unit="batch", leave=False):
            shape = tuple(self.objective.clean(batch).shape[1:])
            keys = [digest(*shared, *_subject(batch, row), shape, seed) for row, seed in enumerate(seeds)]
            stored = [kept.read(key) for key in keys]
            found = [image for image in stored if image is not None]
            if len(found) < len(keys):
                with autocast(self.device, self.run.precision):
                    images = self.objective.teacher_sample(batch, seeds, self.config.reference_steps)
                found = list(in_8_bits(images.cpu()))
                for key, image in zip(keys, found, strict=True):
                    kept.write(key, image)
            self.taught.append(torch.stack(found))

    def draw(self, models: Mapping[str, nn.Module]) -> None:
        """Draw all pictures; with shards every process must call this."""
        from distill.eval.references import in_8_bits

        for steps in self.config.steps:
            self.drawn[steps] = []
            for batch, seeds in self.batches:
                with torch.no_grad(), autocast(self.device, self.run.precision):
                    images = self.objective.pictures(models, batch, seeds, steps)
                self.drawn[steps].append(in_8_bits(images.cpu()))

    @torch.no_grad()
    def scores(self) -> dict[int, Numbers]:
        """By the number of steps, what the pictures drawn last are worth."""
        from distill.eval.model_scores import set_distances

        found = {}
        for steps, parts in self.drawn.items():
            made = torch.cat([self.features(part.to(self.device)) for part in parts])
            numbers: Numbers = set_distances(made, self.real)
            if self.taught:
                apart = [(a - b).square().mean((1, 2, 3)).sqrt() for a, b in zip(parts, self.taught, strict=True)]
                numbers["distance_to_reference"] = float(torch.cat(apart).mean())
            if self.reader is not None:
                numbers |= self.reader.read(parts)
            found[steps] = numbers
        return found

    def sheet(self) -> Any:
        """A contact sheet: a line for the teacher, then one for each number of steps, of the first pictures."""
        from gen.io.contact_sheet import contact_sheet, to_pictures

        lines = ([("teacher", self.taught)] if self.taught else []) + [(f"{n} steps", p) for n, p in self.drawn.items()]
        first, _ = self.batches[0]
        count = min(10, len(first))
        shown, captions = [], []
        for name, parts in lines:
            shown += to_pictures(parts[0][:count])
            captions += [f"{name}: {_subject(first, row)[0] or ''}".rstrip(": ") for row in range(count)]
        return contact_sheet(shown, captions, columns=count)


def _subject(batch: Batch, row: int) -> tuple[str | None, int | None]:
    """(caption, label) of a sample."""
    caption = None if batch.captions is None else batch.captions[row]
    return caption, None if batch.labels is None else int(batch.labels[row])


class _Reader:
    """What the evaluation network makes of pictures with the captions and labels of the samples, as far as it knows those."""

    def __init__(self, network: Evaluator, texts: list[Tensor] | None, told: list[Tensor], targets: list[Tensor] | None):
        self.network, self.texts, self.told, self.targets = network, texts, told, targets
        self.labels = None if targets is None else network.embed_texts(network.label_sentences)

    @classmethod
    def of(cls, evaluation: TrainingEvaluation) -> _Reader | None:
        """None for other features, and where neither captions nor labels can be read."""
        from distill.networks.evaluator.network import Evaluator

        network = evaluation.features.network
        encoder: Any = getattr(evaluation.objective, "text_encoder", None)
        if not isinstance(network, Evaluator):
            return None
        batches = [batch for batch, _ in evaluation.batches]
        captioned = [torch.tensor([bool(c) for c in batch.captions or [""] * len(batch)]) for batch in batches]
        texts, targets = None, None
        if any(part.any() for part in captioned) and hasattr(encoder, "pooled"):
            pooled = [encoder.pooled(list(batch.captions or ())) for batch in batches]
            if pooled[0].shape[1] == network.config.text_dim:
                texts = [network.embed_texts(part.to(evaluation.device).float()) for part in pooled]
        names, place = concepts(evaluation.source), {label: i for i, label in enumerate(network.labels)}
        if names is not None and all(name in place for name in names) and all(batch.labels is not None for batch in batches):
            targets = [torch.tensor([place[names[int(i)]] for i in batch.labels]) for batch in batches]  # type: ignore[union-attr]
        return None if texts is None and targets is None else cls(network, texts, captioned, targets)

    def read(self, parts: list[Tensor]) -> Numbers:
        device = next(self.network.parameters()).device
        embedded = [self.network.embed(part.to(device)) for part in parts]
        numbers: Numbers = {}
        if self.texts is not None:
            cosines = [(a * b).sum(1).cpu()[t] for a, b, t in zip(embedded, self.texts, self.told, strict=True)]
            numbers["prompt_alignment"] = float(torch.cat(cosines).mean())
        if self.targets is not None and self.labels is not None:
            from distill.eval import metrics

            scores, targets = torch.cat(embedded).cpu() @ self.labels.cpu().T, torch.cat(self.targets)
            numbers |= {f"top{k}": metrics.top_k(scores, targets, k) for k in (1, 5)}
        return numbers


def concepts(source: Any) -> list[str] | None:
    """The names of a source's labels; a cache of latents has those of what it caches."""
    while source is not None:
        if (names := getattr(source, "concepts", None)) is not None:
            return list(names)
        source = getattr(source, "source", None) or getattr(source, "emoji", None)
    return None
