"""What else may lie in a sweep's results directory: of other trials, older recipes, damaged, left by Ray."""

import json
import shutil

import pytest
from mlflow import MlflowClient
from study import TINY, Study, snapshot

from harness.common import names
from harness.config.training import RECIPE_VERSION
from harness.storage import files, folder
from harness.tune import ray_tune

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


def test_a_result_of_another_trial_is_not_taken_for_this_one_s(copied, no_ray, capsys):
    """Told by its path before anything starts, and neither trained again nor tabled."""
    wrong, right = copied.trial_dirs["cnn5", 0], copied.trial_dirs["cerdeq", 0]
    shutil.copy(right / folder.RESULT, wrong / folder.RESULT)
    before = snapshot(copied.directory)
    assert copied.main() == 2
    message = capsys.readouterr().err
    assert str(wrong) in message and f"belongs to another trial, {right.name}" in message
    after = snapshot(copied.directory)
    assert {path: after[path][1] for path in after} == {path: before[path][1] for path in before}


def test_a_stale_trial_that_today_s_code_cannot_read_is_flagged(copied, no_ray):
    """A folder of an older recipe, whose config had a setting that is gone: stale, not in the way."""
    stale = folder.trial_json(copied.trials["cnn5", 0])
    stale |= {"key": "0" * 16, "recipe_version": RECIPE_VERSION - 1}
    stale["config"]["train"]["momentum"] = 0.9
    files.write_json(copied.directory / "trials" / ("0" * 16) / folder.TRIAL, stale)
    assert copied.main() == 0
    assert "0000000000000000" in (copied.directory / "leaderboard.md").read_text()


@pytest.mark.parametrize("name", [folder.EPOCHS, folder.FAILURE])
def test_a_damaged_file_is_named_and_hides_no_other_trial(copied, no_ray, capsys, name):
    """In a folder that the sweep no longer names: named by its path; everything else is logged and tabled."""
    left, remaining = copied.trial_dirs["cerdeq", 0], copied.trials["cnn5", 0].key
    study = Study(copied.root, {**TINY, "trials": TINY["trials"][:1]}, copied.store)
    if name == folder.FAILURE:
        (left / folder.RESULT).unlink()
    (left / name).write_text("{")
    left = left.rename(left.with_name("0" * 16))  # first in order
    MlflowClient(study.store).delete_run(study.runs[remaining].info.run_id)
    assert study.main() == 0, "nothing that the sweep asks for is missing"
    captured = capsys.readouterr()
    assert str(left / name) in captured.out + captured.err
    assert "cnn5" in (study.directory / "leaderboard.md").read_text()
    assert study.runs[remaining].info.status == "FINISHED"


def exchange_errors(trial_dir):
    result = json.loads((trial_dir / folder.RESULT).read_text())
    result["metrics"] |= {names.STANDARD_ERROR: 90.0, names.CERTIFIED_ERROR: 10.0}
    (trial_dir / folder.RESULT).write_text(json.dumps(result))


def test_a_finished_trial_that_cannot_be_used_fails_the_run_which_names_it(copied, no_ray, capsys):
    trial_dir, good = copied.trial_dirs["cnn5", 0], copied.root / "good"
    shutil.copytree(trial_dir, good)
    for spoil, message in (
        (exchange_errors, "standard <= attack <= certified error does not hold"),
        (lambda trial_dir: (trial_dir / folder.WEIGHTS).unlink(), f"{folder.WEIGHTS} is missing"),
        (lambda trial_dir: (trial_dir / folder.VERDICTS).unlink(), f"{folder.VERDICTS} is missing"),
        (lambda trial_dir: (trial_dir / folder.VERDICTS).unlink(), f"{folder.VERDICTS} is missing"),  # and again
    ):
        shutil.rmtree(trial_dir)
        shutil.copytree(good, trial_dir)
        spoil(trial_dir)
        assert copied.main() == 1
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("cannot be used: "))
        assert "cnn5 ibp seed 0" in line and str(trial_dir) in line and message in line
    assert copied.main("--only", "cerdeq*") == 0, "of the selected trials nothing is missing"


def test_an_old_failure_is_not_reported_as_a_new_one(copied, monkeypatch, capsys):
    """A worker dies before it begins: the reason is that, not what failure.json holds from last week."""
    trial_dir = copied.trial_dirs["cnn5", 0]
    (trial_dir / folder.RESULT).unlink()
    files.write_json(trial_dir / folder.FAILURE, {"error": "RuntimeError: last week's", "last_finite": {}})

    def dies_at_once(items, work, listener, options, directory):
        listener.on_end(next(items), "its worker failed 3 times: it died")

    monkeypatch.setattr(ray_tune, "run_on_ray", dies_at_once)
    assert copied.main() == 1
    assert "it died" in folder.read_failure(trial_dir).error
    assert "last week" not in capsys.readouterr().out
