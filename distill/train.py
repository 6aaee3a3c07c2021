"""`python -m distill.train CONFIG.yaml key=value ...`: train what the config says; the same under `accelerate launch`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from distill.command import add_checks, run_command
from distill.config import TrainConfig, config_first, load_config
from distill.missing_parts import check_folders
from gen.cli.parser import Parser

if TYPE_CHECKING:
    from torch import nn

    from distill.objectives.bases.objective import Objective
    from distill.trainer import Trainer


def make_trainer(
    config: TrainConfig, network: nn.Module | None = None, source: Any = None, objective: Callable[..., Objective] | None = None
) -> Trainer:
    """Build network, data source and objective from a config, and the trainer that runs them.

    network, source: objects of your own in the place of the config's sections `network` and `data`, which may be empty then.
    objective: called as objective(network, source), in the place of the section `objective`.
    """

    import torch
    from torch import nn

    import distill.networks.classifier
    import distill.networks.evaluator  # noqa: F401  (these make their network types known)
    from distill.agreement import check_start, checked
    from distill.data.source import make_source
    from distill.eval.validation import hold_out
    from distill.objectives import check_objective, make_objective
    from distill.trainer import Trainer
    from gen.models.components import load_component
    from gen.nn.registry import build

    if objective is None:
        check_objective(config.objective)  # before the data, which can take minutes to make ready
    torch.manual_seed(config.seed)  # initial weights; nothing else reads the global generator
    if network is None:
        described = build(config.network) if config.network else nn.Identity()  # none: the objective makes it
        network = load_component(config.init_from) if config.init_from else described
        if config.init_from and config.network:
            check_start(described, network, config.init_from)
    network.train().requires_grad_(True)
    if source is None:
        source = make_source(config.data, config.seed, config.batch_size)
    report = getattr(source, "report", None)
    if report is not None and (report.dropped or report.notes):
        print("\n".join(report.lines()), file=sys.stderr)
    source, held_out = hold_out(config, source, lambda data: make_source(data, config.seed, config.batch_size))
    made = make_objective(config.objective, network, source) if objective is None else objective(network, source)
    return Trainer(config, checked(made, source), source, held_out)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m distill.train", description=__doc__)
    parser.add_argument("config", help="a YAML file, for example configs/default/generator.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example max_steps=100 optimizer.lr=2e-4")
    add_checks(parser, "check the config, print it with parameter counts, and stop")
    given = parser.parse_intermixed_args(arguments)

    def make():
        config_first(given)
        config = load_config(given.config, given.overrides)
        check_folders(config.model_dump(), given.config)
        return config, make_trainer(config)

    def trained(trainer) -> list[str]:
        counts = {name: sum(p.numel() for p in network.parameters()) for name, network in trainer.networks.items()}
        return [f"{name}: {count / 1e6:.2f} M parameters" for name, count in counts.items()]

    return run_command(given, make, trained)


if __name__ == "__main__":
    sys.exit(main())
