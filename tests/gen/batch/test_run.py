"""Batches whole: the pictures of direct calls, whatever stops them, in every kind of output."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gen.batch.store
from gen.batch.ledger import STATE
from gen.pipeline.png import read_chunks, read_recipe
from tests.gen.batch.common import PROMPTS, contents, ledger_lines, make, mixed_rows, pixels, write_rows


class Killed(BaseException):
    """The process is dead."""


@pytest.fixture
def rows(tmp_path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", mixed_rows())


def test_pictures_are_those_of_direct_calls(rows, tmp_path, tiny):
    said: list[str] = []
    result = make(rows, tmp_path / "out", tiny, said)
    made = pixels(tmp_path / "out")
    assert (result.made, result.there, result.failed) == (7, 7, 1) and len(made) == 7
    assert len(said) == 1 and "line 6" in said[0] and "Unknown sampler 'eulr'" in said[0]
    error = json.loads((tmp_path / "out" / "errors.jsonl").read_text())
    assert (error["index"], error["line"], error["row"]["prompt"]) == (5, 6, "the moon")
    for index, row in enumerate(mixed_rows()):
        if index == 5:
            continue
        names = {"steps": "num_inference_steps", "negative": "negative_prompt"}
        keywords = {names.get(name, name): value for name, value in row.items()}
        keywords.setdefault("seed", 5 + index)
        alone = tiny(**keywords, batch_invariant=True, progress=False)
        path = next((tmp_path / "out").glob(f"{index:06d}-*.png"))
        assert made[path.name] == np.asarray(alone.images[0]).tobytes(), row
        recipe = read_recipe(path)
        assert (recipe.seed, recipe.prompt) == (keywords["seed"], row["prompt"])
        assert json.loads(read_chunks(path)["batch"])["line"] == index + 1
        replayed = tiny.replay(recipe, progress=False)
        assert np.array_equal(np.asarray(replayed.images[0]), np.asarray(Image.open(path)))


def test_rows_of_equal_settings_share_calls(rows, tmp_path, tiny, monkeypatch):
    sizes: list[int] = []
    network = type(tiny.network).forward

    def counting(self, x, *args, **kwargs):
        sizes.append(len(x))
        return network(self, x, *args, **kwargs)

    monkeypatch.setattr(type(tiny.network), "forward", counting)
    rows.write_text("".join(json.dumps({"prompt": prompt, "steps": 2 + i % 2}) + "\n" for i, prompt in enumerate(PROMPTS)))
    make(rows, tmp_path / "out", tiny)
    assert max(sizes) == 8 and len(sizes) == 2 + 3  # four rows of each, with and without the prompt, in one call a step


def test_a_defect_of_one_row_keeps_no_other_from_its_picture(tmp_path, tiny, monkeypatch):
    real = type(tiny.text_encoder).condition
    monkeypatch.setattr(
        type(tiny.text_encoder), "condition",
        lambda self, prompts, *args: real(self, prompts, *args) if "dog cat dog" not in prompts else 1 / 0,
    )  # fmt: skip
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": prompt} for prompt in (*PROMPTS, "dog cat dog", "cat cat")])
    said: list[str] = []
    result = make(rows, tmp_path / "out", tiny, said)
    assert (result.made, result.failed) == (9, 1) and "line 9: ZeroDivisionError" in said[0] and "defect" in said[0]


def test_of_many_warnings_a_few_are_told(tmp_path, tiny):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"word{i}", "steps": 1} for i in range(20)])
    said: list[str] = []
    assert make(rows, tmp_path / "out", tiny, said).made == 20
    assert len(said) == 5 and all("does not know" in text for text in said) and said[-1].endswith("left out.")


@pytest.mark.parametrize("kind", ["files", "webdataset"])
def test_killed_at_every_write_it_goes_on_to_the_same(kind, tmp_path, tiny, monkeypatch):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "cat"}, {"prompt": "{dog"}, {"prompt": "moon"}])
    killed_everywhere(kind, rows, 2, [0, 2], tmp_path, tiny, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["files", "webdataset", "parquet"])
def test_batches_of_several_settings_killed_at_every_write(kind, rows, tmp_path, tiny, monkeypatch):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    killed_everywhere(kind, rows, 3, [0, 1, 2, 3, 4, 6, 7], tmp_path, tiny, monkeypatch)


def killed_everywhere(kind, rows, per_file, indices, tmp_path, tiny, monkeypatch):
    """Every flush, rename and removal in turn is the last thing that the process does."""
    monkeypatch.setattr(gen.batch.store, "THREADS", 0)
    options = {"kind": kind, "per_file": per_file, "defaults": {"num_inference_steps": 1}}
    make(rows, tmp_path / "whole", tiny, **options)
    expected = contents(tmp_path / "whole")
    files = sorted({index // per_file for index in indices})
    assert len(expected) == 1 + len(indices if kind == "files" else files)
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "link")} | {"fsync": lambda file: None}
    count = kill_at = 0

    def guarded(name):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count > kill_at:
                raise Killed
            return real[name](*args, **kwargs)

        return call

    for number in range(200):
        output = tmp_path / f"killed-{number}"
        count, kill_at = 0, number
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, guarded(name))
            try:
                make(rows, output, tiny, **options)
                break
            except Killed:
                pass
        make(rows, output, tiny, **options)
        assert contents(output) == expected, f"killed at write {number}"
        assert sorted(ledger_lines(output)) == indices
        assert not list(output.rglob("*.tmp"))
        if kind != "files":
            assert sorted(ledger_lines(output, "packed")) == files and not list((output / STATE).rglob("*.png"))
    assert 10 < number < 199


def test_stopped_again_and_again(rows, tmp_path, tiny, monkeypatch):
    """A torn line at the end of the ledger, after each of several stops at random places."""
    make(rows, tmp_path / "whole", tiny)
    draw, real = random.Random(0), os.replace
    for _ in range(12):
        left = draw.randrange(1, 5)

        def replace(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with contextlib.suppress(Killed):
                make(rows, tmp_path / "out", tiny)
        for file in (tmp_path / "out" / STATE).glob("ledger-*"):
            with open(file, "ab") as ledger:
                ledger.write(b'{"index": 7, "fi')
    make(rows, tmp_path / "out", tiny)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(ledger_lines(tmp_path / "out")) == [0, 1, 2, 3, 4, 6, 7]


def test_the_same_command_makes_nothing_twice(rows, tmp_path, tiny):
    make(rows, tmp_path / "out", tiny)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert make(rows, tmp_path / "out", tiny).made == 0
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 6}, "seed was 5, and is 6"),
        ({"defaults": {"num_inference_steps": 3}}, "--steps was not given, and is 3"),
        ({"number": 2}, "number was 1, and is 2"),
        ({"name": "{index}.png"}, "name was"),
        ({"rows": True}, "input"),
        ({"model": "other"}, "model was 'tiny'"),
    ],
)
def test_another_batch_in_the_folder_is_refused(changed, said, rows, tmp_path, tiny):
    make(rows, tmp_path / "out", tiny)
    before = contents(tmp_path / "out")
    first = rows.read_text()
    changed = dict(changed)
    if changed.pop("rows", False):
        rows.write_text(first + '{"prompt": "blue"}\n')
    with pytest.raises(ValueError, match=said):
        make(rows, tmp_path / "out", tiny, **changed)
    assert contents(tmp_path / "out") == before
    rows.write_text(first)
    make(rows, tmp_path / "out", tiny, batch_size=2)  # that changes no pixel


def test_skip_existing_and_overwrite(rows, tmp_path, tiny):
    name = {"name": "{index}.png"}
    make(rows, tmp_path / "out", tiny, **name)
    first = contents(tmp_path / "out")
    rows.write_text(rows.read_text() + '{"prompt": "blue"}\n')
    result = make(rows, tmp_path / "out", tiny, **name, existing="skip")
    second = contents(tmp_path / "out")
    assert result.made == 1 and {k: v for k, v in second.items() if k in first} == first and "8.png" in second
    result = make(rows, tmp_path / "out", tiny, **name, existing="overwrite", defaults={"num_inference_steps": 2})
    assert result.made == 8 and all(
        pixels(tmp_path / "out")[k] != v for k, v in pixels_of(second).items() if k not in ("1.png", "3.png")
    )
    with pytest.raises(ValueError, match="written once"):
        make(rows, tmp_path / "tar", tiny, kind="webdataset", existing="overwrite")


def pixels_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: np.asarray(Image.open(io.BytesIO(data))).tobytes() for name, data in files.items() if name.endswith(".png")}


def test_files_of_others_are_never_replaced(rows, tmp_path, tiny):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cat.png").write_bytes(b"my cat")
    with pytest.raises(ValueError, match=r"holds cat\.png, which is of no batch"):
        make(rows, tmp_path / "mine", tiny)
    (tmp_path / "deep" / "0").mkdir(parents=True)
    (tmp_path / "deep" / "0" / "3.png").write_bytes(b"my dog")
    with pytest.raises(ValueError, match="no picture of this batch"):
        make(rows, tmp_path / "deep", tiny, name="{thousand}/{index}.png")
    assert (tmp_path / "deep" / "0" / "3.png").read_bytes() == b"my dog"


@pytest.mark.parametrize("threads", [0, 2])
def test_a_full_disk_ends_it_and_loses_nothing(threads, rows, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(gen.batch.store, "THREADS", threads)
    make(rows, tmp_path / "whole", tiny)
    real, left = gen.batch.store.write_picture, 3

    def full(path, data):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device", str(path))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(gen.batch.store, "write_picture", full)
        with pytest.raises(OSError, match="No space left"):
            make(rows, tmp_path / "out", tiny)
    assert len((tmp_path / "out" / "errors.jsonl").read_text().splitlines()) == 1  # no row is blamed for it
    assert make(rows, tmp_path / "out", tiny).there == 7
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_errors_are_tried_again_when_asked(rows, tmp_path, tiny, monkeypatch):
    from gen.batch.paint import Painter

    real = Painter._call

    def failing(self, jobs, deliver):
        if any(job.prompt == "red" for job in jobs):
            raise ValueError("Not today.")
        real(self, jobs, deliver)

    with monkeypatch.context() as patch:
        patch.setattr(Painter, "_call", failing)
        result = make(rows, tmp_path / "out", tiny)
    assert (result.there, result.failed) == (6, 2)  # its neighbours are made
    assert make(rows, tmp_path / "out", tiny).made == 0
    result = make(rows, tmp_path / "out", tiny, retry_errors=True)
    assert (result.made, result.there, result.failed) == (1, 7, 1)
    with pytest.raises(ValueError, match=r"line 6.*eulr"):
        make(rows, tmp_path / "strict", tiny, strict=True)


def test_shards_are_read_by_webdataset(rows, tmp_path, tiny):
    webdataset = pytest.importorskip("webdataset")
    make(rows, tmp_path / "files", tiny)
    make(rows, tmp_path / "tars", tiny, kind="webdataset", per_file=3)
    single = {int(name[:6]): data for name, data in pixels(tmp_path / "files").items()}
    shards = [str(path) for path in sorted((tmp_path / "tars").glob("*.tar"))]
    assert [Path(shard).name for shard in shards] == ["pictures-00000.tar", "pictures-00001.tar", "pictures-00002.tar"]
    read = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"):
        assert int(sample["__key__"]) == sample["json"]["index"]
        assert sample["json"]["recipe"]["prompt"] == PROMPTS[sample["json"]["index"]]
        read[sample["json"]["index"]] = np.asarray(sample["png"]).tobytes()
    assert read == single
    with tarfile.open(shards[1]) as tar:
        assert tar.getnames() == ["000000003.png", "000000003.json", "000000004.png", "000000004.json"]


def test_parquet_is_read_by_datasets(rows, tmp_path, tiny):
    pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    make(rows, tmp_path / "files", tiny)
    make(rows, tmp_path / "tables", tiny, kind="parquet", per_file=5, extra=True)
    single = {int(name[:6]): data for name, data in pixels(tmp_path / "files").items()}
    files = [str(path) for path in sorted((tmp_path / "tables").glob("*.parquet"))]
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["index"]: np.asarray(row["image"]).tobytes() for row in data} == single
    assert json.loads(data[0]["recipe"])["seed"] == data[0]["seed"] == 5


def test_several_pictures_of_a_prompt_and_every_combination(tmp_path, tiny):
    source = tmp_path / "rows.txt"
    source.write_text("a {red|blue} {cat|dog}\nmoon\n")
    make(source, tmp_path / "all", tiny, combinatorial=True, number=2)
    recipes = [read_recipe(path) for path in sorted((tmp_path / "all").glob("*.png"))]
    assert [recipe.prompt for recipe in recipes][::2] == ["a red cat", "a red dog", "a blue cat", "a blue dog", "moon"]
    assert [recipe.seed for recipe in recipes] == list(range(5, 15))
    make(source, tmp_path / "plain", tiny, templates=False)
    assert read_recipe(next((tmp_path / "plain").glob("000000*"))).prompt == "a {red|blue} {cat|dog}"
