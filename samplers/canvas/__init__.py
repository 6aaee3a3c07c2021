"""Canvases: pictures of any size, or seen through several views, from a network of one size."""
