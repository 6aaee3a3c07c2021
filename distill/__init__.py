"""Training: one loop for every objective, its data, optimisers, checkpoints and evaluation."""

from samplers.renamed import install

install(__name__)
