"""Where samples come from: sources that give the batch of any sample counters, and the files that they read."""

from distill.data.source import SOURCES, Source, make_source

__all__ = ["SOURCES", "Source", "make_source"]
