"""A cube with a picture on every face, from a model of flat pictures: python docs/examples/cube.py cube.png [seed]

Views of one surface are denoised together (SyncTweedies): at first the faces, each with its prompt; once their subjects are
decided also what lies half on one face and half on its neighbour, told of the background alone, which makes faces go on across
their edges. Saves the cube's net beside a picture of the cube.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from gen import Generator
from gen.generator import to_pil
from samplers import ClassifierFree, get_grid, get_solver, normal, sample
from samplers.canvas.cube import cube_views, net
from samplers.canvas.sync_tweedies import CanonicalDenoiser

GROUND = "on a light blue background"
SUBJECTS = ("a red heart", "a yellow star", "a green tree", "an orange fish", "the sun", "a pink flower")


@torch.no_grad()
def paint(generator: Generator, seed: int, steps: int = 10) -> Tensor:
    """The faces as pictures (1, 3, s, 6 s) in [0, 1]."""
    generator.read_null({})
    prompts = [*(f"{subject} {GROUND}" for subject in SUBJECTS), GROUND.removeprefix("on ")]
    *faces, edge = (generator.encode_prompt([text], {}) for text in prompts)
    side = generator.config.sample_size // generator.factor
    views = cube_views(side, faces, edge)
    levels = get_grid("beta", generator.denoiser.path, steps)
    x = normal([seed], (generator.channels, side, 6 * side), "latents") * levels[0].sigma
    guided, solver, half = ClassifierFree(generator.denoiser, 5.0), get_solver("dpmpp_2m"), steps // 2
    if half:
        x = sample(CanonicalDenoiser(guided, views[:6]), solver, x, levels[: half + 1])
    strip = sample(CanonicalDenoiser(guided, views), solver, x, levels[half:])
    return torch.cat(list(generator.decode(torch.cat(strip.chunk(6, dim=3))).split(1)), dim=3)


def corner(strip: Tensor, size: int) -> Tensor:
    """Front, right and top of the cube as one sees them from above their common corner, (1, 3, size, size)."""
    side = strip.shape[2]
    grid = (torch.arange(size) + 0.5) / size * 3.6 - 1.8
    down, across = grid[:, None], grid[None, :]
    # an orthographic view from (1, -1, 1), x to the right of the front, y down, z towards the viewer; the cube is [-1, 1]^3
    x = across / 2**0.5 + down / 6**0.5
    y = (down * 2 / 6**0.5).expand(size, size)
    z = -across / 2**0.5 + down / 6**0.5
    front, right, top = 1 - z, 1 - x, 1 + y  # how far to each plane
    picture = strip.new_ones(1, 3, size, size)
    for face, u, v, light in ((0, x + front, y - front, 0.92), (1, -(z + right), y - right, 0.82), (4, x + top, z + top, 1.0)):
        hit = (u.abs() < 1) & (v.abs() < 1)
        column, row = (((w[hit] + 1) / 2 * side).long().clamp(0, side - 1) for w in (u, v))
        picture[0][:, hit] = light * strip[0][:, row, face * side + column]
    return picture


def main() -> None:
    path, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    strip = paint(Generator.from_pretrained(), seed)
    flat = net(strip)
    whole = torch.cat([flat, corner(strip, flat.shape[2])], dim=3)
    to_pil(whole.permute(0, 2, 3, 1).numpy())[0].save(path)


if __name__ == "__main__":
    main()
