"""Caches: denoisers that spare evaluations of the network, or of parts of it.

They belong directly around the network, under guidance: ClassifierFree(TaylorSeer(denoiser), 5). What they remember lies in
`Context.store`, apart for every branch and set of adapters, so it lasts one run and holds a fixed number of tensors.
"""

from samplers.cache.easy_cache import EasyCache
from samplers.cache.first_block import FirstBlockCache
from samplers.cache.pyramid_broadcast import PyramidBroadcast
from samplers.cache.registry import CACHES, CacheInfo, cache_info, cache_names, get_cache, register_cache
from samplers.cache.reuse import Reuse
from samplers.cache.taylor_seer import TaylorSeer

__all__ = [
    "CACHES",
    "CacheInfo",
    "EasyCache",
    "FirstBlockCache",
    "PyramidBroadcast",
    "Reuse",
    "TaylorSeer",
    "cache_info",
    "cache_names",
    "get_cache",
    "register_cache",
]
