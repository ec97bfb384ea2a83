"""Results at an address: mirrored by the driver, exchanged by workers; here a directory, in test_s3.py a server."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from study import TINY, Study

from harness.command_line import main
from harness.common import names
from harness.common.errors import InputError
from harness.data import load
from harness.machine.clock import Stopped
from harness.storage import folder, remote
from harness.training import run_trial
from harness.tune import shared
from harness.tune.shared import SharedResults, local_mirror, run_trial_at

SEARCH = {"trials": 2, "validation_images": 20, "spaces": {"train.learning_rate": {"log_uniform": [1e-3, 3e-2]}}}


class Killed(BaseException):
    """Stands for SIGKILL: the temporary directory of the worker is lost."""


@pytest.fixture
def address(tmp_path, tiny_trial):
    """A trial at an address: its key, the address and its folder there."""
    trial = folder.make_trial(tiny_trial(), load("digits").fingerprint)
    trial_dir = folder.trial_dir(tmp_path / "bucket/tiny", trial.key)
    folder.take_over(trial_dir, trial)
    return trial.key, f"file://{tmp_path}/bucket/tiny", trial_dir


def run(uri, key, report=lambda row: None):
    run_trial_at(uri, key, report, None, None)


def epochs(rows):
    return [row[names.EPOCH] for row in rows if names.EPOCH in row]


def test_a_trial_whose_machine_is_lost_goes_on_elsewhere_to_the_same_end(address, tiny_trial, tmp_path):
    key, uri, trial_dir = address

    def die(*_):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.machine.clock.Clock.due", lambda self: True)

        def kill(row):
            if row.get(names.EPOCH) == 2:
                patch.setattr(remote, "write", die)
                raise Killed

        with pytest.raises(Killed):
            run(uri, key, kill)
    before = folder.read_epochs(trial_dir)
    assert epochs(before) == [0, 1, 2] and folder.read_result(trial_dir) is None
    rows = []
    run(uri, key, rows.append)
    assert epochs(rows) == [3], "it went on from the checkpoint"
    assert folder.read_epochs(trial_dir)[:3] == before
    run_trial(tiny_trial(), undisturbed := tmp_path / "undisturbed")
    weights, expected = (load_file(directory / folder.WEIGHTS) for directory in (trial_dir, undisturbed))
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert {path.name for path in trial_dir.iterdir()} == {path.name for path in undisturbed.iterdir()}
    times = {path: path.stat().st_mtime_ns for path in trial_dir.iterdir() if path.name != folder.LOG}
    run(uri, key, pytest.fail)
    assert {path: path.stat().st_mtime_ns for path in times} == times, "a finished trial is left as it is"


def test_a_failure_is_at_the_address_until_the_trial_finishes(address, tmp_path):
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
    results = SharedResults(tmp_path / "mirror", uri)
    results.prepare()
    (results.sweep_dir / folder.STOP).write_text("Ctrl-C")

    def stop(row):
        if row.get(names.EPOCH) == 1:
            results.push_stop()

    with pytest.raises(Stopped):
        run(uri, key, stop)
    assert epochs(folder.read_epochs(trial_dir)) == [0, 1, 2]
    assert (trial_dir / folder.CHECKPOINT).exists()
    (results.sweep_dir / folder.STOP).unlink()
    results.push_stop()
    assert not shared.is_stopped(uri)


def test_training_goes_on_while_the_storage_is_away(address, monkeypatch):
    key, uri, trial_dir = address
    write, away = remote.write, []

    def fail(*args):
        if away:
            raise OSError("no connection")
        return write(*args)

    monkeypatch.setattr(remote, "write", fail)
    monkeypatch.setattr(remote.time, "sleep", lambda _: away.clear())
    run(uri, key, away.append)
    assert folder.read_result(trial_dir) is not None
    assert epochs(folder.read_epochs(trial_dir)) == [0, 1, 2, 3]
    assert "not pushed yet: no connection" in (trial_dir / folder.LOG).read_text()


def test_a_directory_that_is_no_mirror_of_the_address_is_left_alone(address, tmp_path, monkeypatch):
    _, uri, _ = address
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/tiny").mkdir(parents=True)
    (tmp_path / "results/tiny/file").touch()
    with pytest.raises(InputError, match=r"results/tiny holds other files"):
        local_mirror(uri)
    (tmp_path / "results/tiny/file").unlink()
    assert local_mirror(uri) == tmp_path / "results/tiny"
    shutil.copytree(tmp_path / "bucket", tmp_path / "other")
    with pytest.raises(
        InputError, match=f"mirrors {uri}, and must be empty to become the copy of file://{tmp_path}/other/tiny"
    ):
        local_mirror(f"file://{tmp_path}/other/tiny")


def test_commands_read_an_address_and_name_results_that_it_has_lost(address, tmp_path, monkeypatch, capsys):
    key, uri, trial_dir = address
    monkeypatch.chdir(tmp_path)
    run(uri, key)
    assert main("status", [uri]) == 0
    assert "1 finished" in capsys.readouterr().out
    shutil.rmtree(trial_dir)
    assert main("status", [uri]) == 2
    assert f": trials/{key}/result.json; copy these trials back" in capsys.readouterr().err
    assert folder.read_result(folder.trial_dir(Path("results/tiny"), key)) is not None


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("file:///proc/nowhere", "file:///proc/nowhere/tiny cannot be used: "),
        ("s3://me:hidden@bucket/x", "remove the password from s3://me:***@bucket/x/tiny"),
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


def test_an_address_is_refused_for_a_search_and_a_single_trial(tmp_path, capsys):
    study = Study(tmp_path, {**TINY, "search": SEARCH}, "nothing://store")
    assert study.main("--results-dir", "file:///tmp/x") == 2
    assert "a directory, for a sweep with `search`" in capsys.readouterr().err
    assert main("trial", [str(tmp_path / "none.json"), "--results-dir", "file:///tmp/x"]) == 2
    assert "addresses are for harness.run" in capsys.readouterr().err
