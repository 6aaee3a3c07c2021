"""The best picture of a prompt by a reward: the search over its noise."""
