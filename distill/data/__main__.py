"""`python -m distill.data check CONFIG key=value ...`: open every picture of a training config's data section, and say what is
kept, what is dropped, and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from distill.config import config_first, load_config
from distill.data.source import make_source
from distill.imports import add_imports, run_imports
from gen.cli.parser import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m distill.data", description="Check a data set before training on it.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("check", help="say what is kept, what is dropped, and why")
    command.add_argument("config", help="a training config; its data section is read")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.size=512")
    add_imports(command)
    given = parser.parse_args(arguments)
    try:
        run_imports(given)
        config_first(given)
        config = load_config(given.config, given.overrides)
        source: Any = make_source(config.data, config.seed, config.batch_size)
        report = source.check() if hasattr(source, "check") else None
    except (ValueError, OSError) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    print("\n".join(report.lines()) if report else f"{config.data['type']}: {len(source)} kept, 0 dropped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
