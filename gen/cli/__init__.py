"""What the commands of `fewstep` do; each module is imported by its command only, so that the rest starts at once."""

import importlib.util
from typing import Any


def __getattr__(name: str) -> Any:
    """What `gen.cli` held when it was one module (`samplers.renamed`, which imports torch, so it is asked only now)."""
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:  # a module: the import system looks for it itself
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from samplers.renamed import attributes

    return attributes(__name__, "gen.cli.app")(name)
