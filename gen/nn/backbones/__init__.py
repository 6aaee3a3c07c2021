"""Backbones: U-ViT, DiT and DiMR, with their published sizes and costs."""
