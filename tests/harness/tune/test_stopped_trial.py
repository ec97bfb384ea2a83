"""Trials that are stopped go on to the very same results, one or several by `harness.run --here`."""

import os
import shutil
import signal

import pandas as pd
import pytest
from harness.tune.run_sweep import SweepListener
from safetensors.torch import load_file

from harness.command_line import FAILED, OK, TERMINATED, main
from harness.common import names
from harness.data import load
from harness.storage import files, folder, ranges, training_record
from harness.storage.folder import make_trial, trial_json
from harness.training import train_and_certify


@pytest.fixture
def trial_file(tiny_trial, tmp_path):
    """A function of changed fields to the trial.json of a trial of two epochs and its trial_dir."""

    def make(**changes):
        train = {"epochs": 2, "ramp_epochs": 1, **changes.pop("train", {})}
        made = make_trial(tiny_trial(train_images=128, train=train, **changes), load("digits").fingerprint)
        files.write_json(tmp_path / f"{made.key}.json", trial_json(made))
        return tmp_path / f"{made.key}.json", folder.trial_dir(tmp_path / "results/tiny", made.key)

    return make


def call(tmp_path, *options):
    return main("run", ["--here", *map(str, options), "--results-dir", str(tmp_path / "results")])


class Killed(BaseException):
    """What ends a trial at once, as a kill does."""


def killed_after(reports, rows=None):
    """A report that ends a trial at the next one after so many, those of other kinds than epochs and batches apart."""

    def report(row):
        nonlocal reports
        if rows is not None:
            rows.append(row)
        reports -= 1
        if reports < 0:
            raise Killed

    return report


def batches(rows):
    """Return the numbers of evaluated and of all images that a trial reported."""
    return [(row[names.EVALUATED], row[names.IMAGES]) for row in rows if names.EVALUATED in row]


def in_four_ranges(config):
    return config.replace(evaluation=config.evaluation.replace(batch_size=16))


def test_a_trial_done_in_pieces_ends_like_one_done_at_once(tiny_trial, tmp_path):
    """Each call ends after one epoch, one range of the evaluation, or what equilibria do; nothing is done twice."""
    few = {"iterations": 4, "backward_iterations": 4}
    config = in_four_ranges(tiny_trial("cerdeq", eps="1/4", train_images=128, train={"eps": "1/32"}, options=few))
    at_once = train_and_certify(config, tmp_path / "at_once")
    rows, calls = [], 0
    while folder.read_result(tmp_path / "pieces") is None:
        calls += 1
        try:
            train_and_certify(config, tmp_path / "pieces", killed_after(1, rows), save_seconds=0)
        except Killed:
            assert folder.read_failure(tmp_path / "pieces") is None
    assert calls == 7, "3 epochs with the untrained network, and 4 ranges"
    assert [row[names.EPOCH] for row in rows if names.EPOCH in row] == [0, 1, 2, 3]
    assert dict.fromkeys(batches(rows)) == dict.fromkeys([(0, 60), (16, 60), (32, 60), (48, 60), (60, 60)])
    pieces = folder.read_result(tmp_path / "pieces")
    metrics = {name: value for name, value in at_once.metrics.items() if "seconds" not in name}
    assert metrics == {name: pieces.metrics[name] for name in metrics} and len(metrics) > 10
    assert pieces.warnings == at_once.warnings
    tables = [pd.read_parquet(tmp_path / name / folder.VERDICTS) for name in ("at_once", "pieces")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    weights = [load_file(tmp_path / name / folder.WEIGHTS) for name in ("at_once", "pieces")]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    points = [(tmp_path / name / folder.COUNTEREXAMPLES).read_bytes() for name in ("at_once", "pieces")]
    assert points[0] == points[1] and len(load_file(tmp_path / "at_once" / folder.COUNTEREXAMPLES)) > 0
    assert not (tmp_path / "pieces" / ranges.RANGES).exists()


@pytest.fixture(scope="module")
def stopped(tiny_trial, tmp_path_factory):
    """A trial that was stopped after the first range of its evaluation, and its folder, which no test may change."""
    config, trial_dir = in_four_ranges(tiny_trial(train_images=128)), tmp_path_factory.mktemp("stopped")
    with pytest.raises(Killed):
        train_and_certify(config, trial_dir, killed_after(5))
    assert ranges.count_saved_images(trial_dir) == 16
    return config, trial_dir


@pytest.fixture
def begun(stopped, tmp_path):
    """The trial of a copy of that folder in tmp_path."""
    config, trial_dir = stopped
    shutil.copytree(trial_dir, tmp_path, dirs_exist_ok=True)
    return config


@pytest.mark.parametrize("damaged", ["a range", "other weights"])
def test_ranges_that_are_damaged_or_of_other_weights_are_evaluated_again(begun, tmp_path, damaged):
    if damaged == "other weights":
        (tmp_path / folder.CHECKPOINT).unlink()
        (tmp_path / folder.TRIAL).unlink()
        begun = begun.replace(seed=1)
    else:
        next(tmp_path.glob("ranges/*/00000-00016.pt")).write_bytes(b"nothing")
    rows = []
    train_and_certify(begun, tmp_path, rows.append)
    assert batches(rows) == [(0, 60), (16, 60), (32, 60), (48, 60), (60, 60)]


def test_several_trials_in_order_one_finished_one_that_fails(trial_file, tmp_path, capsys):
    (bad, worse), (first, trial_dir), (second, other) = (
        trial_file(train={"regularisation": 3e38}),
        trial_file(),
        trial_file(seed=1),
    )
    assert call(tmp_path, first) == OK
    capsys.readouterr()
    assert call(tmp_path, bad, first, second) == FAILED
    printed = capsys.readouterr()
    assert "failed cnn5 ibp seed 0: NonFiniteLossError: " in printed.out
    lines = [line for line in printed.out.splitlines() if " -> " in line]
    assert [str(where) in line for where, line in zip((trial_dir, worse, other), lines, strict=True)] == [True] * 3
    assert "finished" in lines[0]
    assert folder.read_result(other) is not None


def test_sigterm_ends_a_trial_and_the_same_command_goes_on(trial_file, tmp_path, capsys, monkeypatch):
    (first, trial_dir), (second, other) = trial_file(train={"epochs": 3}), trial_file(seed=1)

    def terminate(listener, item, row):
        if row.get(names.EPOCH) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(SweepListener, "on_report", terminate)
        assert call(tmp_path, first, second) == TERMINATED
    assert "stopped by SIGTERM; the same command continues" in capsys.readouterr().err
    assert [row[names.EPOCH] for row in training_record.read_epochs(trial_dir)] == [0, 1]
    assert folder.read_failure(trial_dir) is None and not (other / folder.EPOCHS).exists()
    assert call(tmp_path, first, second) == OK
    assert folder.read_result(trial_dir) is not None and folder.read_result(other) is not None
