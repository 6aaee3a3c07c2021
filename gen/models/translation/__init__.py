"""Picture to picture in one step of a one-step student (arXiv 2403.12036): its network, its folder, its skip connections."""
