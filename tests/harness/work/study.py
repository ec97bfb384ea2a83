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
from harness.storage import folder, training_progress
from harness.storage.records import make_record
from harness.work import on_ray
from harness.work.here import run_here

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
    """Jobs are done in this process, one by one."""

    def run_on_ray(queue, do, listener, options, directory):
        run_here(queue, do, listener)

    with patch.object(on_ray, "run_on_ray", run_on_ray):
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
    def records(self):
        """Every network of the file by model and seed."""
        fingerprint = load("digits").fingerprint
        trainings = load_sweep(self.file, None, False).trainings
        return {(config.model, config.seed): make_record(config, fingerprint) for config in trainings}

    @property
    def evaluations(self):
        return load_sweep(self.file, None, False).evaluations

    @property
    def network_dirs(self):
        return {name: folder.network_dir(self.directory, record.key) for name, record in self.records.items()}

    @property
    def evaluation_dirs(self):
        """The folder of each network's main evaluation."""
        main = self.evaluations[0]
        return {name: folder.evaluation_dir(network_dir, main) for name, network_dir in self.network_dirs.items()}

    @property
    def runs(self):
        """MLflow's runs by their tag `trial`; a network or an evaluation with two fails here."""
        client = MlflowClient(self.store)
        experiment = client.get_experiment_by_name(self.name)
        runs = client.search_runs([experiment.experiment_id])
        by_key = {run.data.tags["trial"]: run for run in runs}
        assert len(by_key) == len(runs)
        return by_key

    def history(self, key, metric):
        client = MlflowClient(self.store)
        points = client.get_metric_history(self.runs[key].info.run_id, metric)
        return sorted((point.step, point.value) for point in points)

    def assert_complete(self):
        """Every network has its results, one finished run with each epoch once, and a row in all tables."""
        epochs = list(range(next(iter(self.records.values())).config.train.epochs + 1))
        main, *others = self.evaluations
        keys = {record.key for record in self.records.values()}
        children = [main, *others] if others else []
        assert set(self.runs) == keys | {f"{key}/{each.key}" for key in keys for each in children}
        for record in self.records.values():
            network_dir, run = folder.network_dir(self.directory, record.key), self.runs[record.key]
            assert [row[names.EPOCH] for row in training_progress.read_epochs(network_dir)] == epochs
            assert folder.read_failure(network_dir) is None
            logged_to = [(main, record.key), *((each, f"{record.key}/{each.key}") for each in children)]
            for evaluation, logged in logged_to:
                evaluation_dir = folder.evaluation_dir(network_dir, evaluation)
                result = folder.read_result(evaluation_dir)
                assert result.key == f"{record.key}/{evaluation.key}"
                assert folder.read_failure(evaluation_dir) is None
                if logged == result.key:
                    assert self.runs[logged].data.tags["mlflow.parentRunId"] == run.info.run_id
                    stages = " > ".join(evaluation.stages)
                    expected = {"eps": str(evaluation.eps), "stages": stages}
                    assert expected.items() <= self.runs[logged].data.params.items()
                assert self.runs[logged].info.status == "FINISHED"
                for name in (names.CERTIFIED_ERROR, names.ATTACK_ERROR, names.STANDARD_ERROR, names.BOUND_WIDTH):
                    assert self.runs[logged].data.metrics[name] == result.metrics[name]
                    assert {step for step, _ in self.history(logged, name)} == {0}
            for name, first in ((names.TRAIN_LOSS, 1), (names.TRAIN_EPS, 0), (names.in_training(names.BOUND_WIDTH), 0)):
                written = [(row[names.EPOCH], row[name]) for row in training_progress.read_epochs(network_dir)[first:]]
                assert self.history(record.key, name) == written
            speeds = self.history(record.key, names.TRAIN_EXAMPLES_PER_SECOND)  # of an epoch trained twice the first
            assert [epoch for epoch, _ in speeds] == epochs[1:]
        tables = {f"leaderboard.{kind}" for kind in ("md", "csv", "json")}
        assert self.files() - {"ray"} == {".lock", "report.html", "sweep.yaml", *tables}

    def files(self):
        """What lies in the sweep's directory besides the networks."""
        return {path.name for path in self.directory.iterdir()} - {folder.NETWORKS}


def snapshot(directory):
    """Every file below, with content and time of change, but what says what MLflow has."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "mlflow.json"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
