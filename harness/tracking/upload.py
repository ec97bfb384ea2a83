"""Logs trial folders to MLflow: one experiment for a sweep, one run for each trial, not nested.

Only the driver calls this, never a worker. A trial's run is compared with the folder, so that whatever is missing is
logged and nothing is logged twice, whoever was killed when. A run is found by its tag `trial`.
"""

import hashlib
import json
import shlex
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from harness.common.masking import mask_secrets
from harness.common.names import EPOCH, TRAIN_EPS
from harness.config.trial import RECIPE_VERSION, flatten, label_of_row
from harness.storage import folder
from harness.storage.folder import TrialRecord, TrialResult
from harness.tracking import notes, view
from harness.tracking.client import (
    SQLITE,
    MlflowClient,
    all_runs,
    connect,
    entities,
    resolve_uri,
    tracking_errors,
)
from harness.tracking.model import log_network, register_best

UPLOADED_FILES = (folder.VERDICTS, folder.WEIGHTS, folder.RESULT, folder.CHOSEN)
"""Files of a finished trial; trial.json is uploaded when its run is created."""

ERROR_TAG, RESULT_TAG, TABLES_TAG, WARNINGS_TAG = "error", "result", "tables", "warnings"
LARGEST_BATCH = 1000  # metrics in one call
LOCAL_PAGE = "http://127.0.0.1:5000"
_MAX_TEXT = 5000  # characters of a tag or param that every store takes
_FINAL_STEP = 0  # at any other MLflow draws a curve of one point


@dataclass(frozen=True)
class Tracker:
    """The MLflow experiment of one sweep.

    last_epochs: the last epoch that each trial's run has, by its key, as far as this process has asked or logged.
    """

    uri: str
    sweep: str
    experiment_id: str
    client: MlflowClient
    last_epochs: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, sweep: str, uri: str | None = None) -> "Tracker":
        """Connect to the store and create the sweep's experiment, or restore it if it was deleted.

        Without a URI the store is $MLFLOW_TRACKING_URI, else mlflow.db in the working directory. Artifacts lie in
        mlruns/ beside an SQLite file; otherwise the store decides. Raises TrackingError.
        """
        uri, artifacts = resolve_uri(uri), None
        if uri.startswith(SQLITE):
            artifacts = str(Path(uri.removeprefix(SQLITE)).parent / "mlruns" / sweep)
        with connect(uri) as client:
            experiment = client.get_experiment_by_name(sweep)
            if experiment is None:
                experiment = client.get_experiment(client.create_experiment(sweep, artifact_location=artifacts))
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            tracker = cls(uri, sweep, experiment.experiment_id, client)
            tracker._tag(view.TAG, view.view())
            return tracker

    def sync(self, trial_dir: Path, row: str | None = None, running: bool = True) -> None:
        """Bring the trial's run up to date with its folder; create the run if there is none. Raises TrackingError.

        The run is FINISHED with a result.json, else FAILED with a failure.json, else RUNNING or KILLED.

        Args:
            row: the name of trials that differ in their seeds alone, by default the config's own.
            running: whether a worker trains the trial now.
        """
        trial = folder.read_trial(trial_dir / folder.TRIAL)
        result, failure = folder.read_result(trial_dir), folder.read_failure(trial_dir)
        row = row or trial.config.row
        status, tags = _status_and_tags(result, failure, running)
        is_stale = trial.recipe_version != RECIPE_VERSION  # charts never average such trials with today's
        tags[view.ROW_TAG] = _text(f"{row} recipe {trial.recipe_version}" if is_stale else row)
        digest = _digest([trial_dir / folder.RESULT]) if result else None
        rows = folder.read_epochs(trial_dir, self.last_epochs.get(trial.key, -1))
        with tracking_errors(self.uri):
            run = self._find_or_create(trial, label_of_row(row, trial.config))
            run_id, logged_tags = run.info.run_id, run.data.tags
            has_result = digest is not None and logged_tags.get(RESULT_TAG) == digest
            if has_result and run.info.status == status and logged_tags.get(view.ROW_TAG) == tags[view.ROW_TAG]:
                return
            tags[notes.TAG] = notes.describe_run(trial, row, run_id, mask_secrets(self.uri))
            self._describe(run, trial, tags, trial_dir)
            self._log_epochs(run, trial.key, rows)
            if result and digest and not has_result:
                self._log_result(run, result, trial_dir)
                log_network(self.client, run, trial_dir)
                self.client.set_tag(run_id, RESULT_TAG, digest)  # last: where it is, all of the above is
            if run.info.status != status:
                set_status = self.client.update_run if status == "RUNNING" else self.client.set_terminated
                set_status(run_id, status)

    def sync_tables(self, sweep_dir: Path) -> None:
        """Attach a sweep's leaderboard files to each of its runs, over older ones. Raises TrackingError."""
        tables = sorted(Path(sweep_dir).glob("leaderboard.*"))
        digest = _digest(tables)
        with tracking_errors(self.uri):
            for run in all_runs(self.client, self.experiment_id):
                if run.data.tags.get(TABLES_TAG) != digest:
                    self._log_files(run, tables, "tables")
                    self.client.set_tag(run.info.run_id, TABLES_TAG, digest)

    def describe(self, text: str) -> None:
        """Set the experiment's note. Raises TrackingError."""
        with tracking_errors(self.uri):
            self._tag(notes.TAG, text)

    def register(self, trials: Collection[str]) -> str | None:
        """Register the network of the best of these trials, by their keys, as the model that is called like the sweep.

        Returns the model's address, None if none has a network. Raises TrackingError, also for a store without a
        registry.
        """
        with tracking_errors(self.uri):
            runs = [run for run in all_runs(self.client, self.experiment_id) if run.data.tags.get("trial") in trials]
            return register_best(self.client, self.sweep, runs)

    def how_to_open(self) -> str:
        """Return the command that serves the store, unless it is a server, and a link to this sweep's charts."""
        address = mask_secrets(self.uri)
        if address.startswith(("http://", "https://")):  # a server, with pages of its own
            return view.link(address, self.experiment_id)
        command = f"uv run mlflow ui --backend-store-uri {shlex.quote(address)}"
        return f"{command}\n{view.link(LOCAL_PAGE, self.experiment_id)}"

    def _tag(self, name: str, text: str) -> None:
        """Set a tag of the experiment, unless it is set."""
        if self.client.get_experiment(self.experiment_id).tags.get(name) != text:
            self.client.set_experiment_tag(self.experiment_id, name, text)

    def _find_or_create(self, trial: TrialRecord, label: str) -> entities.Run:
        """Return the trial's run; a new one is created together with its tags, so that it is never without."""
        runs = self.client.search_runs([self.experiment_id], f"tags.trial = '{trial.key}'", max_results=1)
        if runs:
            return runs[0]
        config = {name: _text(getattr(trial.config, name)) for name in ("sweep", "model", "method", "seed", "profile")}
        created = self.client.create_run(self.experiment_id, tags={"trial": trial.key, **config}, run_name=label)
        return self.client.get_run(created.info.run_id)

    def _describe(self, run: entities.Run, trial: TrialRecord, tags: dict[str, str], trial_dir: Path) -> None:
        run_id, logged = run.info.run_id, run.data
        config = {
            "recipe_version": trial.recipe_version,
            "fingerprint": trial.fingerprint,
            **trial.config.model_dump(mode="json"),
        }
        params = {name: _text(value) for name, value in flatten(config).items() if name not in logged.params}
        if params:  # logged after trial.json: where they are, it is
            self._log_files(run, [trial_dir / folder.TRIAL])
        changed = {name: text for name, text in tags.items() if logged.tags.get(name) != text}
        self.client.log_batch(
            run_id,
            params=[entities.Param(name, text) for name, text in params.items()],
            tags=[entities.RunTag(name, text) for name, text in changed.items()],
        )
        for name in {ERROR_TAG, WARNINGS_TAG} & (logged.tags.keys() - tags.keys()):
            self.client.delete_tag(run_id, name)

    def _log_epochs(self, run: entities.Run, key: str, rows: list[dict[str, Any]]) -> None:
        """Log the epochs after the last one in the store. A batch of whole epochs goes in altogether or not at all."""
        run_id, any_logged = run.info.run_id, TRAIN_EPS in run.data.metrics  # which every row has, epoch 0's too
        if key not in self.last_epochs:
            history = self.client.get_metric_history(run_id, TRAIN_EPS) if any_logged else []
            self.last_epochs[key] = max((point.step for point in history), default=-1)
        new = [row for row in rows if row[EPOCH] > self.last_epochs[key]]
        metrics = [_metrics(row, row[EPOCH]) for row in new]
        size = LARGEST_BATCH // max([1, *map(len, metrics)]) or 1
        for start in range(0, len(new), size):
            self.client.log_batch(run_id, list(chain.from_iterable(metrics[start : start + size])))
            self.last_epochs[key] = new[start : start + size][-1][EPOCH]

    def _log_result(self, run: entities.Run, result: TrialResult, trial_dir: Path) -> None:
        """Log final metrics that the run does not have, and the files behind them."""
        new = {name: value for name, value in result.metrics.items() if run.data.metrics.get(name) != value}
        self.client.log_batch(run.info.run_id, _metrics(new, _FINAL_STEP))
        self._log_files(run, [trial_dir / name for name in UPLOADED_FILES])

    def _log_files(self, run: entities.Run, paths: list[Path], under: str | None = None) -> None:
        for path in paths:
            if path.exists():
                self.client.log_artifact(run.info.run_id, str(path), under)


def _text(value: Any) -> str:
    """Return a tag's or param's text: strings as they are, without secrets, anything else as JSON."""
    return mask_secrets(value if isinstance(value, str) else json.dumps(value))[:_MAX_TEXT]


def _status_and_tags(
    result: TrialResult | None, failure: dict[str, Any] | None, running: bool
) -> tuple[str, dict[str, str]]:
    if result:
        tags = {f"environment.{name}": _text(value) for name, value in result.environment.items()}
        return "FINISHED", tags | ({WARNINGS_TAG: _text("\n".join(result.warnings))} if result.warnings else {})
    if failure:
        return "FAILED", {ERROR_TAG: _text(failure["error"])}
    return "RUNNING" if running else "KILLED", {}


def _metrics(values: dict[str, Any], step: int) -> list[entities.Metric]:
    """Return a metric for each number among `values` but the epoch."""
    now = int(time.time() * 1000)
    return [entities.Metric(k, v, now, step) for k, v in values.items() if type(v) in (int, float) and k != EPOCH]


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
