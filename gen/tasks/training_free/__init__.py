"""Training-free changes of a run beside guidance: references, concepts, aesthetics, greedy choice."""
