"""`fewstep batch` as it is typed."""

from __future__ import annotations

import json

import pytest

from gen.cli.app import main
from tests.gen.batch.common import pixels


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("caption,steps,id\na red heart,2,x7\na cat,,x8\n")
    return path


def test_a_command_makes_what_image_makes_and_goes_on(rows, tmp_path, tiny_model, capsys):
    out = tmp_path / "out"
    command = [
        "batch",
        str(rows),
        "-o",
        str(out),
        "--model",
        str(tiny_model),
        "--seed",
        "9",
        "--extra",
        "--name",
        "{index}-{id}.png",
    ]
    assert main(command) == 0
    assert "2 pictures made, 2 in" in capsys.readouterr().err
    assert main(["image", "a cat", "--model", str(tiny_model), "--seed", "10", "-o", str(tmp_path / "cat.png")]) == 0
    assert pixels(out)["1-x8.png"] == pixels(tmp_path)["cat.png"]
    capsys.readouterr()
    assert main(command) == 0
    assert "0 pictures made, 2 in" in capsys.readouterr().err
    assert main([*command, "--steps", "3"]) == 2
    assert "holds another batch: its options was {}, and is {'num_inference_steps': 3}." in capsys.readouterr().err


def test_wrong_rows_are_said_and_tell_by_the_exit_code(rows, tmp_path, tiny_model, capsys):
    rows.write_text("prompt,steps\na cat,2\na dog,no\n")
    command = ["batch", str(rows), "-o", str(tmp_path / "out"), "--model", str(tiny_model)]
    assert main([*command, "--check"]) == 1 and not (tmp_path / "out").exists()
    said = capsys.readouterr()
    assert "line 3: num_inference_steps is 'no'" in said.out and "1 picture can be made; 1 row cannot." in said.err
    assert main(command) == 1
    assert json.loads((tmp_path / "out" / "errors.jsonl").read_text())["line"] == 3
    assert main([*command[:3], str(tmp_path / "strict"), *command[4:], "--strict"]) == 2
    assert "line 3" in capsys.readouterr().err


def test_columns_by_other_names(rows, tmp_path, tiny_model):
    rows.write_text("words,number\na cat,5\n")
    out = tmp_path / "out"
    command = [
        "batch",
        str(rows),
        "-o",
        str(out),
        "--model",
        str(tiny_model),
        "--column",
        "prompt=words",
        "--column",
        "seed=number",
    ]
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
        (["--number", "0"], "number is 0"),
        (["--sampler", "eulr"], "Did you mean"),
    ],
)
def test_wrong_options_are_said(options, said, rows, tmp_path, tiny_model, capsys):
    rows.write_text("prompt\na cat\n")
    assert main(["batch", str(rows), "-o", str(tmp_path / "out"), "--model", str(tiny_model), *options]) in (1, 2)
    assert said.lower() in capsys.readouterr().err.lower()
