"""A picture drawn twice: at its size, then enlarged and drawn on, as "hires fix" does."""
