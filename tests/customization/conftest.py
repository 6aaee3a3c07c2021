"""The tiny models of the tests of gen."""

from tests.gen.conftest import bridged, tiny_model  # noqa: F401
