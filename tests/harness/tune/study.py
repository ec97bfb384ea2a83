"""A small sweep in a directory of its own, and what came of it."""

import os
import subprocess
import sys
from contextlib import contextmanager
from unittest.mock import patch

import yaml
from mlflow import MlflowClient
from small_sweep import load_sweep

from harness.command_line import main
from harness.common import names
from harness.data import load
from harness.storage import folder, training_record
from harness.tune import ray_tune
from harness.tune.items import run_items

SETTINGS = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "CERDEQ_DATA")
TOKEN = "0123456789abcdef" * 4  # of the Ray that tests of one process share
TINY = {
    "name": "tiny",
    "dataset": "digits",
    "eps": "1/16",
    "seeds": [0],
    "width": 0.05,
    "train_images": 256,
    "train": {
        **{"epochs": 2, "batch_size": 64, "ramp_start": 1, "ramp_epochs": 1, "decay_epochs": []},
        "compile": "never",  # a program of C++ takes longer than these trials
    },
    "evaluation": {"stages": ["ibp", "crown-ibp"], "test_images": 50, "attack_steps": 2, "attack_restarts": 1},
    "trials": [{"model": "cnn5", "method": "ibp"}, {"model": "cerdeq", "method": "ibp"}],
}
LONG = {  # some seconds of training, so that there is a middle to be killed in
    **TINY,
    "name": "long",
    "width": 0.25,
    "train_images": 1280,
    "train": {**TINY["train"], "epochs": 24},
    "trials": [{"model": "cnn7", "method": "ibp"}],
}


@contextmanager
def without_ray():
    """Trials are run in this process, one by one."""

    def run_on_ray(items, work, listener, options, directory):
        run_items(items, work, listener, None)

    with patch.object(ray_tune, "run_on_ray", run_on_ray):
        yield


class Study:
    """A sweep file in a directory of its own, and what came of it."""

    def __init__(self, directory, content, store):
        self.root, self.store, self.name = directory, store, content["name"]
        self.file = directory / "sweep.yaml"
        self.file.write_text(yaml.safe_dump(content))
        self.directory = directory / "results" / self.name
        self.options = [str(self.file), "--results-dir", str(directory / "results"), "--tracking-uri", store]

    def main(self, *options):
        return main("run", [*self.options, *options])

    def start(self, arguments=None, **options):
        """The command in a process of its own."""
        command = [sys.executable, "-m", "harness.run", *(arguments or self.options)]
        environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    @property
    def trials(self):
        """Every trial of the file by model and seed."""
        fingerprint = load("digits").fingerprint
        return {
            (config.model, config.seed): folder.make_trial(config, fingerprint)
            for config in load_sweep(self.file, None, False).trials
        }

    @property
    def trial_dirs(self):
        return {name: folder.trial_dir(self.directory, made.key) for name, made in self.trials.items()}

    @property
    def runs(self):
        """MLflow's runs by their tag `trial`; a trial with two fails here."""
        client = MlflowClient(self.store)
        experiment = client.get_experiment_by_name(self.name)
        runs = client.search_runs([experiment.experiment_id])
        by_trial = {run.data.tags["trial"]: run for run in runs}
        assert len(by_trial) == len(runs)
        return by_trial

    def history(self, key, metric):
        client = MlflowClient(self.store)
        points = client.get_metric_history(self.runs[key].info.run_id, metric)
        return sorted((point.step, point.value) for point in points)

    def assert_complete(self):
        """Every trial has its result, one finished run with each epoch once, and a row in all tables."""
        epochs = list(range(next(iter(self.trials.values())).config.train.epochs + 1))
        assert set(self.runs) == {made.key for made in self.trials.values()}
        for made in self.trials.values():
            trial_dir = folder.trial_dir(self.directory, made.key)
            result, logged = folder.read_result(trial_dir), self.runs[made.key]
            assert result.key == made.key
            assert folder.read_failure(trial_dir) is None
            assert [row[names.EPOCH] for row in training_record.read_epochs(trial_dir)] == epochs
            assert logged.info.status == "FINISHED"
            for name in (names.CERTIFIED_ERROR, names.ATTACK_ERROR, names.STANDARD_ERROR, names.BOUND_WIDTH):
                assert self.history(made.key, name) == [(0, result.metrics[name])]
            for name, first in ((names.TRAIN_LOSS, 1), (names.TRAIN_EPS, 0), (names.in_training(names.BOUND_WIDTH), 0)):
                written = [(row[names.EPOCH], row[name]) for row in training_record.read_epochs(trial_dir)[first:]]
                assert self.history(made.key, name) == written
            speeds = self.history(made.key, names.TRAIN_EXAMPLES_PER_SECOND)  # of an epoch trained twice the first
            assert [epoch for epoch, _ in speeds] == epochs[1:]
        tables = {f"leaderboard.{kind}" for kind in ("md", "csv", "json")}
        assert self.files() - {"ray"} == {".lock", "report.html", *tables}

    def files(self):
        """What lies in the sweep's directory besides the trials."""
        return {path.name for path in self.directory.iterdir()} - {"trials"}


def snapshot(directory):
    """Every file below, with content and time of change, but what says what MLflow has."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "mlflow.json"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
