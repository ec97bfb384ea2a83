"""Sweeps that were broken off, grew or had a trial that failed: the same command does what is left, no more."""

import json
import os
import signal
import time

import pytest
from processes import alive, wait_for, workers
from study import LONG, TINY, Study, snapshot, without_ray

from harness.common import names
from harness.storage import folder, training_record

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


def without_seconds(metrics):
    """The metrics that another evaluation must give again."""
    timed = (names.EVALUATION_SECONDS, names.seconds_of(""))
    return {name: value for name, value in metrics.items() if not name.startswith(timed)}


def test_a_missing_result_alone_is_made_again(copied):
    unfinished, other = copied.trial_dirs["cerdeq", 0], copied.trial_dirs["cnn5", 0]
    result = folder.read_result(unfinished)
    (unfinished / folder.RESULT).unlink()
    others, before = snapshot(other), snapshot(unfinished)
    run_ids = {key: run.info.run_id for key, run in copied.runs.items()}
    with without_ray():
        assert copied.main() == 0
    copied.assert_complete()
    assert snapshot(other) == others
    after = snapshot(unfinished)
    for name in (folder.CHECKPOINT, folder.EPOCHS, folder.TRIAL):
        assert after[unfinished / name] == before[unfinished / name], f"{name}: training went on past its end"
    again = folder.read_result(unfinished)
    assert without_seconds(again.metrics) == without_seconds(result.metrics)
    assert {key: run.info.run_id for key, run in copied.runs.items()} == run_ids


def test_more_seeds_train_only_the_new_ones(copied):
    """The sweep file grows: what is there stays."""
    before = snapshot(copied.directory / "trials")
    study = Study(copied.root, {**TINY, "seeds": [0, 1], "trials": TINY["trials"][:1]}, copied.store)
    with without_ray():
        assert study.main() == 0
    after = snapshot(copied.directory / "trials")
    assert {path: after[path] for path in before} == before
    assert folder.read_result(study.trial_dirs["cnn5", 1]) is not None
    rows = json.loads((study.directory / "leaderboard.json").read_text())
    assert {row["model"]: row["seeds"] for row in rows} == {"cnn5": 2, "cerdeq": 1}


def assert_goes_on(trial_dir, before):
    """Epochs that were there are there still, but for durations: those after the last checkpoint are trained again."""
    rows = training_record.read_epochs(trial_dir)
    assert without_times(rows[: len(before)]) == without_times(before)


def without_times(rows):
    times = (names.TRAIN_EPOCH_SECONDS, names.TRAIN_EXAMPLES_PER_SECOND)
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def stopped_in_the_middle(study, number, send=None):
    """Start the command, send it a signal once a trial has three epochs, and wait until no worker of it is left."""
    driver = study.start(start_new_session=True)
    try:
        wait_for(
            lambda: any(len(training_record.read_epochs(trial_dir)) > 2 for trial_dir in study.trial_dirs.values()), 150
        )
        running = workers(driver.pid)
        assert running, "trials run"
        (send or os.kill)(driver.pid, number)
        out, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    wait_for(lambda: not any(map(alive, running)), 15)
    left = {trial_dir: training_record.read_epochs(trial_dir) for trial_dir in study.trial_dirs.values()}
    assert any(folder.read_result(trial_dir) is None for trial_dir in left)
    time.sleep(1)
    assert {trial_dir: training_record.read_epochs(trial_dir) for trial_dir in left} == left, "nobody writes any more"
    return driver.returncode, out, err, left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "send"),
    [(signal.SIGINT, 130, None), (signal.SIGTERM, 143, None), (signal.SIGTERM, 143, os.killpg)],
    ids=["ctrl-c", "sigterm", "sigterm to the group, as of timeout"],
)
def test_after_a_signal_the_same_command_goes_on(tmp_path, store, cluster, number, status, send):
    """MLflow says that nobody runs."""
    name = f"stopped-{status}-{send is None}"
    study = Study(tmp_path, {**LONG, "name": name, "seeds": [0, 1]}, store)
    returned, out, err, left = stopped_in_the_middle(study, number, send)
    assert returned == status
    assert err.splitlines()[-1].startswith("stopped by ") and "the same command continues" in err
    assert "Traceback" not in out + err
    assert {run.info.status for run in study.runs.values()} <= {"KILLED", "FINISHED"}
    unfinished = [trial_dir for trial_dir in left if folder.read_result(trial_dir) is None]
    assert "KILLED" in {study.runs[trial_dir.name].info.status for trial_dir in unfinished}
    assert study.main() == 0
    study.assert_complete()
    for trial_dir, before in left.items():
        assert_goes_on(trial_dir, before)
