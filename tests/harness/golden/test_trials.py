"""Two small trials trained by recipe version 4 and evaluated by 7: such folders are read, and numbers are the same.

If numbers of training or evaluation move, raise RECIPE_VERSION and write anew what moved.
"""

from pathlib import Path

import pandas as pd
import pytest

from harness.common import names
from harness.config.training import RECIPE_VERSION
from harness.data import load
from harness.evaluation.equilibria import recurrence_report
from harness.evaluation.metrics import final_metrics
from harness.evaluation.verdicts import evaluate
from harness.leaderboard.rows import read_trials
from harness.storage import folder, training_record
from harness.training import load_network
from harness.training.loop import train
from harness.training.step import Stepper

HERE = Path(__file__).parent
both = pytest.mark.parametrize("name", ["cnn5", "cerdeq"])


@both
def test_an_old_folder_is_read_and_has_its_key(name):
    trial = folder.read_trial(HERE / name / folder.TRIAL)
    assert trial.recipe_version == RECIPE_VERSION
    assert trial.fingerprint == load(trial.config.dataset).fingerprint
    assert trial.key == trial.config.key(trial.fingerprint) == folder.read_result(HERE / name).key
    assert trial.config.evaluation.stages == ("ibp", "crown-ibp", "crown", "alpha-crown")


def test_old_folders_stand_in_a_leaderboard(tmp_path):
    (tmp_path / "trials").mkdir()
    for name in ("cnn5", "cerdeq"):
        (tmp_path / "trials" / name).symlink_to(HERE / name)
    trials = read_trials(tmp_path)
    assert trials["problem"].isna().all()
    assert dict(zip(trials["model"], trials[names.CERTIFIED_ERROR], strict=True)) == pytest.approx(
        {"cnn5": 100 * 13 / 60, "cerdeq": 100 * 9 / 60}
    )


@both
def test_evaluation_has_not_changed(name):
    """All kinds of verdict occur; float32, the attack and alpha-crown's search may end elsewhere by rounding."""
    recorded = pd.read_parquet(HERE / name / folder.VERDICTS)
    assert {"misclassified", "falsified", "certified", "unknown"} == set(recorded[names.VERDICT])
    config = folder.read_trial(HERE / name / folder.TRIAL).config
    images = load(config.dataset).test_images(config.evaluation.test_images)
    network = load_network(config, HERE / name / folder.WEIGHTS)
    evaluation = evaluate(network, images.images, images.labels, config)
    searched = [names.ATTACK_MARGIN, *(names.margin_column(stage) for stage in config.evaluation.stages[1:])]
    pd.testing.assert_frame_equal(
        evaluation.verdicts.drop(columns=searched), recorded.drop(columns=searched), rtol=1e-6, atol=1e-6
    )
    pd.testing.assert_frame_equal(evaluation.verdicts[searched], recorded[searched], rtol=1e-2, atol=5e-3)
    elsewhere = (names.PARAMETERS, names.TRAIN_SECONDS, names.EVALUATION_SECONDS, names.GAIN, names.MARGIN)
    metrics = {key: value for key, value in folder.read_result(HERE / name).metrics.items() if key not in elsewhere}
    measured = final_metrics(evaluation, config.evaluation.stages)
    measured |= recurrence_report(network, images.images, images.labels, config)
    # What has come since is not on record.
    assert {metric: measured.get(metric) for metric in metrics} == pytest.approx(metrics, rel=1e-6)


def test_training_has_not_changed(tmp_path, monkeypatch):
    """Schedules to the last digit over a whole training, losses and widths while rounding has not spread.

    Weights that differ by 1e-7 at first have widths that differ by half a percent after one epoch: no step is taken
    after it, and the last report is repeated.
    """
    config = folder.read_trial(HERE / "cnn5" / folder.TRIAL).config
    recorded, rows, reports, step = training_record.read_epochs(HERE / "cnn5"), [], [], Stepper.__call__

    def in_the_first_epoch(stepper, *arguments):
        if len(rows) < 2:
            reports.append(step(stepper, *arguments))
        return reports[-1]

    monkeypatch.setattr(Stepper, "__call__", in_the_first_epoch)
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
