"""Freed memory is kept where the process is ours or asks for it, and nowhere else."""

import os
import subprocess
import sys

import pytest

from traceformer import cli
from traceformer.heap import keep_freed_memory

FAULTS = """
import resource
import numpy as np
from traceformer.heap import keep_freed_memory
{first}
def layer():
    return [np.full(1 << 20, number) for number in range(4)]
layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    layer()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(first: str) -> int:
    """Returns how often a new process faults that takes and frees 32 MiB ten times over."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(first=first)], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def test_memory_that_was_freed_is_used_again() -> None:
    assert faults("keep_freed_memory()") < 100 or "CS_GNU_LIBC_VERSION" not in os.confstr_names


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr_names", {})
    assert not keep_freed_memory()


def test_a_command_keeps_memory_in_its_own_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: asked.append("kept"))
    assert cli.main(["--version"]) == 0
    assert asked == []
    monkeypatch.setattr(sys, "argv", ["traceformer", "--version"])
    assert cli.main() == 0
    assert asked == ["kept"]
