"""Models: opening, saving and describing them, published formats, and the bridge to diffusers' pipelines."""
