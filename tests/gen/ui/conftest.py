"""A studio whose every model is the tiny one."""

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
