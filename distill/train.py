"""`python -m distill.train CONFIG.yaml key=value ...`: train what the config says; the same under `accelerate launch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from distill.command import add_checks, run_command
from distill.config import TrainConfig, config_first, load_config
from distill.missing_parts import check_folders
from gen.cli.parser import Parser


def make_trainer(config: TrainConfig):
    """Build network, objective and data source from a config."""
    import torch

    import distill.networks.classifier
    import distill.networks.evaluator  # noqa: F401  (these make their network types known)
    from distill.agreement import check_start, checked
    from distill.data.source import make_source
    from distill.eval.validation import hold_out
    from distill.objectives import check_objective, make_objective
    from distill.trainer import Trainer
    from gen.models.components import load_component
    from gen.nn.registry import build

    check_objective(config.objective)  # before the data, which can take minutes to make ready
    torch.manual_seed(config.seed)  # initial weights; nothing else reads the global generator
    given = build(config.network) if config.network else torch.nn.Identity()  # none: the objective makes it
    network = load_component(config.init_from) if config.init_from else given
    if config.init_from and config.network:
        check_start(given, network, config.init_from)
    network.train().requires_grad_(True)
    source = make_source(config.data, config.seed, config.batch_size)
    report = getattr(source, "report", None)
    if report is not None and (report.dropped or report.notes):
        print("\n".join(report.lines()), file=sys.stderr)
    source, held_out = hold_out(config, source, lambda data: make_source(data, config.seed, config.batch_size))
    return Trainer(config, checked(make_objective(config.objective, network, source), source), source, held_out)


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
