"""Small archives of pictures, and a text encoder and an evaluation network that know them."""

import io
import string
import zlib

import torch
from PIL import Image

from distill.data.emoji.archive import DrawingRecord, write_archive
from distill.data.emoji.captions import HELD_OUT, read_common
from distill.networks.evaluator.network import Evaluator, EvaluatorConfig
from gen.nn.text_encoder import TextEncoder, TextEncoderConfig
from gen.nn.wordpiece import SPECIAL

COMMON = list(read_common())
LABELS = [*COMMON[:6], *dict.fromkeys(pair.label for pair in HELD_OUT if pair.label not in COMMON[:6])]
VENDORS = ("noto", "noto-v1", "twemoji")
SIZE = 32


def picture(label, vendor):
    """What a vendor draws for a label: smooth random blobs, much alike between vendors of one label."""
    draw = lambda *key: torch.randn(  # noqa: E731
        1, 3, 4, 4, generator=torch.Generator().manual_seed(zlib.crc32("".join(key).encode()))
    )
    small = draw(label) + 0.4 * draw(label, vendor)
    big = torch.nn.functional.interpolate(small, (SIZE, SIZE), mode="bicubic")[0]
    return (big * 60 + 128).round().clamp(0, 255).to(torch.uint8)


def archive(path, vendors):
    records, pictures = [], {}
    for vendor in vendors:
        for number, label in enumerate(LABELS):
            name, buffer = f"images/{vendor}/{number:X}.webp", io.BytesIO()
            Image.fromarray(picture(label, vendor).permute(1, 2, 0).numpy()).save(buffer, "WEBP", lossless=True)
            pictures[name] = buffer.getvalue()
            records.append(
                DrawingRecord(
                    file_name=name,
                    pack=vendor,
                    family="train",
                    style=vendor,
                    hex=f"{number:X}",
                    label=label,
                    group="x",
                    subgroup="x",
                    names=(),
                    tags=(),
                    keywords=(),
                    licence="MIT",
                )
            )
    write_archive(path, records, pictures, sorted(LABELS))


def tiny_text_encoder():
    torch.manual_seed(0)
    pieces = [*SPECIAL, *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), "-"]
    network = TextEncoder(TextEncoderConfig(vocab_size=len(pieces), dim=16, heads=2, hidden=16, layers=1, max_tokens=40))
    network.set_vocabulary(pieces)
    return network.eval().requires_grad_(False)


def knowing_evaluator():
    """A network that knows the training pictures by heart: its labels' sentences are the pictures' own embeddings."""
    torch.manual_seed(0)
    network = Evaluator(EvaluatorConfig(size=SIZE, widths=(8, 16), dim=16, text_dim=16)).eval().requires_grad_(False)
    torch.nn.init.eye_(network.text_head.weight)
    torch.nn.init.zeros_(network.text_head.bias)
    images = torch.stack([picture(label, "noto") for label in LABELS]).float() / 127.5 - 1
    network.set_labels(LABELS, network.embed(images))
    return network
