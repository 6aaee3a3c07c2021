"""The tiny models of the tests of gen."""

from tests.gen.conftest import bridged, class_model, tiny_model  # noqa: F401
