"""Outpainting by positional queries has the command of outpainting: `gen.tasks.canvas.cli`."""

IMAGE, REPLAY, COMMANDS = None, None, ()
