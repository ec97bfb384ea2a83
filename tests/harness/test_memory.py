"""Freed memory is kept while a trial runs, and given back after it."""

from pathlib import Path

import pytest
import torch

from harness.machine.memory import reuse_freed_memory


def _resident() -> float:
    """In MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_freed_memory_is_kept_within_and_given_back_after():
    with reuse_freed_memory():  # what other tests freed goes back
        pass
    before = _resident()
    with reuse_freed_memory():
        torch.ones(2**26)  # 256 MiB
        kept = _resident()
    assert kept - before > 200
    assert _resident() - before < 50
