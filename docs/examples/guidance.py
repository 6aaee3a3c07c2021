"""Three guidance rules at four scales: python docs/examples/guidance.py guidance.png

A higher scale follows the prompt more closely. Plain classifier-free guidance (cfg) oversaturates at high scales; adaptive
projected guidance (apg) and rescaling hold colours back.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from PIL import Image

from gen import Generator, contact_sheet

RULES = ("cfg", "cfg + rescale", "apg")
SCALES = (1.0, 3.0, 6.0, 12.0)


def make(generator: Generator, rules: Sequence[str] = RULES, scales: Sequence[float] = SCALES, steps: int = 12) -> Image.Image:
    """A row for every rule, a column for every scale."""
    images, captions = [], []
    for rule in rules:
        for scale in scales:
            call = {"guidance": rule, "guidance_scale": scale, "num_inference_steps": steps, "seed": 4, "progress": False}
            images += generator("a green frog on a yellow background", **call).images
            captions.append(f"{rule}, scale {scale:g}")
    return contact_sheet(images, captions, columns=len(scales))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="the PNG to write")
    make(Generator.from_pretrained("default")).save(parser.parse_args().output)
