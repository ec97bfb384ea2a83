"""Networks that are stopped go on to the very same results."""

import os
import shutil
import signal

import pytest
from one_network import train_and_evaluate
from safetensors.torch import load_file
from small_sweep import write
from study import TINY

from harness.command_line import OK, TERMINATED, main
from harness.common import names
from harness.storage import folder, ranges, training_progress
from harness.work.display import StudyProgress


class Killed(BaseException):
    """What ends a job at once, as a kill does."""


def killed_after(reports, rows=None):
    """A report that ends a job at the next one after so many, those of other kinds than epochs and batches apart."""

    def report(row):
        nonlocal reports
        if rows is not None:
            rows.append(row)
        reports -= 1
        if reports < 0:
            raise Killed

    return report


def batches(rows):
    """Return the numbers of evaluated and of all images that a job reported."""
    return [(row[names.EVALUATED], row[names.IMAGES]) for row in rows if names.EVALUATED in row]


@pytest.fixture(scope="module")
def in_four_ranges(tiny_evaluation):
    return [tiny_evaluation(batch_size=16)]


def test_a_network_done_in_pieces_ends_like_one_done_at_once(tiny_training, tiny_evaluation, tmp_path):
    """Each call ends at its second report, of an epoch or of a range of images; nothing is done twice."""
    few = {"iterations": 4, "backward_iterations": 4}
    config = tiny_training("cerdeq", train_images=128, train={"eps": "1/32"}, options=few)
    evaluations = [tiny_evaluation(eps="1/4", batch_size=16), tiny_evaluation(eps="1/8", batch_size=30)]
    at_once, pieces = tmp_path / "at_once", tmp_path / "pieces"
    train_and_evaluate(config, evaluations, at_once)
    rows, calls = [], 0
    while any(folder.read_result(folder.evaluation_dir(pieces, each)) is None for each in evaluations):
        calls += 1
        try:
            train_and_evaluate(config, evaluations, pieces, killed_after(1, rows), save_seconds=0)
        except Killed:
            assert not list(pieces.rglob(folder.FAILURE))
    assert calls == 6, "four reports of epochs and six of ranges"
    assert [row[names.EPOCH] for row in rows if names.EPOCH in row] == [0, 1, 2, 3]
    counts = [16, 32, 48, 60, 30, 60]
    assert dict.fromkeys(batches(rows)) == dict.fromkeys([(count, 60) for count in counts])
    for evaluation in evaluations:
        first, second = (folder.evaluation_dir(path, evaluation) for path in (at_once, pieces))
        results = [folder.read_result(path) for path in (first, second)]
        metrics = {name: value for name, value in results[0].metrics.items() if "seconds" not in name}
        assert metrics == {name: results[1].metrics[name] for name in metrics} and len(metrics) > 10
        assert results[0].warnings == results[1].warnings
        for name in (folder.VERDICTS, folder.COUNTEREXAMPLES):
            assert (first / name).read_bytes() == (second / name).read_bytes()
        assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
        assert not (second / ranges.RANGES).exists()
    assert (at_once / folder.WEIGHTS).read_bytes() == (pieces / folder.WEIGHTS).read_bytes()
    assert len(load_file(folder.evaluation_dir(at_once, evaluations[0]) / folder.COUNTEREXAMPLES)) > 0


@pytest.fixture(scope="module")
def stopped(tiny_training, in_four_ranges, tmp_path_factory):
    """A training that was stopped after the first range of its evaluation, and its folder, which no test may change."""
    config, network_dir = tiny_training(train_images=128), tmp_path_factory.mktemp("stopped")
    with pytest.raises(Killed):
        train_and_evaluate(config, in_four_ranges, network_dir, killed_after(4))
    assert ranges.count_saved_images(folder.evaluation_dir(network_dir, *in_four_ranges)) == 16
    return config, network_dir


@pytest.fixture
def begun(stopped, tmp_path):
    """The training of a copy of that folder in tmp_path."""
    config, network_dir = stopped
    shutil.copytree(network_dir, tmp_path, dirs_exist_ok=True)
    return config


@pytest.mark.parametrize("damaged", ["a range", "other weights"])
def test_ranges_that_are_damaged_or_of_other_weights_are_evaluated_again(begun, tmp_path, damaged, in_four_ranges):
    if damaged == "other weights":
        for name in (folder.CHECKPOINT, folder.TRAINING, folder.TRAINED):
            (tmp_path / name).unlink()
        begun = begun.replace(seed=1)
    else:
        next(tmp_path.glob("evaluations/*/ranges/*/00000-00016.pt")).write_bytes(b"nothing")
    rows = []
    train_and_evaluate(begun, in_four_ranges, tmp_path, rows.append)
    assert batches(rows) == [(16, 60), (32, 60), (48, 60), (60, 60)]


def test_sigterm_ends_a_network_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    file = write(tmp_path, {**TINY, "seeds": [0, 1], "trials": TINY["trials"][:1]})

    def call():
        return main("run", [str(file), "--here", "--results-dir", str(tmp_path / "results")])

    def terminate(listener, job, row):
        if row.get(names.EPOCH) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StudyProgress, "on_report", terminate)
        assert call() == TERMINATED
    assert "stopped by SIGTERM; the same command continues" in capsys.readouterr().err
    network_dirs = folder.network_folders(tmp_path / "results/tiny")
    epochs = [[row[names.EPOCH] for row in training_progress.read_epochs(path)] for path in network_dirs]
    assert sorted(epochs) == [[], [0, 1]]
    assert not any(folder.read_failure(path) for path in network_dirs)
    assert call() == OK
    assert all(folder.read_result(*folder.evaluation_folders(path)) for path in network_dirs)
