"""Tasks: what a run may do beside plain generation, one file each."""
