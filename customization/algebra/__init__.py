"""Algebra on LoRA files: sums, lower ranks, sparse merges, extraction, spectra."""

from __future__ import annotations

from customization.algebra.align import align
from customization.algebra.extract import Extracted, extract
from customization.algebra.interpolate import interpolate_weights
from customization.algebra.plot import plot_spectra
from customization.algebra.sparse import Sparse, sparse_merge
from customization.algebra.spectrum import Spectrum, similarity, spectra
from customization.algebra.sum import LayerReport, interpolate, resize, scale, weighted_sum
from customization.algebra.svd import Keep, core_svd, sketch_svd

__all__ = [
    "Extracted",
    "Keep",
    "LayerReport",
    "Sparse",
    "Spectrum",
    "align",
    "core_svd",
    "extract",
    "interpolate",
    "interpolate_weights",
    "plot_spectra",
    "resize",
    "scale",
    "similarity",
    "sketch_svd",
    "sparse_merge",
    "spectra",
    "weighted_sum",
]
