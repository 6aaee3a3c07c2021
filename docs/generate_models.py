"""Writes docs/models.md: every family of models and what works with it, read from its table: python docs/generate_models.py"""

from __future__ import annotations

from pathlib import Path

from gen.models.bridge.chat import ChatReader
from gen.models.bridge.families.table import FAMILIES, FEATURES, FamilyRow
from gen.models.bridge.parts import TextPart

PAGE = Path(__file__).with_name("models.md")
EDITS = {"picture": "`--image`", "mask": "`--image --mask`", "": ""}

OURS = "the default model and its student"
BEFORE = """# Models

What opens, what works with it, and a command for each. `python docs/generate_models.py` writes this page from the code.

| model | try it |
|---|---|
| the default model and its student | `fewstep image "a red heart"` (`--no-fast` for the teacher) |
"""
WORKS = """
Folders of ours, published checkpoints and single files open too: [formats.md](formats.md). What a family is by default, and how
its pictures compare with diffusers', is in [pipelines.md](pipelines.md).

## What works
`tests/gen/test_abilities.py` makes a picture for every cell: what has a yes works, what has a no is refused in a sentence. A
negative prompt has nothing to act on where the network embeds its guidance scale, which a call says; `nag` takes one where the
second table has it. Caches are `reuse` and `easy`, those of blocks `first_block` and `taylor`.

| model | text | negative | `--image` | `--mask` | LoRA | ControlNet | IP-Adapter | caches | of blocks | canvas |
|---|---|---|---|---|---|---|---|---|---|---|
"""
MIDDLE = """
All of them take every sampler and schedule, guidance by classifier-free rules, prompts that change on the way, `AND` and LoRAs
by name ([prompts.md](prompts.md)), restoration and energies ([guidance.md](guidance.md)), regions and views
([regions.md](regions.md)), canvases but where a mask is read ([canvas.md](canvas.md)), LoRA files ([adapters.md](adapters.md)),
previews and recipes. Models with class labels in the place of text have no prompts. ControlNets and IP-Adapters are in
[control.md](control.md).

## Inside of them
`nag` is normalised attention guidance, `pag` and `seg` perturbed attention; skip-layer guidance (`slg`) needs what block caches
do. `--native` (`native=True`) runs the denoiser in our own network, [which computes the
same](pipelines.md#in-our-own-networks). The last column is what prompts may be read with.

| model | edits by itself | `nag` | `pag`, `seg` | reading |
|---|---|---|---|---|
"""


def page() -> str:
    """The page."""
    tried = [f'| {row.family.name} | `fewstep image "a cat" --model {row.model}{_rest(row)}` |' for row in FAMILIES.values()]
    works = [_line(row.family.name, *(_yes(row.works(feature)) for feature in FEATURES)) for row in FAMILIES.values()]
    ours = {feature: feature != "image_prompt" for feature in FEATURES}
    works.insert(0, _line(OURS, *map(_yes, ours.values())))
    inside = [_line(OURS, "", "yes", "yes", ""), *map(_inside, FAMILIES.values())]
    return BEFORE + "\n".join(tried) + "\n" + WORKS + "\n".join(works) + "\n" + MIDDLE + "\n".join(inside) + "\n"


def _rest(row: FamilyRow) -> str:
    edits, lent = row.network.reads, row.family.lent
    borrowed = "" if lent is None else f" --text-encoder {lent[2]}"
    return borrowed + {"picture": " --image cat.png", "mask": " --image cat.png --mask hole.png", "": ""}[edits]


def _inside(row: FamilyRow) -> str:
    options = ", ".join(f"`{option}`" for option in takes(row))
    if getattr(row.network, "reads_sizes", False):
        options += ", sizes"
    nag = row.family.reader is not None and row.has_hook("text")
    heads = "with `--native`" if row.family.native and not row.has_hook("heads") else _yes(row.has_hook("heads"))
    return _line(row.family.name, EDITS[row.network.reads], _yes(nag), heads, options)


def takes(row: FamilyRow) -> tuple[str, ...]:
    """What its prompts may be read with."""
    if row.reader in (TextPart, ChatReader):  # T5 here; a reader that sees pictures has no row of its own
        return ("max_sequence_length",)
    return () if row.reader is None else row.reader.takes


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
