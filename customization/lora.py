"""`fewstep lora merge`, `resize`, `extract`, `spectrum` and `interpolate`; also `python -m customization.lora merge ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gen.cli.parser import Parser, add_output, exit_code_of, one_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 a request that cannot be met (one sentence says why), 130 interrupted."""
    given = parser().parse_args(arguments)
    from customization import lora_files

    def run() -> int:
        one_output(given)
        return getattr(lora_files, given.command)(given)

    return exit_code_of(run)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="fewstep lora", description="Algebra on LoRA files.")
    commands = top.add_subparsers(dest="command", required=True)

    merge = commands.add_parser("merge", help="add several LoRAs, or scale one", description="Merge LoRAs into one file.")
    merge.add_argument(
        "files", nargs="+", metavar="FILE[:WEIGHT]", help="a safetensors file or a folder; weight 1 if none is given"
    )
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="what to write")
    merge.add_argument(
        "--method", default="sum", choices=("sum", "ties", "dare", "dare_ties"), help="[default: sum, which is exact]"
    )
    merge.add_argument("--density", type=float, help="share of entries kept by ties and dare [default: 0.5]")
    merge.add_argument("--seed", type=int, help="of dare's draws [default: 0]")
    merge.add_argument(
        "--block", action="append", default=[], metavar="NAME=WEIGHT", help="a weight for some layers; repeatable"
    )
    merge.add_argument("--disjoint", action="store_true", help="the files may have no layer in common")
    _rank(merge)
    _output(merge)

    resize = commands.add_parser("resize", help="lower the rank", description="Lower the rank of a LoRA, with the least error.")
    resize.add_argument("file", metavar="IN", help="a safetensors file or a folder")
    add_output(resize)
    _rank(resize)
    _output(resize)

    extract = commands.add_parser(
        "extract", help="a LoRA from two models", description="Make a LoRA of the difference of two models."
    )
    extract.add_argument("tuned", help="the tuned model: a folder, a hub id, or a file of the denoiser's weights")
    extract.add_argument("base", help="the model that it was tuned from: a folder, a hub id, or default")
    add_output(extract)
    extract.add_argument("--others", action="store_true", help="keep changes of biases, norms and embeddings too, whole")
    _rank(extract)
    _output(extract, model=False)

    spectrum = commands.add_parser(
        "spectrum", help="norms and singular values", description="Show what rank a LoRA really uses."
    )
    spectrum.add_argument("file", metavar="FILE", help="a safetensors file or a folder")
    spectrum.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the singular values and norms")
    spectrum.add_argument("--json", action="store_true", help="every layer and singular value as JSON")
    spectrum.add_argument("-q", "--quiet", action="store_true", help="no progress")

    interpolate = commands.add_parser(
        "interpolate", help="a model between two", description="Write the model between two: (1 - share) FIRST + share SECOND."
    )
    interpolate.add_argument("first", type=Path, help="a model folder, or a safetensors file")
    interpolate.add_argument("second", type=Path, help="another of the same kind")
    add_output(interpolate)
    interpolate.add_argument("--share", type=float, default=0.5, help="of the second [default: 0.5]")
    interpolate.add_argument("-q", "--quiet", action="store_true", help="print only the path")
    return top


def _rank(command: argparse.ArgumentParser) -> None:
    rank = command.add_argument_group("rank of the result (a rule, and --rank as the most)")
    rank.add_argument("--rank", type=int, metavar="N", help="this many singular values")
    rank.add_argument("--sv-ratio", type=float, metavar="X", help="those of at least 1/X of the largest")
    rank.add_argument("--sv-fro", type=float, metavar="X", help="until this share of the Frobenius norm, such as 0.95")
    rank.add_argument("--sv-cumulative", type=float, metavar="X", help="until this share of their sum")


def _output(command: argparse.ArgumentParser, model: bool = True) -> None:
    if model:
        command.add_argument("--model", metavar="M", help="give the layers the names that they have in this model")
    command.add_argument("--to", metavar="FORMAT", help="kohya, diffusers, peft, ai-toolkit [default: that of the first file]")
    command.add_argument("--dtype", help="float32, bfloat16, float16 [default: the widest of the files]")
    command.add_argument("--json", action="store_true", help="print every layer's rank, norm and error as JSON")
    command.add_argument("-q", "--quiet", action="store_true", help="print only the path of the file")


if __name__ == "__main__":
    sys.exit(main())
