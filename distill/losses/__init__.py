"""What losses are made of: distances, weights of noise levels, how levels and noise are drawn, steps along a trajectory."""
