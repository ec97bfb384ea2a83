"""Tables, tests and pages of a thousand finished evaluations: seconds of the commands, printed."""

import os
import resource
import subprocess
import sys

import pytest
from made_studies import make_many

OPTIONS = ("--status", "--compare", "--latex")
MOST = 60.0  # CPU seconds of a command, several times what it takes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_evaluations_take_seconds(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        sweep = make_many(tmp_path / "results/many", rows=100, seeds=10)
    took = {}
    for option in OPTIONS:
        before = _cpu_seconds()
        subprocess.run([sys.executable, "-m", "harness.tables", str(sweep), option], check=True, capture_output=True)
        took[option] = _cpu_seconds() - before
    with capsys.disabled():
        print(
            "\nCPU seconds for 1,000 evaluations:", ", ".join(f"{name} {seconds:.1f}" for name, seconds in took.items())
        )
    assert max(took.values()) < MOST


def _cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
