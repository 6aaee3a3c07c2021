"""`python -m tests.benchmarks.concepts STYLE SUBJECT`: two concepts, taught separately, composed in one picture.

Every method draws the same prompts from the same seeds. Measured are likeness to the style and to the subject
(`fidelity.py`: 1 is what held-out pictures of the concept have on average, 0 what others have), the share of pictures that have
both, how well the picture fits the prompt in plain words, and what it costs. Every picture is kept under --out, so that a run
that was stopped goes on where it was. Writes table.json, table.md and sheet.png.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from distill.data.emoji.data import SHIPPED
from distill.eval.model_scores import ScoreSettings, load_text_encoder
from distill.networks.evaluator.network import load_evaluator
from gen.adapters import read_adapter
from gen.generator import Generator
from gen.io.weights import read_weights, write_bytes, write_json, write_weights
from tests.benchmarks.concepts.fidelity import (
    Likeness,
    fit,
    labels_of,
    read_drawings,
    read_folder,
    style_features,
    subject_features,
)  # fmt: skip
from tests.benchmarks.concepts.measure import METHODS, SUBJECT, Bench, Scorer, Wording
from tests.benchmarks.concepts.report import markdown, row
from tests.benchmarks.sheet import sheet

PROMPTS = (
    "a {subject}, {style}",
    "a {subject} on a blue background, {style}",
    "a {subject} on a red background, {style}",
    "a {subject} on a yellow background, {style}",
    "a penguin, {style}",
    "a pizza, {style}",
    "a green frog, {style}",
    "a {subject}",
    "a {subject} on a green background",
    "a guitar",
)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.concepts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("style", type=Path, help="the adapter that taught the style")
    made.add_argument("subject", type=Path, help="the adapter that taught the subject")
    made.add_argument("--orthogonal", type=Path, nargs=2, metavar=("STYLE", "SUBJECT"), help="the two, taught by `orthogonal`")
    made.add_argument("--style-pictures", type=Path, default=Path("data/emoji/emoji-lora.zip"), help="an archive of the style")
    made.add_argument("--other-styles", type=Path, nargs="+", default=[SHIPPED], help="archives of other styles")
    made.add_argument("--style-taught", type=Path, help="folder of the pictures that were taught: its captions are left out")
    made.add_argument("--subject-pictures", type=Path, required=True, help="folder of held-out pictures of the subject")
    made.add_argument("--look-alikes", type=Path, required=True, help="folder of pictures that are not the subject")
    made.add_argument("--style-phrase", default="<openmoji> style", help="what prompts call the style")
    made.add_argument("--subject-phrase", default="<zib>", help="what prompts call the subject")
    made.add_argument("--subject-plain", default="alien monster", help="the subject in words that the model knows")
    made.add_argument("--prompts", type=Path, help="a file of prompts, one a line, with {style} and {subject} in them")
    made.add_argument("--methods", nargs="+", choices=METHODS, help="rows of the table; all if left out")
    made.add_argument("--samples", type=int, default=8, help="pictures per prompt and method")
    made.add_argument("--steps", type=int, help="of sampling; the model's own if left out")
    made.add_argument("--weight", action="append", default=[], metavar="METHOD=STYLE,SUBJECT", help="weights of a method; 1,1")
    made.add_argument("--every", type=int, help="steps of a turn of switch; its own 5 if left out")
    made.add_argument("--drawings", type=int, default=200, help="labels whose drawings show what the style is")
    made.add_argument("--model", default="default")
    made.add_argument("--judge", help="folder of another evaluation network")
    made.add_argument("--text-encoder", help="folder of the text encoder whose sentences the judge knows")
    made.add_argument("--out", type=Path, default=Path("outputs/concepts/table"))
    return made


def weights_of(given: Sequence[str]) -> dict[str, dict[str, float]]:
    """method -> concept -> weight of METHOD=STYLE,SUBJECT."""
    found: dict[str, dict[str, float]] = {}
    for text in given:
        name, _, numbers = text.partition("=")
        try:
            style, subject = (float(number) for number in numbers.split(","))
        except ValueError:
            raise ValueError(f"--weight is {text!r}; write METHOD=STYLE,SUBJECT, for example merge=0.8,0.8.") from None
        if name not in METHODS:
            raise ValueError(f"--weight {text!r}: no method is called {name!r}; there are {', '.join(METHODS)}.")
        found[name] = {"style": style, "subject": subject}
    return found


def prompts_of(path: Path | None) -> list[str]:
    lines = PROMPTS if path is None else [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no prompts.")
    return list(lines)


def check_words(files: Mapping[str, Path], phrases: Mapping[str, str]) -> None:
    """ValueError where a prompt would have a new word that its adapter did not learn."""
    for concept, file in files.items():
        words = read_adapter(file).words
        for word in re.findall(r"<[^<>]+>", phrases[concept]):
            if word not in words:
                raise ValueError(
                    f"{file} has not learned {word!r}; its words: {', '.join(words) or 'none'} (--{concept}-phrase)."
                )


@torch.no_grad()
def decoded(generator: Generator, images: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as the model's autoencoder gives them back: nothing it draws can look more real."""
    if generator.autoencoder is None:
        return images
    return torch.cat([generator.autoencoder.decode(generator.autoencoder.encode(part)) for part in images.split(8)]).clamp(
        -1, 1
    )


def kept(folder: Path, of: Sequence[object], make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """8-bit pictures of real things, encoded and decoded once. of: what they depend on."""
    path = folder / f"real_{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, {name: ((images + 1) * 127.5).round().byte() for name, images in make().items()})
    return {name: images.float() / 127.5 - 1 for name, images in read_weights(path).items()}


def likenesses(given: argparse.Namespace, generator: Generator, judge) -> tuple[Likeness, Likeness]:
    """Of the style and of the subject."""
    size = generator.config.sample_size

    taught = sorted(p.read_text("utf-8").strip() for p in given.style_taught.glob("*.txt")) if given.style_taught else []
    folders = {"own": given.subject_pictures, "others": given.look_alikes}

    def drawings() -> dict[str, Tensor]:
        labels = labels_of(given.style_pictures, taught, given.drawings)
        own, others = read_drawings([given.style_pictures], labels, size, 1), read_drawings(given.other_styles, labels, size, 2)
        return {"own": decoded(generator, own), "others": decoded(generator, others)}

    def subjects() -> dict[str, Tensor]:
        return {name: decoded(generator, read_folder(folder, size)) for name, folder in folders.items()}

    model = [size, generator.name, sorted(generator.weights.items())]
    archives = [(str(path), path.stat().st_size) for path in (given.style_pictures, *given.other_styles)]
    listed = {name: sorted((p.name, p.stat().st_size) for p in folder.glob("*")) for name, folder in folders.items()}
    style = kept(given.out / "cells", [model, archives, taught, given.drawings], drawings)
    subject = kept(given.out / "cells", [model, listed], subjects)
    # drawings of other things are no subject either
    others = torch.cat([subject["others"], style["others"][::4], style["own"][::4]])
    others = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))]
    return fit(style_features, judge, style["own"], style["others"]), fit(subject_features, judge, subject["own"], others)


def run(given: argparse.Namespace) -> None:
    judge, prompts = load_evaluator(given.judge).eval().requires_grad_(False), prompts_of(given.prompts)
    files = {"plain": {"style": given.style, "subject": given.subject}}
    if given.orthogonal:
        files["orthogonal"] = dict(zip(("style", "subject"), given.orthogonal, strict=True))
    for pair in files.values():
        check_words(pair, {"style": given.style_phrase, "subject": given.subject_phrase})
    wording = Wording(given.style_phrase, given.subject_phrase, given.subject_plain)
    options = {"switch": {"every": given.every}} if given.every else {}
    generator = Generator.from_pretrained(given.model)
    bench = Bench(generator, files, wording, given.out, given.steps, weights_of(given.weight), options)
    methods = given.methods or [name for name, method in METHODS.items() if method.pair in files]
    if missing := [name for name in methods if METHODS[name].pair not in files]:
        raise ValueError(f"{missing[0]} needs --orthogonal STYLE SUBJECT.")
    style, subject = likenesses(given, generator, judge)
    ceilings = {"style": style.ceiling, "subject": subject.ceiling}
    scorer = Scorer(judge, load_text_encoder(ScoreSettings(text_encoder=given.text_encoder)), style, subject, wording)
    table, shown = [], {}
    for name in methods:
        cells = {template: bench.pictures(name, template, given.samples) for template in prompts}
        table.append(row(name, cells, scorer))
        shown[name] = [cell.images[0] for cell in cells.values()]
        line = {measure: round(v, 3) for measure, v in table[-1].items() if isinstance(v, float) and "error" not in measure}
        print(name, line, flush=True)
        told = {"prompts": prompts, "samples": given.samples, "steps": given.steps, "weights": bench.weights}
        write_json(given.out / "table.json", {**told, "ceilings": ceilings, "rows": table})
        write_bytes(given.out / "table.md", markdown(table, ceilings).encode())
        sheet(shown, [text.replace(SUBJECT, given.subject_phrase).replace("{style}", "style") for text in prompts],
              given.out / "sheet.png")  # fmt: skip
    print(f"{bench.made} pictures made. Written: {given.out / 'table.json'}, table.md and sheet.png.")


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        run(given)
    except (ValueError, OSError) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
