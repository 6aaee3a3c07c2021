"""A run: from a call's settings to pictures and recipes, whatever its task."""
