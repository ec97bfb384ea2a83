"""Sweeps that were broken off or grew: the same command does what is left, no more."""

import json
import os
import signal
import time

import pytest
from processes import alive, wait_for, workers
from study import LONG, TINY, Study, snapshot, without_ray

from harness.common import names
from harness.storage import folder, training_progress

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


def without_seconds(metrics):
    """The metrics that another evaluation must give again."""
    timed = (names.EVALUATION_SECONDS, names.seconds_of(""))
    return {name: value for name, value in metrics.items() if not name.startswith(timed)}


def test_a_missing_result_alone_is_made_again(copied):
    unfinished, other = copied.network_dirs["cerdeq", 0], copied.network_dirs["cnn5", 0]
    evaluation_dir = copied.evaluation_dirs["cerdeq", 0]
    result = folder.read_result(evaluation_dir)
    (evaluation_dir / folder.RESULT).unlink()
    others, before = snapshot(other), snapshot(unfinished)
    run_ids = {key: run.info.run_id for key, run in copied.runs.items()}
    with without_ray():
        assert copied.main() == 0
    copied.assert_complete()
    assert snapshot(other) == others
    after = snapshot(unfinished)
    for name in (folder.CHECKPOINT, folder.EPOCHS, folder.TRAINING):
        assert after[unfinished / name] == before[unfinished / name], f"{name}: training went on past its end"
    again = folder.read_result(evaluation_dir)
    assert without_seconds(again.metrics) == without_seconds(result.metrics)
    assert {key: run.info.run_id for key, run in copied.runs.items()} == run_ids


def test_more_seeds_train_only_the_new_ones(copied):
    """The sweep file grows: what is there stays."""
    before = snapshot(copied.directory / folder.NETWORKS)
    study = Study(copied.root, {**TINY, "seeds": [0, 1], "trials": TINY["trials"][:1]}, copied.store)
    with without_ray():
        assert study.main() == 0
    after = snapshot(copied.directory / folder.NETWORKS)
    assert {path: after[path] for path in before} == before
    assert folder.read_result(study.evaluation_dirs["cnn5", 1]) is not None
    rows = json.loads((study.directory / "leaderboard.json").read_text())
    assert {row["model"]: row["seeds"] for row in rows} == {"cnn5": 2}


def assert_goes_on(network_dir, before):
    """Epochs that were there are there still, but for durations: those after the last checkpoint are trained again."""
    rows = training_progress.read_epochs(network_dir)
    assert without_times(rows[: len(before)]) == without_times(before)


def without_times(rows):
    times = (names.TRAIN_EPOCH_SECONDS, names.TRAIN_EXAMPLES_PER_SECOND)
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def stopped_in_the_middle(study, number, send=None):
    """Start the command, send it a signal once a network has three epochs, and wait until no worker of it is left."""
    driver = study.start(start_new_session=True)
    try:
        wait_for(
            lambda: any(
                len(training_progress.read_epochs(network_dir)) > 2 for network_dir in study.network_dirs.values()
            ),
            400,
        )
        running = workers(driver.pid)
        assert running, "items run"
        (send or os.kill)(driver.pid, number)
        out, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    wait_for(lambda: not any(map(alive, running)), 15)
    left = {network_dir: training_progress.read_epochs(network_dir) for network_dir in study.network_dirs.values()}
    assert any(folder.read_result(path) is None for path in study.evaluation_dirs.values())
    time.sleep(1)
    assert {network_dir: training_progress.read_epochs(network_dir) for network_dir in left} == left, (
        "nobody writes any more"
    )
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
    unfinished = [
        folder.network_of(path) for path in study.evaluation_dirs.values() if folder.read_result(path) is None
    ]
    assert "KILLED" in {study.runs[network_dir.name].info.status for network_dir in unfinished}
    assert study.main() == 0
    study.assert_complete()
    for network_dir, before in left.items():
        assert_goes_on(network_dir, before)
