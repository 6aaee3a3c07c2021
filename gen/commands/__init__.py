"""What the commands of `gen.cli` do; each module is imported by its command only, so that the rest starts at once."""
