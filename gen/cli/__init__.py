"""What the commands of `fewstep` do; each module is imported by its command only, so that the rest starts at once."""

from samplers.renamed import attributes

__getattr__ = attributes(__name__, "gen.cli.app")
