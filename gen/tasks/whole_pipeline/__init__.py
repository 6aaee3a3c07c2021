"""Pipelines of diffusers that run as a whole (`gen.models.bridge.generic`)."""
