"""What the commands of `fewstep` do; each module is imported by its command only, so that the rest starts at once."""

from typing import Any


def __getattr__(name: str) -> Any:
    """What `gen.cli.app` held when it was one module (`samplers.renamed`, which imports torch, so it is asked only now)."""
    from samplers.renamed import attributes

    return attributes(__name__, "gen.cli.app")(name)
