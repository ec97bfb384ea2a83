"""`python -m harness.status`: what folders tell of a sweep, while it runs and after."""

import fcntl
import json
import os
import time

import pytest

from harness.command_line import main
from harness.storage import folder
from harness.storage.lease import LOCK, holder, locked


def told(study, capsys):
    """The exit status, and what is printed: a line a trial by its model, and the last line."""
    status = main("status", [str(study.directory)])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    return {model: next(line for line in lines if model in line) for model in ("cnn5", "cerdeq")}, lines


def test_finished_trials_are_told_with_their_errors_and_their_size(copied, capsys):
    by_model, lines = told(copied, capsys)
    assert "no run that is seen from here" in lines[0]
    for (model, _), trial in copied.trials.items():
        assert trial.key in by_model[model]
        assert "finished" in by_model[model] and "certified error" in by_model[model]
        assert "kB" in by_model[model] or "MB" in by_model[model]
    assert lines[-1].startswith("2 trials: 2 finished; ")


def test_failed_and_unfinished_ones_are_told_with_why_and_how_far(copied, capsys):
    for place in copied.places.values():
        (place / folder.RESULT).unlink()
    folder.write_failure(copied.places["cnn5", 0], "RuntimeError: of a kind")
    by_model, lines = told(copied, capsys)
    assert "failed" in by_model["cnn5"] and "RuntimeError: of a kind" in by_model["cnn5"]
    assert "unfinished" in by_model["cerdeq"] and "epoch 2 of 2" in by_model["cerdeq"] and " ago" in by_model["cerdeq"]
    assert "1 failed" in lines[-1] and "1 unfinished" in lines[-1]


def test_a_trial_runs_where_the_run_that_holds_the_directory_wrote_for_it(copied, capsys):
    for place in copied.places.values():
        (place / folder.RESULT).unlink()
        for path in place.iterdir():
            os.utime(path, (time.time() - 7200,) * 2)
    with locked(copied.directory):
        os.utime(copied.places["cnn5", 0] / folder.EPOCHS)
        by_model, lines = told(copied, capsys)
    assert f"process {os.getpid()}" in lines[0]
    assert "running" in by_model["cnn5"]
    assert "unfinished" in by_model["cerdeq"] and "2 h ago" in by_model["cerdeq"]
    by_model, _ = told(copied, capsys)
    assert "unfinished" in by_model["cnn5"], "nobody holds the directory any more"


def test_a_trial_that_was_only_named_is_not_begun(copied, capsys):
    for path in (copied.places["cnn5", 0]).iterdir():
        if path.name != folder.TRIAL:
            path.unlink()
    assert "not begun" in told(copied, capsys)[0]["cnn5"]


@pytest.mark.parametrize("name", [folder.TRIAL, folder.RESULT])
def test_a_damaged_file_hides_no_other_trial(copied, capsys, name):
    (copied.places["cnn5", 0] / name).write_text("{")
    assert main("status", [str(copied.directory)]) == 0
    printed = capsys.readouterr().out
    assert "1 cannot be read" in printed and "1 finished" in printed


def test_certifications_are_told(copied, capsys):
    for done, place in zip((True, False), copied.places.values(), strict=True):
        made = place / "certified" / "ibp-all-images"
        (made / "shards").mkdir(parents=True)
        (made / "certification.json").write_text("{}")
        (made / ("result.json" if done else "shards/00000.json")).write_text("{}")
    by_model, _ = told(copied, capsys)
    assert sorted("1 shards so far" in line for line in by_model.values()) == [False, True]
    assert all("ibp-all-images" in line for line in by_model.values())


def test_a_directory_without_trials_is_refused(tmp_path, capsys):
    assert main("status", [str(tmp_path)]) == 2
    assert "holds no trials" in capsys.readouterr().err


def test_a_refused_run_leaves_what_the_lock_says(tmp_path):
    with locked(tmp_path):
        held = holder(tmp_path)
        with pytest.raises(ValueError, match="another run"), locked(tmp_path):
            pass
        assert holder(tmp_path) == held == json.loads((tmp_path / LOCK).read_text())
    assert holder(tmp_path) is None
    with open(tmp_path / LOCK) as file:  # looking takes nothing away
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
