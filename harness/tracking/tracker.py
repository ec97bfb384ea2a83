"""Logs the networks of a sweep to MLflow: one experiment for a sweep, one run for each network.

The run has the metrics of the main evaluation; each further evaluation is a child run. The driver calls this as items
report. mlflow.json in a network's folder says what the store has of it.
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
from harness.config.training import flatten
from harness.settings import Evaluation
from harness.storage import folder, training_progress
from harness.storage.files import DamagedFileError, parse_json, read_bytes, read_text, write_json
from harness.storage.records import Result, TrainingRecord
from harness.storage.state import EvaluationState, read_state_or_raise
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
    """What mlflow.json holds: what the store has of a network.

    run: the run's ID. epoch: the last one; None while some are sent: if the driver dies then, the store is asked.
    parts: the version of everything else, by name; of an evaluation by its key.
    """

    run: str
    epoch: int | None = None
    parts: dict[str, str] = {}


class Tracker:
    """The MLflow experiment of one sweep.

    is_away: whether the store has failed; then nothing is sent until `finish`. failed: networks that could not be
    logged.
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

    def log(self, network_dir: Path, running: bool = True) -> None:
        """Log what a network's folder has and MLflow lacks; warn where that fails. running: whether a worker has it."""
        try:
            self._try(lambda: self._log(network_dir, running))
        except (OSError, DamagedFileError) as error:  # of the folder: the store is not to blame
            if network_dir not in self.failed:
                self._warn(f"{error}: not logged to MLflow; the same command logs it later")
            self.failed.add(network_dir)

    def finish(
        self, sweep_dir: Path, own: Collection[str], candidates: Collection[str], only_own: bool = False
    ) -> bool:  # fmt: skip
        """Log whatever is missing, imported networks too; print how to open MLflow. Return whether it has all own ones.

        own, candidates: keys of the command's networks, and of those of which the best network is registered.
        only_own: others may be at work on the other networks.
        """
        self.is_away, self.failed = False, set()
        for network_dir in folder.network_folders(sweep_dir):
            if network_dir.name in own or not only_own:
                self.log(network_dir, running=False)
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

    def _log(self, network_dir: Path, running: bool) -> None:
        """Raises TrackingError for the store; OSError and DamagedFileError for the folder."""
        record = folder.read_training(network_dir / folder.TRAINING)
        states = {path: read_state_or_raise(path) for path in folder.evaluation_folders(network_dir)}
        logged = self._find(network_dir, record)

        def once(part: str, version: str, action: Callable[..., None], *args: Any) -> None:
            if logged.parts.get(part) != version:
                with tracking_errors(self.uri):
                    action(*args)
                logged.parts[part] = version
                write_json(network_dir / STATE, logged.model_dump())

        row = row_of(record)
        once("config", "", self._log_config, logged.run, network_dir, record)
        once("row", row, self._set_tags, logged.run, {view.ROW_TAG: row})
        self._log_epochs(network_dir, logged)
        if (trained := folder.read_trained(network_dir)) is not None and _readable(network_dir, folder.WEIGHTS):
            once("network", _digest(network_dir / folder.TRAINED), self._log_trained, logged.run, network_dir, trained)
        main = folder.main_evaluation(network_dir).key if states else ""
        for path, state in states.items():
            if state.result is None:
                continue
            files = _readable(path, folder.VERDICTS, folder.RESULT)
            version = f"{path.name == main} {_digest(path / folder.RESULT)}"
            once(path.name, version, self._log_evaluation, logged.run, files, state, path.name == main)
        error = next((state.failure.error for state in states.values() if state.failure), "")
        are_finished = all(state.result for state in states.values()) and bool(states)
        status = "FINISHED" if are_finished else "FAILED" if error else "RUNNING" if running else "KILLED"
        once("status", f"{status} {error}", self._set_status, logged.run, status, error)

    def _find(self, network_dir: Path, record: TrainingRecord) -> Logged:
        """Return what the store has of a network, whose run is created if there is none."""
        if record.key not in self.run_ids:
            self._create_run(record.key, record, record.config.label, {})
        with suppress(DamagedFileError):  # there is no file, or not that of this store
            logged: Logged = parse_json(network_dir / STATE, Logged.model_validate)
            if logged.run == self.run_ids[record.key]:
                return logged
        return Logged(run=self.run_ids[record.key])

    def _create_run(self, key: str, record: TrainingRecord, name: str, further: dict[str, str]) -> None:
        """Create the run of a network or an evaluation. further: tags."""
        tags = {name: getattr(record.config, name) for name in ("model", "method", "seed")}
        tags = dict(_texts({"trial": key, "sweep": self.sweep, **tags, **further}))
        with tracking_errors(self.uri):
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=name)
        self.run_ids[key] = run.info.run_id

    def _log_epochs(self, network_dir: Path, logged: Logged) -> None:
        """Log new epochs. A batch of whole epochs goes in altogether or not at all."""
        if logged.epoch is None:
            with tracking_errors(self.uri):
                points = self.client.get_metric_history(logged.run, names.TRAIN_EPS)
            logged.epoch = max((point.step for point in points), default=-1)
        rows = training_progress.read_epochs(network_dir, logged.epoch)
        size = LARGEST_BATCH // max(1, *map(len, rows)) if rows else 1
        for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
            write_json(network_dir / STATE, logged.model_copy(update={"epoch": None}).model_dump())
            with tracking_errors(self.uri):
                metrics = [_metrics(row, row[names.EPOCH], time.time()) for row in batch]
                self.client.log_batch(logged.run, list(chain.from_iterable(metrics)))
            logged.epoch = batch[-1][names.EPOCH]
            write_json(network_dir / STATE, logged.model_dump())

    def _log_config(self, run_id: str, network_dir: Path, record: TrainingRecord) -> None:
        config = record.config.model_dump(mode="json", exclude={"named"})
        config |= {"recipe_version": record.recipe_version, "fingerprint": record.fingerprint}
        self.client.log_artifact(run_id, str(network_dir / folder.TRAINING))
        self._log_params(run_id, flatten(config))

    def _log_trained(self, run_id: str, network_dir: Path, trained: Result) -> None:
        log_network(self.client, run_id, network_dir)
        if (network_dir / folder.CHOSEN).exists():
            self.client.log_artifact(run_id, str(network_dir / folder.CHOSEN))
        self._log_metrics(run_id, network_dir / folder.TRAINED, trained.metrics)

    def _log_evaluation(self, run_id: str, files: list[Path], state: EvaluationState, is_main: bool) -> None:
        """Log the main evaluation of a network to its run, another one to a child run. files: its own, result last."""
        assert state.training is not None and state.evaluation is not None and state.result is not None
        record, evaluation, result = state.training, state.evaluation.config, state.result
        tags = {"eps": str(evaluation.eps), "stages": " > ".join(evaluation.stages)}
        key = f"{record.key}/{evaluation.key}"
        if is_main and key in self.run_ids:  # another one was the main evaluation before
            self.client.delete_run(self.run_ids.pop(key))
        if not is_main:
            if key not in self.run_ids:
                name, row = (f"{text}, {evaluation.description}" for text in (record.config.label, row_of(record)))
                self._create_run(key, record, name, {view.PARENT_TAG: run_id, view.ROW_TAG: row})
            run_id = self.run_ids[key]
            self._log_params(run_id, _parameters(evaluation))
        for file in files:
            self.client.log_artifact(run_id, str(file))
        tags |= {f"environment.{name}": value for name, value in result.environment.items()}
        tags |= {"warnings": "\n".join(result.warnings)} if result.warnings else {}
        self._set_tags(run_id, tags)
        self._log_metrics(run_id, files[-1], result.metrics | {names.EPS: float(evaluation.eps)})
        if not is_main:
            self.client.set_terminated(run_id, "FINISHED")

    def _log_params(self, run_id: str, values: dict[str, Any]) -> None:
        self.client.log_batch(run_id, params=[entities.Param(*each) for each in _texts(values)])

    def _log_metrics(self, run_id: str, file: Path, values: dict[str, float | None]) -> None:
        """Log final numbers that the store lacks: at any other step than 0 MLflow draws a curve of one point."""
        known, written = self.client.get_run(run_id).data.metrics, file.stat().st_mtime
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


def row_of(record: TrainingRecord) -> str:
    """Return the tag by which charts average runs over seeds: the row, and a digest of all else that decides it."""
    content = json.dumps([record.config.identity, record.fingerprint, record.recipe_version])
    return f"{record.config.row} {hashlib.sha256(content.encode()).hexdigest()[:4]}"


def _parameters(evaluation: Evaluation) -> dict[str, Any]:
    """Return the settings of an evaluation, the stages as a text."""
    return evaluation.model_dump(mode="json") | {"stages": " > ".join(evaluation.stages)}


def _readable(directory: Path, *file_names: str) -> list[Path]:
    """Return the files that exist. Raises OSError for one that cannot be read, since MLflow would read it next."""
    paths = [directory / name for name in file_names if (directory / name).exists()]
    for path in paths:
        path.open("rb").close()
    return paths


def _digest(file: Path) -> str:
    return hashlib.sha256(read_bytes(file)).hexdigest()[:16]


def _texts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the texts of tags or params: strings as they are, without secrets, anything else as JSON."""
    return [(name, mask_secrets(v if isinstance(v, str) else json.dumps(v))[:_MAX_TEXT]) for name, v in values.items()]


def _metrics(values: dict[str, Any], step: int, seconds: float) -> list[entities.Metric]:
    """Return a metric for each number among `values` but the epoch."""
    numbers = {name: value for name, value in values.items() if value is not None and name != names.EPOCH}
    return [entities.Metric(name, value, round(1000 * seconds), step) for name, value in numbers.items()]
