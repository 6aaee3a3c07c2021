"""Customization: LoRA and the published ways to teach, merge and compose concepts."""

from samplers.renamed import install

install(__name__)
