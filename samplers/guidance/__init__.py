"""Guidance: denoisers around denoisers."""

from samplers.guidance.cfg import ClassifierFree

__all__ = ["ClassifierFree"]
