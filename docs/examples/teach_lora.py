"""Teach the default model a new word by a LoRA: python docs/examples/teach_lora.py lora.png

The pictures to learn from are drawn here: a blue ring with yellow dots. Training writes a LoRA file with a vector for the new
word `<ring>`. The sheet shows pictures to learn from, then the model without and with the LoRA. It needs the extra `lora`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from customization.train import main as train
from gen import Generator, contact_sheet


def draw(index: int, side: int = 128) -> Image.Image:
    """A blue ring with eight yellow dots, turned and scaled by the index."""
    large = 4 * side  # drawn large and scaled down, for smooth edges
    image = Image.new("RGB", (large, large), "white")
    pen = ImageDraw.Draw(image)
    radius = large * (0.32 + 0.012 * index)
    corners = (large / 2 - radius, large / 2 - radius, large / 2 + radius, large / 2 + radius)
    pen.ellipse(corners, outline=(40, 70, 200), width=int(radius * 0.4))
    for dot in range(8):
        angle = math.tau * (dot / 8 + index / 40)
        x, y = (large / 2 + 0.8 * radius * turn(angle) for turn in (math.cos, math.sin))
        size = 0.11 * radius
        pen.ellipse((x - size, y - size, x + size, y + size), fill=(250, 210, 40))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def make(
    folder: Path, model: str = "default", steps: int = 100, num_inference_steps: int = 12, like: str = "ring"
) -> Image.Image:
    """Train in a folder, and draw before and after. like: a known word, which the new one begins as."""
    pictures = folder / "pictures"
    pictures.mkdir()
    learned = [draw(index) for index in range(8)]
    for index, image in enumerate(learned):
        image.save(pictures / f"{index}.png")
    command = [str(pictures), "--prompt", "a <ring> on a white background", "--token", f"<ring>={like}", "--model", model]
    options = ["--steps", str(steps), "--run", str(folder / "run")]
    if code := train([*command, *options, "-o", str(folder / "ring.safetensors")]):
        raise SystemExit(code)

    generator = Generator.from_pretrained(model)
    call = {"seeds": [1, 2], "num_images_per_prompt": 2, "num_inference_steps": num_inference_steps, "progress": False}
    before = generator("a ring on a white background", **call).images
    generator.load_adapter(folder / "ring.safetensors")
    after = generator("a <ring> on a white background", **call).images
    captions = ["to learn from"] * 2 + ["a ring, without the LoRA"] * 2 + ["a <ring>, with the LoRA"] * 2
    return contact_sheet([*learned[:2], *before, *after], captions, columns=2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="the PNG to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder)).save(given.output)
