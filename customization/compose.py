"""Training pictures of several concepts together, from pictures of each: `python -m customization.compose`.

    python -m customization.compose cat=photos/cat dog=photos/dog --background "on a beach" -o scenes
    python -m customization.compose --measure drawn/ cat=photos/cat dog=photos/dog

`fewstep data compose` is the same. Training reads the folder that it writes: `fewstep lora train scenes/images`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen.cli.output import check_writable, say
from gen.cli.parser import Parser, exit_code_of

COLOURS = ((1.0, 1.0, 1.0), (0.9, 0.9, 0.9), (0.7, 0.85, 1.0), (0.8, 1.0, 0.8), (1.0, 0.9, 0.7))


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="python -m customization.compose", description="Make training pictures of several concepts together.")
    made.add_argument("concepts", nargs="+", metavar="NAME=FOLDER", help="a concept, and pictures of it alone")
    made.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="the new data set")
    made.add_argument("-n", "--number", type=int, default=20, help="how many scenes [default: 20]")
    made.add_argument("--seed", type=int, default=0, help="[default: 0]")
    made.add_argument("--size", type=int, metavar="PIXELS", help="side of the pictures [default: the model's]")
    cutting = made.add_argument_group("cutting out")
    cutting.add_argument("--masks", action="append", default=[], metavar="NAME=FOLDER", help="white where the thing is")
    cutting.add_argument("--segment", metavar="FILE.py:FUNCTION", help="your own model: (picture, name) -> mask")
    placing = made.add_argument_group("placing")
    placing.add_argument("--rule", default="row", help="row, anywhere [default: row]")
    placing.add_argument(
        "--height", action="append", default=[], metavar="NAME=X", help="how tall beside the others; repeatable"
    )
    placing.add_argument("--scenes", type=Path, metavar="FILE", help="boxes of every scene (YAML, JSON), instead of a rule")
    placing.add_argument("--flip", action="store_true", help="mirror half of the things")
    around = made.add_argument_group("around them")
    around.add_argument("--background", action="append", default=[], metavar="TEXT", help='such as "on a beach"; repeatable')
    around.add_argument("--model", default="default", help="paints it; default, a folder or a hub id")
    around.add_argument("--plain", action="store_true", help="plain colours instead of a model's painting")
    around.add_argument("--steps", type=int, help="of the model")
    around.add_argument("--captioner", metavar="FILE.py:FUNCTION", help="your own model: picture -> caption")
    around.add_argument("--device", help="cpu, cuda, ...")
    measured = made.add_argument_group("measuring pictures instead")
    measured.add_argument(
        "--measure", type=Path, metavar="FOLDER", help="CP-CLIP and TI-CLIP of these, by the concepts' folders"
    )
    measured.add_argument("--text", help="what is around the concepts there [default: NAME.txt beside each picture]")
    measured.add_argument("--clip", metavar="FOLDER", help="a CLIP of yours [default: the shipped evaluation network]")
    measured.add_argument("--detector", metavar="FILE.py:FUNCTION", help="your own: (picture, name) -> boxes as shares")
    made.add_argument("-q", "--quiet", action="store_true", help="print only paths and numbers")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 a request that cannot be met, 130 interrupted."""
    given = parser().parse_intermixed_args(arguments)
    return exit_code_of(lambda: measure(given) if given.measure is not None else compose(given))


def compose(given: argparse.Namespace) -> int:
    import os

    from customization.scenes.composing import compose_all, painter, plain, write_scenes
    from customization.scenes.placing import find_rule, read_scenes

    for option in ("text", "clip", "detector"):
        if getattr(given, option) is not None:
            raise ValueError(f"--{option} is for measuring pictures; leave it out, or give --measure FOLDER.")
    if given.output is None:
        raise ValueError("Say where the data set goes: -o FOLDER.")
    if os.path.lexists(given.output):
        raise ValueError(f"{given.output} exists, and nothing is overwritten; give another name.")
    if given.number < 1:
        raise ValueError(f"--number is {given.number}; give a whole number of at least 1.")
    if given.plain and given.steps is not None:
        raise ValueError("--steps is of the model, and --plain asks for none; leave one of them out.")
    check_writable(given.output.parent)
    find_rule(given.rule)
    generator = None if given.plain else _open(given)
    concepts = _concepts(given, generator)
    names = [one.name for one in concepts]
    scenes = read_scenes(given.scenes, names) if given.scenes is not None else []
    side = given.size or (generator.config.sample_size if generator is not None else 512)
    call = {} if given.steps is None else {"num_inference_steps": given.steps}
    paint = plain(COLOURS) if generator is None else painter(generator, **call)
    made = compose_all(
        concepts, paint, count=given.number, height=side, width=side, backgrounds=given.background or [""], rule=given.rule,
        scenes=scenes, flip=given.flip, seed=given.seed, captioner=_function(given.captioner, "--captioner"),
    )  # fmt: skip
    count = write_scenes(given.output, _tracked(made, given))
    print(given.output)
    views = ", ".join(f"{one.name} in {len(one.views)}" for one in concepts)
    say(f"{count} scenes of {views} views. Train: fewstep lora train {given.output / 'images'}", given.quiet)
    return 0


def _tracked(made: Any, given: argparse.Namespace) -> Any:
    from tqdm import tqdm

    return tqdm(made, total=given.number, desc="composing", unit=" scenes", leave=False, disable=True if given.quiet else None)


def _open(given: argparse.Namespace) -> Any:
    from customization.base.config import CustomizationConfig, open_model

    return open_model(CustomizationConfig(model=given.model), given.device)


def _concepts(given: argparse.Namespace, generator: Any) -> list[Any]:
    from customization.scenes.cutting import SingleConcept, cut_folder, named_folders
    from gen.models.transparency import open_transparency

    folders, masks = named_folders(given.concepts), named_folders(given.masks)
    heights = _heights(given.height, list(folders))
    if stray := next((name for name in masks if name not in folders), None):
        raise ValueError(f"--masks names {stray!r}, which is no concept; there are {', '.join(folders)}.")
    segment = _function(given.segment, "--segment")

    def separate(picture: Any) -> Any:
        return open_transparency(generator, None).separate(picture)[0][:, 3:]

    ours = None if generator is None else separate
    return [
        SingleConcept(
            name, cut_folder(name, folder, masks=masks.get(name), segment=segment, separate=ours), heights.get(name, 1.0)
        )
        for name, folder in folders.items()
    ]


def _heights(texts: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if name not in known or not 0 < found[name] < 1000:
            raise ValueError(f"--height {text!r}: write a concept's name, = and a number above 0, such as {known[0]}=1.5.")
    return found


def _function(text: str | None, option: str) -> Any:
    """The function that FILE.py:NAME says."""
    from gen.io.user_code import import_file

    if text is None:
        return None
    file, _, name = text.rpartition(":")
    if not file:
        raise ValueError(f"{option} {text!r}: write FILE.py:FUNCTION.")
    function = getattr(import_file(file, option), name, None)
    if not callable(function):
        raise ValueError(f"{option} {text}: {file} has no function {name!r}.")
    return function


def measure(given: argparse.Namespace) -> int:
    from customization.scenes.cutting import PICTURES
    from customization.scenes.measures import clip_judge, cp_clip, detect_by_judge, shipped_judge, ti_clip
    from gen.io.alpha import resized, upon
    from gen.io.errors import read_text
    from gen.io.images import read_picture

    for option in ("output", "scenes", "captioner"):
        if getattr(given, option) is not None:
            raise ValueError(f"--{option} is for making scenes, and --measure makes none; leave one of them out.")
    files = sorted(path for path in given.measure.glob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"{given.measure} has no pictures; give a folder of those that are to show the concepts.")
    judge = shipped_judge() if given.clip is None else clip_judge(given.clip)
    import torch

    references = {}
    for concept in _concepts(given, _open(given)):
        views = [upon(view.layer, torch.ones_like(view.layer[:, :3])) for view in concept.views]
        references[concept.name] = torch.cat([resized(view, 64, 64) for view in views]).float()
    texts = []
    for path in files:
        beside = path.with_suffix(".txt")
        if given.text is None and not beside.is_file():
            raise ValueError(f"{path} has no {beside.name} beside it; write one, or give --text for all.")
        texts.append(given.text if given.text is not None else read_text(beside).strip())
    pictures = [read_picture(str(path), path, "RGB") for path in files]
    detect = _function(given.detector, "--detector") or detect_by_judge(judge, references)
    found = cp_clip(pictures, references, judge, detect)
    for name in references:
        print(f"{name}\t{found[name]:.4f}")
    print(f"CP-CLIP\t{found['all']:.4f}\nTI-CLIP\t{ti_clip(pictures, texts, judge):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
