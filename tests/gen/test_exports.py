"""What `import gen` offers is there."""

import gen


def test_every_exported_name_is_found():
    for name in gen.__all__:
        assert getattr(gen, name).__name__ == name
    assert set(gen.__all__) <= set(dir(gen))
