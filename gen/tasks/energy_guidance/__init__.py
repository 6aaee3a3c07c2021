"""Guidance by an energy: its keywords, its record, its command-line options, the task."""
