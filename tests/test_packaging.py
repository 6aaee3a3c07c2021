"""The package as others install it: its extras agree, its version stands in one place, and its wheel draws a picture."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

import gen
from gen.cli.app import main
from gen.pipeline.png import read_recipe

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PACKAGES = ("gen", "samplers", "distill", "customization")
NAME = re.compile(r"[A-Za-z0-9._-]+")


def included(extra: str) -> set[str]:
    """The extras that an extra takes whole."""
    return {name for row in EXTRAS[extra] if row.startswith("fewstep[") for name in row[8:].rstrip("]").split(",")}


def test_every_requirement_has_one_bound():
    """A library is named in one place; an extra that needs it takes the extra that has it."""
    rows = [*PROJECT["dependencies"], *(row for extra in EXTRAS.values() for row in extra)]
    names = [NAME.match(row).group() for row in rows if not row.startswith("fewstep[")]
    assert sorted(names) == sorted(set(names))
    assert all(">=" in row for row in rows if not row.startswith("fewstep["))


def test_extras_take_what_they_should():
    assert included("all") == EXTRAS.keys() - {"all", "dev", "deepspeed"}  # deepspeed compiles when it is installed
    assert included("dev") >= {"lora", "data"}
    for extra in EXTRAS:
        assert included(extra) <= EXTRAS.keys()


def test_the_version_stands_in_one_place(capsys):
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", gen.__version__)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fewstep {gen.__version__}\n"
    assert f"## {gen.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_says_that_it_has_types():
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling builds the wheel; ./test installs it")
def test_the_wheel_draws_a_picture_in_a_fresh_environment(tmp_path):
    """Outside of the checkout, without a network; other libraries are those that run this test."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "-q"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", str(tmp_path), str(ROOT)], check=True)
    [wheel] = tmp_path.glob("fewstep-*.whl")
    assert wheel.name.startswith(f"fewstep-{gen.__version__}-")

    venv.create(tmp_path / "fresh", with_pip=False)
    python = tmp_path / "fresh" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", *offline, str(wheel)], check=True)
    paths = [sysconfig.get_path("purelib", vars={"base": str(tmp_path / "fresh")}), sysconfig.get_path("purelib")]
    Path(paths[0], "libraries.pth").write_text(f"{paths[1]}\n")  # its own .pth files, such as the checkout's, are not read

    outside = tmp_path / "elsewhere"
    outside.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python.with_name("fewstep")), "image", "a red heart", "--seed", "1", "--steps", "2", "-q", "-o", "heart.png"]
    subprocess.run([*command, "--height", "64", "--width", "64", "--device", "cpu"], cwd=outside, env=environment, check=True)
    recipe = read_recipe(outside / "heart.png")
    assert recipe.prompt == "a red heart" and recipe.machine.fewstep == gen.__version__

    typed = "[r.files(package).joinpath('py.typed').is_file() for package in names]"
    code = f"import importlib.resources as r; names = {PACKAGES}; print(all({typed}), r.files('gen'))"
    told = subprocess.run([str(python), "-c", code], cwd=outside, env=environment, check=True, capture_output=True, text=True)
    assert told.stdout.startswith("True ") and str(tmp_path / "fresh") in told.stdout
