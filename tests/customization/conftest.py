"""The tiny models of the tests of gen, and two ways to the command line."""

import pytest

from customization import lora as lora_command
from tests.gen.conftest import bridged, class_model, fewstep, image, tiny_model  # noqa: F401


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A subcommand of `fewstep lora` in an empty folder, without the command line around it: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = lora_command.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
