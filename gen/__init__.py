"""Generation: networks, weights, the `Generator`, recipes and the command line.

Importing this package imports nothing else; what it exports is loaded on first use.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from gen.io.version import __version__ as __version__

if TYPE_CHECKING:
    from gen.generator import Generator, Output
    from gen.io.contact_sheet import contact_sheet
    from gen.models.folder import ModelConfig, write_model, write_model_config
    from gen.pipeline.png import read_recipe, save_image
    from gen.pipeline.recipe import Recipe

_EXPORTS = {
    "Generator": "gen.generator",
    "Output": "gen.generator",
    "ModelConfig": "gen.models.folder",
    "write_model": "gen.models.folder",
    "write_model_config": "gen.models.folder",
    "Recipe": "gen.pipeline.recipe",
    "read_recipe": "gen.pipeline.png",
    "save_image": "gen.pipeline.png",
    "contact_sheet": "gen.io.contact_sheet",
}
__project__ = "fewstep"
__all__ = [  # noqa: RUF022 (in the order a reader meets them)
    "Generator",
    "Output",
    "Recipe",
    "read_recipe",
    "save_image",
    "contact_sheet",
    "ModelConfig",
    "write_model",
    "write_model_config",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])


class _OldPaths:
    """Asked for modules that nobody else finds: import paths of earlier versions lead on (`samplers.renamed`)."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith("gen."):
            return None
        from samplers.renamed import finder  # which imports torch, as whatever it finds does

        return finder("gen", "io/renamed.txt").find_spec(name)


sys.meta_path.append(_OldPaths)  # type: ignore[arg-type]
