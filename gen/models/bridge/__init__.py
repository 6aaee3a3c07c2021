"""Pipelines in diffusers' folders, opened as our models: `gen.models.bridge.pipeline` reads the folder, `families` the rest.

Importing this loads neither diffusers nor transformers; opening a pipeline does.
"""
