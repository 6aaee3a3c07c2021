"""Pictures of one method for one prompt, each made once and kept, and what they score."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data.emoji.captions import read_common
from distill.data.emoji.recolor import BACKGROUNDS
from distill.networks.evaluator.network import Evaluator
from gen.generator import Generator
from gen.io.weights import read_weights, sha256, write_json, write_weights
from samplers.noise import fold
from tests.benchmarks.concepts.fidelity import Likeness, background

BATCH = 8
STYLE, SUBJECT = "{style}", "{subject}"


@dataclass(frozen=True)
class Method:
    """concepts: which of the two act; pair: which files they come from; composition: how they act together."""

    concepts: tuple[str, ...]
    pair: str = "plain"
    composition: str = "merge"


METHODS = {
    "no adapter": Method(()),
    "style alone": Method(("style",)),
    "subject alone": Method(("subject",)),
    "merge": Method(("style", "subject")),
    "composite": Method(("style", "subject"), composition="composite"),
    "switch": Method(("style", "subject"), composition="switch"),
    "cached": Method(("style", "subject"), composition="cached"),
    "contrast": Method(("style", "subject"), composition="contrast"),
    "orthogonal style alone": Method(("style",), "orthogonal"),
    "orthogonal subject alone": Method(("subject",), "orthogonal"),
    "orthogonal merge": Method(("style", "subject"), "orthogonal"),
}


@dataclass(frozen=True)
class Wording:
    """What a prompt calls the style and the subject, and the subject by words that the model knows."""

    style: str
    subject: str
    plain: str

    def prompt(self, template: str, concepts: Sequence[str]) -> str:
        """The prompt for a model that knows these concepts; a style that it does not know is left out."""
        text = template if "style" in concepts else template.replace(f", {STYLE}", "").replace(STYLE, "").strip()
        subject = self.subject if "subject" in concepts else self.plain
        return text.replace(STYLE, self.style).replace(SUBJECT, subject)


@dataclass
class Cell:
    """images (N, 3, H, W) in [0, 1] as saved in 8 bits; seconds, cpu: of the whole machine and of its processors, and
    evaluations, per picture."""

    images: Tensor
    cost: dict[str, float]


@dataclass
class Bench:
    """Where pictures come from and where they are kept. files: pair -> concept -> adapter; weights: method -> concept -> its
    weight, 1 where nothing is said."""

    generator: Generator
    files: Mapping[str, Mapping[str, Path]]
    wording: Wording
    out: Path
    steps: int | None = None
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    made: int = 0
    _loaded: str = ""
    _digests: dict[Path, str] = field(default_factory=dict)

    def pictures(self, name: str, template: str, count: int) -> Cell:
        """Of the first `count` seeds; those that were made before are read."""
        method, weights, options = METHODS[name], self.weights.get(name, {}), self.options.get(name, {})
        given = {c: (self._digest(self.files[method.pair][c]), weights.get(c, 1.0)) for c in method.concepts}
        prompt = self.wording.prompt(template, method.concepts)
        model = [self.generator.name, sorted(self.generator.weights.items()), str(self.generator.dtype)]
        what = json.dumps([model, given, method.composition, options, prompt, template, self.steps])
        base = self.out / "cells" / name.replace(" ", "_") / hashlib.sha256(what.encode()).hexdigest()[:16]
        kept, record = base.with_suffix(".safetensors"), base.with_suffix(".json")
        images, cost = None, {"seconds": 0.0, "cpu seconds": 0.0, "evaluations": 0.0}
        if record.is_file():
            images, cost = read_weights(kept)["images"], json.loads(record.read_text())["cost"]
        done = 0 if images is None else len(images)
        while done < count:
            rows = range(done, min(count, done + BATCH))
            self._use({c: w for c, (_, w) in given.items()}, method.pair)
            start, cpu = time.perf_counter(), time.process_time()
            output = self.generator(
                [prompt] * len(rows),
                seeds=[fold(0, template, i) % 2**31 for i in rows],
                num_inference_steps=self.steps,
                composition=method.composition if len(given) > 1 or method.composition == "contrast" else None,
                composition_options=dict(options),
                batch_size=BATCH,
                output_type="pt",
                progress=False,
            )
            spent = (time.perf_counter() - start, time.process_time() - cpu, output.nfe * len(rows))
            new = (output.images.float().cpu().clamp(0, 1) * 255).round().byte()
            cost = {n: (v * done + s) / (done + len(rows)) for (n, v), s in zip(cost.items(), spent, strict=True)}
            images = new if images is None else torch.cat([images, new])
            done, self.made = len(images), self.made + len(new)
            base.parent.mkdir(parents=True, exist_ok=True)
            write_weights(kept, {"images": images})
            write_json(record, {"method": name, "prompt": prompt, "cost": cost})
        assert images is not None
        return Cell(images[:count].float() / 255, cost)

    def _digest(self, file: Path) -> str:
        if file not in self._digests:
            self._digests[file] = sha256(file)
        return self._digests[file]

    def _use(self, weights: Mapping[str, float], pair: str) -> None:
        """Load the files of a pair, which have the same new words as those of another."""
        if weights and self._loaded != pair:
            for name in self.files[self._loaded] if self._loaded else ():
                self.generator.unload_adapter(name)
            for name, file in self.files[pair].items():
                self.generator.load_adapter(file, name=name)
            self._loaded = pair
        if self._loaded:
            self.generator.set_adapters(weights)


@dataclass(frozen=True)
class Scorer:
    """What pictures are measured with. text_encoder: the one whose sentences the judge knows."""

    judge: Evaluator
    text_encoder: Any
    style: Likeness
    subject: Likeness
    wording: Wording

    @torch.no_grad()
    def __call__(self, template: str, images: Tensor) -> dict[str, list[float]]:
        """Each measure's numbers, one per picture, of pictures (N, 3, H, W) in [0, 1]. A measure that says nothing about the
        prompt is left out."""
        seen, plain = images * 2 - 1, self.wording.prompt(template, ())
        style, subject = self.style(seen), self.subject(seen)
        found = {
            "style" if STYLE in template else "style, not asked": style,
            "subject" if SUBJECT in template else "subject, not asked": subject,
        }
        if STYLE in template and SUBJECT in template:
            found["both"] = ((style > 0.5) & (subject > 0.5)).double()
        text = self.judge.embed_texts(self.text_encoder.pooled([plain]))
        found["alignment"] = (self.judge.embed(seen) @ text.T)[:, 0]
        if SUBJECT not in template and (places := self._places(plain)):
            best = self.judge.classify(seen).topk(min(5, len(self.judge.labels)), 1).indices.tolist()
            found["top-5"] = torch.tensor([not places.isdisjoint(row) for row in best]).double()
        asked = [name for name in BACKGROUNDS if f"on a {name} background" in template]
        if asked:
            found["background"] = torch.tensor([name == asked[0] for name in background(seen)]).double()
        return {name: values.tolist() for name, values in found.items()}

    def _places(self, plain: str) -> set[int]:
        """The labels that a prompt's noun is a word for."""
        words = plain.split(" on a ")[0].split(",")[0].removeprefix("a ").removeprefix("an ").strip()
        colourless = " ".join(word for word in words.split() if word not in BACKGROUNDS)
        names = {words, colourless}
        common = read_common()
        return {i for i, n in enumerate(self.judge.labels) if n in names or names & set(common.get(n, ()))}
