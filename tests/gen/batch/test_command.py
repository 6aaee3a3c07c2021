"""`fewstep batch` as it is typed."""

from __future__ import annotations

import json

import pytest

from gen.cli.app import main
from gen.pipeline.png import read_chunks, read_recipe
from tests.gen.batch.common import pixels


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("caption,steps,id\na red heart,2,x7\na cat,,x8\n")
    return path


def batch_of(rows, out, model) -> list[str]:
    return ["batch", str(rows), "-o", str(out), "--model", str(model)]


def test_a_command_makes_what_image_makes_and_goes_on(rows, tmp_path, tiny_model, capsys):
    out = tmp_path / "out"
    command = [*batch_of(rows, out, tiny_model), "--seed", "9", "--extra", "--name", "{index}-{id}.png"]
    assert main(command) == 0
    assert "2 pictures made, 2 in" in capsys.readouterr().err
    assert main(["image", "a cat", "--model", str(tiny_model), "--seed", "10", "-o", str(tmp_path / "cat.png")]) == 0
    assert pixels(out)["1-x8.png"] == pixels(tmp_path)["cat.png"]
    capsys.readouterr()
    assert main(command) == 0
    assert "0 pictures made, 2 in" in capsys.readouterr().err
    assert main([*command, "--steps", "3"]) == 2
    assert "holds another batch: --steps was not given, and is 3." in capsys.readouterr().err


def test_wrong_rows_are_said_and_tell_by_the_exit_code(rows, tmp_path, tiny_model, capsys):
    rows.write_text("prompt,steps\na cat,2\na dog,no\n")
    command = batch_of(rows, tmp_path / "out", tiny_model)
    assert main([*command, "--check"]) == 1 and not (tmp_path / "out").exists()
    said = capsys.readouterr()
    assert "line 3: steps is 'no'" in said.out and "1 picture can be made; 1 row cannot." in said.err
    assert main(command) == 1
    assert json.loads((tmp_path / "out" / "errors.jsonl").read_text())["line"] == 3
    assert main([*command[:3], str(tmp_path / "strict"), *command[4:], "--strict"]) == 2
    assert "line 3" in capsys.readouterr().err


def test_a_misspelt_column_is_said_once(rows, tmp_path, tiny_model, capsys):
    """Before a model is opened, and for a table of any length."""
    command = ["batch", str(rows), "-o", str(tmp_path / "out"), "--model", "nowhere"]
    rows.write_text("promt,steps\n" + "a cat,2\n" * 300)
    for more in ([], ["--check"]):
        assert main([*command, *more]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and "rows.csv: its column 'promt' is no keyword" in said.err
        assert said.err.endswith("Did you mean 'prompt'?\n") and not (tmp_path / "out").exists()
    assert main([*command, "--extra"]) == 2
    assert "no column is the prompt, and 'promt' is nearly called so" in capsys.readouterr().err
    rows.write_text("prompt,text\na,b\n")
    assert main(command) == 2 and "both say prompt" in capsys.readouterr().err
    rows.write_text("capton,steps\na,2\n")
    assert main([*command, "--column", "prompt=caption"]) == 2
    assert "no such column; it has capton, steps. Did you mean 'capton'?" in capsys.readouterr().err
    assert main([*command, "--column", "promt=capton"]) == 2
    assert "there is no keyword 'promt'. Did you mean 'prompt'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "prompt,steps\n"), ("a.csv", ""), ("a.txt", "# none\n\n"), ("a.jsonl", "")]
)
def test_a_source_without_rows_is_said(name, text, tmp_path, tiny_model, capsys):
    (tmp_path / name).write_text(text)
    assert main(["batch", str(tmp_path / name), "-o", str(tmp_path / "out"), "--model", str(tiny_model)]) == 2
    assert f"{name} holds no rows" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", ["jpg", "webp", "avif"])
def test_files_of_other_formats(ending, rows, tmp_path, tiny_model, capsys):
    """They hold recipe and place, and a file whose line in the ledger was lost is replaced by the same bytes."""
    out = tmp_path / "out"
    command = [*batch_of(rows, out, tiny_model), "--seed", "9", "--extra", "--steps", "1"]
    command += ["--name", f"{{index}}.{ending}", "--quality", "80", "-q"]
    assert main(command) == 0
    files = {path.name: path.read_bytes() for path in out.glob(f"*.{ending}")}
    assert sorted(files) == [f"0.{ending}", f"1.{ending}"] and read_recipe(out / f"1.{ending}").seed == 10
    place = json.loads(read_chunks(out / f"1.{ending}")["batch"])
    assert (place["index"], place["line"], place["columns"]) == (1, 3, {"id": "x8"})
    (out / ".batch" / "ledger-0-of-1.jsonl").unlink()
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in out.glob(f"*.{ending}")} == files
    (out / ".batch" / "ledger-0-of-1.jsonl").unlink()
    (out / f"0.{ending}").write_bytes(b"mine")
    assert main(command) == 2 and "is of no picture of this batch" in capsys.readouterr().err
    assert (out / f"0.{ending}").read_bytes() == b"mine"


def test_a_recipe_that_a_format_cannot_hold_fails_its_row_alone(tmp_path, tiny_model):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in ("a cat", "é" * 9_000, "a dog"))
    )
    command = ["batch", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "out"), "--model", str(tiny_model), "--steps", "1"]
    assert main([*command, "--seed", "1", "--name", "{index}.jpg", "-q"]) == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jpg")) == ["0.jpg", "2.jpg"]
    assert "longer than a JPEG can hold" in json.loads((tmp_path / "out" / "errors.jsonl").read_text())["error"]


def test_columns_by_other_names(rows, tmp_path, tiny_model):
    rows.write_text("words,number\na cat,5\n")
    out = tmp_path / "out"
    command = [*batch_of(rows, out, tiny_model), "--column", "prompt=words", "--column", "seed=number"]
    assert main(command) == 0 and list(pixels(out)) == ["000000-a-cat-5.png"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--skip-existing", "--overwrite"], "give one of them"),
        (["--column", "prompt"], "KEYWORD=COLUMN"),
        (["--shard", "2/2"], "give i/n"),
        (["--to", "zip"], "choose one of files, webdataset, parquet"),
        (["--name", "{slug}.png"], "without {index}"),
        (["--wildcards", "none"], "none is not a folder"),
        (["--number", "0"], "--number is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--actors", "2"], "are for Ray"),
        (["--quality", "50"], "--quality says nothing of a PNG"),
        (["--name", "{index}.jpg", "--quality", "0"], "--quality is 0"),
        (["--sampler", "eulr"], "Did you mean"),
    ],
)
def test_wrong_options_are_said(options, said, rows, tmp_path, tiny_model, capsys):
    rows.write_text("prompt\na cat\n")
    assert main(["batch", str(rows), "-o", str(tmp_path / "out"), "--model", str(tiny_model), *options]) in (1, 2)
    assert said.lower() in capsys.readouterr().err.lower()
