"""What rows may ask for, each beside a direct call: every solver, guidance rule and cache, LoRAs, classes, pictures to edit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen.adapters import Adapter, write_adapter
from gen.calls.call import AdapterUse
from gen.generator import Generator
from samplers.cache.registry import CACHES
from samplers.guidance.registry import GUIDANCE
from samplers.registry import solver_names
from tests.gen.batch.common import contents, make, pixels, write_rows
from tests.gen.batch.test_shares import ROOT, command, environment
from tests.gen.test_adapters_generator import DENOISER, lora
from tests.gen.test_batches import rule_options


def every_method() -> list[dict]:
    rows = [{"sampler": name} for name in solver_names()]
    rows += [rule_options(name) for name in GUIDANCE]
    rows += [{"cache": name} for name in CACHES]
    return [{"prompt": prompt, "steps": 2, **row} for row in rows for prompt in ("a red heart", "a cat")]


@pytest.mark.slow
def test_every_method_is_the_same_alone_and_together(tmp_path, tiny):
    """A batch of one row at a time, and of eight; what this model cannot do fails in both, and takes no other with it."""
    rows = write_rows(tmp_path / "rows.jsonl", every_method())
    alone = make(rows, tmp_path / "alone", tiny, batch_size=1)
    together = make(rows, tmp_path / "together", tiny, batch_size=8)
    assert pixels(tmp_path / "together") == pixels(tmp_path / "alone")
    assert alone.made == together.made > 0.9 * len(every_method())
    failed = [
        json.loads((tmp_path / one / "errors.jsonl").read_text().splitlines()[0])["index"] for one in ("alone", "together")
    ]
    assert failed[0] == failed[1] and alone.failed == together.failed


@pytest.fixture
def loras(tmp_path) -> Path:
    folder = tmp_path / "loras"
    folder.mkdir()
    for seed, name in enumerate(("style", "other")):
        write_adapter(Adapter(name, lora(seed, *DENOISER)), folder / f"{name}.safetensors", "kohya")
    return folder


def alone(generator: Generator, path: Path, **call) -> None:
    """The picture of a direct call is the one in this file."""
    expected = generator(**call, progress=False, batch_invariant=True).images[0]
    assert np.array_equal(np.asarray(expected), np.asarray(Image.open(path))), call


def test_loras_by_column_by_prompt_and_for_all(tmp_path, tiny_model, loras):
    rows = write_rows(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "a cat", "lora": "style:0.8, other"},
            {"prompt": "a cat"},
            {"prompt": "a cat <lora:other:0.5>"},
            {"prompt": "a dog"},
            {"prompt": "a cat", "lora": "stile"},
            {"prompt": "a cat", "lora": "../loras/style"},
        ],
    )

    def fresh(**weights: float) -> Generator:
        generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
        for name, weight in weights.items():
            generator.load_adapter(loras / f"{name}.safetensors", weight=weight)
        return generator

    said: list[str] = []
    result = make(rows, tmp_path / "out", fresh(), said, lora_dir=loras, name="{index}.png")
    assert (result.made, result.failed) == (4, 2) and "Did you mean 'style'?" in said[0]
    alone(fresh(style=0.8, other=1.0), tmp_path / "out" / "0.png", prompt="a cat", seed=5)
    alone(fresh(), tmp_path / "out" / "1.png", prompt="a cat", seed=6)
    alone(fresh(), tmp_path / "out" / "2.png", prompt="a cat <lora:other:0.5>", seed=7, lora_dir=loras)
    alone(fresh(), tmp_path / "out" / "3.png", prompt="a dog", seed=8)
    use = (AdapterUse(str(loras / "style.safetensors"), 0.8),)
    make(rows, tmp_path / "all", fresh(), lora_dir=loras, name="{index}.png", adapters=use)
    alone(fresh(style=0.8), tmp_path / "all" / "1.png", prompt="a cat", seed=6)
    assert pixels(tmp_path / "all")["0.png"] == pixels(tmp_path / "out")["0.png"]  # the column takes their place
    write_adapter(Adapter("style", lora(7, *DENOISER)), loras / "new.safetensors", "kohya")
    (loras / "new.safetensors").replace(loras / "style.safetensors")
    with pytest.raises(ValueError, match="its adapters"):
        make(rows, tmp_path / "all", fresh(), lora_dir=loras, name="{index}.png", adapters=use)


def test_a_model_of_classes(tmp_path, class_model):
    generator = Generator.from_pretrained(class_model, device="cpu", dtype="float32")
    text = tmp_path / "rows.txt"
    text.write_text("cat\n2\ngoldfish\ntiger\n")
    rows = write_rows(tmp_path / "rows.jsonl", [{"label": "cat"}, {"class_labels": 2}, {"label": "goldfish"}, {}])
    result = make(text, tmp_path / "text", generator, name="{index}.png")
    assert (result.made, result.failed) == (3, 1)
    make(rows, tmp_path / "rows", generator, name="{index}.png")
    for index, label in enumerate(("cat", 2, 2)):
        alone(generator, tmp_path / "text" / f"{index}.png", class_labels=label, seed=5 + index)
        alone(generator, tmp_path / "rows" / f"{index}.png", class_labels=label, seed=5 + index)
    alone(generator, tmp_path / "rows" / "3.png", class_labels=-1, seed=8)


def test_pictures_to_edit(tmp_path, tiny):
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    mask.save(tmp_path / "mask.png")
    rows = write_rows(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "a cat", "image": "red.png", "strength": 0.5},
            {"prompt": "a cat", "image": "blue.png", "strength": 0.5},
            {"prompt": "a dog", "image": "blue.png", "mask": "mask.png"},
        ],
    )
    make(rows, tmp_path / "out", tiny, name="{index}.png")
    alone(tiny, tmp_path / "out" / "0.png", prompt="a cat", image=tmp_path / "red.png", strength=0.5, seed=5)
    alone(tiny, tmp_path / "out" / "1.png", prompt="a cat", image=tmp_path / "blue.png", strength=0.5, seed=6)
    alone(tiny, tmp_path / "out" / "2.png", prompt="a dog", image=tmp_path / "blue.png", mask=tmp_path / "mask.png", seed=7)


def test_options_that_no_row_could_have_end_it_at_once(tmp_path, tiny):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a cat"}] * 3)
    with pytest.raises(ValueError, match="Unknown sampler 'eulr'"):
        make(rows, tmp_path / "out", tiny, defaults={"sampler": "eulr"})
    with pytest.raises(ValueError, match="height is 30"):
        make(rows, tmp_path / "out", tiny, defaults={"height": 30})
    assert not (tmp_path / "out").exists()


def test_what_fails_for_every_row_ends_it(tmp_path, tiny):
    """A setting that this model cannot have is no fault of a hundred thousand rows."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"a cat {i}", "height": 30} for i in range(300)])
    with pytest.raises(ValueError, match=r"one after the other failed alike: .*height is 30"):
        make(rows, tmp_path / "out", tiny)
    assert len((tmp_path / "out" / "errors.jsonl").read_text().splitlines()) == 100
    mixed = write_rows(
        tmp_path / "mixed.jsonl", [{"prompt": f"a cat {i}", "steps": 1, "height": 30 if i % 2 else 32} for i in range(40)]
    )
    assert make(mixed, tmp_path / "mixed", tiny).failed == 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_keeps_what_it_made(kind, tmp_path, tiny_model):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"a cat {i}", "steps": 20} for i in range(2000)])
    options = ["--model", str(tiny_model), "--seed", "5", "--device", "cpu"]
    run = command("-m", "gen", "batch", str(rows), "-o", str(tmp_path / "out"), *options)
    process = subprocess.Popen(run, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / "out").glob("*.png")):
        time.sleep(0.05)
    process.send_signal(kind)
    said = process.communicate()[1]
    assert process.returncode == (130 if kind == signal.SIGINT else 143)
    assert "Traceback" not in said and "The same command goes on." in said
    made = contents(tmp_path / "out")
    ledger = (tmp_path / "out" / ".batch" / "ledger-0-of-1.jsonl").read_text().splitlines()
    assert 0 < len(made) == len(ledger) < 2000 and not list((tmp_path / "out").rglob("*.tmp"))
    assert sys.executable in run[0]
