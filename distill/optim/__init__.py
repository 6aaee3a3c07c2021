"""What an update does to weights: optimisers, learning-rate schedules, averages, number formats, non-finite updates."""

from samplers.renamed import attributes

__getattr__ = attributes(__name__, "distill.optim.optimizer")
