"""Searching: for the levels of a run (evolution, dynamic programming, least squares) and the strengths of guidance."""

from samplers.search.evolution import Candidate, Search, Space, evolve, pick
from samplers.search.gits import euler_costs, gits, select
from samplers.search.guidance import Beam, Strengths, search_strengths
from samplers.search.optimise import Optimised, optimise_grid
from samplers.search.table import GridTable, read_search, read_table, save_search, save_table

__all__ = [
    "Beam",
    "Candidate",
    "GridTable",
    "Optimised",
    "Search",
    "Space",
    "Strengths",
    "euler_costs",
    "evolve",
    "gits",
    "optimise_grid",
    "pick",
    "read_search",
    "read_table",
    "save_search",
    "save_table",
    "search_strengths",
    "select",
]
