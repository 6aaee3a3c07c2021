"""`fewstep completion bash|zsh|fish`: the script by which a shell completes commands, options and names."""

from __future__ import annotations

import os
from typing import Annotated

import typer

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_FEWSTEP_COMPLETE"  # that shells set when they ask


def add(app: typer.Typer) -> None:
    """Make it part of the program, and let it answer shells."""
    app.command()(completion)
    if VARIABLE in os.environ:
        from typer.completion import completion_init

        completion_init()


def completion(shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", autocompletion=lambda: SHELLS)]) -> int:
    """Print a script that completes commands, options and names: eval "$(fewstep completion bash)"; fish: ... | source"""
    from typer.completion import get_completion_script

    if shell not in SHELLS:
        raise ValueError(f"Unknown shell {shell!r:.80}; give one of {', '.join(SHELLS)}.")
    print(get_completion_script(prog_name="fewstep", complete_var=VARIABLE, shell=shell))
    return 0
