"""What a single file lacks: parts of a pipeline's folder or repository, and CLIP's vocabulary, which is shipped.

`clip_merges.txt.xz` has the merges of byte pairs of OpenAI's CLIP (MIT licence, see NOTICE), one a line, in order.
"""

from __future__ import annotations

import functools
import lzma
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gen.io.weights import CheckpointError
from gen.models.bridge.load import STEMS, quietly, weight_files

WORDS = 49408  # ids of CLIP's vocabulary
END = "<|endoftext|>"


def pipeline_part(source: str | Path, part: str, optional: Collection[str]) -> Path | None:
    """The folder of a part in a pipeline's folder or hub repository; None for an optional one that is not there.

    ValueError where the source is neither, CheckpointError where it lacks the part.
    """
    folder = Path(source)
    if not folder.is_dir():
        from gen.models.hub import is_hub_id

        if isinstance(source, Path) or folder.exists() or not is_hub_id(source):
            raise ValueError(f"{source} is no folder; give the folder or the hub id of a pipeline, which has {part}/.")
        folder = _fetched(source, part)
    if (folder / part).is_dir():
        return folder / part
    if part in optional:
        return None
    raise CheckpointError(folder, f"has no {part}/; give the folder or hub id of a pipeline of the same family.")


def _fetched(repository: str, part: str) -> Path:
    """A repository with the files of one part in the hub's cache."""
    from gen.models.hub import hub_errors

    with hub_errors(repository):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

        try:
            info: Any = HfApi().repo_info(repository)
        except GatedRepoError:
            raise
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
            return Path(snapshot_download(repository, local_files_only=True))
        names = [file.rfilename for file in info.siblings or []]
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        wanted = [name for name in inside if name.endswith((".json", ".txt", ".model")) and ".index." not in name]
        _, files, index = weight_files(inside, STEMS["transformers"])
        wanted += [*files, *([index] if index else [])]
        return Path(snapshot_download(repository, revision=info.sha, allow_patterns=[f"{part}/{name}" for name in wanted]))


@functools.cache
def _merges() -> tuple[tuple[str, str], ...]:
    text = lzma.decompress((Path(__file__).parent / "clip_merges.txt.xz").read_bytes()).decode()
    pairs = [line.split(" ") for line in text.splitlines()]
    return tuple((first, second) for first, second in pairs)


def clip_tokenizer(pad: str = END) -> Any:
    """OpenAI CLIP's tokenizer. pad: what fills a prompt up to 77 tokens, the end or, with OpenCLIP's encoders, "!"."""
    letters = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [256 + i for i in range(256 - len(letters))]  # bytes that are no letters have stand-ins
    signs = [chr(code) for code in (*letters, *others)]
    words = [*signs, *(sign + "</w>" for sign in signs), *("".join(pair) for pair in _merges()), "<|startoftext|>", END]
    with quietly():
        from transformers import CLIPTokenizer

        vocabulary = {word: number for number, word in enumerate(words)}
        merges: Any = list(_merges())
        return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)
