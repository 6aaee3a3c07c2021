"""Pictures of an archive as files: `python -m distill.data.emoji.export ARCHIVE FOLDER --labels "cat face, rocket, ..."`.

Each becomes a PNG on white with a .txt of its label beside it, as trainers read them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from distill.data.emoji.data import EmojiConfig, EmojiData, Variant
from gen.cli.parser import Parser
from gen.io.weights import write_bytes


def export(archive: Path, folder: Path, labels: Sequence[str], size: int = 128) -> list[Path]:
    """The files written, one per label. ValueError for a label that the archive lacks; nothing is overwritten."""
    from gen.generator import to_pil
    from gen.pipeline.png import save_image

    data = EmojiData(EmojiConfig(archives=(str(archive),), size=size))
    first = {record.label: index for index, record in reversed(list(enumerate(data.records)))}
    if unknown := [label for label in labels if label not in first]:
        raise ValueError(f"{archive} has no picture of {unknown[0]!r}; its labels are those of metadata.jsonl inside.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for label in labels:
        picture = data.render([Variant(first[label])])[0] / 2 + 0.5
        path = folder / f"{label.replace(' ', '-')}.png"
        save_image(to_pil(picture.permute(1, 2, 0)[None].clamp(0, 1).numpy())[0], path)
        write_bytes(path.with_suffix(".txt"), f"{label}\n".encode())
        written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m distill.data.emoji.export", description="Pictures of an archive as files.")
    parser.add_argument("archive", type=Path, help="for example data/emoji/emoji-lora.zip")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", required=True, help="which pictures, with commas between")
    parser.add_argument("--size", type=int, default=128, help="pixels; a divisor of the archive's 128")
    given = parser.parse_args(arguments)
    try:
        for path in export(given.archive, given.folder, [label.strip() for label in given.labels.split(",")], given.size):
            print(path)
    except (ValueError, OSError) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
