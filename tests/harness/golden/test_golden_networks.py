"""Two small networks trained by recipe version 4 and evaluated by 7: such folders are read, and numbers are the same.

If numbers of training or evaluation move, raise RECIPE_VERSION or EVALUATION_VERSION, and write anew what moved.
"""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from cerdeq import LinfBall
from harness.common import names
from harness.config.training import RECIPE_VERSION
from harness.data import load
from harness.evaluation.metrics import final_metrics
from harness.evaluation.network import load_network, prepare_network
from harness.evaluation.verdicts import evaluate_images
from harness.leaderboard.evaluations import read_evaluations
from harness.pretrained.network_file import digest_of
from harness.settings import EVALUATION_VERSION
from harness.storage import folder, training_progress
from harness.storage.state import read_state_or_raise
from harness.training import monitor
from harness.training.loop import train
from harness.training.step import Stepper

HERE = Path(__file__).parent
both = pytest.mark.parametrize("name", ["cnn5", "cerdeq"])


def read(name):
    """Return the folder of the one evaluation of a network, and the configs of both."""
    (directory,) = folder.evaluation_folders(HERE / name)
    training = folder.read_training(HERE / name / folder.TRAINING)
    return directory, training.config, folder.read_evaluation(directory).config


@both
def test_an_old_folder_is_read_and_has_its_keys(name):
    state = read_state_or_raise(read(name)[0])
    training, evaluation = state.training, state.evaluation
    assert (training.recipe_version, evaluation.version) == (RECIPE_VERSION, EVALUATION_VERSION)
    assert training.fingerprint == load(training.config.dataset).fingerprint
    assert training.key == training.config.key(training.fingerprint) == state.trained.key
    assert state.result.key == f"{training.key}/{evaluation.config.key}"
    assert state.trained.weights == state.result.weights == digest_of((HERE / name / folder.WEIGHTS).read_bytes())
    assert evaluation.config.stages == ("ibp", "crown-ibp", "crown", "alpha-crown")


def test_old_folders_stand_in_a_leaderboard(tmp_path):
    for name in ("cnn5", "cerdeq"):
        shutil.copytree(HERE / name, tmp_path / "networks" / name)
    rows = read_evaluations(tmp_path)
    assert rows["problem"].isna().all()
    assert dict(zip(rows["model"], rows[names.CERTIFIED_ERROR], strict=True)) == pytest.approx(
        {"cnn5": 100 * 13 / 60, "cerdeq": 100 * 9 / 60}
    )


@both
def test_evaluation_has_not_changed(name):
    """All kinds of verdict occur; float32, the attack and alpha-crown's search may end elsewhere by rounding."""
    directory, training, evaluation = read(name)
    recorded = pd.read_parquet(directory / folder.VERDICTS)
    assert {"misclassified", "falsified", "certified", "unknown"} == set(recorded[names.VERDICT])
    images = load(training.dataset).test_images(evaluation.test_images)
    model = load_network(training, HERE / name / folder.WEIGHTS)
    network = prepare_network(model, evaluation.stages, training.data_info.classes)
    result = evaluate_images(network, images.images, images.labels, 0, evaluation, training.seed)
    searched = [names.ATTACK_MARGIN, *(names.margin_column(stage) for stage in evaluation.stages[1:])]
    verdicts = result.verdicts.drop(columns=names.TAKEN_FROM)  # which has come since
    pd.testing.assert_frame_equal(
        verdicts.drop(columns=searched), recorded.drop(columns=searched), rtol=1e-6, atol=1e-6
    )
    pd.testing.assert_frame_equal(verdicts[searched], recorded[searched], rtol=1e-2, atol=5e-3)
    elsewhere = (names.PARAMETERS, names.TRAIN_SECONDS, names.EVALUATION_SECONDS, names.GAIN, names.MARGIN)
    metrics = {key: value for key, value in folder.read_result(directory).metrics.items() if key not in elsewhere}
    measured = final_metrics(result, evaluation.stages) | result.recurrence.metrics()
    # What has come since is not on record.
    assert {metric: measured.get(metric) for metric in metrics} == pytest.approx(metrics, rel=1e-6)


def test_training_has_not_changed(tmp_path, monkeypatch):
    """Schedules to the last digit over a whole training, losses and widths while rounding has not spread.

    Weights that differ by 1e-7 at first have widths that differ by half a percent after one epoch: no step is taken
    after it, and the last report is repeated.
    """
    _, config, evaluation = read("cnn5")
    recorded, rows, reports, step = training_progress.read_epochs(HERE / "cnn5"), [], [], Stepper.__call__

    def in_the_first_epoch(stepper, *arguments):
        if len(rows) < 2:
            reports.append(step(stepper, *arguments))
        return reports[-1]

    monkeypatch.setattr(Stepper, "__call__", in_the_first_epoch)
    # Recorded at the radius of evaluation; today, widths in training are those at its own.
    monkeypatch.setattr(monitor, "LinfBall", lambda x, eps: LinfBall(x, evaluation.eps))
    images = load(config.dataset).train
    train(config, images.images, images.labels, tmp_path, rows.append)
    for schedule in (names.EPOCH, names.TRAIN_EPS, names.TRAIN_LEARNING_RATE):
        assert [row.get(schedule) for row in rows] == [row.get(schedule) for row in recorded]
    assert all(row.keys() >= old.keys() for row, old in zip(rows, recorded, strict=True)), (
        "something is no longer there"
    )
    clocks = (names.TRAIN_EPOCH_SECONDS, names.TRAIN_EXAMPLES_PER_SECOND)
    for row, old in zip(rows[:2], recorded[:2], strict=True):
        assert {name: row[name] for name in old if name not in clocks} == pytest.approx(
            {name: old[name] for name in old if name not in clocks}, rel=2e-2
        )
