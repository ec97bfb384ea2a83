"""A disk that is full: the trial fails with a message, and no file is cut off."""

import json
import os
import resource
import subprocess
import sys

import pytest

from harness.command_line import main
from harness.data import load
from harness.storage import files, folder


def test_a_command_on_a_full_disk_fails_in_a_line(tmp_path, tiny_trial, monkeypatch, capsys):
    trial = folder.make_trial(tiny_trial(width=0.05), load("digits").fingerprint)
    files.write_json(tmp_path / "trial.json", folder.trial_json(trial))

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert main("run", ["--here", str(tmp_path / "trial.json"), "--results-dir", str(tmp_path / "results")]) == 1
    error = capsys.readouterr().err
    assert "failed" in error and "No space left on device: '" in error and "Traceback" not in error


@pytest.mark.slow
def test_a_trial_whose_files_grow_too_large_fails_and_goes_on_later(tmp_path, tiny_trial):
    """A process of its own, which may write no file of more than 30 kB."""
    trial = folder.make_trial(tiny_trial(width=0.1), load("digits").fingerprint)
    files.write_json(tmp_path / "trial.json", folder.trial_json(trial))
    command = [
        sys.executable,
        "-m",
        "harness.run",
        "--here",
        str(tmp_path / "trial.json"),
        "--results-dir",
        str(tmp_path),
    ]

    def run(**options):
        return subprocess.run(command, capture_output=True, text=True, timeout=250, **options)

    limited = run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)))
    trial_dir = folder.trial_dir(tmp_path / "tiny", trial.key)
    assert limited.returncode == 1 and "Traceback" not in limited.stderr
    assert folder.CHECKPOINT in limited.stdout
    assert folder.CHECKPOINT in json.loads((trial_dir / "failure.json").read_text())["error"]
    assert not list(trial_dir.glob(".*tmp"))
    assert run().returncode == 0
    assert folder.read_result(trial_dir) is not None
