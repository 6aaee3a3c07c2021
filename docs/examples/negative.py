"""What a negative prompt takes out of pictures of four steps: python docs/examples/negative.py negative.png

The fast model has its guidance inside, so that plain guidance has no use for a negative prompt. Normalised attention guidance
leads the network's attention away from it instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from PIL import Image

from gen import Generator, contact_sheet

UNWANTED = {"a cat": "orange", "a flower": "pink", "a fruit": "red", "a car": "red"}


def make(generator: Generator, unwanted: Mapping[str, str] = UNWANTED, steps: int = 4) -> Image.Image:
    """A column for every prompt: without, then with its negative prompt."""
    images, captions = [], []
    call = {"num_inference_steps": steps, "seed": 3, "progress": False}
    for prompt in unwanted:
        images += generator(prompt, **call).images
        captions.append(prompt)
    for prompt, negative in unwanted.items():
        images += generator(prompt, negative, guidance="nag", **call).images
        captions.append(f"{prompt}, not {negative}")
    return contact_sheet(images, captions, columns=len(unwanted))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="the PNG to write")
    make(Generator.from_pretrained("fast")).save(parser.parse_args().output)
