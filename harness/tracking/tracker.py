"""Logs the trials of a sweep to MLflow: one experiment for a sweep, one run for each trial.

The driver calls this as trials report. mlflow.json in a trial's folder says what the store has of it.
"""

import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pydantic import BaseModel
from rich.console import Console

from harness.common import names
from harness.common.masking import mask_secrets
from harness.config.trial import flatten
from harness.storage import certification, folder, training_record
from harness.storage.files import DamagedFileError, parse_json, read_bytes, read_text, write_json
from harness.storage.folder import TrialRecord, TrialResult
from harness.storage.state import read_state_or_raise
from harness.tracking import view
from harness.tracking.client import (
    SQLITE,
    MlflowClient,
    TrackingError,
    connect,
    entities,
    sqlite_path,
    sqlite_uri,
    tracking_errors,
)
from harness.tracking.model import log_network, register_best

STATE = "mlflow.json"
LARGEST_BATCH = 1000  # metrics in one call
LOCAL_PAGE = "http://127.0.0.1:5000"
_SERVE = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false uv run mlflow ui --workers 1"  # 2 processes in place of 8
_MAX_TEXT = 5000  # characters of a tag or param that every store takes


class Logged(BaseModel):
    """What mlflow.json holds: what the store has of a trial.

    run: the run's ID. epoch: the last one; None while some are sent: if the driver dies then, the store is asked.
    parts: the version of everything else, by name.
    """

    run: str
    epoch: int | None = None
    parts: dict[str, str] = {}


class Tracker:
    """The MLflow experiment of one sweep.

    is_away: whether the store has failed; then nothing is sent until `finish`. failed: trials that could not be logged.
    """

    def __init__(self, uri: str, sweep: str, experiment_id: str, client: MlflowClient, console: Console):
        self.uri, self.sweep, self.experiment_id, self.client, self.console = uri, sweep, experiment_id, client, console
        self.run_ids = {run.data.tags.get("trial"): run.info.run_id for run in self._runs()}
        self.is_away, self.failed = False, set[Path]()

    @classmethod
    def open(cls, sweep: str, uri: str | None, console: Console) -> "Tracker":
        """Find, restore or create the experiment that is called like the sweep. Raises TrackingError.

        uri: by default $MLFLOW_TRACKING_URI, else ./mlflow.db. Artifacts lie in mlruns/ beside an SQLite file. MLflow
        keeps their absolute paths: if both were moved, the old experiment gets another name, and all is logged again.
        """
        uri, artifacts = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db", None
        if path := sqlite_path(uri):
            uri, artifacts = sqlite_uri(path.absolute()), quote(str(path.absolute().parent / "mlruns" / sweep))
        with connect(uri) as client:
            experiment = client.get_experiment_by_name(sweep)
            if experiment and experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            location = experiment.artifact_location if experiment and artifacts else ""
            if location.startswith("/") and location != artifacts and not Path(unquote(location)).exists():
                old = f"{sweep}, experiment {experiment.experiment_id}, files in {location}"
                client.rename_experiment(experiment.experiment_id, old)
                experiment = None
            number = experiment.experiment_id if experiment else client.create_experiment(sweep, artifacts)
            client.set_experiment_tag(number, view.TAG, view.view())
            return cls(uri, sweep, number, client, console)

    def log(self, trial_dir: Path, running: bool = True) -> None:
        """Log what the trial's folder has and MLflow lacks; warn where that fails. running: whether a worker has it."""
        try:
            self._try(lambda: self._log(trial_dir, running))
        except (OSError, DamagedFileError) as error:  # of the folder: the store is not to blame
            if trial_dir not in self.failed:
                self._warn(f"{error}: not logged to MLflow; the same command logs it later")
            self.failed.add(trial_dir)

    def finish(self, sweep_dir: Path, own: Collection[str], candidates: Collection[str]) -> bool:
        """Log whatever is missing, imported trials too; print how to open MLflow. Return whether it has all own trials.

        own, candidates: keys of the command's trials, and of those of which the best network is registered.
        """
        self.is_away, self.failed = False, set()
        for trial_dir in folder.trial_folders(sweep_dir):
            self.log(trial_dir, running=False)
        self._try(lambda: self._describe(read_text(sweep_dir / "leaderboard.md")))
        if self.is_away:
            return False
        try:
            with tracking_errors(self.uri):
                runs = [run for run in self._runs() if run.data.tags.get("trial") in candidates]
                register_best(self.client, self.sweep, runs)
        except TrackingError as error:  # a store without a registry is no failure
            self.console.print(f"no network is registered as a model: {error}")
        self.console.print(f"\n{self.how_to_open()}")
        return not {path.name for path in self.failed} & set(own)

    def how_to_open(self) -> str:
        """Return the command that serves the store, unless it is a server, and a link to this sweep's charts."""
        address = mask_secrets(self.uri)
        if address.startswith(("http://", "https://")):
            return f"MLflow:\n{view.link(address, self.experiment_id)}"
        title = "MLflow: this command shows the charts at the link below it, until Ctrl-C"
        command = f"{_SERVE} --backend-store-uri {shlex.quote(address)}"
        return f"{title}\n{command}\n{view.link(LOCAL_PAGE, self.experiment_id)}"

    def _try(self, action: Callable[[], None]) -> None:
        try:
            if not self.is_away:
                action()
        except TrackingError as error:
            self.is_away = True
            self._warn(f"{error}; the end of this command, or the same command later, logs what is missing")

    def _warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow")

    def _describe(self, note: str) -> None:
        with tracking_errors(self.uri):
            self.client.set_experiment_tag(self.experiment_id, "mlflow.note.content", note[:_MAX_TEXT])

    def _runs(self) -> list[entities.Run]:
        return list(self.client.search_runs([self.experiment_id], max_results=50_000))

    def _log(self, trial_dir: Path, running: bool) -> None:
        """Raises TrackingError for the store; OSError and DamagedFileError for the folder."""
        state = read_state_or_raise(trial_dir)
        trial = state.trial or folder.read_trial(trial_dir / folder.TRIAL)  # which says that it is missing
        logged = self._find(trial_dir, trial)
        status = "FINISHED" if state.result else "FAILED" if state.failure else "RUNNING" if running else "KILLED"

        def once(part: str, version: str, action: Callable[..., None], *args: Any) -> None:
            if logged.parts.get(part) != version:
                with tracking_errors(self.uri):
                    action(logged.run, *args)
                logged.parts[part] = version
                write_json(trial_dir / STATE, logged.model_dump())

        once("config", "", self._log_config, trial_dir, trial)
        once("row", row_of(trial), self._set_tags, {view.ROW_TAG: row_of(trial)})
        self._log_epochs(trial_dir, logged)
        if state.result:
            paths = [trial_dir / name for name in (folder.VERDICTS, folder.RESULT, folder.CHOSEN, folder.WEIGHTS)]
            paths = [path for path in paths if path.exists()]
            for path in paths:
                path.open("rb").close()  # what cannot be read is the folder's fault, and MLflow would read it next
            once("result", _digest(trial_dir), self._log_result, trial_dir, state.result, paths)
        for directory in certification.folders(trial_dir):
            if certified := read_state_or_raise(directory).result:
                once(f"certified/{directory.name}", _digest(directory), self._log_metrics, directory, certified)
        error = state.failure.error if state.failure else ""
        once("status", f"{status} {error}", self._set_status, status, error)

    def _find(self, trial_dir: Path, trial: TrialRecord) -> Logged:
        """Return what the store has of a trial, whose run is created if there is none."""
        if trial.key not in self.run_ids:
            tags = {name: getattr(trial.config, name) for name in ("sweep", "model", "method", "seed", "profile")}
            tags = dict(_texts({"trial": trial.key, **tags}))
            with tracking_errors(self.uri):
                run = self.client.create_run(self.experiment_id, tags=tags, run_name=trial.config.label)
            self.run_ids[trial.key] = run.info.run_id
        with suppress(DamagedFileError):  # there is no file, or not that of this store
            logged: Logged = parse_json(trial_dir / STATE, Logged.model_validate)
            if logged.run == self.run_ids[trial.key]:
                return logged
        return Logged(run=self.run_ids[trial.key])

    def _log_epochs(self, trial_dir: Path, logged: Logged) -> None:
        """Log new epochs. A batch of whole epochs goes in altogether or not at all."""
        if logged.epoch is None:
            with tracking_errors(self.uri):
                points = self.client.get_metric_history(logged.run, names.TRAIN_EPS)
            logged.epoch = max((point.step for point in points), default=-1)
        rows = training_record.read_epochs(trial_dir, logged.epoch)
        size = LARGEST_BATCH // max(1, *map(len, rows)) if rows else 1
        for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
            write_json(trial_dir / STATE, logged.model_copy(update={"epoch": None}).model_dump())
            with tracking_errors(self.uri):
                metrics = [_metrics(row, row[names.EPOCH], time.time()) for row in batch]
                self.client.log_batch(logged.run, list(chain.from_iterable(metrics)))
            logged.epoch = batch[-1][names.EPOCH]
            write_json(trial_dir / STATE, logged.model_dump())

    def _log_config(self, run_id: str, trial_dir: Path, trial: TrialRecord) -> None:
        config = trial.config.model_dump(mode="json", exclude={"named"})
        config |= {"recipe_version": trial.recipe_version, "fingerprint": trial.fingerprint}
        self.client.log_artifact(run_id, str(trial_dir / folder.TRIAL))
        self.client.log_batch(run_id, params=[entities.Param(*each) for each in _texts(flatten(config))])

    def _log_result(self, run_id: str, trial_dir: Path, result: TrialResult, paths: list[Path]) -> None:
        for path in paths:
            if path.name == folder.WEIGHTS:
                log_network(self.client, run_id, trial_dir)
            else:
                self.client.log_artifact(run_id, str(path))
        environment = {f"environment.{name}": value for name, value in result.environment.items()}
        self._set_tags(run_id, environment | ({"warnings": "\n".join(result.warnings)} if result.warnings else {}))
        self._log_metrics(run_id, trial_dir, result)

    def _log_metrics(self, run_id: str, directory: Path, result: TrialResult) -> None:
        """Log final numbers that the store lacks: at any other step than 0 MLflow draws a curve of one point."""
        prefix = f"certified/{directory.name.replace('+', ' ')}/" if certification.is_certification(directory) else ""
        values = {f"{prefix}{name}": value for name, value in result.metrics.items()}
        known, written = self.client.get_run(run_id).data.metrics, (directory / folder.RESULT).stat().st_mtime
        changed = {name: value for name, value in values.items() if known.get(name) != value}
        self.client.log_batch(run_id, _metrics(changed, 0, written))

    def _set_status(self, run_id: str, status: str, error: str) -> None:
        if error:
            self._set_tags(run_id, {"error": error})
        elif "error" in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, "error")
        if status == "RUNNING":
            self.client.update_run(run_id, status)
        else:
            self.client.set_terminated(run_id, status)

    def _set_tags(self, run_id: str, tags: dict[str, Any]) -> None:
        self.client.log_batch(run_id, tags=[entities.RunTag(*each) for each in _texts(tags)])


def row_of(trial: TrialRecord) -> str:
    """Return the tag by which charts average runs over seeds: the row, and a digest of all else that decides it."""
    content = json.dumps([trial.config.identity, trial.fingerprint, trial.recipe_version])
    return f"{trial.config.row} {hashlib.sha256(content.encode()).hexdigest()[:4]}"


def _digest(directory: Path) -> str:
    return hashlib.sha256(read_bytes(directory / folder.RESULT)).hexdigest()[:16]


def _texts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the texts of tags or params: strings as they are, without secrets, anything else as JSON."""
    return [(name, mask_secrets(v if isinstance(v, str) else json.dumps(v))[:_MAX_TEXT]) for name, v in values.items()]


def _metrics(values: dict[str, Any], step: int, seconds: float) -> list[entities.Metric]:
    """Return a metric for each number among `values` but the epoch."""
    numbers = {name: value for name, value in values.items() if value is not None and name != names.EPOCH}
    return [entities.Metric(name, value, round(1000 * seconds), step) for name, value in numbers.items()]
