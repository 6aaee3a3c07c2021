"""ADM's classifiers of noisy pictures as their authors publish them (guided-diffusion; arXiv 2105.05233)."""

from __future__ import annotations

from typing import Any

from gen.models.formats.adm import BY_CHANNELS, DOWN, TOLD, count, size_of, way_down
from gen.models.formats.format import Format, Settings, Shapes, shape_of
from gen.models.formats.table import Table

TABLE: Table = [
    *DOWN,
    ("out.0.*", "norm.*"),
    ("out.2.positional_embedding", "pool.positions"),
    ("out.2.qkv_proj.*", "pool.qkv.*"),
    ("out.2.c_proj.*", "pool.proj.*"),
]


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    positions = shape_of(shapes, "out.2.positional_embedding", 2)[1] - 1
    side, steps = round(positions**0.5), count(shapes, "input_blocks")
    if side * side != positions:
        raise ValueError(f"has positions for {positions} pixels, which are no square")
    fitting = [blocks for blocks in range(1, steps) if steps % (blocks + 1) == 0 and _fits(shapes, blocks)]
    if len(fitting) != 1:
        raise ValueError("has steps of other widths than resolutions of as many blocks each would have")
    sizes = way_down(shapes, fitting[0])
    channels = shape_of(shapes, "input_blocks.0.0.weight", 4)[1]
    classes = shape_of(shapes, "out.2.c_proj.weight", 3)[0]
    size = size_of(sizes, settings)
    flags: dict[str, Any] = {"heads": int(settings["heads"])} if settings.get("heads") else dict(BY_CHANNELS)
    told = {"size": size, "channels": channels, "num_classes": classes, "betas": "cosine" if size == 64 else "linear"}
    return {"type": "adm_classifier", **told, **sizes, **flags}


def _fits(shapes: Shapes, blocks: int) -> bool:
    """May there be so many blocks at each resolution? All of one resolution have its width, and attention or not; what leads to
    the next has that width and no attention."""
    seen: dict[int, set[tuple[int, bool]]] = {}
    for step in range(1, count(shapes, "input_blocks")):
        level, block = divmod(step - 1, blocks + 1)
        attends = f"input_blocks.{step}.1.qkv.weight" in shapes
        weight = (
            shapes.get(f"input_blocks.{step}.0.out_layers.3.weight") or shapes.get(f"input_blocks.{step}.0.op.weight") or (0,)
        )
        if block == blocks:
            if attends or {width for width, _ in seen[level]} != {weight[0]}:
                return False
        else:
            seen.setdefault(level, set()).add((weight[0], attends))
    return all(len(kinds) == 1 for kinds in seen.values())


FORMAT = Format(
    name="adm-classifier",
    description="ADM's classifier of noisy pictures as its authors publish it",
    kind="adm_classifier",
    signature=("input_blocks.0.0.weight", "middle_block.1.qkv.weight", "out.2.c_proj.weight"),
    blocks=("input_blocks",),
    table=TABLE,
    infer=infer,
    stored=TOLD | {"num_classes", "betas"},
)
