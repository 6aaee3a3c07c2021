"""Customization: LoRA and the published ways to teach, merge and compose concepts."""
