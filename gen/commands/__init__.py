"""What the commands of `gen.cli.app` do; each module is imported by its command only, so that the rest starts at once."""
