"""`python -m gen`, and what the command `fewstep` runs."""

from typing import NoReturn


def program() -> NoReturn:
    """The command line; an interrupt that comes while it is still being imported ends it in one line too."""
    try:
        from gen.cli.app import program

        program()
    except KeyboardInterrupt:
        import os

        os.write(2, b"Interrupted.\n")
        os._exit(130)


if __name__ == "__main__":
    program()
