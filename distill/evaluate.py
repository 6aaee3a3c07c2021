"""`python -m distill.evaluate`: how well a model draws what it is asked for, in numbers and on a sheet to look at.

Pictures of each label are made through `gen.Generator` and shown to the evaluation network. That network never saw a
generated picture; it was trained on the generator's drawings, changed strongly, and those of one vendor more. Is the label its
first answer, among its first five, how well does the picture fit the prompt, how far is the set from real ones, how many nearly
copy a training picture, are edges and white as in real ones, is the error of x0 larger on drawings of the held-out split?
`--composition` asks for colours of things that training left out instead. Several models, several numbers of steps, or a model
to be near to make a table (distill/eval/comparison.py). Writes report.json and sheet.png.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.data.emoji.archive import read_archive
from distill.data.emoji.captions import HELD_OUT, read_common
from distill.data.emoji.data import SHIPPED as SHIPPED_DATA
from distill.eval import metrics
from distill.eval.colours import object_colours
from distill.eval.report import print_table, write_sheet
from distill.eval.unseen import by_split
from distill.networks.evaluator.network import Evaluator, load_evaluator
from distill.networks.evaluator.pictures import read_pictures
from gen.cli.parser import Parser
from gen.io.weights import write_json
from gen.models.components import load_component
from samplers.noise import fold

if TYPE_CHECKING:
    from gen.generator import Generator
    from gen.nn.text_encoder import TextEncoder

Report = dict[str, Any]

HELD_OUT_ARCHIVE = "emoji-test.zip"


@dataclass(frozen=True)
class Settings:
    """What is generated and what it is compared with."""

    model: str = "default"
    labels: str = "common"  # common, all, or how many of the common ones
    steps: int | None = None  # None: the model's own
    guidance_scale: float | None = None
    sampler: str | None = None
    seed: int = 0
    repeats: int = 4  # pictures per held-out pair
    per_label: int = 1  # pictures of each label
    batch_size: int = 8
    data: str | None = None  # a folder of archives; None: the shipped one
    evaluator: str | None = None  # a component folder; None: the shipped one
    text_encoder: str | None = None  # the one that the evaluation network was trained with; None: the default model's


@dataclass(frozen=True)
class Made:
    """Generated pictures (N, 3, H, W) in [-1, 1], and the seconds that each took."""

    images: Tensor
    seconds: float
    nfe: float


def training_archive(data: str | None) -> Path:
    """The archive of training pictures in a folder, or the shipped one."""
    path = SHIPPED_DATA if data is None else Path(data) / "emoji-train.zip"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; build it with python -m distill.data.emoji.build, or give another --data.")
    return path


def choose_labels(which: str, known: Sequence[str], common: Sequence[str]) -> list[str]:
    """The labels to draw: "common", "all", or a number: that many of the common ones, evenly spread over their list."""
    everyday = [label for label in common if label in set(known)]
    if which == "all":
        return list(known)
    if which == "common":
        return everyday
    if not which.isascii() or not which.isdigit() or not 0 < int(which) <= len(everyday):
        raise ValueError(f"--labels is {which!r}; give common, all, or a number from 1 to {len(everyday)}.")
    return [everyday[i * len(everyday) // int(which)] for i in range(int(which))]


def draw(
    generator: Generator, prompts: Sequence[str], seeds: Sequence[int], settings: Settings
) -> Iterator[tuple[Tensor, float, float]]:
    """(pictures (B, 3, H, W) in [-1, 1], seconds, evaluations) of each batch in turn, with a progress bar."""
    from tqdm import tqdm

    with tqdm(total=len(prompts), unit="picture", desc="drawing") as bar:
        for first in range(0, len(prompts), settings.batch_size):
            chosen, start = slice(first, first + settings.batch_size), time.perf_counter()
            output = generator(
                prompt=list(prompts[chosen]),
                seeds=list(seeds[chosen]),
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                sampler=settings.sampler,
                batch_size=settings.batch_size,
                output_type="pt",
                progress=False,
            )
            images = output.images.float().cpu() * 2 - 1
            yield images, time.perf_counter() - start, output.nfe * len(images)
            bar.update(len(images))


def generate(generator: Generator, prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> Made:
    """One picture per prompt. The time of each is the median over batches, so that a slow first one does not count."""
    parts, seconds, evaluations = zip(*draw(generator, prompts, seeds, settings), strict=True)
    each = sorted(time / len(part) for time, part in zip(seconds, parts, strict=True))
    return Made(torch.cat(parts), each[len(each) // 2], sum(evaluations) / len(prompts))


def subjects(settings: Settings, labels: Sequence[str]) -> tuple[list[str], list[int]]:
    """(labels, each `per_label` times; a seed for each, which depends on nothing but the label and which one it is)."""
    jobs = [(label, number) for number in range(settings.per_label) for label in labels]
    seeds = [fold(settings.seed, label, *([number] if number else [])) % 2**53 for label, number in jobs]
    return [label for label, _ in jobs], seeds


def load_text_encoder(settings: Settings) -> TextEncoder:
    """The text encoder whose sentence embeddings the evaluation network reads."""
    import gen

    folder = settings.text_encoder or Path(gen.__file__).parent / "weights" / "default" / "text_encoder"
    return load_component(folder, "text_encoder")


def _by_parts(function, images: Tensor) -> Tensor:
    return torch.cat([function(part).float() for part in images.split(128)])


def _targets(evaluator: Evaluator, labels: Sequence[str]) -> Tensor:
    position = {label: index for index, label in enumerate(evaluator.labels)}
    if unknown := sorted({label for label in labels if label not in position}):
        raise ValueError(f"The evaluation network does not know the labels {', '.join(unknown[:5])}; train it on this data.")
    return torch.tensor([position[label] for label in labels])


@torch.no_grad()
def recognition(
    evaluator: Evaluator, text_encoder: TextEncoder, images: Tensor, labels: Sequence[str], prompts: Sequence[str]
) -> Report:
    """Top-1 and top-5 accuracy among all labels, and the mean cosine with each prompt beside that with the others'."""
    targets = _targets(evaluator, labels)
    embedded = _by_parts(evaluator.embed, images)
    scores = embedded @ evaluator.embed_texts(evaluator.label_sentences).T
    texts = evaluator.embed_texts(text_encoder.pooled(list(prompts)))
    cosines = embedded @ texts.T
    own = cosines.diagonal().mean()
    others = (cosines.sum() - cosines.trace()) / max(cosines.numel() - len(cosines), 1)
    return {
        "top1": metrics.top_k(scores, targets, 1),
        "top5": metrics.top_k(scores, targets, 5),
        "prompt_alignment": float(own),
        "alignment_with_other_prompts": float(others),
    }


def drawn_labels(settings: Settings, evaluator: Evaluator) -> list[str]:
    """The labels that the settings ask for, of those that training pictures show and the evaluation network knows."""
    records, _, concepts = read_archive(training_archive(settings.data))
    drawn = {record.label for record in records}
    labels = choose_labels(settings.labels, [c for c in concepts if c in drawn], list(read_common()))
    _targets(evaluator, labels)
    return labels


def set_distances(made: Tensor, real: Tensor) -> Report:
    """How far features of generated pictures (N, D) are from those of real ones (M, D); some numbers need four of each."""
    report = {"frechet_distance": metrics.frechet_distance(made, real), "kernel_distance": metrics.kernel_distance(made, real)}
    if min(len(made), len(real)) > 3:
        report["precision"], report["recall"] = metrics.precision_recall(real, made)
    return report


@torch.no_grad()
def evaluate(
    generator: Generator, evaluator: Evaluator, text_encoder: TextEncoder, settings: Settings
) -> tuple[Report, Made, list[str]]:
    """(report, pictures, their labels) for one picture per label."""
    archive = training_archive(settings.data)
    records, _, _ = read_archive(archive)
    once = drawn_labels(settings, evaluator)
    labels, seeds = subjects(settings, once)
    made = generate(generator, labels, seeds, settings)

    real, real_labels = read_pictures(archive, made.images.shape[-1], set(labels))
    packs = [record.pack for record in records if record.label in set(labels)]
    report: Report = {
        "labels": len(once),
        "pictures": len(labels),
        **recognition(evaluator, text_encoder, made.images, labels, labels),
        **metrics.edges(made.images),
    }
    if len(labels) > 1 and len(real) > 1:
        report |= set_distances(*(_by_parts(evaluator.features, images) for images in (made.images, real)))
    copies = metrics.near_copies(made.images, real, [pack.split("-")[0] for pack in packs])
    report["near_copies"] = {"share": copies.share, "expected_of_independent_drawings": copies.expected,
                             "threshold": copies.threshold, "median_distance": float(copies.distance.median())}  # fmt: skip
    report["real_training_pictures"] = {
        **recognition(evaluator, text_encoder, real, real_labels, real_labels), **metrics.edges(real)
    }  # fmt: skip
    if hasattr(generator, "denoiser"):
        drawn = [record for record in records if record.label in set(labels)]
        report["x0_error"] = by_split(generator, drawn, real, real_labels)
    held_out = Path(settings.data) / HELD_OUT_ARCHIVE if settings.data else None
    if held_out is not None and held_out.is_file():
        other, other_labels = read_pictures(held_out, made.images.shape[-1], set(labels))
        control = metrics.near_copies(other, real, [pack.split("-")[0] for pack in packs])
        report["real_held_out_pictures"] = {
            **recognition(evaluator, text_encoder, other, other_labels, other_labels), "near_copies": control.share
        }  # fmt: skip
    report |= {"seconds_per_image": made.seconds, "evaluations_per_image": made.nfe}
    return report, made, labels


@torch.no_grad()
def composition(
    generator: Generator, evaluator: Evaluator, text_encoder: TextEncoder, settings: Settings
) -> tuple[Report, Made, list[str]]:
    """(report, pictures, their prompts) for coloured things that training never shows in that colour."""
    pairs = [pair for pair in HELD_OUT for _ in range(settings.repeats)]
    targets = _targets(evaluator, [pair.label for pair in pairs])
    prompts = [pair.prompt for pair in pairs]
    seeds = [fold(settings.seed, pair.prompt, i % settings.repeats) % 2**53 for i, pair in enumerate(pairs)]
    made = generate(generator, prompts, seeds, settings)
    colours = object_colours(made.images)
    top5 = (_by_parts(evaluator.classify, made.images).topk(5).indices == targets[:, None]).any(1).tolist()
    coloured = [colour == pair.colour for colour, pair in zip(colours, pairs, strict=True)]
    both = [a and b for a, b in zip(coloured, top5, strict=True)]

    def shares(part: slice) -> Report:
        found = {"colour": coloured[part], "object_top5": top5[part], "both": both[part]}
        return {name: sum(values) / len(values) for name, values in found.items()}

    rows = {}
    for start in range(0, len(pairs), settings.repeats):
        part = slice(start, start + settings.repeats)
        rows[prompts[start]] = {**shares(part), "colours_found": colours[part]}
    report = {"pictures": len(pairs), **shares(slice(None)), "seconds_per_image": made.seconds, "by_pair": rows}
    return report, made, prompts


def counts(text: str) -> tuple[int, ...]:
    """Numbers of steps from "8" or "1,2,4,8"."""
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--steps is {text!r}; give a number of at least 1, or several: 1,2,4,8.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def open_model(name: str) -> Generator:
    """A generator for "default", a model folder or a hub id; MODEL+LORA puts a LoRA on it."""
    from gen.generator import Generator

    base, plus, adapter = name.partition("+")
    if not plus or Path(name).exists():
        return Generator.from_pretrained(name)
    generator = Generator.from_pretrained(base)
    generator.load_adapter(adapter)
    return generator


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m distill.evaluate", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        default=["default"],
        help="default, a model folder or a hub id (+LORA puts a LoRA on it); or several",
    )
    add("--labels", default="common", help="common, all, or how many of the common ones (default: common)")
    add("--per-label", type=int, default=1, help="pictures of each label (default: 1)")
    add("--composition", action="store_true", help="ask for colours of things that training left out")
    add("--repeats", type=int, default=4, help="pictures per pair with --composition (default: 4)")
    add("--steps", help="sampling steps (default: the model's), or several to compare: 1,2,4,8")
    add("--guidance-scale", type=float, help="default: the model's")
    add("--sampler", help="default: the model's")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=8)
    add("--data", help="folder with emoji-train.zip, and emoji-test.zip for comparison (default: shipped)")
    add("--evaluator", help="folder of another evaluation network")
    add("--text-encoder", help="folder of the text encoder that the evaluation network was trained with")
    add("--out", type=Path, default=Path("outputs/evaluation"), help="folder of report.json and sheet.png")
    compared = parser.add_argument_group("comparison")
    add = compared.add_argument
    add("--reference-model", help="the model to be near, drawn from the same seeds; its pictures are made once and kept")
    add("--reference-steps", type=int, default=50, help="default: 50")
    add("--reference-guidance-scale", type=float, help="default: the reference's")
    add("--reference-sampler", help="default: the reference's")
    add("--references", type=Path, default=Path("outputs/references"), help="folder where its pictures are kept")
    add("--features", default="evaluator", help="network that set distances are measured by (default: evaluator)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    given = vars(parser().parse_args(arguments))
    out, wants_composition, models = given.pop("out"), given.pop("composition"), given.pop("model")
    of_reference = {name: given.pop(name) for name in list(given) if name.startswith("reference_")}
    kept, features, steps = given.pop("references"), given.pop("features"), given.pop("steps")
    try:
        if min(given["repeats"], given["per_label"], given["batch_size"], of_reference["reference_steps"]) < 1:
            raise ValueError("--repeats, --per-label, --batch-size and --reference-steps must be at least 1.")
        many = () if steps is None else counts(steps)
        settings = Settings(**given, model=models[0], steps=many[0] if len(many) == 1 else None)
        if of_reference["reference_model"] is not None or len(models) > 1 or len(many) > 1:
            if wants_composition:
                raise ValueError("--composition looks at one model at one number of steps, without a reference.")
            return compared(models, many, settings, of_reference, features, kept, out)
        evaluator, text_encoder = load_evaluator(settings.evaluator), load_text_encoder(settings)
        run = composition if wants_composition else evaluate
        report, made, captions = run(open_model(settings.model), evaluator, text_encoder, settings)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "report.json", {"settings": asdict(settings), **report})
        write_sheet(made.images, captions, out / "sheet.png")
    except (ValueError, OSError) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    print_table(report, f"{settings.model}: {'composition' if wants_composition else settings.labels + ' labels'}")
    print(f"Written: {out / 'report.json'}, {out / 'sheet.png'}")
    return 0


def compared(
    models: Sequence[str],
    steps: Sequence[int],
    settings: Settings,
    of_reference: dict[str, Any],
    features: str,
    kept: Path,
    out: Path,
) -> int:
    """Several rows: the table on stdout and in table.md, all numbers in report.json, a line of pictures each in sheet.png."""
    from distill.eval import comparison as compare
    from distill.eval.references import References
    from distill.networks.features import load_features

    plan = compare.Plan(tuple(models), tuple(steps), of_reference.pop("reference_model"), **of_reference)
    evaluator, text_encoder = load_evaluator(settings.evaluator), load_text_encoder(settings)
    measured_by = load_features(
        features if features != "evaluator" or not settings.evaluator else f"evaluator:{settings.evaluator}"
    )
    rows, common, labels = compare.compare(plan, settings, open_model, evaluator, text_encoder, measured_by, References(kept))
    out.mkdir(parents=True, exist_ok=True)
    lines = [{"model": row.model, **row.numbers} for row in rows]
    write_json(out / "report.json", {"settings": asdict(settings), "plan": asdict(plan), **common, "rows": lines})
    (out / "table.md").write_text(compare.markdown(rows) + "\n")
    images, captions, columns = compare.sheet(rows, labels)
    write_sheet(images, captions, out / "sheet.png", columns=columns)
    print(compare.markdown(rows))
    print(f"Written: {out / 'report.json'}, {out / 'table.md'}, {out / 'sheet.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
