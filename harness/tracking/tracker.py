"""Logs the networks of a sweep to MLflow: one experiment for a sweep, one run for each network.

The run has the metrics of the main evaluation. If there are several, each has a child run, the main one, too. The
driver calls this as items report. mlflow.json in a network's folder says what the store has of it.
"""

import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Collection, Mapping
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
from harness.tracking.times import ends_of_epochs, modified, start_of

STATE = "mlflow.json"
LARGEST_BATCH = 1000  # metrics in one call
LOCAL_PAGE = "http://127.0.0.1:5000"
_SERVE = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false uv run mlflow ui --workers 1"  # 2 processes in place of 8
_MAX_TEXT = 5000  # characters of a tag or param that every store takes


class Logged(BaseModel):
    """What mlflow.json holds: what the store has of a network.

    run: the run's ID. epoch: the last one; None while some are sent: if the driver dies then, the store is asked.
    parts: the version of everything else, by name; of a child run by its evaluation's key.
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
            files = _readable(path, folder.VERDICTS, folder.RESULT) if state.result else []
            version = _digest(files[-1]) if files else ""
            if files and len(states) > 1:
                once(path.name, version, self._log_child, logged.run, files, state)
            if path.name == main:
                once("main evaluation", f"{main} {version}", self._log_main, logged.run, files, state)
        error = next((state.failure.error for state in states.values() if state.failure), "")
        are_finished = all(state.result for state in states.values()) and bool(states)
        status = "FINISHED" if are_finished else "FAILED" if error else "RUNNING" if running else "KILLED"
        ended = max((state.written or 0 for state in states.values()), default=0) or time.time()
        once("status", f"{status} {error}", self._set_status, logged.run, status, error, ended)

    def _find(self, network_dir: Path, record: TrainingRecord) -> Logged:
        """Return what the store has of a network, whose run is created if there is none."""
        if record.key not in self.run_ids:
            self._create_run(record.key, record, record.config.label, start_of(network_dir), {})
        with suppress(DamagedFileError):  # there is no file, or not that of this store
            logged: Logged = parse_json(network_dir / STATE, Logged.model_validate)
            if logged.run == self.run_ids[record.key]:
                return logged
        return Logged(run=self.run_ids[record.key])

    def _create_run(
        self, key: str, record: TrainingRecord, name: str, start: float, further: dict[str, str]
    ) -> None:  # fmt: skip
        """Create the run of a network or an evaluation. start: in seconds since 1970. further: tags."""
        tags = {name: getattr(record.config, name) for name in ("model", "method", "seed")}
        tags = dict(_texts({"trial": key, "sweep": self.sweep, **tags, **further}))
        with tracking_errors(self.uri):
            run = self.client.create_run(self.experiment_id, round(1000 * start), tags, name)
        self.run_ids[key] = run.info.run_id

    def _log_epochs(self, network_dir: Path, logged: Logged) -> None:
        """Log new epochs. A batch of whole epochs goes in altogether or not at all."""
        if logged.epoch is None:
            with tracking_errors(self.uri):
                points = self.client.get_metric_history(logged.run, names.TRAIN_EPS)
            logged.epoch = max((point.step for point in points), default=-1)
        rows = training_progress.read_epochs(network_dir, logged.epoch)
        size, times = LARGEST_BATCH // max(1, *map(len, rows)) if rows else 1, ends_of_epochs(network_dir, rows)
        for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
            write_json(network_dir / STATE, logged.model_copy(update={"epoch": None}).model_dump())
            with tracking_errors(self.uri):
                metrics = [_metrics(row, row[names.EPOCH], times[row[names.EPOCH]]) for row in batch]
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
        self._log_metrics(run_id, modified(network_dir / folder.TRAINED), trained.metrics)

    def _log_main(self, run_id: str, files: list[Path], state: EvaluationState) -> None:
        """Log the main evaluation to the network's run, in place of another one that was the main one before.

        files: its own, result last; none before there is a result. MLflow deletes no metric: those of the other one
        that this one lacks become NaN.
        """
        known, trained = self.client.get_run(run_id).data.metrics, state.trained.metrics if state.trained else {}
        lacking = [name for name in known if name not in trained and not name.startswith(names.in_training(""))]
        self._log_evaluation(run_id, files, state, dict.fromkeys(lacking, math.nan))

    def _log_child(self, run_id: str, files: list[Path], state: EvaluationState) -> None:
        """Log an evaluation to a child run of the network's run `run_id`."""
        assert state.training is not None and state.evaluation is not None and state.result is not None
        record, evaluation = state.training, state.evaluation.config
        key, ended = state.result.key, modified(files[-1])
        if key not in self.run_ids:
            name, row = (f"{text}, {evaluation.description}" for text in (record.config.label, row_of(record)))
            start = ended - (state.result.metrics.get(names.EVALUATION_SECONDS) or 0)
            self._create_run(key, record, name, start, {view.PARENT_TAG: run_id, view.ROW_TAG: row})
        self._log_params(self.run_ids[key], _parameters(evaluation))
        self._log_evaluation(self.run_ids[key], files, state, {})
        self._set_status(self.run_ids[key], "FINISHED", "", ended)

    def _log_evaluation(
        self, run_id: str, files: list[Path], state: EvaluationState, values: dict[str, float]
    ) -> None:  # fmt: skip
        """Log what names an evaluation, and its result and files, if any. values: of metrics that it may lack."""
        assert state.evaluation is not None
        evaluation, written, warnings = state.evaluation.config, time.time(), list[str]()
        tags = {"eps": str(evaluation.eps), "stages": " > ".join(evaluation.stages)}
        if state.result is not None:
            written, warnings = modified(files[-1]), state.result.warnings
            for file in files:
                self.client.log_artifact(run_id, str(file))
            tags |= {f"environment.{name}": value for name, value in state.result.environment.items()}
            values |= {name: value for name, value in state.result.metrics.items() if value is not None}
            values |= {names.EPS: float(evaluation.eps)}
        self._set_tags(run_id, tags | {"warnings": "\n".join(warnings)})
        self._log_metrics(run_id, written, values)

    def _log_params(self, run_id: str, values: dict[str, Any]) -> None:
        self.client.log_batch(run_id, params=[entities.Param(*each) for each in _texts(values)])

    def _log_metrics(self, run_id: str, written: float, values: Mapping[str, float | None]) -> None:
        """Log final numbers that the store lacks: at any other step than 0 MLflow draws a curve of one point.

        written: when they were, in seconds since 1970. Of one step MLflow shows the newest point: numbers that replace
        others are logged with the time of now, and with `eps`, the newest of all, since clocks of machines differ.
        """
        known = self.client.get_run(run_id).data.metrics
        numbers = {name: value for name, value in values.items() if value is not None}
        changed = {name: v for name, v in numbers.items() if name not in known or not _is_same(known[name], v)}
        if changed.keys() & known.keys():
            points = self.client.get_metric_history(run_id, names.EPS)
            written = max([time.time(), *(point.timestamp / 1000 + 0.001 for point in points)])
            changed |= {name: value for name, value in numbers.items() if name == names.EPS}
        self.client.log_batch(run_id, _metrics(changed, 0, written))

    def _set_status(self, run_id: str, status: str, error: str, ended: float) -> None:
        """Set the status of a run. ended: in seconds since 1970, unless it runs."""
        self._set_tags(run_id, {"error": error})
        if status == "RUNNING":
            self.client.update_run(run_id, status)
        else:
            began = self.client.get_run(run_id).info.start_time  # of an older store: when the run was made
            self.client.set_terminated(run_id, status, max(began, round(1000 * ended)))

    def _set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags, and delete those without a text."""
        texts = [entities.RunTag(*each) for each in _texts(tags) if each[1]]
        if texts:
            self.client.log_batch(run_id, tags=texts)
        if empty := [name for name, text in tags.items() if not text]:
            for name in self.client.get_run(run_id).data.tags.keys() & empty:
                self.client.delete_tag(run_id, name)


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


def _is_same(known: float, value: float) -> bool:
    """Return whether two metrics are the same; NaN is NaN."""
    return known == value or (math.isnan(known) and math.isnan(value))


def _digest(file: Path) -> str:
    return hashlib.sha256(read_bytes(file)).hexdigest()[:16]


def _texts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the texts of tags or params: strings as they are, without secrets, anything else as JSON."""
    return [(name, mask_secrets(v if isinstance(v, str) else json.dumps(v))[:_MAX_TEXT]) for name, v in values.items()]


def _metrics(values: dict[str, Any], step: int, seconds: float) -> list[entities.Metric]:
    """Return a metric for each number among `values` but the epoch."""
    numbers = {name: value for name, value in values.items() if value is not None and name != names.EPOCH}
    return [entities.Metric(name, value, round(1000 * seconds), step) for name, value in numbers.items()]
