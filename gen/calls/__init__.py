"""Calls of a `Generator` as plain data: the layer that the page, the server and batches stand on.

A `Call` is checked and written down without torch, run by `run`, and shown as a script or a command line that makes the same
picture to the byte. Prompts with wildcards become prompts here too. `sweep.py` sets settings of calls against one another.
"""
