"""A disk that is full: training fails with a message, and no file is cut off."""

import json
import os
import resource
import subprocess
import sys

import pytest

from harness.command_line import main
from harness.data import load
from harness.storage import folder
from harness.storage.records import make_record


def test_a_command_on_a_full_disk_fails_in_a_line(tmp_path, tiny_training, tiny_evaluation, monkeypatch, capsys):
    record = make_record(tiny_training(width=0.05), load("digits").fingerprint)
    folder.begin_network(tmp_path, record)
    folder.begin_evaluation(tmp_path, tiny_evaluation())

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert main("run", ["--here", str(tmp_path / "training.json"), "--results-dir", str(tmp_path / "results")]) == 1
    error = capsys.readouterr().err
    assert "failed" in error and "No space left on device: '" in error and "Traceback" not in error


@pytest.mark.slow
def test_a_network_whose_files_grow_too_large_fails_and_goes_on_later(tmp_path, tiny_training, tiny_evaluation):
    """A process of its own, which may write no file of more than 30 kB."""
    record = make_record(tiny_training(width=0.1), load("digits").fingerprint)
    folder.begin_network(tmp_path, record)
    folder.begin_evaluation(tmp_path, tiny_evaluation())
    command = [
        sys.executable,
        "-m",
        "harness.run",
        "--here",
        str(tmp_path / "training.json"),
        "--results-dir",
        str(tmp_path),
    ]

    def run(**options):
        return subprocess.run(command, capture_output=True, text=True, timeout=250, **options)

    limited = run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)))
    network_dir = folder.network_dir(tmp_path / tmp_path.name, record.key)
    assert limited.returncode == 1 and "Traceback" not in limited.stderr
    assert folder.CHECKPOINT in limited.stdout
    assert folder.CHECKPOINT in json.loads((network_dir / "failure.json").read_text())["error"]
    assert not list(network_dir.glob(".*tmp"))
    assert run().returncode == 0
    assert folder.read_result(folder.evaluation_dir(network_dir, tiny_evaluation())) is not None
