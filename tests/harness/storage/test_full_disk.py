"""A disk that is full, and a folder that is gone: the trial fails and says so, what is kept is whole."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest

from harness.command_line import main
from harness.data import load
from harness.storage import files, folder, names
from harness.training import run_trial


def full(*_args):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_told_with_the_file_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_command_on_a_full_disk_fails_in_a_line(tmp_path, tiny_trial, monkeypatch, capsys):
    made = folder.make_trial(tiny_trial(width=0.05), load("digits").fingerprint)
    files.write_json(tmp_path / "trial.json", folder.trial_json(made))
    monkeypatch.setattr(os, "fsync", full)
    assert main("trial", [str(tmp_path / "trial.json"), "--results-dir", str(tmp_path / "results")]) == 1
    error = capsys.readouterr().err
    assert "failed" in error and "No space left" in error and "Traceback" not in error


def test_a_folder_that_goes_away_while_training_is_not_made_again(tmp_path, tiny_trial):
    config = tiny_trial(width=0.05)
    place = tmp_path / "results/tiny/trials/key"

    def remove(row):
        if row[names.EPOCH] == 1:
            shutil.rmtree(tmp_path / "results")

    with pytest.raises(FileNotFoundError, match=r"the trial's folder is gone: '.*/trials/key'"):
        run_trial(config, place, remove)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_trial_whose_files_grow_too_large_fails_and_goes_on_once_there_is_room(tmp_path, tiny_trial):
    """A process of its own, which may write no file of more than 30 kB, as a full disk lets nobody."""
    made = folder.make_trial(tiny_trial(width=0.1), load("digits").fingerprint)
    files.write_json(tmp_path / "trial.json", folder.trial_json(made))
    command = [sys.executable, "-m", "harness.trial", str(tmp_path / "trial.json"), "--results-dir", str(tmp_path)]

    def run(**options):
        return subprocess.run(command, capture_output=True, text=True, timeout=250, **options)

    done = run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)))
    place = folder.trial_dir(tmp_path / "tiny", made.key)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        folder.CHECKPOINT in done.stderr
        and folder.CHECKPOINT in json.loads((place / "failure.json").read_text())["error"]
    )
    assert not list(place.glob(".*tmp"))
    assert run().returncode == 0
    assert folder.read_result(place) is not None
