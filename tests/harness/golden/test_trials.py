"""Two small trials as recipe version 4 first left them: folders of then are read, and numbers are the same today.

Where judging or training moves, raise RECIPE_VERSION and let `run_trial` write these folders anew.
"""

from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.analysis.leaderboard import trials_of
from harness.config.trial import RECIPE_VERSION, trial_key
from harness.data import load
from harness.evaluation.equilibria import recurrence_report
from harness.evaluation.metrics import final_metrics
from harness.evaluation.verdicts import judge
from harness.storage import folder, names
from harness.training import load_network
from harness.training.loop import train

HERE = Path(__file__).parent
both = pytest.mark.parametrize("name", ["cnn5", "cerdeq"])


@both
def test_a_folder_of_then_is_read_and_found_under_its_key(name):
    trial = folder.read_trial(HERE / name / folder.TRIAL)
    assert trial.recipe_version == RECIPE_VERSION
    assert trial.fingerprint == load(trial.config.dataset).fingerprint
    assert trial.key == trial_key(trial.config, trial.fingerprint) == folder.read_result(HERE / name).key
    assert trial.config.evaluation.stages == ("ibp", "crown-ibp", "crown", "alpha-crown")


def test_folders_of_then_stand_in_a_leaderboard(tmp_path):
    (tmp_path / "trials").mkdir()
    for name in ("cnn5", "cerdeq"):
        (tmp_path / "trials" / name).symlink_to(HERE / name)
    trials = trials_of(tmp_path)
    assert trials["problem"].isna().all()
    assert dict(zip(trials["model"], trials[names.CERTIFIED_ERROR], strict=True)) == pytest.approx(
        {"cnn5": 100 * 13 / 60, "cerdeq": 100 * 9 / 60}
    )


@both
def test_judging_has_not_changed(name):
    """All kinds of verdict occur; searches, the attack's and alpha-crown's, may end elsewhere by rounding.

    Since then boxes of equilibria have lost what float32 solves had left them too wide, so that their bounds have risen
    in the fourth digit; a margin that is proved above 0 is left at that, in float32 and with rows that IBP proved; and
    boxes that CROWN tightens are float32's, where that leaves no example close to 0.
    """
    then = pd.read_parquet(HERE / name / folder.VERDICTS)
    assert {"misclassified", "falsified", "certified", "unknown"} == set(then[names.VERDICT])
    config = folder.read_trial(HERE / name / folder.TRIAL).config
    images = load(config.dataset).test_images(config.evaluation.test_images)
    network = load_network(config, HERE / name / folder.WEIGHTS)
    judgement = judge(network, images.images, images.labels, config)
    margins = [names.margin_column(stage) for stage in config.evaluation.stages]
    same, now = then.drop(columns=[*margins, names.ATTACK_MARGIN]), judgement.verdicts
    close = {"rtol": 1e-4, "atol": 1e-3} if name == "cerdeq" else {"rtol": 1e-6}
    pd.testing.assert_frame_equal(now.drop(columns=[*margins, names.ATTACK_MARGIN]), same, **close)
    pd.testing.assert_series_equal(now[names.ATTACK_MARGIN], then[names.ATTACK_MARGIN], rtol=1e-2, atol=1e-3)
    for column in margins:
        proved = then[column] > 0
        assert (now[column].isna() == then[column].isna()).all() and ((now[column] > 0) == proved).all()
        pd.testing.assert_series_equal(now[column].mask(proved), then[column].mask(proved), rtol=1e-2, atol=5e-3)
        assert (now.loc[proved, column] <= then.loc[proved, column] + 1e-3).all()
    elsewhere = (names.PARAMETERS, names.TRAIN_SECONDS, names.EVALUATION_SECONDS, names.GAIN, names.MARGIN)
    metrics = {key: value for key, value in folder.read_result(HERE / name).metrics.items() if key not in elsewhere}
    measured = final_metrics(judgement, config.evaluation.stages)
    measured |= recurrence_report(network, images.images, images.labels, config)
    # What has come since is not on record.
    close = 1e-4 if name == "cerdeq" else 1e-6
    assert {metric: measured.get(metric) for metric in metrics} == pytest.approx(metrics, rel=close)


def test_training_has_not_changed(tmp_path):
    """Schedules to the last digit over a whole training, losses and widths while rounding has not spread."""
    config = folder.read_trial(HERE / "cnn5" / folder.TRIAL).config
    then, rows = folder.read_epochs(HERE / "cnn5"), []
    images = load(config.dataset).train
    train(config, images.images, images.labels, tmp_path, torch.device("cpu"), rows.append)
    for schedule in (names.EPOCH, names.TRAIN_EPS, names.TRAIN_LEARNING_RATE):
        assert [row.get(schedule) for row in rows] == [row.get(schedule) for row in then]
    assert [row.keys() for row in rows] == [row.keys() for row in then]
    clocks = (names.TRAIN_EPOCH_SECONDS, names.TRAIN_EXAMPLES_PER_SECOND)
    for row, old in zip(rows[:4], then[:4], strict=True):
        assert {name: row[name] for name in row if name not in clocks} == pytest.approx(
            {name: old[name] for name in old if name not in clocks}, rel=2e-3
        )
