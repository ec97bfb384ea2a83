"""A disk that is full: training fails with a message, and no file is cut off."""

import json
import os
import resource
import subprocess
import sys

import pytest
from small_sweep import changed, write

from harness.command_line import main
from harness.storage import folder


@pytest.fixture
def command(tmp_path):
    """The arguments of `harness.run --here` of a small network."""
    width = ("width", 0.1), ("seeds", [0]), ("trials", [{"model": "cnn5", "method": "ibp"}])
    file = write(tmp_path, changed(*width, ("evaluation", {"test_images": 60, "stages": ["ibp"]})))
    return [str(file), "--here", "--results-dir", str(tmp_path)]


def test_a_command_on_a_full_disk_fails_in_a_line(command, monkeypatch, capsys):
    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert main("run", command) == 1
    error = capsys.readouterr().err
    assert "failed" in error and "No space left on device: '" in error and "Traceback" not in error


@pytest.mark.slow
def test_a_network_whose_files_grow_too_large_fails_and_goes_on_later(command, tmp_path):
    """A process of its own, which may write no file of more than 30 kB."""

    def run(**options):
        words = [sys.executable, "-m", "harness.run", *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=250, **options)

    limited = run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)))
    (network_dir,) = folder.network_folders(tmp_path / "study")
    assert limited.returncode == 1 and "Traceback" not in limited.stderr
    assert folder.CHECKPOINT in limited.stdout
    assert folder.CHECKPOINT in json.loads((network_dir / "failure.json").read_text())["error"]
    assert not list(network_dir.glob(".*tmp"))
    assert run().returncode == 0
    assert folder.read_result(*folder.evaluation_folders(network_dir)) is not None
