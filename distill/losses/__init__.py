"""What losses are made of: distances, weights of noise levels, how levels and noise are drawn, steps along a trajectory."""

from samplers.renamed import attributes

__getattr__ = attributes(__name__, "distill.losses.distances", "distill.losses.loss_weighting")
