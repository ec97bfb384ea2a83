"""`python -m harness.tables --status`: what folders show of a sweep, while it runs and after."""

import os
import time

import pytest

from harness.command_line import main
from harness.config.training import RECIPE_VERSION
from harness.storage import folder
from harness.storage.lock import lock_directory


def status_of(study, capsys):
    """Return the line of each trial by its model, and all lines that are printed."""
    status = main("tables", [str(study.directory), "--status"])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    return {model: next(line for line in lines if model in line) for model in ("cnn5", "cerdeq")}, lines


def test_finished_trials_are_shown_with_their_errors_and_their_size(copied, capsys):
    by_model, lines = status_of(copied, capsys)
    assert "no run on this machine is using" in lines[0]
    for (model, _), trial in copied.trials.items():
        assert trial.key in by_model[model]
        assert "finished" in by_model[model] and "certified error" in by_model[model]
        assert "kB" in by_model[model] or "MB" in by_model[model]
    assert lines[-1].startswith("2 trials: 2 finished; ")


def test_failed_and_unfinished_ones_are_shown_with_why_and_how_far(copied, capsys):
    for trial_dir in copied.trial_dirs.values():
        (trial_dir / folder.RESULT).unlink()
    trial = copied.trials["cnn5", 0]
    other = folder.make_trial(trial.config.replace(seed=9), trial.fingerprint)
    folder.take_over(folder.trial_dir(copied.directory, other.key), other)
    folder.write_failure(copied.trial_dirs["cnn5", 0], "RuntimeError: of a kind")
    by_model, lines = status_of(copied, capsys)
    assert "failed" in by_model["cnn5"] and "RuntimeError: of a kind" in by_model["cnn5"]
    assert "unfinished" in by_model["cerdeq"] and "epoch 2 of 2" in by_model["cerdeq"] and " ago" in by_model["cerdeq"]
    assert all(part in lines[-1] for part in ("1 failed", "1 unfinished", "1 not begun"))


def test_a_trial_runs_where_the_run_that_holds_the_directory_wrote_for_it(copied, capsys):
    for trial_dir in copied.trial_dirs.values():
        (trial_dir / folder.RESULT).unlink()
        for path in trial_dir.iterdir():
            os.utime(path, (time.time() - 7200,) * 2)
    with lock_directory(copied.directory):
        os.utime(copied.trial_dirs["cnn5", 0] / folder.EPOCHS)
        by_model, lines = status_of(copied, capsys)
    assert f"process {os.getpid()}" in lines[0]
    assert "running" in by_model["cnn5"]
    assert "unfinished" in by_model["cerdeq"] and "2 h ago" in by_model["cerdeq"]
    by_model, _ = status_of(copied, capsys)
    assert "unfinished" in by_model["cnn5"], "nobody holds the directory any more"


def test_a_trial_of_an_older_recipe_counts_as_none_of_today_s(copied, capsys):
    path = copied.trial_dirs["cnn5", 0] / folder.TRIAL
    path.write_text(path.read_text().replace(f'"recipe_version": {RECIPE_VERSION}', '"recipe_version": 1'))
    by_model, lines = status_of(copied, capsys)
    assert "older, of recipe version 1" in by_model["cnn5"] and "finished" in by_model["cerdeq"]
    assert lines[-1].startswith("2 trials: 1 finished, 1 older; ")


@pytest.mark.parametrize("name", [folder.TRIAL, folder.RESULT])
def test_a_damaged_file_hides_no_other_trial(copied, capsys, name):
    (copied.trial_dirs["cnn5", 0] / name).write_text("{")
    assert main("tables", [str(copied.directory), "--status"]) == 0
    printed = capsys.readouterr().out
    assert "1 cannot be read" in printed and "1 finished" in printed


def test_certifications_are_status_of(copied, capsys):
    for is_done, trial_dir in zip((True, False), copied.trial_dirs.values(), strict=True):
        made = trial_dir / "certified" / "ibp-all-images"
        (made / "ranges/0").mkdir(parents=True)
        (made / "certification.json").write_text("{}")
        (made / ("result.json" if is_done else "ranges/0/00000-00020.pt")).write_text("{}")
    by_model, _ = status_of(copied, capsys)
    assert sorted("20 images so far" in line for line in by_model.values()) == [False, True]
    assert all("ibp-all-images" in line for line in by_model.values())


def test_a_directory_without_trials_is_refused(tmp_path, capsys):
    assert main("tables", [str(tmp_path), "--status"]) == 2
    assert "holds no trials" in capsys.readouterr().err
