"""Searching for the levels of a run: by evolution, by dynamic programming, by least squares; and keeping what was found."""

from samplers.search.evolution import Candidate, Search, Space, evolve, pick
from samplers.search.gits import euler_costs, gits, select
from samplers.search.optimise import Optimised, optimise_grid
from samplers.search.table import GridTable, read_search, read_table, save_search, save_table

__all__ = [
    "Candidate",
    "GridTable",
    "Optimised",
    "Search",
    "Space",
    "euler_costs",
    "evolve",
    "gits",
    "optimise_grid",
    "pick",
    "read_search",
    "read_table",
    "save_search",
    "save_table",
    "select",
]
