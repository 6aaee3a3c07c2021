"""One prompt and one seed, by four solvers at 3, 6 and 12 steps: python docs/examples/solvers.py solvers.png

All solvers begin with the same noise and end near the same picture. They differ in how many steps that takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from PIL import Image

from gen import Generator, contact_sheet

SOLVERS = ("euler", "heun", "dpmpp_2m", "unipc")
STEPS = (3, 6, 12)


def make(generator: Generator, solvers: Sequence[str] = SOLVERS, steps: Sequence[int] = STEPS) -> Image.Image:
    """A row for every solver, a column for every number of steps."""
    images, captions = [], []
    for solver in solvers:
        for count in steps:
            output = generator("a red apple", sampler=solver, num_inference_steps=count, seed=1, progress=False)
            images += output.images
            captions.append(f"{solver}, {count} steps, {output.nfe:g} evaluations")
    return contact_sheet(images, captions, columns=len(steps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="the PNG to write")
    make(Generator.from_pretrained("default")).save(parser.parse_args().output)
