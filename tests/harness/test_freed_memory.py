"""Freed memory is kept while a network is trained, and given back after it."""

import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own: in one that has run other tests, the thread may allocate from another arena than the first.
_PROGRAM = """
from pathlib import Path
import torch
from harness.machine.freed_memory import reuse_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

torch.ones(2)
before = resident()
with reuse_freed_memory():
    torch.ones(2**26)  # 256 MiB
    kept = resident()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_freed_memory_is_kept_within_and_given_back_after():
    printed = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True).stdout
    kept, left = map(float, printed.split())
    assert kept > 200
    assert left < 50
