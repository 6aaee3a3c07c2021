"""Teach a model something: `python -m customization.train CONFIG.yaml key=value ...`, or a folder of pictures and a prompt.

    python -m customization.train configs/lora/openmoji.yaml max_steps=300
    python -m customization.train pictures/ --prompt "a <new> cat" -o cat.safetensors

`fewstep lora train` is the same. Under `accelerate launch` it runs on several devices.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.command import add_checks, run_command
from distill.config import TrainConfig, apply_overrides, config_first, parse_config, read_yaml
from distill.missing_parts import check_folders
from distill.optimizer_config import KINDS
from gen.cli.parser import Parser

# Of a run without a config. For the shipped model the layers that read the text alone, measured: more layers, a higher rate or
# more steps forget other things (`tests/benchmarks/teaching.py`, docs/lora.md).
SHIPPED: dict[str, Any] = {"rank": 8, "targets": ("cross.q", "cross.kv", "cross.proj"), "rate": 5e-4, "steps": 300}
OTHERS: dict[str, Any] = {"rank": 16, "targets": (), "rate": 1e-4, "steps": 500}
TOKEN_RATE = 5.0  # of the learning rate, for the vectors of new words


def check_method(config: dict[str, Any]) -> tuple[Any, Any]:
    """(objective class, checked config) of a run; ValueError for a type or options that are not known."""
    from customization.registry import METHODS
    from gen.nn.registry import from_registry

    return from_registry(METHODS, "method", {"type": "lora", **config})


def make_trainer(config: TrainConfig, average: bool = False, make: bool = True):
    """Model, data and method of a run. average: keep averaged parameters. make: the class pictures that are missing."""
    from customization.agreement import check_agreement
    from customization.base.config import open_model
    from customization.base.textual_inversion import unlearned, used_in
    from customization.data import make_data
    from distill.eval.validation import hold_out
    from distill.trainer import Trainer

    method, checked = check_method(config.objective)
    if config.network or config.init_from:
        raise ValueError("A method that teaches trains inside of objective.model; leave network and init_from out.")
    device = None if config.device == "auto" else config.device
    generator = open_model(checked, device)
    source: Any = make_data(config.data, config.seed, config.batch_size, generator, config.output, make)
    source, held_out = hold_out(
        config, source, lambda data: make_data(data, config.seed, config.batch_size, generator, config.output, make)
    )
    report = getattr(source, "report", None)
    if report is not None and (report.dropped or report.notes):
        print("\n".join(report.lines()), file=sys.stderr)
    prior = getattr(source, "prior", None)
    if hasattr(source, "taught"):
        captions = [source.caption(index) for index in range(len(source))]
        used_in(getattr(checked, "tokens", None) or {}, captions)
        if new := unlearned(getattr(checked, "tokens", None) or {}, captions):
            print(
                f"Note: {new} in the captions is no word that is learned; --token '{new}=WORDS' teaches it, starting as WORDS.",
                file=sys.stderr,
            )
    run = {
        **config.model_dump(mode="json"),
        "pictures": len(source),
        "class_pictures": len(prior) if prior is not None else None,
        "trigger": config.data.get("prompt"),
    }
    objective = method(checked, generator, config.seed, run, average)
    check_agreement(objective, source)
    return Trainer(config, objective, source, held_out)


def read_config(path: Path, overrides: Sequence[str]) -> tuple[TrainConfig, bool]:
    """(config, does it ask for averages); the network section may be left out."""
    values = read_yaml(path)
    apply_overrides(values, overrides)
    return parse_config({"network": {}, **values}, str(path)), "ema" in values


def simple_config(given: argparse.Namespace) -> tuple[TrainConfig, bool]:
    """The config of a run that has a folder of pictures in place of one."""
    name = (given.output or Path(given.source)).stem or "adapter"
    usual = SHIPPED if given.model == "default" else OTHERS
    data: dict[str, Any] = {"type": "concept", "images": given.source}
    if given.prompt is not None:
        data["prompt"] = given.prompt
    if given.class_prompt is not None:
        data["prior"] = {"prompt": given.class_prompt}
    objective: dict[str, Any] = {"type": "lora", "model": given.model, "name": name}
    kind = given.type or "lora"
    objective["adapter"] = {"type": kind, "targets": [] if given.all_layers else list(usual["targets"])}
    if kind != "oft":
        objective["adapter"]["rank"] = given.rank or usual["rank"]
    if given.format is not None:
        objective["format"] = given.format
    if given.token:
        objective["tokens"] = dict(_token(text) for text in given.token)
        objective["token_rate"] = TOKEN_RATE
    if given.preview:
        objective["preview"] = {"prompts": given.preview}
    steps = given.steps or usual["steps"]
    values: dict[str, Any] = {
        "output": str(given.run or Path("runs/lora") / name),
        "max_steps": steps,
        "batch_size": 4,
        "objective": objective,
        "network": {},
        "data": data,
        "optimizer": {"lr": given.lr} if given.lr else {},
        "schedule": {"warmup": max(1, min(20, steps // 10))},
        "log_every": 20,
        "checkpoint_every": max(50, steps // 4),
        "export_every": max(1, steps // 4),
    }
    apply_overrides(values, given.overrides)
    if isinstance(values["optimizer"], dict):
        values["optimizer"] = {**_usual_optimizer(values["optimizer"], usual["rate"]), **values["optimizer"]}
    return parse_config(values, "the command"), "ema" in values


def _usual_optimizer(given: dict[str, Any], rate: float) -> dict[str, Any]:
    """The rate and betas of a teaching with AdamW or a kin of it; optimisers with settings of their own keep these."""
    kind = KINDS.get(str(given.get("type", "adamw")))
    own = kind.defaults if kind is not None else {}
    betas = {} if kind is None or "betas" in {*own, *kind.unread} else {"betas": [0.9, 0.99]}
    return betas if "lr" in own else {"lr": rate, **betas}


def _token(text: str) -> tuple[str, dict[str, Any]]:
    """NAME or NAME=WORDS, the words that it starts as."""
    name, equals, words = text.partition("=")
    return name, {"init": words} if equals else {}


def _usual(name: str) -> str:
    """What the help says of an option that is left out."""
    return f"[{SHIPPED[name]:g}; {OTHERS[name]:g} for other models]"


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="fewstep lora train", description="Teach a model from pictures: a LoRA or its kin.")
    made.add_argument("source", help="a training config (YAML), or a folder of pictures")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="for example max_steps=300 optimizer.lr=2e-4")
    made.add_argument("--output", "-o", type=Path, metavar="FILE", help="write the finished adapter here as well")
    made.add_argument("--resume", help="auto (default): go on from the run's newest step; never; or a step's folder")
    add_checks(made, "check everything, print what trains, and stop")
    simple = made.add_argument_group("with a folder of pictures")
    simple.add_argument("--prompt", help="of all pictures; {} stands for a picture's own caption")
    simple.add_argument("--class-prompt", help="hold the class in place with pictures that the model makes of this")
    simple.add_argument("--model", default="default", help="default, a folder, a diffusers pipeline or a hub id")
    simple.add_argument("--type", help="lora, rslora, dora, loha, lokr, oft")
    simple.add_argument("--rank", type=int, help=_usual("rank"))
    simple.add_argument("--all-layers", action="store_true", help="teach all layers of the shipped model, as for a style")
    simple.add_argument("--token", action="append", metavar="NAME[=WORDS]", help="a new word to learn, from these; repeatable")
    simple.add_argument("--steps", type=int, help=_usual("steps"))
    simple.add_argument("--lr", type=float, help=_usual("rate"))
    simple.add_argument("--format", help="diffusers, kohya, peft, ai-toolkit")
    simple.add_argument("--preview", action="append", metavar="PROMPT", help="show it while training; repeatable")
    simple.add_argument("--run", type=Path, metavar="DIR", help="where the run is kept [runs/lora/NAME]")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_intermixed_args(arguments)

    def make():
        config_first(given, "source")
        config, average = simple_config(given) if Path(given.source).is_dir() else _from_file(given)
        if given.resume is not None:
            config = config.model_copy(update={"resume": given.resume})
        if given.output is not None:
            check_free(given.output)
        if not (given.dry_run or given.memory):
            if Path(given.source).is_dir() and given.run is None:
                config = in_a_folder_of_its_own(config)
            refuse_finished(config)
        return config, make_trainer(config, average, make=not (given.dry_run or given.memory))

    def trained(trainer) -> list[str]:
        adapter = trainer.networks["adapter"]
        return [f"{len(adapter.named)} tensors, {sum(p.numel() for p in adapter.parameters()):,} numbers train"]

    def done(trainer) -> None:
        if given.output is not None and trainer.accelerator.is_main_process:
            made = place(trainer.run / "export", given.output)
            print(made)
            print(how_to_draw(trainer, made), file=sys.stderr)

    return run_command(given, make, trained, done)


def _from_file(given: argparse.Namespace) -> tuple[TrainConfig, bool]:
    own = ("prompt", "class_prompt", "type", "rank", "all_layers", "token", "steps", "lr", "format", "preview", "run")
    options = [f"--{name.replace('_', '-')}" for name in own if getattr(given, name)]
    from distill.data.images import SUFFIXES

    if Path(given.source).suffix.lower() in SUFFIXES:
        raise ValueError(f"{given.source} is a picture; give the folder that it is in, or one of its own.")
    if not Path(given.source).exists():
        raise ValueError(f"{given.source} does not exist; give a training config, or a folder of pictures.")
    if options or given.model != "default":
        raise ValueError(
            f"{given.source} is a config, which says {(options or ['--model'])[0]} itself; change it there, or by key=value."
        )
    config, average = read_config(Path(given.source), given.overrides)
    check_folders(config.model_dump(), given.source)
    return config, average


# settings that do not change what a run makes
UNIMPORTANT = (
    "output",
    "resume",
    "log_every",
    "checkpoint_every",
    "keep",
    "keep_every",
    "preview_every",
    "export_every",
    "device",
)


def other_run(config: TrainConfig) -> str | None:
    """What differs between a run and the one whose checkpoints are in its folder, whose result would pass for this one's; None
    where they are one run, perhaps longer, or there are none."""
    from distill.checkpointing import folder as checkpoint
    from distill.checkpointing.resume import differences

    run = Path(config.output)
    if config.resume != "auto" or not checkpoint.folders(run) or (saved := checkpoint.load_latest(run)) is None:
        return None
    longer = ("max_steps",) if config.max_steps > saved.step else ()
    changes = differences(saved.state.get("config", {}), config.model_dump(mode="json"))
    changed_keys = [text for name, text in changes.items() if name.partition(".")[0] not in (*UNIMPORTANT, *longer)]
    return "; ".join(changed_keys[:3]) or None


def in_a_folder_of_its_own(config: TrainConfig) -> TrainConfig:
    """A run whose folder nobody named, in the first of runs/lora/NAME, NAME-2, ... that has no other run."""
    for number in range(1, 1000):
        folder = Path(config.output) if number == 1 else Path(f"{config.output}-{number}")
        moved = config.model_copy(update={"output": folder})
        if other_run(moved) is None:
            if number > 1:
                print(f"Note: {config.output} holds another run; this one is kept in {folder}.", file=sys.stderr)
            return moved
    raise ValueError(f"{config.output} and 999 more hold other runs; remove some, or give a folder with --run.")


def refuse_finished(config: TrainConfig) -> None:
    """ValueError where a folder that was named holds a finished run of other settings."""
    from distill.checkpointing import folder as checkpoint

    changes = other_run(config)
    if changes and max(map(checkpoint.step_of, checkpoint.folders(Path(config.output)))) >= config.max_steps:
        raise ValueError(
            f"{config.output} holds a finished run of other settings ({changes}). Give another folder, or remove that one; to "
            "train it further, give more steps."
        )


def how_to_draw(trainer: Any, file: Path) -> str:
    """The command that uses a finished adapter."""
    from customization.base.metadata import describe_training

    objective = trainer.objective
    phrase = describe_training(objective.config, objective.generator, objective.run).get("modelspec.trigger_phrase", "PROMPT")
    if any((file / name).is_file() for name in ("config.json", "model_index.json")):  # a whole model
        return f"Draw with it: fewstep image {shlex.quote(phrase)} --model {shlex.quote(str(file))}"
    model = "" if objective.config.model == "default" else f" --model {shlex.quote(objective.config.model)}"
    return f"Draw with it: fewstep image {shlex.quote(phrase)}{model} --lora {shlex.quote(str(file))}"


def check_free(path: Path) -> None:
    """ValueError where a finished adapter could not be written."""
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists, and nothing is overwritten; give another name.")


def place(export: Path, path: Path) -> Path:
    """Copy a finished adapter, a file or peft's folder, to its own name in one piece."""
    from customization.base.export import WEIGHTS
    from gen.io.folders import written_folder
    from gen.io.weights import write_bytes

    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if (export / WEIGHTS).is_file():
        if path.suffix != ".safetensors":
            path = path.with_name(path.name + ".safetensors")
            check_free(path)
        write_bytes(path, (export / WEIGHTS).read_bytes())
    else:
        with written_folder(path) as folder:
            shutil.copytree(export, folder, dirs_exist_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
