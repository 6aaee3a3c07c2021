"""ComfyUI's samplers where they are not those of the other solvers, and the ones that only it has.

ComfyUI writes its samplers on sigma. On variance-preserving tables that is our sigma / alpha, and most of its samplers are
ours to rounding. On flow models its sigma is the clock t, and what is linear in sigma, or in its logarithm, is another method
there: `in_sigma` is that coordinate. `rows` is the table of names.
"""
