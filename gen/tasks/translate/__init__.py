"""Picture to picture in one step: translators of a one-step model."""
