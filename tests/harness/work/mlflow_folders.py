"""Folders of networks as training leaves them, and what MLflow has of one."""

import pandas

from harness.common.radius import Radius
from harness.config.training import Training
from harness.settings import Evaluation, Recipe
from harness.storage import folder, training_progress
from harness.storage.records import Result, make_record

FINGERPRINT = "0123456789abcdef" * 4
EVALUATION = Evaluation(eps=Radius("8/255"), stages=("ibp",))
FINAL = {"certified_error": 100 / 3, "standard_error": 25.0, "bound_width/stem.0": 0.125, "parameters": 650}


def make_folder(tmp_path, seed=0):
    """The folder of a network, begun, with its main evaluation."""
    config = Training(
        dataset="digits",
        seed=seed,
        model="deqlate",
        method="ibp",
        options={"margin": 0.1, "parametrisation": "perron"},
        train=Recipe(eps=Radius("8/255"), epochs=4, decay_epochs=(2,), ramp_epochs=1),
    )
    record = make_record(config, FINGERPRINT)
    network_dir = folder.network_dir(tmp_path, record.key)
    folder.begin_network(network_dir, record, "cpu", [EVALUATION])
    return network_dir


def train(network_dir, first, last, loss=1.0):
    for epoch in range(first, last + 1):
        row = {"epoch": epoch, "train/loss": loss / epoch, "train/eps": 0.1 * epoch, "missing": None}
        training_progress.write_epoch(network_dir, row)


def finish(network_dir, metrics=FINAL, evaluation=EVALUATION):
    """Write what training and an evaluation leave."""
    (network_dir / folder.WEIGHTS).write_bytes(b"weights")
    own = {name: value for name, value in metrics.items() if name == "parameters"}
    folder.write_trained(network_dir, Result(network_dir.name, own, {}, {}, []))
    evaluation_dir = folder.begin_evaluation(network_dir, evaluation)
    table = pandas.DataFrame({"index": [0, 1], "verdict": ["certified", "falsified"]})
    table.to_parquet(evaluation_dir / folder.VERDICTS)
    environment, data = {"device": "cpu", "torch": "2.11"}, {"train_images": 1437}
    warnings = ["W is at its bound", "fewer images than published"]
    key = f"{network_dir.name}/{evaluation.key}"
    folder.write_result(evaluation_dir, Result(key, metrics, environment, data, warnings))
    return evaluation_dir


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
    assert run.data.metrics.keys() == {"train/loss", "train/eps", "eps", *FINAL}
    assert artifacts(tracker) == {folder.TRAINING, folder.VERDICTS, folder.RESULT, "network"}
    assert run.data.params["train.epochs"] == "4"
