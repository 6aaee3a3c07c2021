"""Make a model draw something no more: `python -m customization.forget "a clown" --to "a person" -o FILE`.

What comes out is an adapter, which every program opens that opens LoRAs, and which can be weighed, merged and taken away. Three
methods: `uce` rewrites the layers that read text in closed form (seconds), `esd` trains them away from the concept by the
model's own guidance (minutes), `ssgu` takes one step along one gradient in one layer. `fewstep forget` is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen.cli.output import say
from gen.cli.parser import Parser, exit_code_of

METHODS = ("uce", "esd", "ssgu")
STEPS = {"esd": 100, "ssgu": 9}
OTHERS = ("a cat", "a smiling face", "a house", "a guitar", "a car", "a tree")  # that are measured where none are given


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="python -m customization.forget", description="Make a model draw something no more.")
    made.add_argument("concepts", nargs="+", metavar="CONCEPT", help='what is forgotten, such as "a clown"; one or more')
    made.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the adapter, .safetensors")
    made.add_argument("--to", default="", metavar="TEXT", help="what is drawn instead [default: nothing in particular]")
    made.add_argument("--keep", action="append", default=[], metavar="TEXT", help="what must stay as it is; repeatable")
    made.add_argument("--only-keep", action="store_true", help="hold nothing but --keep: not the usual list of everyday things")
    made.add_argument("--method", default="uce", choices=METHODS, help="[default: uce, in closed form]")
    made.add_argument("--model", default="default", help="default, a folder, a diffusers pipeline or a hub id")
    made.add_argument("--device", help="cpu, cuda, ...")
    made.add_argument("--name", help="of the adapter [default: the file's]")
    uce = made.add_argument_group("uce")
    uce.add_argument("--rank", type=int, metavar="N", help="of the file at most [default: as many as the prompts need]")
    uce.add_argument("--keep-weight", type=float, metavar="X", help="of what stays, against what goes [default: 0.1]")
    uce.add_argument("--ridge", type=float, metavar="X", help="pull towards the weights as they are [default: 0.01]")
    uce.add_argument("--target", action="append", default=[], metavar="END", help="layers with such names instead; repeatable")
    trained = made.add_argument_group("esd and ssgu")
    trained.add_argument("--steps", type=int, metavar="N", help=f"of training [default: {STEPS['esd']} and {STEPS['ssgu']}]")
    trained.add_argument("--run", type=Path, metavar="DIR", help="where the run is kept [default: in runs/forget]")
    trained.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config: objective.layers=u")
    check = made.add_argument_group("whether it worked")
    check.add_argument("--check", type=int, metavar="N", help="draw N pictures of each prompt before and after, and count")
    check.add_argument("--judge", default="evaluator", metavar="REWARD", help="what counts [default: the shipped network]")
    check.add_argument("--judge-option", action="append", default=[], metavar="NAME=VALUE", help="for clip: model=FOLDER")
    check.add_argument("--draw-steps", type=int, metavar="N", help="of these pictures [default: the model's]")
    check.add_argument("--sheet", type=Path, metavar="FILE.png", help="save what was drawn, before above after")
    made.add_argument("-q", "--quiet", action="store_true", help="print only the path of the file")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the method found no way, 2 a request that cannot be met, 130 interrupted."""
    from distill.run_folder import TrainingError

    given = parser().parse_intermixed_args(arguments)
    try:
        return exit_code_of(lambda: forget(given))
    except TrainingError as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 1


def forget(given: argparse.Namespace) -> int:
    from customization.base.config import CustomizationConfig, open_model
    from customization.erasure.prompts import edit_of, words_of
    from customization.train import check_free
    from gen.cli.output import check_png, check_writable

    if given.output.suffix != ".safetensors":
        raise ValueError(f"{given.output}: adapters are written as safetensors; give a name that ends in .safetensors.")
    check_free(given.output)
    check_writable(given.output.parent)
    _check_options(given)
    name = given.name or given.output.stem
    edit = edit_of(given.concepts, given.to, given.keep, not given.only_keep)
    if given.sheet is not None:
        check_png(given.sheet)
    judge = _judge(given) if given.check or given.sheet else None

    def opened() -> Any:
        generator = open_model(CustomizationConfig(model=given.model), given.device)
        if generator.text_encoder is None:
            raise ValueError(f"The model {generator.name!r} reads no text, so there are no words for it to forget.")
        return generator

    generator: Any = opened() if given.method == "uce" or judge is not None else None
    gone = set().union(*map(words_of, given.concepts))
    others = given.keep or [phrase for phrase in OTHERS if not words_of(phrase) & gone]
    shown = list(dict.fromkeys([*given.concepts, *([given.to] if given.to else []), *others]))
    before = None if judge is None else _measured(generator, judge, shown, given)
    if given.method == "uce":
        _closed_form(given, generator, edit, name)
    else:
        generator = None  # training opens a model of its own: one at a time
        _trained(given, edit, name)
    print(given.output)
    model = "" if given.model == "default" else f" --model {shlex.quote(given.model)}"
    lora = f"--lora {shlex.quote(str(given.output))}"
    say(f"Draw with it: fewstep image {shlex.quote(given.concepts[0])}{model} {lora}", given.quiet)
    if judge is not None:
        _compare(given, generator or opened(), judge, shown, before)
    return 0


def _check_options(given: argparse.Namespace) -> None:
    """ValueError for an option of another method than the chosen one."""
    own = {"rank": "--rank", "keep_weight": "--keep-weight", "ridge": "--ridge", "target": "--target"}
    own |= {"steps": "--steps", "run": "--run", "set": "--set"}
    of_uce = {"rank", "keep_weight", "ridge", "target"}
    for option, spelled in own.items():
        if getattr(given, option) not in (None, []) and (option in of_uce) != (given.method == "uce"):
            belongs = "--method uce" if option in of_uce else "--method esd and ssgu"
            raise ValueError(f"{spelled} belongs to {belongs}; leave it out, or choose that method.")
    for option in ("steps", "check", "rank", "draw_steps"):
        value = getattr(given, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} is {value}; give a whole number of at least 1.")
    if given.method == "ssgu" and given.to:
        raise ValueError("--to: ssgu forgets a concept without another in its place; leave it out, or use uce or esd.")


def _judge(given: argparse.Namespace) -> Any:
    import distill.networks.evaluator  # noqa: F401  (adds the shipped judge to the rewards)
    from gen.calls.values import parse_options
    from gen.rewards import get_reward, reward_info

    if not reward_info(given.judge).reads_prompts:
        raise ValueError(f"--judge {given.judge}: it reads no prompts; give evaluator, clip, pickscore, hps or image_reward.")
    return get_reward(given.judge, **parse_options(given.judge_option))


def _closed_form(given: argparse.Namespace, generator: Any, edit: Any, name: str) -> None:
    from dataclasses import replace

    from customization.algebra.metadata import HISTORY
    from customization.algebra.svd import Keep
    from customization.base.metadata import architecture
    from customization.erasure.closed_form import edit_concepts
    from gen.adapters import write_adapter

    keep = None if given.rank is None else Keep(given.rank)
    options = {"keep_weight": given.keep_weight, "ridge": given.ridge}
    adapter, reports = edit_concepts(
        generator, edit, targets=given.target, keep=keep, name=name, **{k: v for k, v in options.items() if v is not None}
    )
    spec, version = architecture(generator)
    made = {"method": "uce", "forgotten": given.concepts, "to": given.to, "kept": given.keep}
    texts = {"modelspec.title": name, "modelspec.architecture": f"{spec}/lora", "ss_base_model_version": version}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_adapter(
        replace(adapter, metadata={**texts, HISTORY: json.dumps(made, ensure_ascii=False)}), given.output, "diffusers"
    )
    whole = sum(report.norm**2 for report in reports)
    lost = (sum((report.error * report.norm) ** 2 for report in reports) / whole) ** 0.5
    ranks = sorted({report.rank or 0 for report in reports})
    said = f"{len(reports)} layers, rank {'/'.join(map(str, ranks))}{f', relative error {lost:.2g}' if lost > 1e-5 else ''}."
    say(said, given.quiet)


def _trained(given: argparse.Namespace, edit: Any, name: str) -> None:
    """A run of training in its folder, and its adapter in the file."""
    from customization.train import make_trainer, place
    from distill.config import apply_overrides, parse_config
    from gen.io.weights import write_bytes

    run = given.run or Path("runs/forget") / f"{name}-{_digest(given)}"
    values: dict[str, Any] = {
        "output": str(run), "max_steps": given.steps or STEPS[given.method], "network": {}, "device": given.device or "auto",
        "objective": {"model": given.model, "name": name}, "schedule": {"type": "constant", "warmup": 0}, "log_every": 10,
        "checkpoint_every": 100, "preview_every": 0,
    }  # fmt: skip
    held = list(edit.kept)
    if given.method == "esd":
        run.mkdir(parents=True, exist_ok=True)
        write_bytes(run / "prompts.txt", "".join(f"{prompt}\n" for prompt in edit.erased).encode())
        values["objective"] |= {"type": "esd", "instead": given.to, "kept": held}
        values |= {
            "data": {"type": "prompts", "file": str(run / "prompts.txt")}, "batch_size": 2,
            "optimizer": {"type": "adamw", "lr": 5e-5, "betas": [0.9, 0.999], "weight_decay": 0.0},
        }  # fmt: skip
    else:
        from customization.base.config import CustomizationConfig, open_model
        from customization.data import PriorConfig, make_class_pictures

        concept = PriorConfig(prompt=tuple(given.concepts), count=32)
        make_class_pictures(concept, run / "concept", open_model(CustomizationConfig(model=given.model), given.device))
        prior = {"prompt": held or ["a picture"], "count": 64}
        values["objective"] |= {"type": "unlearning"}
        values |= {
            "data": {"type": "concept", "images": str(run / "concept"), "captions": "txt", "prior": prior}, "batch_size": 16,
            "optimizer": {"type": "adamw", "lr": 1e-4, "weight_decay": 0.0},
        }  # fmt: skip
    apply_overrides(values, given.set)
    trainer = make_trainer(parse_config(values, "the command"))
    trainer.train()
    place(trainer.run / "export", given.output)


def _digest(given: argparse.Namespace) -> str:
    """Of what a run depends on, so that the same request goes on where it stopped, and another begins anew."""
    asked = [given.method, given.concepts, given.to, given.keep, given.only_keep, given.model, given.steps, given.set]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]


def _measured(generator: Any, judge: Any, shown: Sequence[str], given: argparse.Namespace) -> Any:
    from customization.erasure.measure import measure

    return measure(generator, judge, shown, given.check or 1, given.draw_steps)


def _compare(given: argparse.Namespace, generator: Any, judge: Any, shown: Sequence[str], before: Any) -> None:
    """A table of what the judge finds, and the sheet."""
    from gen.adapters import read_adapter
    from gen.cli.show import table

    generator.load_adapter(read_adapter(given.output), name="forgotten")
    after = _measured(generator, judge, shown, given)
    generator.unload_adapter("forgotten")
    if given.check:
        rows = [(prompt, f"{before.rates[prompt]:.0%}", f"{after.rates[prompt]:.0%}") for prompt in shown]
        say(table(("prompt", "found before", "after"), rows), given.quiet)
    if given.sheet is not None:
        from gen.io.contact_sheet import contact_sheet
        from gen.pipeline.output import to_pil
        from samplers.atomic import written

        pictures = [
            to_pil(made.pictures[prompt][:1].permute(0, 2, 3, 1).numpy())[0] for made in (before, after) for prompt in shown
        ]
        captions = [*shown, *(f"{prompt}: after" for prompt in shown)]
        with written(given.sheet) as temporary:
            contact_sheet(pictures, captions, len(shown)).save(temporary, "PNG")
        say(str(given.sheet), given.quiet)


if __name__ == "__main__":
    sys.exit(main())
