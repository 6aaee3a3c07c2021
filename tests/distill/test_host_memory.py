"""A training process keeps the memory that it frees."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from distill import trainer
from distill.parallel import host_memory
from tests.distill.toy import toy_trainer

SCRIPT = """
import resource
from distill.parallel.host_memory import keep_freed_memory

def faults(size=40_000_000):
    b"x" * size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        b"x" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), int(keep_freed_memory()), faults())
"""


@pytest.mark.skipif(not host_memory.keep_freed_memory(), reason="needs glibc")
def test_what_was_freed_is_used_again_without_page_faults():
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60, env=plain)
    before, kept, after = map(int, out.stdout.split())
    assert kept and before > 30 and after <= before / 10


def test_a_c_library_that_cannot_be_told_is_left_alone(monkeypatch):
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: object())
    assert not host_memory.keep_freed_memory()
    monkeypatch.setattr(host_memory.sys, "platform", "win32")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", None)
    assert not host_memory.keep_freed_memory()


def test_an_old_library_is_told_another_way(monkeypatch):
    asked = []
    library = type("Library", (), {"mallopt": staticmethod(lambda name, value: asked.append((name, value)) or int(name != -3))})
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: library)
    assert host_memory.keep_freed_memory()
    assert asked == [(-1, 2**31 - 1), (-3, 2**31 - 1), (-4, 0)]


def test_the_trainer_asks_for_it_on_a_cpu(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(trainer, "keep_freed_memory", lambda: calls.append(1))
    toy_trainer(tmp_path)
    assert calls == [1]
