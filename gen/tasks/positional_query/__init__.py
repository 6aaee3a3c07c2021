"""A picture painted around in one pass, by a model that knows positions relative to it (PQDiff)."""
