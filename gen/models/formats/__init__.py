"""Published checkpoint formats, read into our networks and written from them.

Each format is a page with one table of names (`gen.models.formats.table`) and the reading of sizes from shapes.
`read_checkpoint` and `write_checkpoint` use the table in both directions.
"""

from gen.models.formats.read import read_checkpoint
from gen.models.formats.registry import FORMATS, detect
from gen.models.formats.write import write_checkpoint

__all__ = ["FORMATS", "detect", "read_checkpoint", "write_checkpoint"]
