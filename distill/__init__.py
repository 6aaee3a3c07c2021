"""Training: one loop for every objective, its data, optimisers, checkpoints and evaluation."""
