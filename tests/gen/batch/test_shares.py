"""One batch by several processes: what one of them would have made alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gen.batch.ledger import STATE, Ledger
from gen.batch.settings import Share
from tests.benchmarks import batch_same
from tests.benchmarks.batch_same import kill_at_random
from tests.gen.batch.common import PROMPTS, contents, ledger_lines, make, mixed_rows, pixels, write_rows

ROOT = Path(__file__).parents[3]


@pytest.fixture
def rows(tmp_path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", mixed_rows() * 2)


def packed(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.startswith("errors")}


@pytest.mark.parametrize("kind", ["files", "webdataset"])
def test_shares_make_together_what_one_makes_alone(kind, rows, tmp_path, tiny):
    options = {"kind": kind, "per_file": 3}
    make(rows, tmp_path / "whole", tiny, **options)
    results = [make(rows, tmp_path / "shared", tiny, share=Share(i, 3), **options) for i in (2, 0, 1)]
    assert packed(tmp_path / "shared") == packed(tmp_path / "whole")
    assert sum(result.made for result in results) == 14 == len(ledger_lines(tmp_path / "shared"))
    assert all(result.made > 2 for result in results)
    errors = [json.loads(line) for path in (tmp_path / "shared").glob("errors*") for line in path.read_text().splitlines()]
    assert sorted(error["index"] for error in errors) == [5, 13]


@pytest.mark.parametrize("kind", ["files", "webdataset"])
def test_the_number_of_shares_may_change(kind, rows, tmp_path, tiny):
    """Begun as one of two, stopped on the way, gone on as three of three, ended as one."""
    options = {"kind": kind, "per_file": 3}
    make(rows, tmp_path / "whole", tiny, **options)
    out, made = tmp_path / "out", 0

    class Stopped(BaseException): ...

    def stop_after(pictures):
        real = Ledger.add

        def add(self, lines):
            nonlocal made
            lines = list(lines)
            real(self, lines)
            made += sum("index" in line for line in lines)
            if made >= pictures:
                raise Stopped

        return add

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "add", stop_after(4))
        with pytest.raises(Stopped):
            make(rows, out, tiny, share=Share(1, 2), batch_size=1, **options)
    before = len(ledger_lines(out))
    assert 4 <= before < 14
    make(rows, out, tiny, share=Share(2, 3), **options)
    make(rows, out, tiny, **options)
    assert packed(out) == packed(tmp_path / "whole")
    assert sorted(ledger_lines(out)) == [i for i in range(16) if i not in (5, 13)]


def test_two_processes_on_one_share_are_refused(rows, tmp_path, tiny):
    make(rows, tmp_path / "out", tiny)
    ledger = Ledger(tmp_path / "out", Share(0, 2))
    with pytest.raises(ValueError, match="Another process works on share 0-of-2"):
        make(rows, tmp_path / "out", tiny, share=Share(0, 2))
    make(rows, tmp_path / "out", tiny, share=Share(1, 2))
    ledger.close()
    make(rows, tmp_path / "out", tiny, share=Share(0, 2))


def command(*words: str) -> list[str]:
    return [sys.executable, *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_of_torchrun(tmp_path, tiny_model):
    rows = write_rows(tmp_path / "rows.jsonl", mixed_rows() * 3)
    options = ["--model", str(tiny_model), "--seed", "5", "--device", "cpu", "--dtype", "float32", "--quiet"]
    run = ["-m", "gen", "batch", str(rows)]
    alone = subprocess.run(command(*run, "-o", str(tmp_path / "alone"), *options), env=environment(), cwd=ROOT)
    assert alone.returncode == 1  # rows failed
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(command(*launcher, *run, "-o", str(tmp_path / "both"), *options), env=environment(), cwd=ROOT)
    assert len(pixels(tmp_path / "both")) == 21 and packed(tmp_path / "both") == packed(tmp_path / "alone")
    ledgers = sorted(path.name for path in (tmp_path / "both" / STATE).glob("ledger-*"))
    assert ledgers == ["ledger-0-of-2.jsonl", "ledger-1-of-2.jsonl"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["files", "webdataset"])
def test_sigkill_at_ten_random_moments(kind, tmp_path, tiny_model):
    """The same bytes, each picture once in the ledger, no half-written file left."""
    prompts = [{"prompt": f"{PROMPTS[i % len(PROMPTS)]} {i}", "steps": 3 + i % 2} for i in range(600)]
    rows = write_rows(tmp_path / "rows.jsonl", prompts)
    options = ["--model", str(tiny_model), "--seed", "5", "--device", "cpu", "--to", kind, "--per-file", "50", "--quiet"]

    def run(out: Path) -> subprocess.Popen:
        return subprocess.Popen(command("-m", "gen", "batch", str(rows), "-o", str(out), *options), env=environment(), cwd=ROOT)

    assert run(tmp_path / "whole").wait() == 0
    out = tmp_path / "out"
    killed = kill_at_random(lambda: run(out), out / STATE / "ledger-0-of-1.jsonl", 10, within=0.2)
    assert killed >= 5  # of ten, before it was done
    assert run(out).wait() == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(ledger_lines(out)) == list(range(600))
    assert not list(out.rglob("*.tmp")) and not list((out / STATE).rglob("*.png"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_way_makes_the_same_files(tiny_model, capfd):
    """Shares, torchrun, Ray, and a process that is killed; `python -m tests.benchmarks.batch_same` does 2,000 of them."""
    pytest.importorskip("ray")
    assert batch_same.main(["--rows", "40", "--model", str(tiny_model), "--kills", "2"]) == 0
    said = capfd.readouterr().out
    assert said.count(": the same files") == len(batch_same.WAYS) and said.count(" 40 files") == len(batch_same.WAYS)


def test_other_files_are_seen(tmp_path, monkeypatch, capsys):
    """The comparison itself: a way that leaves a byte out, or a file."""

    def writing(**files: bytes):
        def way(self, out: Path) -> None:
            out.mkdir()
            for name, data in files.items():
                (out / name).write_bytes(data)

        return way

    monkeypatch.setattr(batch_same.SameBatch, "one_process", writing(a=b"12", b=b"3"))
    for number, (files, same) in enumerate(
        [({"a": b"12", "b": b"3"}, True), ({"a": b"1", "b": b"3"}, False), ({"a": b"12"}, False)]
    ):
        monkeypatch.setattr(batch_same.SameBatch, "shares", writing(**files))
        (tmp_path / str(number)).mkdir()
        assert batch_same.compare(batch_same.SameBatch(tmp_path, ()), tmp_path / str(number), ("one_process", "shares")) is same
    assert "1 files differ, b among them" in capsys.readouterr().out
