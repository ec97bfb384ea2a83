"""One network, from config to weights and verdicts in its folder: resumed, failed, collapsed, finished."""

import math

import pandas as pd
import pytest
import torch
from one_network import jobs_of, train_and_evaluate
from safetensors.torch import load_file
from steppers import Killed, train_network

import cerdeq
from cerdeq.equilibrium import contraction
from harness.common import names
from harness.common.errors import InputError
from harness.data import load
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.network import load_network, prepare_network
from harness.evaluation.ranges import OpenEvaluation
from harness.evaluation.verdicts import evaluate_images
from harness.machine.environment import source_digest
from harness.storage import folder, ranges, training_progress
from harness.storage.files import DamagedFileError
from harness.storage.state import State, read_state
from harness.training import NonFiniteLossError, loop
from harness.work.jobs import do_job


def test_a_network_leaves_everything_that_its_numbers_rest_on(tiny_training, tiny_evaluation, whole_network):
    network_dir, rows = whole_network("cerdeq")
    directory = folder.evaluation_dir(network_dir, tiny_evaluation())
    assert [row[names.EPOCH] for row in rows] == [0, 1, 2, 3]
    assert rows == training_progress.read_epochs(network_dir)
    widths = {names.in_training(names.BOUND_WIDTH), "train/bound_width/relu1"}
    assert {names.TRAIN_LOSS, names.TRAIN_EPS} | widths <= rows[1].keys()
    metrics = folder.read_result(directory).metrics
    assert metrics.items() >= folder.read_trained(network_dir).metrics.items()
    assert metrics[names.STANDARD_ERROR] <= metrics[names.ATTACK_ERROR] <= metrics[names.CERTIFIED_ERROR]
    verdicts = pd.read_parquet(directory / folder.VERDICTS)
    assert len(verdicts) == 60
    assert metrics[names.CERTIFIED_ERROR] == pytest.approx(100 * (verdicts[names.VERDICT] != "certified").mean())
    assert metrics[names.BOUND_WIDTH] == pytest.approx(verdicts[names.WIDTH].mean())
    falsified = verdicts.loc[verdicts[names.VERDICT] == "falsified", names.INDEX]
    assert set(load_file(directory / folder.COUNTEREXAMPLES)) == set(map(str, falsified))
    model = load_network(tiny_training("cerdeq"), network_dir / folder.WEIGHTS)
    weight = model.equilibrium.recurrence.weight
    assert metrics[names.RHO_BOUND] == contraction(weight).rate < 0.7
    assert 0 < metrics[names.GAIN] < 1
    assert metrics[names.ITERATIONS] >= 1
    assert metrics[names.CERTIFIED_ERROR_W0] >= metrics[names.STANDARD_ERROR_W0]
    assert "equilibrium.recurrence.weight" in load_file(network_dir / folder.WEIGHTS)
    assert not (directory / ranges.RANGES).exists()


def test_training_in_bf16_leaves_evaluation_in_float64(tmp_path, tiny_training, tiny_evaluation):
    config, evaluation = (
        tiny_training("cerdeq", train_images=128, train={"precision": "bf16", "epochs": 2}),
        tiny_evaluation(),
    )
    train_and_evaluate(config, [evaluation], tmp_path)
    assert not torch.is_autocast_enabled("cpu")
    assert {tensor.dtype for tensor in load_file(tmp_path / folder.WEIGHTS).values()} <= {torch.float32, torch.int64}
    model, test = load_network(config, tmp_path / folder.WEIGHTS), load("digits").test_images(60)
    network = prepare_network(model, evaluation.stages, 10)
    verdicts = evaluate_images(network, test.images, test.labels, 0, evaluation).verdicts
    table = pd.read_parquet(folder.evaluation_dir(tmp_path, evaluation) / folder.VERDICTS)
    pd.testing.assert_frame_equal(verdicts, table, atol=1e-4)


def test_widths_of_the_untrained_network_that_overflow_become_null(tmp_path, tiny_training, monkeypatch):
    monkeypatch.setattr(loop, "monitor_untrained", lambda *_: {"train/bound_width": math.inf, "b": math.nan})
    rows = []
    train_network(tiny_training(), tmp_path, rows.append)
    expected = {names.EPOCH: 0, names.TRAIN_EPS: 0.0, "train/bound_width": None, "b": None}
    assert rows[0] == training_progress.read_epochs(tmp_path)[0] == expected


def test_a_loss_that_is_not_finite_stops_training(tmp_path, tiny_training, monkeypatch):
    method = loop.Stepper.__call__

    def diverging(stepper, choices, eps, rate):
        report = method(stepper, choices, eps, rate)
        return report * math.nan if eps > 0.02 else report

    monkeypatch.setattr(loop.Stepper, "__call__", diverging)
    with pytest.raises(NonFiniteLossError, match="epoch 2, step"):
        train_network(tiny_training(), tmp_path)
    failure = folder.read_failure(tmp_path)
    assert "non-finite in epoch 2" in failure.error
    assert math.isfinite(failure.last_finite[names.TRAIN_LOSS])
    assert folder.read_trained(tmp_path) is None
    assert [row[names.EPOCH] for row in training_progress.read_epochs(tmp_path)] == [0, 1]
    monkeypatch.undo()
    train_network(tiny_training(), tmp_path)
    assert folder.read_failure(tmp_path) is None


def test_weights_that_are_not_finite_stop_training_too(tmp_path, tiny_training, monkeypatch):
    method = loop.Stepper.__call__

    def breaking(stepper, choices, eps, rate):
        report = method(stepper, choices, eps, rate)
        stepper.model.classifier.weight.data.fill_(math.inf)
        return report

    monkeypatch.setattr(loop.Stepper, "__call__", breaking)
    with pytest.raises(NonFiniteLossError):
        train_network(tiny_training(), tmp_path)


def test_a_collapsed_network_is_warned_about(tmp_path, tiny_training, tiny_evaluation):
    config, evaluation = (
        tiny_training(train={"epochs": 1, "ramp_epochs": 0, "learning_rate": 1e-9}),
        tiny_evaluation(eps="1"),
    )
    train_and_evaluate(config, [evaluation], tmp_path)
    directory = folder.evaluation_dir(tmp_path, evaluation)
    result = folder.read_result(directory)
    assert result.metrics[names.CERTIFIED_ERROR] == 100
    predictions = pd.read_parquet(directory / folder.VERDICTS)[names.PREDICTION]
    assert predictions.value_counts(normalize=True).iloc[0] >= 0.99
    assert any("collapsed" in warning for warning in result.warnings)


FEW = {"epochs": 1, "ramp_epochs": 0}


@pytest.fixture
def small(tiny_training):
    return tiny_training("fc", options={"hidden": [8]}, width=1.0, train=FEW)


def result_of(network_dir, evaluation):
    return folder.read_result(folder.evaluation_dir(network_dir, evaluation))


def contents(network_dir, evaluation):
    """The files of an evaluation; of result.json all but seconds."""
    directory = folder.evaluation_dir(network_dir, evaluation)
    files = {
        path.name: path.read_bytes() for path in directory.iterdir() if path.name not in (folder.LOG, folder.RESULT)
    }
    result = result_of(network_dir, evaluation)
    return files, {name: value for name, value in result.metrics.items() if "seconds" not in name}, result.warnings


def test_both_logs_have_what_was_done_and_what_stopped_it(small, tiny_evaluation, tmp_path, monkeypatch):
    evaluation = tiny_evaluation()

    def fail(*_):
        raise ValueError("no bounds today")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no bounds"):
        patch.setattr(OpenEvaluation, "evaluate_range", fail)
        train_and_evaluate(small, [evaluation], tmp_path)
    train_and_evaluate(small, [evaluation], tmp_path)
    directory = folder.evaluation_dir(tmp_path, evaluation)
    parts = ["evaluating", "stopped", "Traceback", "no bounds today", "evaluating", "done"]
    for path, expected in ((tmp_path, ["fc ibp", "epoch 0", "epoch 1"]), (directory, parts)):
        text, position = (path / folder.LOG).read_text(), 0
        for part in expected:
            position = text.index(part, position) + 1
        assert text.count("Traceback") == expected.count("Traceback")


@pytest.mark.parametrize("fault", ["a range", "a damaged record"])
def test_an_error_of_an_evaluation_is_noted_in_its_folder_alone(small, tiny_evaluation, tmp_path, monkeypatch, fault):
    before, bad = tiny_evaluation(eps="1/8", test_images=10), tiny_evaluation(test_images=10)
    directory, evaluate = folder.evaluation_dir(tmp_path, bad), OpenEvaluation.evaluate_range
    directory.mkdir(parents=True)

    def fail(opened, images):
        if opened.evaluation == bad:
            raise SoundnessError("contradicted")
        evaluate(opened, images)

    if fault == "a range":
        monkeypatch.setattr(OpenEvaluation, "evaluate_range", fail)
    else:
        (directory / folder.EVALUATION).write_text("{")
    with pytest.raises(SoundnessError if fault == "a range" else InputError):
        train_and_evaluate(small, [before, bad], tmp_path)
    failure = folder.read_failure(directory)
    assert failure.repeats == (fault == "a range") and failure.error
    assert (
        folder.read_failure(tmp_path) is None and folder.read_failure(folder.evaluation_dir(tmp_path, before)) is None
    )
    assert folder.read_result(directory) is None and result_of(tmp_path, before) is not None
    monkeypatch.undo()
    if fault == "a damaged record":
        (directory / folder.EVALUATION).unlink()
    train_and_evaluate(small, [before, bad], tmp_path)
    assert result_of(tmp_path, bad) is not None and folder.read_failure(directory) is None


@pytest.mark.parametrize("fault", ["a bug", "a contradiction"])
def test_a_fault_of_a_stage_is_no_verdict(fault, small, tiny_evaluation, tmp_path, monkeypatch):
    """It ends the evaluation with its traceback in the log; the weights stay, and the next call evaluates."""
    evaluation = tiny_evaluation(stages=("ibp", "bab"), eps="1/8", bab_seconds=None, bab_branches=1)
    directory = folder.evaluation_dir(tmp_path, evaluation)
    answer = cerdeq.Verification(["certified"], torch.tensor([[-1.0]]), torch.zeros(1), torch.ones(1), [])

    def verify(*_, **__):
        return answer.status[5] if fault == "a bug" else answer

    with monkeypatch.context() as patch, pytest.raises(IndexError if fault == "a bug" else SoundnessError):
        patch.setattr(cerdeq, "verify", verify)
        patch.setattr("harness.evaluation.attack.worst_point", lambda model, x, *_: x)  # leaves images to the stage
        train_and_evaluate(small, [evaluation], tmp_path)
    state, weights = read_state(directory), (tmp_path / folder.WEIGHTS).read_bytes()
    assert state.state is State.FAILED and state.trained is not None
    assert state.fails_again == (fault == "a contradiction")
    log = (directory / folder.LOG).read_text()
    assert "Traceback" in log and "in _branch_and_bound" in log
    train_and_evaluate(small, [evaluation], tmp_path)
    assert read_state(directory).state is State.FINISHED and (tmp_path / folder.WEIGHTS).read_bytes() == weights


def test_ranges_of_a_long_evaluation_are_jobs_of_their_own_and_a_further_one_joins_them(
    small, tiny_evaluation, tmp_path
):
    """In any order, to the files of a network that was done at once."""
    short, long = tiny_evaluation(test_images=20, batch_size=10, eps="1/8"), tiny_evaluation(batch_size=10)
    searching = tiny_evaluation(stages=("ibp", "bab"), test_images=4, batch_size=2, bab_seconds=None, bab_branches=1)
    asked, shared = [short, long, searching], tmp_path / "shared"
    first, *ranges_of_long, join, one, other, last = jobs_of(small, asked, shared)
    assert first.trains and first.evaluation == short and first.ends_evaluation
    assert [job.part.images for job in ranges_of_long] == [range(at, at + 10) for at in range(0, 60, 10)]
    assert all(job.after == (first,) for job in ranges_of_long) and join.after == tuple(ranges_of_long)
    assert one.after == other.after == (join,) and last.after == (one, other) and last.evaluation == searching
    for job in (first, *reversed(ranges_of_long), join, other, one, last):
        do_job(job, lambda row: None, None, source_digest())
    train_and_evaluate(small, asked, tmp_path / "expected")
    for evaluation in asked:
        assert contents(shared, evaluation) == contents(tmp_path / "expected", evaluation)


def test_a_join_without_all_ranges_is_refused(small, tiny_evaluation, tmp_path):
    """As where machines of other kinds have evaluated some."""
    first, *shared, join = jobs_of(small, [tiny_evaluation(batch_size=10)], tmp_path)
    for job in (first, *shared[1:]):
        do_job(job, lambda row: None, None, source_digest())
    with pytest.raises(
        InputError, match=r"evaluated images: found '50 in .*allowed: all 60; data, devices or versions"
    ):
        do_job(join, lambda row: None, None, source_digest())
    assert folder.read_failure(join.evaluation_dir) is not None


def test_a_range_of_other_weights_is_not_evaluated(small, tiny_evaluation, tmp_path):
    first, job, *_ = jobs_of(small, [tiny_evaluation(batch_size=10)], tmp_path)
    do_job(first, lambda row: None, None, source_digest())
    with open(tmp_path / folder.WEIGHTS, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x3c")
    with pytest.raises(DamagedFileError, match="is not the file of which"):
        do_job(job, lambda row: None, None, source_digest())


@pytest.mark.parametrize("where", ["a range", "verdicts", "result"])
def test_an_evaluation_that_was_killed_ends_in_the_same_bytes(small, tiny_evaluation, tmp_path, monkeypatch, where):
    first, second = tiny_evaluation(eps="1/8", batch_size=20), tiny_evaluation(batch_size=20)
    interrupted, expected = tmp_path / "interrupted", tmp_path / "expected"

    def report(row):
        if row.get(names.EVALUATED) == 40 and where == "a range":
            raise Killed

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if where != "a range":
            at = "write_table" if where == "verdicts" else "folder.write_result"
            patch.setattr(f"harness.evaluation.ranges.{at}", die)
        train_and_evaluate(small, [first, second], interrupted, report)
    directory = folder.evaluation_dir(interrupted, first)
    assert ranges.count_saved_images(directory) == (40 if where == "a range" else 60)
    (directory / f".{folder.VERDICTS}.1.tmp").touch()
    rows = []
    train_and_evaluate(small, [first, second], interrupted, rows.append)
    assert rows[0][names.EVALUATED] == (60 if where == "a range" else 20), "of the second evaluation"
    train_and_evaluate(small, [first, second], expected)
    for evaluation in (first, second):
        assert contents(interrupted, evaluation) == contents(expected, evaluation)


def test_the_weights_are_read_once_for_an_evaluation(small, tiny_evaluation, tmp_path, monkeypatch):
    read, network_dirs = folder.read_trained_weights, []
    monkeypatch.setattr(folder, "read_trained_weights", lambda path: network_dirs.append(path) or read(path))
    train_and_evaluate(small, [tiny_evaluation(test_images=10)], tmp_path)
    assert network_dirs == [tmp_path]


def test_what_is_finished_is_not_done_again_and_other_weights_are_evaluated_anew(small, tiny_evaluation, tmp_path):
    evaluation, rows = tiny_evaluation(test_images=10), []
    train_and_evaluate(small, [evaluation], tmp_path)
    before = (folder.evaluation_dir(tmp_path, evaluation) / folder.RESULT).read_bytes()
    train_and_evaluate(small, [evaluation], tmp_path, rows.append)
    assert rows == [] and (folder.evaluation_dir(tmp_path, evaluation) / folder.RESULT).read_bytes() == before
    with open(tmp_path / folder.WEIGHTS, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x3c")
    folder.write_trained(tmp_path, folder.read_trained(tmp_path))
    train_and_evaluate(small, [evaluation], tmp_path, rows.append)
    assert [row[names.EVALUATED] for row in rows] == [10]
