"""Pictures to follow, made from other pictures: outlines and regions of one colour.

Pictures are (B, 3, H, W) in [0, 1]. Each picture's result depends on that picture alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.lookup import nearest

FINENESS = 1 << 14  # parts of 1 that changes of colour are told apart by
KEPT_ROUNDS = 24  # pixels that a faint line may reach from a clear one
REGIONS = 5  # of one picture, its background included
CLUSTER_ROUNDS = 6
# of the background, then of regions from the largest
PALETTE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def edges(pictures: Tensor, low: float | Tensor = 0.06, high: float | Tensor = 0.15) -> Tensor:
    """White lines on black, one pixel wide, where colours change (Canny 1986, on the colour that changes most).

    low, high: thresholds of the change per pixel, of 1; lines above `low` are kept where they join one above `high`. One
    number, or one for each picture (B,).
    """
    smooth = _smoothed(pictures, 1.0)
    sobel = pictures.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    across, down = (F.conv2d(padded, kernel[None, None]).view_as(pictures) for kernel in (sobel, sobel.T))
    strength, colour = (across.square() + down.square()).max(1, keepdim=True)
    across, down = across.gather(1, colour), down.gather(1, colour)
    strength = (strength.sqrt() * FINENESS).round() / FINENESS  # equal changes stay equal, whatever the rounding
    # a line is where the change is largest along its own direction, here the nearest of four
    angle = torch.atan2(down, across) / math.pi * 4
    step = angle.round().remainder(4)
    around = F.pad(strength, (1, 1, 1, 1))
    height, width = strength.shape[2:]

    def beside(rows: int, columns: int) -> Tensor:
        return around[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    thin = torch.zeros_like(strength, dtype=torch.bool)
    for number, (rows, columns) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        largest = (strength > beside(rows, columns)) & (strength >= beside(-rows, -columns))
        thin |= (step == number) & largest
    low, high = (torch.as_tensor(bound, device=strength.device).view(-1, 1, 1, 1) for bound in (low, high))
    faint, clear = thin & (strength > low), thin & (strength > high)
    for _ in range(KEPT_ROUNDS):
        clear = faint & (F.max_pool2d(clear.float(), 3, 1, 1) > 0)
    return clear.to(pictures).expand(-1, 3, -1, -1).contiguous()


def segments(pictures: Tensor) -> Tensor:
    """Regions of one colour in the colours of PALETTE: black the background, which is what the border mostly shows, then by
    size. A map of regions, whatever its colours, gives the same as the picture that it is of.

    Colours are grouped by k-means from the colours farthest apart, so thin lines between regions belong to one of both.
    """
    few = pictures[..., ::2, ::2].flatten(2).transpose(1, 2)  # a quarter of the pixels says which colours there are
    border = torch.cat([pictures[..., 0, :], pictures[..., -1, :], pictures[..., :, 0], pictures[..., :, -1]], dim=2)
    centres = [border.median(2).values]
    for _ in range(REGIONS - 1):
        nearest = torch.cdist(few, torch.stack(centres, 1)).min(2).values
        found = few[torch.arange(len(few)), nearest.argmax(1)]
        # of fewer colours than regions, the rest are far from all and stay empty
        centres.append(torch.where(nearest.amax(1, keepdim=True) > 0.2, found, 9.0))
    middle = torch.stack(centres, 1)
    for _ in range(CLUSTER_ROUNDS):
        member = F.one_hot(torch.cdist(few, middle).argmin(2), REGIONS).to(few)
        count = member.sum(1)[..., None]
        moved = member.transpose(1, 2) @ few / count.clamp_min(1)
        middle = torch.cat([middle[:, :1], torch.where(count > 0, moved, middle)[:, 1:]], 1)
    colours = pictures.flatten(2).transpose(1, 2)
    member = F.one_hot(torch.cdist(colours, middle).argmin(2), REGIONS).to(colours)
    member = member.transpose(1, 2).unflatten(2, pictures.shape[2:])
    member = _majority(member)
    size = member.flatten(2).sum(2)
    order = torch.cat([torch.zeros_like(size[:, :1]).long(), 1 + size[:, 1:].argsort(dim=1, descending=True, stable=True)], 1)
    rows = torch.arange(len(pictures))[:, None]
    return torch.einsum("brhw,rc->bchw", member[rows, order], pictures.new_tensor(PALETTE))


def _majority(member: Tensor) -> Tensor:
    """Every pixel with the region that most of its 3 x 3 neighbourhood is in; (B, R, H, W), one 1 for each pixel."""
    votes = F.avg_pool2d(F.pad(member, (1, 1, 1, 1), mode="replicate"), 3, 1) * 9 + 0.5 * member
    return F.one_hot(votes.argmax(1), member.shape[1]).permute(0, 3, 1, 2).to(member)


def _smoothed(pictures: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(2 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=pictures.device, dtype=pictures.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    x = F.pad(pictures, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, kernel[..., None, :], groups=3), kernel[..., :, None], groups=3)


def as_lines(pictures: Tensor) -> Tensor:
    """A drawing of lines as white lines on black: grey, and turned over where most of it is light."""
    grey = pictures.mean(1, keepdim=True)
    light = grey.flatten(1).mean(1).view(-1, 1, 1, 1) > 0.5
    return torch.where(light, 1 - grey, grey).expand(-1, 3, -1, -1).contiguous()


# name of a kind -> (from any picture, from one of that kind that somebody drew)
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "edges": (edges, as_lines),
    "segments": (segments, segments),
}


def check_kind(kind: object) -> str:
    """The name of a kind of KINDS; ValueError if there is none such."""
    if kind not in KINDS:
        near = nearest(str(kind)[:80], KINDS)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"There is no kind of map {str(kind)[:80]!r}; choose one of {', '.join(KINDS)}.{hint}")
    return str(kind)


@torch.no_grad()
def map_of(kind: str, pictures: Tensor) -> Tensor:
    """The map of pictures as a latent model draws it: of outlines, lines three pixels wide, as thinner ones are lost in
    latents."""
    with torch.autocast(pictures.device.type, enabled=False):
        made = KINDS[kind][0](pictures)
    return F.max_pool2d(made, 3, 1, 1) if kind == "edges" else made
