"""Mirrors trial folders into MLflow: one experiment a sweep, one flat run a trial.

Only the driver calls this, never a worker. The folder is the truth and its run is compared with it, so that whatever is
missing is logged and nothing is logged twice, whoever was killed when. A run is found by its tag `trial`; one that was
deleted in the UI is made anew.
"""

import hashlib
import json
import shlex
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from baselines.datasets import DATASETS
from harness.config.trial import RECIPE_VERSION, flatten, label_of_row, to_dict
from harness.masking import masked
from harness.storage import folder as files
from harness.storage.folder import Trial, TrialResult
from harness.storage.names import EPOCH, TRAIN_EPS
from harness.tracking import notes, view
from harness.tracking.client import (
    SQLITE,
    MlflowClient,
    connect,
    entities,
    failures,
    is_served,
    located,
    mlflow,
    runs_of,
    version_of,
)
from harness.tracking.model import log_network, register_best

ERROR_TAG, RESULT_TAG, TABLES_TAG, WARNINGS_TAG = "error", "result", "tables", "warnings"
NETWORK_TAG = "network"  # of which result a model was logged
LONGEST_TEXT = 5000  # characters of a tag or param that every store takes
LARGEST_BATCH = 1000  # metrics in one call
LOCAL_PAGE = "http://127.0.0.1:5000"
FINAL_STEP = 0  # at any other MLflow draws a curve, of one point


def _text(value: Any) -> str:
    """A tag's or param's text: strings as they are, but for secrets, anything else as JSON."""
    return masked(value if isinstance(value, str) else json.dumps(value))[:LONGEST_TEXT]


def _identity(trial: Trial) -> dict[str, str]:
    """The tags that tell runs apart."""
    told = ("sweep", "model", "method", "seed", "profile")
    return {"trial": trial.key, **{name: _text(getattr(trial.config, name)) for name in told}}


def _outcome(result: TrialResult | None, failure: dict[str, Any] | None, running: bool) -> tuple[str, dict[str, str]]:
    """The status a run should have, and the tags that go with it."""
    if result:
        tags = {f"environment.{name}": _text(value) for name, value in result.environment.items()}
        return "FINISHED", tags | ({WARNINGS_TAG: _text("\n".join(result.warnings))} if result.warnings else {})
    if failure:
        return "FAILED", {ERROR_TAG: _text(failure["error"])}
    return "RUNNING" if running else "KILLED", {}


def _row(row: str, trial: Trial) -> str:
    """A row by itself in charts: trials of another recipe are never averaged with today's."""
    return _text(row if trial.recipe_version == RECIPE_VERSION else f"{row} recipe {trial.recipe_version}")


def _metrics(values: dict[str, Any], step: int) -> list[entities.Metric]:
    """Every number among `values` but the epoch."""
    now = int(time.time() * 1000)
    return [entities.Metric(k, v, now, step) for k, v in values.items() if type(v) in (int, float) and k != EPOCH]


def _dataset(trial: Trial) -> entities.DatasetInput:
    """The data set as a run's input. MLflow takes 36 characters of a digest; a param has the whole fingerprint."""
    name = trial.config.dataset
    profile = json.dumps(asdict(DATASETS[name])) if name in DATASETS else None
    dataset = entities.Dataset(name, trial.fingerprint[:36], "local", json.dumps({"uri": name}), profile=profile)
    return entities.DatasetInput(dataset, [entities.InputTag("mlflow.data.context", "training, evaluation")])


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


@dataclass(frozen=True)
class Tracker:
    """An MLflow experiment that mirrors one sweep."""

    uri: str
    experiment_id: str
    client: MlflowClient
    version: str = mlflow.__version__  # of what shows the pages

    @classmethod
    def open(cls, experiment: str, uri: str | None = None) -> "Tracker":
        """Connect to the store and make the experiment, or restore it where it was deleted.

        uri: where None, the environment's MLFLOW_TRACKING_URI, and without that mlflow.db in the working directory.
        Artifacts lie in mlruns/ beside an SQLite file; elsewhere the store decides. Making a store takes seconds.
        Raises TrackingError where the store cannot be used.
        """
        uri, artifacts = located(uri), None
        if uri.startswith(SQLITE):
            artifacts = str(Path(uri.removeprefix(SQLITE)).parent / "mlruns" / experiment)
        with failures(uri):
            client = connect(uri)
            known = client.get_experiment_by_name(experiment)
            if known is None:
                known = client.get_experiment(client.create_experiment(experiment, artifact_location=artifacts))
            if known.lifecycle_stage == "deleted":
                client.restore_experiment(known.experiment_id)
            tracker = cls(uri, known.experiment_id, client, version_of(uri))
            if view.is_known(tracker.version):
                tracker._tag(view.TAG, view.view())
            return tracker

    def sync(self, folder: Path, row: str | None = None, running: bool = True) -> None:
        """Bring the trial's run up to date with its folder, making the run where there is none.

        row: what trials are called that differ in their seeds alone; the config's own unless given. A new run is named
        after it. The run is FINISHED with a result.json, else FAILED with a failure.json, else RUNNING, or KILLED where
        the trial is not `running`.
        Raises TrackingError.
        """
        trial, result, failure = (
            files.read_trial(folder / files.TRIAL),
            files.read_result(folder),
            files.read_failure(folder),
        )
        status, tags = _outcome(result, failure, running)
        row = row or trial.config.row
        tags[view.ROW_TAG] = _row(row, trial)
        digest, rows = _digest(folder / files.RESULT) if result else None, files.read_epochs(folder)
        with failures(self.uri):
            run = self._find(trial, label_of_row(row, trial.config))
            logged = [run.data.tags.get(name) == digest for name in (RESULT_TAG, NETWORK_TAG)]
            named = run.data.tags.get(view.ROW_TAG) == tags[view.ROW_TAG]
            if result and run.info.status == status and named and all(logged):
                return
            error = failure["error"] if status == "FAILED" and failure else None
            run_id = run.info.run_id
            tags[notes.TAG] = notes.of_run(trial, row, result, error, run_id, masked(self.uri))
            self._describe(run, trial, tags, folder)
            self._log_epochs(run, rows)
            if result and digest and not logged[0]:
                self._log_result(run, result, folder)
                self.client.set_tag(run_id, RESULT_TAG, digest)
            if result and digest and not logged[1]:
                log_network(self.client, run, folder, digest)
                self.client.set_tag(run_id, NETWORK_TAG, digest)
            if run.info.status != status:
                set_status = self.client.update_run if status == "RUNNING" else self.client.set_terminated
                set_status(run_id, status)

    def sync_tables(self, directory: Path) -> None:
        """Attach a sweep's leaderboard files to each of its runs, over older ones. Raises TrackingError."""
        tables = sorted(Path(directory).glob("leaderboard.*"))
        if not tables:
            return
        digest = _digest(*tables)
        with failures(self.uri):
            for run in runs_of(self.client, self.experiment_id):
                if run.data.tags.get(TABLES_TAG) != digest:
                    self._log_files(run, tables, "tables")
                    self.client.set_tag(run.info.run_id, TABLES_TAG, digest)

    def describe(self, text: str) -> None:
        """Say of the experiment what it is. Raises TrackingError."""
        with failures(self.uri):
            self._tag(notes.TAG, text)

    def register(self, trials: Collection[str]) -> str | None:
        """Register the network of the best of these trials, all judged alike, in the model registry, as the sweep.

        Returns the model's address, None where none of them has a network. Raises TrackingError, also where the store
        has no registry.
        """
        with failures(self.uri):
            sweep = self.client.get_experiment(self.experiment_id).name
            runs = [run for run in runs_of(self.client, self.experiment_id) if run.data.tags.get("trial") in trials]
            return register_best(self.client, sweep, runs)

    def how_to_open(self) -> str:
        """The command that serves the store, unless a server does, and a link to this sweep's charts.

        Raises TrackingError.
        """
        with failures(self.uri):
            sweep = self.client.get_experiment(self.experiment_id).name
        address = masked(self.uri)
        if is_served(address):
            return "\n".join(view.links(address, self.experiment_id, self.version))
        which = "" if self.uri == located(None) else f" --tracking-uri {shlex.quote(address)}"
        lines = view.links(LOCAL_PAGE, self.experiment_id, self.version)
        return "\n".join([f"uv run python -m harness.ui {sweep}{which}", *lines])

    def _tag(self, name: str, text: str) -> None:
        """Set a tag of the experiment that it does not have."""
        if self.client.get_experiment(self.experiment_id).tags.get(name) != text:
            self.client.set_experiment_tag(self.experiment_id, name, text)

    def _find(self, trial: Trial, label: str) -> entities.Run:
        """The trial's run; a new one is made together with its tags, so that none is ever without."""
        known = self.client.search_runs([self.experiment_id], f"tags.trial = '{trial.key}'", max_results=1)
        if known:
            return known[0]
        made = self.client.create_run(self.experiment_id, tags=_identity(trial), run_name=label)
        return self.client.get_run(made.info.run_id)

    def _describe(self, run: entities.Run, trial: Trial, tags: dict[str, str], folder: Path) -> None:
        run_id, known = run.info.run_id, run.data
        data = {"recipe_version": trial.recipe_version, "fingerprint": trial.fingerprint, **to_dict(trial.config)}
        new = {name: value for name, value in flatten(data).items() if name not in known.params}
        params = [entities.Param(name, _text(value)) for name, value in new.items()]
        changed = [entities.RunTag(name, text) for name, text in tags.items() if known.tags.get(name) != text]
        self.client.log_batch(run_id, params=params, tags=changed)
        for name in {ERROR_TAG, WARNINGS_TAG} & (known.tags.keys() - tags.keys()):
            self.client.delete_tag(run_id, name)
        if not (run.inputs and run.inputs.dataset_inputs):  # logged last: where it is, trial.json is
            self._log_files(run, [folder / files.TRIAL])
            self.client.log_inputs(run_id, [_dataset(trial)])

    def _log_epochs(self, run: entities.Run, rows: list[dict[str, Any]]) -> None:
        """Log the epochs after the last one in the store. A batch of whole epochs goes in altogether or not at all."""
        run_id, any_logged = run.info.run_id, TRAIN_EPS in run.data.metrics  # which every row has, epoch 0's too
        last = max(point.step for point in self.client.get_metric_history(run_id, TRAIN_EPS)) if any_logged else -1
        new = [_metrics(row, row[EPOCH]) for row in rows if row[EPOCH] > last]
        size = LARGEST_BATCH // max([1, *map(len, new)]) or 1
        for start in range(0, len(new), size):
            self.client.log_batch(run_id, list(chain.from_iterable(new[start : start + size])))

    def _log_result(self, run: entities.Run, result: TrialResult, folder: Path) -> None:
        """Final metrics, where the run does not have them yet, and the files behind them."""
        new = {name: value for name, value in result.metrics.items() if run.data.metrics.get(name) != value}
        self.client.log_batch(run.info.run_id, _metrics(new, FINAL_STEP))
        self._log_files(run, [folder / name for name in (files.VERDICTS, files.WEIGHTS, files.RESULT, files.CHOSEN)])

    def _log_files(self, run: entities.Run, paths: list[Path], under: str | None = None) -> None:
        for path in paths:
            if path.exists():
                self.client.log_artifact(run.info.run_id, str(path), under)
