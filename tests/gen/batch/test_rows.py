"""Rows of every kind of source, as calls; names of files; and what is said of rows that cannot be."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from gen.batch.names import NameTemplate
from gen.batch.readers import BadLine, open_source
from gen.batch.rows import BadRow, RowReader
from gen.batch.run import check_rows, prepared
from gen.batch.settings import BatchSettings, Share

ROWS = [
    {"prompt": "a cat, red", "seed": 3},
    {"prompt": 'a "dog"', "num_inference_steps": 4, "guidance_scale": 2.5, "sampler_options": {"eta": 0.5}},
    {"prompt": "ein Fuß\nund zwei", "negative_prompt": "blurry", "use_resolution_binning": False},
]


def read(path: Path | str, tmp_path: Path, **settings) -> list:
    settings = BatchSettings(str(path), tmp_path / "out", **{"seed": 5, **settings})
    return list(RowReader(settings, open_source(settings.source, tmp_path / "kept"), settings.seed, "default"))


def arguments(jobs: list) -> list[dict]:
    assert all(not isinstance(job, BadRow) for job in jobs), jobs
    return [dict(job.call.arguments) for job in jobs]


def expected(rows: list[dict]) -> list[dict]:
    return [{"seed": 5 + i, **row} for i, row in enumerate(rows)]


def write_csv(path: Path, separator: str = ",", start: str = "") -> Path:
    import csv

    names = ["prompt", "negative", "steps", "guidance_scale", "seed", "sampler_options", "use_resolution_binning"]
    alias = {"negative": "negative_prompt", "steps": "num_inference_steps"}
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(start)
        table = csv.writer(file, delimiter=separator)
        table.writerow(names)
        for row in ROWS:
            values = [row.get(alias.get(name, name), "") for name in names]
            table.writerow([json.dumps(value) if isinstance(value, dict) else value for value in values])
    return path


def test_every_kind_of_file_reads_the_same(tmp_path):
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    assert arguments(read(lines, tmp_path)) == expected(ROWS)
    for path in (
        write_csv(tmp_path / "a.csv"),
        write_csv(tmp_path / "b.csv", ";"),
        write_csv(tmp_path / "c.tsv", "\t"),
        write_csv(tmp_path / "d.csv", start="\ufeff"),
    ):
        assert arguments(read(path, tmp_path)) == expected(ROWS), path
    text = tmp_path / "prompts.txt"
    text.write_text("\ufeffa cat, red\n\n# no\n  blue  \r\n", encoding="utf-8")
    jobs = read(text, tmp_path)
    assert [(job.prompt, job.seed, job.line, job.index) for job in jobs] == [("a cat, red", 5, 1, 0), ("blue", 6, 4, 1)]


def test_tables_read_the_same(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{**row, "sampler_options": json.dumps(o) if (o := row.get("sampler_options")) else None} for row in ROWS]
    parquet.write_table(
        pa.Table.from_pylist([{name: row.get(name) for name in {k for r in rows for k in r}} for row in rows]),
        tmp_path / "t.parquet",
    )
    assert arguments(read(tmp_path / "t.parquet", tmp_path)) == expected(ROWS)
    assert open_source(str(tmp_path / "t.parquet"), tmp_path).count() == 3
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"caption": "a cat", "image_id": 3}, {"caption": "a dog", "image_id": 4}]).save_to_disk(
        tmp_path / "saved"
    )
    jobs = read(tmp_path / "saved", tmp_path, extra=True)
    assert [(job.prompt, job.extra) for job in jobs] == [("a cat", {"image_id": 3}), ("a dog", {"image_id": 4})]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text('{"text": "a cat"}\n{"text": "a dog"}\n')
    assert [job.prompt for job in read(tmp_path / "folder", tmp_path)] == ["a cat", "a dog"]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read(tmp_path / "broken.parquet", tmp_path)


def test_standard_input_is_kept(tmp_path, monkeypatch):
    state = tmp_path / "kept"

    def pipe(data: bytes) -> Path:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return open_source("-", state).path

    def prompts(path: Path) -> list[str]:
        return [row["prompt"] for _, row in open_source(str(path), state).rows()]

    text, lines = pipe(b"{cat|cat}\n{dog}\n"), pipe(b'{"prompt": "cat"}\n{"prompt": "dog"}\n')
    assert prompts(text) == ["{cat|cat}", "{dog}"] and prompts(lines) == ["cat", "dog"]  # the second took nothing of the first
    assert pipe(b"{cat|cat}\n{dog}\n") == text
    with pytest.raises(ValueError, match="Nothing came from standard input"):
        pipe(b"")
    for path in (text, lines):  # goes on with what the batch began with
        digest = open_source(str(path), state).digest()
        (state / "run.json").write_text(json.dumps({"identity": {"input": digest}}))
        assert pipe(b"") == path
    assert len(list(state.iterdir())) == 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "stesp": 4}, r"'stesp' is no keyword.*Did you mean 'steps'\?"),
        ({"prompt": "a", "steps": 0}, "^steps is 0"),
        ({"prompt": "a", "steps": "many"}, "^steps is 'many'"),
        ({"prompt": "a", "seed": -1}, "seed is -1"),
        ({"prompt": "a", "guidance_scale": 1000}, "guidance_scale is 1000"),
        ({"prompt": "a", "sampler": "eulr"}, "Unknown sampler 'eulr'"),
        ({"prompt": "a", "joint": "segment"}, "Did you mean 'segments'"),
        ({"prompt": "a", "schedule": "karas"}, "karas"),
        ({"prompt": "a", "steps": 4, "num_inference_steps": 5}, "both say num_inference_steps"),
        ({"prompt": 5}, "give a string"),
        ({"prompt": ["a"]}, "give a string"),
        ({"prompt": "x" * 10_001}, "10000"),
        ({"prompt": "{a"}, "never closed"),
        ({"prompt": "__animal__"}, "no folder of wildcards"),
        ({"prompt": "a", "batch_size": 4}, "one for the whole batch"),
        ({"prompt": "a", "controlnet": "/etc"}, "one for the whole batch"),
        ({"prompt": "a", "lora_dir": "/etc"}, "one for the whole batch"),
        ({"prompt": "a", "lora": "style"}, "--lora-dir"),
        ({"prompt": "a", "image": "../secret.png"}, "outside of"),
        ({"prompt": "a", "image": "/etc/hostname"}, "outside of"),
        ({"prompt": "a", "image": "link.png"}, "outside of"),
        ({"prompt": "a", "image": "none.png"}, "no file in"),
        ({"prompt": "a", "mask": ["in.png", "../secret.png"]}, "outside of"),
        ({"prompt": "a", "regions": {"style": "../secret.png"}}, "outside of"),
        ({"prompt": "a", "layout": {"layers": [{"prompt": "a"}, {"prompt": "b", "mask": "../secret.png"}]}}, "outside of"),
        ({"prompt": "a", "layout": {"painting": "/etc/hostname", "regions": []}}, "outside of"),
        ({"prompt": "a", "references": ["../secret.png"]}, "outside of"),
        ({"prompt": "a", "transparent": "maybe"}, 'transparent is "maybe"; give true or false'),
        ({"prompt": "a", "references_scale": "much"}, 'references_scale is "much"; give a number, or a list of such'),
        ({"prompt": "a", "guide": "evil.py:run"}, "name of an energy"),
        ({"prompt": "a", "sampler_options": {"eta": [[1]]}}, "sampler_options"),
        ({"prompt": "a", "callback_on_step_end": "x"}, "no keyword"),
        ("a cat", "no JSON object"),
        ([1], "no JSON object"),
    ],
)
def test_what_a_row_cannot_ask_is_said(row, said, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "rows").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "rows" / "in.png")
    os.symlink(tmp_path / "secret.png", tmp_path / "rows" / "link.png")
    path = tmp_path / "rows" / "rows.jsonl"
    path.write_text('{"prompt": "good", "image": "in.png"}\n' + json.dumps(row) + '\n{"prompt": "good"}\n')
    first, bad, last = read(path, tmp_path)
    assert isinstance(bad, BadRow) and (bad.index, bad.line) == (1, 2)
    import re

    assert re.search(said, bad.reason), bad.reason
    assert Path(first.call.arguments["image"]) == tmp_path / "rows" / "in.png" and (last.index, last.seed) == (2, 7)


def test_damaged_lines_take_no_other_with_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"prompt": "a"}\n{"prompt": \n\xff\xfe\n{"prompt": NaN}\n'
        + b"[" * 50_000
        + b"\n"
        + b"x" * 1_500_000
        + b'\n{"prompt": "b"}'
    )
    rows = list(open_source(str(path), tmp_path).rows())
    assert [number for number, _ in rows] == list(range(1, 8))
    assert [isinstance(row, BadLine) for _, row in rows] == [False, True, True, True, True, True, False]
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,seed\na,1\nb\nc,2,3\n\xff,4\n"d""e",5\n')
    rows = list(open_source(str(path), tmp_path).rows())
    assert [number for number, _ in rows] == [2, 3, 4, 5, 6] and rows[-1][1] == {"prompt": 'd"e', "seed": "5"}
    assert [isinstance(row, BadLine) for _, row in rows] == [False, True, True, True, False]
    (tmp_path / "twice.csv").write_text("prompt,prompt\na,b\n")
    with pytest.raises(ValueError, match="name every column once"):
        list(open_source(str(tmp_path / "twice.csv"), tmp_path).rows())


def test_sources_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_source(str(tmp_path / "none.txt"), tmp_path)
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(ValueError, match=r"Did you mean \.jsonl\?"):
        open_source(str(tmp_path / "rows.json"), tmp_path)


def test_memory_stays_flat(tmp_path):
    import tracemalloc

    path = tmp_path / "rows.txt"
    path.write_text("a cat\n" * 5000)

    def peak(rows: int) -> int:
        tracemalloc.start()
        settings = BatchSettings(str(path), tmp_path / "out", seed=0)
        reader = RowReader(settings, open_source(str(path), tmp_path), 0, "default")
        for _, _ in zip(reader, range(rows), strict=False):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)
    assert peak(1500) < peak(100) + 100_000


def test_rows_that_are_done_are_not_looked_into(tmp_path, monkeypatch):
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"cat {i}\n" for i in range(50)))
    settings = BatchSettings(str(path), tmp_path / "out", seed=0, number=2)
    reader, looked = RowReader(settings, open_source(str(path), tmp_path), 0, "default"), []
    real = RowReader.call_of
    monkeypatch.setattr(RowReader, "call_of", lambda self, row: looked.append(row) or real(self, row))
    jobs = list(reader.jobs(lambda index: index in (7, 90)))
    assert [(job.index, job.prompt, job.seed) for job in jobs] == [(7, "cat 3", 7), (90, "cat 45", 90)] and len(looked) == 2


def test_check_says_line_numbers_and_makes_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "steps": -1}\n{"prompt": "c"}\nx\n')
    bad: list[BadRow] = []
    assert check_rows(BatchSettings(str(path), tmp_path / "out", number=3), bad.append) == (6, 2)
    assert [row.line for row in bad] == [2, 4] and not (tmp_path / "out").exists()


def test_the_student_refuses_what_it_was_not_made_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "steps": 30}\n')
    settings = BatchSettings(str(path), tmp_path / "out", seed=0)
    jobs = list(RowReader(settings, open_source(str(path), tmp_path), 0, "fast"))
    assert not isinstance(jobs[0], BadRow) and "give --no-fast" in jobs[1].reason


@pytest.mark.parametrize(
    ("rows", "model"),
    [
        ([{"prompt": "a"}, {"prompt": "b", "steps": 4}], "fast"),
        ([{"prompt": "a"}, {"prompt": "b", "references": "p.png"}], "default"),
        ([{"prompt": "a"}, {"prompt": "b", "steps": -1}, {"prompt": "c", "references": "none.png"}], "fast"),
        ([{"prompt": "a", "references": "none.png"}], "default"),
    ],
)
def test_the_student_draws_what_it_serves_in_every_row(rows, model, tmp_path):
    """Whichever row it is that asks for more; rows that cannot be made ask for nothing."""
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prepared(BatchSettings(str(path), tmp_path / "out"))[1] == model


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{index:06d}-{slug}-{seed}.png", "000012-a-cat-on-the-moon-7.png"),
        ("{thousand:03d}/{index}.png", "000/12.png"),
        ("{line}_{id}_{index:3}.PNG", "14_x-y_ 12.PNG"),
    ],
)
def test_names(template, name):
    assert NameTemplate(template).fill(12, 14, 7, "A cat, on the MOON!", {"id": "../x/y"}) == name


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{slug}.png", "without {index}"),
        ("{index}.gif", "end in .png, .jpg"),
        ("../{index}.png", "stays in the folder"),
        ("/tmp/{index}.png", "stays in the folder"),
        ("a/./{index}.png", "stays in the folder"),
        (".batch/{index}.png", "stays in the folder"),
        ("{index.__class__}.png", "without {index}"),
        ("{index}{seed!r}.png", "a field is written"),
        ("{index}\\x.png", "a field is written"),
        ("{index}-{sed}.png", r"Did you mean {seed}\?"),
    ],
)
def test_names_that_are_refused(template, said):
    with pytest.raises(ValueError, match=said):
        NameTemplate(template, ())


def test_long_names_and_missing_columns():
    name = NameTemplate("{index}-{word}.png").fill(1, 1, 1, "", {"word": "é" * 500})
    assert len(name.encode()) <= 200 and name.endswith(".png")
    with pytest.raises(ValueError, match="needs the column 'word'"):
        NameTemplate("{index}-{word}.png").fill(1, 1, 1, "", {})


def test_shares(monkeypatch):
    assert Share.of("1/3") == Share(1, 3) and [Share(1, 3).takes(i) for i in range(4)] == [False, True, False, False]
    for text in ("3/3", "a/b", "1", "-1/3", "1/0"):
        with pytest.raises(ValueError, match="give i/n"):
            Share.of(text)
    assert Share.of(None) == Share()
    monkeypatch.setenv("RANK", "2"), monkeypatch.setenv("WORLD_SIZE", "4")
    assert Share.of(None) == Share(2, 4) and Share.of("0/2") == Share(0, 2)
