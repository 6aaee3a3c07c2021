"""Searching: for a run's levels (evolution, dynamic programming, least squares), for strengths of guidance, for noise."""

from samplers.search.evolution import Candidate, Search, Space, evolve, pick
from samplers.search.gits import euler_costs, gits, select
from samplers.search.guidance import Beam, Strengths, search_strengths
from samplers.search.optimise import Optimised, optimise_grid
from samplers.search.reno import Chosen, best_of, log_radius, reno
from samplers.search.table import GridTable, read_search, read_table, save_search, save_table

__all__ = [
    "Beam",
    "Candidate",
    "Chosen",
    "GridTable",
    "Optimised",
    "Search",
    "Space",
    "Strengths",
    "best_of",
    "euler_costs",
    "evolve",
    "gits",
    "log_radius",
    "optimise_grid",
    "pick",
    "read_search",
    "read_table",
    "reno",
    "save_search",
    "save_table",
    "search_strengths",
    "select",
]
