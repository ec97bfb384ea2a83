"""One trial, from config to folder: resumed, failed, collapsed, finished."""

import json
import math

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from baselines import build
from cerdeq.equilibrium import contraction
from harness import folder, names
from harness.data import load
from harness.evaluation.verdicts import judge
from harness.settings import SettingError
from harness.training import NonFiniteLossError, load_network, run_trial
from harness.training import loop as training_loop
from harness.training.initialise import initialise


class Killed(BaseException):
    """Stands for a process that is killed: nothing catches it."""


def test_a_trial_leaves_everything_that_its_numbers_rest_on(tmp_path, tiny_trial):
    rows = []
    result = run_trial(tiny_trial("cerdeq"), directory=tmp_path, report=rows.append)
    assert [row[names.EPOCH] for row in rows] == [0, 1, 2, 3]
    assert rows == folder.read_epochs(tmp_path)
    assert {names.TRAIN_LOSS, names.TRAIN_EPS, names.in_training(names.BOUND_WIDTH), "train/bound_width/relu1"} <= rows[
        1
    ].keys()
    assert folder.read_result(tmp_path) == result
    metrics = result.metrics
    assert metrics[names.STANDARD_ERROR] <= metrics[names.ATTACK_ERROR] <= metrics[names.CERTIFIED_ERROR]
    verdicts = pd.read_parquet(tmp_path / folder.VERDICTS)
    assert len(verdicts) == 60
    assert metrics[names.CERTIFIED_ERROR] == pytest.approx(100 * (verdicts[names.VERDICT] != "certified").mean())
    assert metrics[names.BOUND_WIDTH] == pytest.approx(verdicts[names.WIDTH].mean())
    model = load_network(tiny_trial("cerdeq"), tmp_path / folder.WEIGHTS)
    weight = model.equilibrium.recurrence.weight
    assert metrics[names.RHO_BOUND] == contraction(weight).rate < 0.7
    assert 0 < metrics[names.GAIN] < 1
    assert metrics[names.ITERATIONS] >= 1
    assert metrics[names.CERTIFIED_ERROR_W0] >= metrics[names.STANDARD_ERROR_W0]
    assert "equilibrium.recurrence.weight" in load_file(tmp_path / folder.WEIGHTS)


def test_training_in_bf16_leaves_judging_in_float64(tmp_path, tiny_trial):
    config = tiny_trial("cerdeq", train={"precision": "bf16", "epochs": 2})
    run_trial(config, directory=tmp_path)
    assert not torch.is_autocast_enabled("cpu")
    assert {tensor.dtype for tensor in load_file(tmp_path / folder.WEIGHTS).values()} <= {torch.float32, torch.int64}
    model, test = load_network(config, tmp_path / folder.WEIGHTS), load("digits").test_images(60)
    judged = judge(model, test.images, test.labels, tiny_trial("cerdeq", train={"precision": "float32"})).verdicts
    pd.testing.assert_frame_equal(judged, pd.read_parquet(tmp_path / folder.VERDICTS), check_exact=True)


def test_a_finished_trial_is_not_run_again(tmp_path, tiny_trial, monkeypatch):
    result = run_trial(tiny_trial(), directory=tmp_path)
    monkeypatch.setattr("harness.training.trial.train", None)
    assert run_trial(tiny_trial(), directory=tmp_path) == result


@pytest.mark.parametrize("model", ["cnn5", "cerdeq"])
def test_a_trial_that_was_killed_goes_on_to_the_very_same_weights(tmp_path, tiny_trial, model):
    run_trial(tiny_trial(model), directory=tmp_path / "whole")

    def kill(row):
        if row[names.EPOCH] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(tiny_trial(model), directory=tmp_path / "broken", report=kill)
    rows = []
    run_trial(tiny_trial(model), directory=tmp_path / "broken", report=rows.append)
    assert [row[names.EPOCH] for row in rows] == [3]
    whole, broken = (load_file(tmp_path / name / folder.WEIGHTS) for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert [row[names.EPOCH] for row in folder.read_epochs(tmp_path / "broken")] == [0, 1, 2, 3]


def test_a_trial_killed_before_its_first_checkpoint_writes_the_untrained_network_once(tmp_path, tiny_trial):
    def kill(row):
        raise Killed

    with pytest.raises(Killed):
        run_trial(tiny_trial(), directory=tmp_path, report=kill)
    (written,) = folder.read_epochs(tmp_path)
    rows = []
    run_trial(tiny_trial(), directory=tmp_path, report=rows.append)
    assert [row[names.EPOCH] for row in rows] == [1, 2, 3]
    assert folder.read_epochs(tmp_path) == [written, *rows]


def test_a_checkpoint_without_rows_gives_no_row_of_an_untrained_network(tmp_path, tiny_trial):
    def kill(row):
        if row[names.EPOCH] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(tiny_trial(), directory=tmp_path, report=kill)
    (tmp_path / folder.EPOCHS).unlink()
    run_trial(tiny_trial(), directory=tmp_path)
    assert [row[names.EPOCH] for row in folder.read_epochs(tmp_path)] == [3]


def test_widths_of_the_untrained_network_that_overflow_become_null(tmp_path, tiny_trial, monkeypatch):
    monkeypatch.setattr(training_loop, "monitored_untrained", lambda *_: {"train/bound_width": math.inf, "b": math.nan})
    rows = []
    run_trial(tiny_trial(), directory=tmp_path, report=rows.append)
    expected = {names.EPOCH: 0, names.TRAIN_EPS: 0.0, "train/bound_width": None, "b": None}
    assert rows[0] == folder.read_epochs(tmp_path)[0] == expected


@pytest.mark.parametrize("initialisation", ["ibp", "default"])
def test_the_recipe_says_how_weights_start(tmp_path, tiny_trial, monkeypatch, initialisation):
    """At a learning rate of next to nothing, weights stay where they start."""
    settings = {"epochs": 1, "ramp_epochs": 0, "learning_rate": 1e-12, "initialisation": initialisation}
    run_trial(tiny_trial(train=settings), directory=tmp_path)
    torch.manual_seed(0)
    expected = build("cnn5", "digits", 0.1)
    if initialisation == "ibp":
        initialise(expected)
    for name, weight in load_file(tmp_path / folder.WEIGHTS).items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(weight, expected.state_dict()[name])


def test_another_seed_gives_another_network(tmp_path, tiny_trial):
    for seed in (0, 1):
        run_trial(tiny_trial(seed=seed), directory=tmp_path / str(seed))
    first, second = (load_file(tmp_path / str(seed) / folder.WEIGHTS) for seed in (0, 1))
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])


def test_a_loss_that_is_not_finite_stops_the_trial(tmp_path, tiny_trial, monkeypatch):
    method = training_loop.Stepper.__call__

    def diverging(stepper, choices, eps, rate):
        report = method(stepper, choices, eps, rate)
        return report * math.nan if eps > 0.02 else report

    monkeypatch.setattr(training_loop.Stepper, "__call__", diverging)
    with pytest.raises(NonFiniteLossError, match="epoch 2, step"):
        run_trial(tiny_trial(), directory=tmp_path)
    failure = folder.read_failure(tmp_path)
    assert "non-finite in epoch 2" in failure["error"]
    assert math.isfinite(failure["last_finite"][names.TRAIN_LOSS])
    assert folder.read_result(tmp_path) is None
    assert [row[names.EPOCH] for row in folder.read_epochs(tmp_path)] == [0, 1]
    monkeypatch.undo()
    run_trial(tiny_trial(), directory=tmp_path)
    assert folder.read_failure(tmp_path) is None


def test_weights_that_are_not_finite_stop_the_trial_too(tmp_path, tiny_trial, monkeypatch):
    method = training_loop.Stepper.__call__

    def breaking(stepper, choices, eps, rate):
        report = method(stepper, choices, eps, rate)
        stepper.model.classifier.weight.data.fill_(math.inf)
        return report

    monkeypatch.setattr(training_loop.Stepper, "__call__", breaking)
    with pytest.raises(NonFiniteLossError):
        run_trial(tiny_trial(), directory=tmp_path)


def test_a_collapsed_network_is_warned_about(tmp_path, tiny_trial):
    settings = {"epochs": 1, "ramp_epochs": 0, "learning_rate": 1e-9}
    result = run_trial(tiny_trial(train=settings, eps="1"), directory=tmp_path)
    assert result.metrics[names.CERTIFIED_ERROR] == 100
    predictions = pd.read_parquet(tmp_path / folder.VERDICTS)[names.PREDICTION]
    collapsed = predictions.value_counts(normalize=True).iloc[0] >= 0.99
    assert collapsed
    assert any("collapsed" in warning for warning in result.warnings)


def test_a_folder_that_holds_another_trial_is_refused(tmp_path, tiny_trial):
    run_trial(tiny_trial(train={"epochs": 2}), directory=tmp_path)
    with pytest.raises(SettingError, match="it holds"):
        run_trial(tiny_trial(seed=5), directory=tmp_path)


def test_a_batch_larger_than_the_data_is_refused(tmp_path, tiny_trial):
    with pytest.raises(SettingError, match="batch_size"):
        run_trial(tiny_trial(train_images=50), directory=tmp_path)


def test_a_validation_slice_is_evaluated_instead_of_the_test_split(tmp_path, tiny_trial):
    run_trial(tiny_trial(validation_images=37), directory=tmp_path)
    assert len(pd.read_parquet(tmp_path / folder.VERDICTS)) == 37


def test_trial_json_is_written_before_training_and_names_the_trial(tmp_path, tiny_trial):
    config = tiny_trial()
    run_trial(config, directory=tmp_path)
    content = json.loads((tmp_path / folder.TRIAL).read_text())
    assert folder.read_trial(tmp_path / folder.TRIAL) == folder.make_trial(config, content["fingerprint"])
