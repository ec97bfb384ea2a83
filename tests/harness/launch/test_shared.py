"""Results at an address: mirrored for the driver, exchanged by workers; here a directory, in test_s3.py a server."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from study import TINY, Study

from harness.clock import Stopped
from harness.command_line import main
from harness.data import load
from harness.errors import InputError
from harness.launch import shared
from harness.launch.shared import SharedResults, local_mirror, run_trial_at
from harness.storage import folder, names, remote
from harness.training import run_trial

SEARCH = {"trials": 2, "validation_images": 20, "spaces": {"train.learning_rate": {"log_uniform": [1e-3, 3e-2]}}}


class Killed(BaseException):
    """Stands for SIGKILL: what is in the scratch is lost."""


@pytest.fixture
def address(tmp_path, tiny_trial):
    """A trial at an address: its key, the address and where that leads."""
    trial = folder.make_trial(tiny_trial(), load("digits").fingerprint)
    folder.claim(folder.trial_dir(tmp_path / "bucket/tiny", trial.key), trial)
    return trial.key, f"file://{tmp_path}/bucket/tiny", folder.trial_dir(tmp_path / "bucket/tiny", trial.key)


def run(uri, key, report=lambda row: None):
    run_trial_at(uri, key, report, None, lambda done, images: None, None)


@pytest.fixture
def killed(address):
    """The trial, killed with its worker's machine after the second epoch, whose checkpoint was kept."""
    key, uri, _ = address

    def kill(row):
        if row[names.EPOCH] == 2:
            patch.setattr(remote, "_write", die)
            raise Killed

    def die(*_):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.clock.Clock.due", lambda self: True)
        with pytest.raises(Killed):
            run(uri, key, kill)
    return address


def test_a_trial_that_was_killed_goes_on_in_another_scratch_to_the_very_same_end(killed, tiny_trial, tmp_path):
    key, uri, trial_dir = killed
    before = folder.read_epochs(trial_dir)
    assert [row[names.EPOCH] for row in before] == [0, 1, 2]
    assert folder.read_result(trial_dir) is None
    rows = []
    run(uri, key, rows.append)
    assert [row[names.EPOCH] for row in rows] == [3], "it went on from the checkpoint"
    assert folder.read_epochs(trial_dir)[:3] == before
    run_trial(tiny_trial(), whole := tmp_path / "whole")
    broken, unbroken = (load_file(directory / folder.WEIGHTS) for directory in (trial_dir, whole))
    assert all((broken[name] == unbroken[name]).all() for name in unbroken)
    assert {path.name for path in trial_dir.iterdir()} == {path.name for path in whole.iterdir()}
    assert folder.read_epochs(trial_dir)[3][names.TRAIN_LOSS] == folder.read_epochs(whole)[3][names.TRAIN_LOSS]
    times = {path: path.stat().st_mtime_ns for path in trial_dir.iterdir() if path.name != folder.LOG}
    run(uri, key, pytest.fail)
    assert {path: path.stat().st_mtime_ns for path in times} == times, "what is finished is left as it is"


def test_a_failure_is_at_the_address_until_it_is_overcome(address, tmp_path, monkeypatch):
    key, uri, trial_dir = address

    def fail(row):
        raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError):
        run(uri, key, fail)
    mirror = tmp_path / "mirror"
    shared.update_mirror(uri, mirror)
    assert "no such luck" in folder.read_failure(folder.trial_dir(mirror, key))["error"]
    run(uri, key)
    shared.update_mirror(uri, mirror)
    assert folder.read_failure(trial_dir) is None
    assert folder.read_failure(folder.trial_dir(mirror, key)) is None
    assert folder.read_result(folder.trial_dir(mirror, key)).key == key


def test_ctrl_c_reaches_a_worker_by_the_address(address, tmp_path):
    key, uri, trial_dir = address
    study = SharedResults(tmp_path / "mirror", uri)
    study.prepare()
    (study.sweep_dir / folder.STOP).write_text("Ctrl-C")

    def stop(row):
        if row[names.EPOCH] == 1:
            study.push_stop()

    with pytest.raises(Stopped):
        run(uri, key, stop)
    assert [row[names.EPOCH] for row in folder.read_epochs(trial_dir)] == [0, 1, 2]
    assert (trial_dir / folder.CHECKPOINT).exists()
    (study.sweep_dir / folder.STOP).unlink()
    study.push_stop()
    assert not shared.is_stopped(uri)


def test_a_storage_that_is_away_stops_no_training(address, monkeypatch):
    key, uri, trial_dir = address
    write, away = remote._write, []

    def fail(*args):
        if away:
            raise OSError("the net is gone")
        return write(*args)

    monkeypatch.setattr(remote, "_write", fail)
    monkeypatch.setattr(remote.time, "sleep", lambda _: away.clear())
    run(uri, key, lambda row: away.append(row))
    assert folder.read_result(trial_dir) is not None
    assert [row[names.EPOCH] for row in folder.read_epochs(trial_dir)] == [0, 1, 2, 3]
    assert "not pushed yet: the net is gone" in (trial_dir / folder.LOG).read_text()


def test_a_directory_that_is_no_mirror_is_left_alone(address, tmp_path, monkeypatch):
    _, uri, _ = address
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/tiny").mkdir(parents=True)
    (tmp_path / "results/tiny/mine").write_text("")
    with pytest.raises(InputError, match=r"results/tiny holds other files"):
        local_mirror(uri)
    (tmp_path / "results/tiny/mine").unlink()
    assert local_mirror(uri) == tmp_path / "results/tiny"
    shutil.copytree(tmp_path / "bucket", tmp_path / "other")
    with pytest.raises(InputError, match=f"mirrors {uri} and would be the mirror of file://{tmp_path}/other/tiny"):
        local_mirror(f"file://{tmp_path}/other/tiny")


def test_commands_read_an_address_and_name_results_that_it_has_lost(address, tmp_path, monkeypatch, capsys):
    key, uri, trial_dir = address
    monkeypatch.chdir(tmp_path)
    run(uri, key)
    assert main("status", [uri]) == 0
    assert "1 finished" in capsys.readouterr().out
    assert main("tables", [uri]) == 0
    assert (tmp_path / "results/tiny/leaderboard.md").exists()
    shutil.rmtree(trial_dir)
    with pytest.raises(InputError, match=f"has lost trials/{key}/result.json: copy"):
        local_mirror(uri)
    assert folder.read_result(folder.trial_dir(Path("results/tiny"), key)) is not None


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("file:///proc/nowhere", "file:///proc/nowhere/tiny cannot be used: "),
        ("s3://me:hidden@bucket/x", "found 's3://me:***@bucket/x/tiny', allowed: an address without secrets"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_before_anything_starts(
    tmp_path, monkeypatch, no_ray, capsys, results, message
):
    monkeypatch.chdir(tmp_path)
    study = Study(tmp_path, TINY, "nothing://store")
    assert study.main("--results-dir", results) == 2
    error = capsys.readouterr().err
    assert message in error and "hidden" not in error
    assert not study.directory.exists()


def test_what_takes_no_address_says_so(tmp_path, capsys):
    study = Study(tmp_path, {**TINY, "search": SEARCH}, "nothing://store")
    assert study.main("--results-dir", "file:///tmp/x") == 2
    assert "a directory, for a sweep with `search`" in capsys.readouterr().err
    assert main("trial", [str(tmp_path / "none.json"), "--results-dir", "file:///tmp/x"]) == 2
    assert "addresses are for harness.run" in capsys.readouterr().err
