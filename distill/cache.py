"""`python -m distill.cache CONFIG key=value ...`: make all latents that a training config's data section asks for, at once.

A run makes what is missing as it goes (distill/data/latents.py); encoding costs about as much as training on the latent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from distill.data.latents import CachedPictures
from distill.imports import add_imports, run_imports
from gen.cli.parser import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m distill.cache", description="Make the latents that a training run needs.")
    parser.add_argument("config", help="a training config with data of type latents or emoji_latents")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.variants=4")
    add_imports(parser)
    given = parser.parse_intermixed_args(arguments)
    from distill.config import config_first, load_config
    from distill.data.source import make_source
    from distill.missing_parts import check_folders

    try:
        run_imports(given)
        config_first(given)
        config = load_config(given.config, given.overrides)
        check_folders({"data": config.data}, given.config)
        if config.data.get("type") not in ("latents", "emoji_latents"):
            raise ValueError(f"The data of {given.config} are of type {config.data.get('type')!r}; wrap them as type: latents.")
        source = make_source(config.data, config.seed)
        made = source.fill() if isinstance(source, CachedPictures) else 0
    except (ValueError, OSError) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    print(f"{len(source)} pictures, {made} of them encoded or read anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
