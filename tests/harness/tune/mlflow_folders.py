"""Trial folders as training leaves them, and what MLflow has of one."""

import pandas

from harness.config.training import Trial
from harness.settings import Recipe
from harness.storage import files, folder, training_record

FINGERPRINT = "0123456789abcdef" * 4
FINAL = {"certified_error": 100 / 3, "standard_error": 25.0, "bound_width/stem.0": 0.125, "parameters": 650}


def make_folder(tmp_path, seed=0):
    config = Trial(
        sweep="study",
        profile="cpu",
        dataset="digits",
        eps="8/255",
        seed=seed,
        model="deqlate",
        method="ibp",
        options={"margin": 0.1, "parametrisation": "perron"},
        train=Recipe(epochs=4, decay_epochs=(2,), ramp_epochs=1),
    )
    trial = folder.make_trial(config, FINGERPRINT)
    trial_dir = tmp_path / "trials" / trial.key
    files.write_json(trial_dir / folder.TRIAL, folder.trial_json(trial))
    return trial_dir


def train(trial_dir, first, last, loss=1.0):
    for epoch in range(first, last + 1):
        row = {"epoch": epoch, "train/loss": loss / epoch, "train/eps": 0.1 * epoch, "missing": None}
        training_record.write_epoch(trial_dir, row)


def finish(trial_dir, metrics=FINAL):
    pandas.DataFrame({"index": [0, 1], "verdict": ["certified", "falsified"]}).to_parquet(trial_dir / folder.VERDICTS)
    (trial_dir / folder.WEIGHTS).write_bytes(b"weights")
    environment, data = {"device": "cpu", "torch": "2.11"}, {"train_images": 1437}
    warnings = ["W is at its bound", "fewer images than published"]
    folder.write_result(trial_dir, folder.TrialResult(trial_dir.name, metrics, environment, data, warnings))


def only_run(tracker):
    (run,) = tracker.client.search_runs([tracker.experiment_id])
    return run


def history(tracker, name):
    points = tracker.client.get_metric_history(only_run(tracker).info.run_id, name)
    return sorted((point.step, point.value) for point in points)


def artifacts(tracker):
    return {file.path for file in tracker.client.list_artifacts(only_run(tracker).info.run_id)}


def assert_complete(tracker, first=1):
    """The only run has each point once, each file, and one network."""
    run = only_run(tracker)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "deqlate ibp margin=0.1 parametrisation=perron seed 0"
    assert history(tracker, "train/loss") == [(epoch, 1.0 / epoch) for epoch in range(1, 5)]
    assert history(tracker, "train/eps") == [(epoch, 0.1 * epoch) for epoch in range(first, 5)]
    for name, value in FINAL.items():
        assert history(tracker, name) == [(0, value)], "MLflow draws a bar, no curve of one point"
    assert run.data.metrics.keys() == {"train/loss", "train/eps", *FINAL}
    assert artifacts(tracker) == {folder.TRIAL, folder.VERDICTS, folder.RESULT, "network"}
    assert run.data.params["train.epochs"] == "4"
