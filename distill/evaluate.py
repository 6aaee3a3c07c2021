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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.eval.model_scores import ScoreSettings, composition, evaluate, load_text_encoder
from distill.eval.report import print_table, write_sheet
from distill.imports import add_imports, run_imports
from distill.networks.evaluator.network import load_evaluator
from gen.cli.parser import Parser
from gen.io.weights import write_json

if TYPE_CHECKING:
    from gen.generator import Generator


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
    add_imports(parser)
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
    parsed = parser().parse_args(arguments)
    given = {name: value for name, value in vars(parsed).items() if name != "imports"}
    out, wants_composition, models = given.pop("out"), given.pop("composition"), given.pop("model")
    of_reference = {name: given.pop(name) for name in list(given) if name.startswith("reference_")}
    kept, features, steps = given.pop("references"), given.pop("features"), given.pop("steps")
    try:
        run_imports(parsed)
        if min(given["repeats"], given["per_label"], given["batch_size"], of_reference["reference_steps"]) < 1:
            raise ValueError("--repeats, --per-label, --batch-size and --reference-steps must be at least 1.")
        many = () if steps is None else counts(steps)
        settings = ScoreSettings(**given, model=models[0], steps=many[0] if len(many) == 1 else None)
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
    settings: ScoreSettings,
    of_reference: dict[str, Any],
    features: str,
    kept: Path,
    out: Path,
) -> int:
    """Several rows: the table on stdout and in table.md, all numbers in report.json, a line of pictures each in sheet.png."""
    from distill.eval import comparison as compare
    from distill.eval.references import ReferencePictures
    from distill.networks.features import load_features

    plan = compare.ComparisonPlan(tuple(models), tuple(steps), of_reference.pop("reference_model"), **of_reference)
    evaluator, text_encoder = load_evaluator(settings.evaluator), load_text_encoder(settings)
    measured_by = load_features(
        features if features != "evaluator" or not settings.evaluator else f"evaluator:{settings.evaluator}"
    )
    rows, common, labels = compare.compare(
        plan, settings, open_model, evaluator, text_encoder, measured_by, ReferencePictures(kept)
    )
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
