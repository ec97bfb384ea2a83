"""Sweeps that were broken off, grew or had a trial that failed: the same command does what is left, no more."""

import json
import os
import signal
import threading
import time

import pytest
import torch
from processes import alive, wait_for, workers
from study import LONG, TINY, Study, snapshot

from harness.storage import folder, names

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


def without_seconds(metrics):
    """The metrics that another evaluation must give again."""
    timed = (names.EVALUATION_SECONDS, names.seconds_of(""))
    return {name: value for name, value in metrics.items() if not name.startswith(timed)}


def test_a_missing_result_alone_is_made_again(copied, cluster):
    lost, kept = copied.places["cerdeq", 0], copied.places["cnn5", 0]
    result = folder.read_result(lost)
    (lost / folder.RESULT).unlink()
    others, before, run_ids = snapshot(kept), snapshot(lost), {key: r.info.run_id for key, r in copied.runs.items()}
    assert copied.main() == 0
    copied.assert_complete()
    assert snapshot(kept) == others
    after = snapshot(lost)
    for name in (folder.CHECKPOINT, folder.EPOCHS, folder.TRIAL):
        assert after[lost / name] == before[lost / name], f"{name} was written again: training went on past its end"
    again = folder.read_result(lost)
    assert without_seconds(again.metrics) == without_seconds(result.metrics)
    assert {key: r.info.run_id for key, r in copied.runs.items()} == run_ids


@pytest.mark.slow
def test_more_seeds_train_only_the_new_ones(copied, cluster):
    """The sweep file grows: what is there stays."""
    before = snapshot(copied.directory / "trials")
    grown = {**TINY, "seeds": [0, 1], "trials": [{"model": "cnn5", "method": "ibp"}]}
    study = Study(copied.root, grown, copied.store)
    assert study.main() == 0
    after = snapshot(copied.directory / "trials")
    assert {path: after[path] for path in before} == before
    assert folder.read_result(study.places["cnn5", 1]) is not None
    rows = json.loads((study.directory / "leaderboard.json").read_text())
    assert {row["model"]: row["seeds"] for row in rows} == {"cnn5": 2, "cerdeq": 1}


@pytest.mark.slow
def test_a_trial_that_diverges_is_told_and_harms_no_other(tmp_path, store, cluster, capfd):
    trials = [
        {"model": "cnn5", "method": "plain"},
        {"model": "cnn7", "method": "ibp"},
    ]  # plain has no boxes to regularise
    train = {**TINY["train"], "learning_rate": 0.9, "clip_norm": 1e30, "regularisation": 1e35}
    content = {**TINY, "name": "diverging", "eps": 1, "train": train, "trials": trials}
    study = Study(tmp_path, content, store)
    assert study.main() == 1
    printed = capfd.readouterr()
    well, bad = study.places["cnn5", 0], study.places["cnn7", 0]
    assert folder.read_result(well) is not None
    assert folder.read_result(bad) is None
    failure = folder.read_failure(bad)
    assert "NonFiniteLossError" in failure["error"]
    assert "epoch 1" in failure["error"]
    assert failure["last_finite"][names.EPOCH] == 1
    assert failure["last_finite"][names.TRAIN_LOSS] > 0
    assert study.runs[well.name].info.status == "FINISHED"
    assert study.runs[bad.name].info.status == "FAILED"
    assert "NonFiniteLossError" in study.runs[bad.name].data.tags["error"]
    assert "failed cnn7 ibp seed 0: NonFiniteLossError" in printed.out
    assert "non-finite" in (study.directory / "leaderboard.md").read_text()
    assert printed.err == ""
    assert "Trial " not in printed.out, "Tune's own words"
    assert study.files() >= {"leaderboard.md"}
    assert not {name for name in study.files() if "ray" in name}


def test_more_than_the_machine_has_is_bad_input(tmp_path, store, cluster, capsys):
    study = Study(tmp_path, {**TINY, "name": "large", "resources": {"cpu": 64}}, store)
    assert study.main() == 2
    assert "64 CPU" in capsys.readouterr().err


# Kills.


def assert_goes_on(place, before):
    """Epochs that were there are there still, but for durations: those after the last checkpoint are trained again."""
    rows = folder.read_epochs(place)
    assert without_times(rows[: len(before)]) == without_times(before)


def without_times(rows):
    times = (names.TRAIN_EPOCH_SECONDS, names.TRAIN_EXAMPLES_PER_SECOND)
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def stopped_in_the_middle(study, *numbers):
    """Start the command, send it the signals once a trial has three epochs, and wait until no worker of it is left."""
    driver = study.start()
    try:
        wait_for(lambda: any(len(folder.read_epochs(place)) > 2 for place in study.places.values()), 150)
        running = workers(driver.pid)
        assert running, "trials run"
        for number in numbers:
            driver.send_signal(number)
            time.sleep(0.02)  # else two would be seen as one
        out, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    wait_for(lambda: not any(map(alive, running)), 15)
    left = {place: folder.read_epochs(place) for place in study.places.values()}
    assert any(folder.read_result(place) is None for place in left)
    time.sleep(1)
    assert {place: folder.read_epochs(place) for place in left} == left, "nobody writes any more"
    return driver.returncode, out, err, left


def assert_the_same_command_finishes(study, left):
    assert study.main() == 0
    study.assert_complete()
    for place, before in left.items():
        assert_goes_on(place, before)


@pytest.mark.slow
def test_after_a_killed_driver_the_same_command_goes_on(tmp_path, store, cluster):
    study = Study(tmp_path, {**LONG, "name": "killed", "seeds": [0, 1, 2]}, store)
    *_, left = stopped_in_the_middle(study, signal.SIGKILL)
    assert_the_same_command_finishes(study, left)


@pytest.mark.slow
def test_a_killed_worker_s_trial_goes_on_within_the_same_command(tmp_path, store, cluster, caplog, capsys):
    study = Study(tmp_path, {**LONG, "name": "worker"}, store)
    (place,) = study.places.values()
    before, killed = [], []

    def kill():
        wait_for(lambda: len(folder.read_epochs(place)) > 2)
        killed.extend(workers(os.getpid()))
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        before.extend(folder.read_epochs(place))

    killer = threading.Thread(target=kill)
    killer.start()
    assert study.main() == 0
    killer.join()
    assert killed
    assert 3 <= len(before) < 12
    study.assert_complete()
    assert_goes_on(place, before)
    assert "Traceback" not in capsys.readouterr().out
    assert not caplog.records, "a retry is nobody's business, and Tune's traceback would tear the live table"


@pytest.mark.slow
@pytest.mark.parametrize("signals", [["SIGINT"], ["SIGTERM"], ["SIGINT", "SIGINT"]], ids="-".join)
def test_after_a_signal_the_same_command_goes_on(tmp_path, store, cluster, signals):
    """Once: epochs are ended and kept, tables are written. Twice: at once. MLflow says either way that nobody runs."""
    times = len(signals)
    study = Study(tmp_path, {**LONG, "name": "-".join(["stopped", *signals]), "seeds": [0, 1]}, store)
    status, out, err, left = stopped_in_the_middle(study, *[signal.Signals[name] for name in signals])
    assert status == (3 if times == 1 else 130)
    assert "stopped; " in err
    assert "the same command goes on" in err
    assert "Traceback" not in out + err
    assert "running trials end with their epoch" in out
    assert not [name for name in study.files() if name in (".ray", folder.STOP)]
    assert ("leaderboard.md" in study.files()) == (times == 1)
    assert {run.info.status for run in study.runs.values()} <= {"KILLED", "FINISHED"}
    unfinished = [place for place in left if folder.read_result(place) is None]
    assert "KILLED" in {study.runs[place.name].info.status for place in unfinished}
    if times == 1:
        kept = {place: torch.load(place / folder.CHECKPOINT)["epoch"] for place in unfinished if left[place]}
        assert kept == {place: left[place][-1][names.EPOCH] for place in kept}
    assert_the_same_command_finishes(study, left)
