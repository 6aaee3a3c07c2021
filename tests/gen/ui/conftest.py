"""A studio whose every model is the tiny one; Chromium, and a server for a file of its tests."""

from __future__ import annotations

import pytest

from gen.ui.studio import Studio


@pytest.fixture
def studio(tmp_path, tiny):
    one = Studio(tmp_path / "out")
    one.warm._open = lambda name: tiny
    one.ready.set()
    yield one
    one.close()


@pytest.fixture(scope="module")
def browser():
    from tests.gen.ui.kit import CHROMIUM, playwright

    with playwright.sync_playwright() as engine:
        one = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(address, output folder) of a server."""
    from tests.gen.ui.kit import served

    with served(tmp_path_factory.mktemp("ui")) as one:
        yield one
