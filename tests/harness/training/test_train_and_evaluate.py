"""One trial, from config to folder: resumed, failed, collapsed, finished."""

import math

import pandas as pd
import pytest
import torch
from steppers import train_network
from safetensors.torch import load_file

from cerdeq.equilibrium import contraction
from harness.common import names
from harness.data import load
from harness.evaluation.verdicts import evaluate
from harness.storage import folder, training_record
from harness.training import NonFiniteLossError, load_network, loop, trial


def test_a_trial_leaves_everything_that_its_numbers_rest_on(tiny_training, whole_trial):
    trial_dir, rows = whole_trial("cerdeq")
    assert [row[names.EPOCH] for row in rows] == [0, 1, 2, 3]
    assert rows == training_record.read_epochs(trial_dir)
    assert {names.TRAIN_LOSS, names.TRAIN_EPS, names.in_training(names.BOUND_WIDTH), "train/bound_width/relu1"} <= rows[
        1
    ].keys()
    metrics = folder.read_result(trial_dir).metrics
    assert metrics[names.STANDARD_ERROR] <= metrics[names.ATTACK_ERROR] <= metrics[names.CERTIFIED_ERROR]
    verdicts = pd.read_parquet(trial_dir / folder.VERDICTS)
    assert len(verdicts) == 60
    assert metrics[names.CERTIFIED_ERROR] == pytest.approx(100 * (verdicts[names.VERDICT] != "certified").mean())
    assert metrics[names.BOUND_WIDTH] == pytest.approx(verdicts[names.WIDTH].mean())
    falsified = verdicts.loc[verdicts[names.VERDICT] == "falsified", names.INDEX]
    counterexamples = load_file(trial_dir / folder.COUNTEREXAMPLES)
    assert set(counterexamples) == set(map(str, falsified))
    model = load_network(tiny_training("cerdeq"), trial_dir / folder.WEIGHTS)
    weight = model.equilibrium.recurrence.weight
    assert metrics[names.RHO_BOUND] == contraction(weight).rate < 0.7
    assert 0 < metrics[names.GAIN] < 1
    assert metrics[names.ITERATIONS] >= 1
    assert metrics[names.CERTIFIED_ERROR_W0] >= metrics[names.STANDARD_ERROR_W0]
    assert "equilibrium.recurrence.weight" in load_file(trial_dir / folder.WEIGHTS)


def test_training_in_bf16_leaves_evaluation_in_float64(tmp_path, tiny_training):
    config = tiny_training("cerdeq", train_images=128, train={"precision": "bf16", "epochs": 2})
    train_network(config, tmp_path)
    assert not torch.is_autocast_enabled("cpu")
    assert {tensor.dtype for tensor in load_file(tmp_path / folder.WEIGHTS).values()} <= {torch.float32, torch.int64}
    model, test = load_network(config, tmp_path / folder.WEIGHTS), load("digits").test_images(60)
    verdicts = evaluate(model, test.images, test.labels, tiny_training("cerdeq", train={"precision": "float32"})).verdicts
    pd.testing.assert_frame_equal(verdicts, pd.read_parquet(tmp_path / folder.VERDICTS), atol=1e-4)


def test_widths_of_the_untrained_network_that_overflow_become_null(tmp_path, tiny_training, monkeypatch):
    monkeypatch.setattr(loop, "monitor_untrained", lambda *_: {"train/bound_width": math.inf, "b": math.nan})
    rows = []
    train_network(tiny_training(), tmp_path, rows.append)
    expected = {names.EPOCH: 0, names.TRAIN_EPS: 0.0, "train/bound_width": None, "b": None}
    assert rows[0] == training_record.read_epochs(tmp_path)[0] == expected


def test_a_loss_that_is_not_finite_stops_the_trial(tmp_path, tiny_training, monkeypatch):
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
    assert folder.read_result(tmp_path) is None
    assert [row[names.EPOCH] for row in training_record.read_epochs(tmp_path)] == [0, 1]
    monkeypatch.undo()
    train_network(tiny_training(), tmp_path)
    assert folder.read_failure(tmp_path) is None


def test_weights_that_are_not_finite_stop_the_trial_too(tmp_path, tiny_training, monkeypatch):
    method = loop.Stepper.__call__

    def breaking(stepper, choices, eps, rate):
        report = method(stepper, choices, eps, rate)
        stepper.model.classifier.weight.data.fill_(math.inf)
        return report

    monkeypatch.setattr(loop.Stepper, "__call__", breaking)
    with pytest.raises(NonFiniteLossError):
        train_network(tiny_training(), tmp_path)


def test_a_collapsed_network_is_warned_about(tmp_path, tiny_training):
    settings = {"epochs": 1, "ramp_epochs": 0, "learning_rate": 1e-9}
    result = train_network(tiny_training(train=settings, eps="1"), tmp_path)
    assert result.metrics[names.CERTIFIED_ERROR] == 100
    predictions = pd.read_parquet(tmp_path / folder.VERDICTS)[names.PREDICTION]
    collapsed = predictions.value_counts(normalize=True).iloc[0] >= 0.99
    assert collapsed
    assert any("collapsed" in warning for warning in result.warnings)


def test_the_log_has_epochs_evaluation_and_what_stopped_a_trial(tiny_training, tmp_path, monkeypatch):
    config = tiny_training(train={"epochs": 1, "ramp_epochs": 0})

    def fail(*_):
        raise ValueError("no bounds today")

    monkeypatch.setattr(trial, "evaluate_range", fail)
    with pytest.raises(ValueError, match="no bounds"):
        train_network(config, tmp_path)
    monkeypatch.undo()
    train_network(config, tmp_path)
    text = (tmp_path / folder.LOG).read_text()
    parts = ["cnn5 ibp", "epoch 0", "epoch 1", "evaluating", "stopped", "Traceback", "no bounds today"]
    position = 0
    for part in [*parts, "evaluating", "done"]:
        position = text.index(part, position) + 1
    assert text.count("Traceback") == 1
