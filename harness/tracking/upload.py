"""Logs trial folders to MLflow: one experiment for a sweep, one run for each trial, not nested.

Only the driver calls this. mlflow.json in a trial's folder says what the store has of it, so that nothing is logged
twice, and a later command logs what is missing. Times of points follow from that file: a point that is sent again,
since the driver was killed before it wrote the file, is the same point.
"""

import hashlib
import json
import shlex
import time
from collections.abc import Collection
from contextlib import suppress
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harness.common import names
from harness.common.masking import mask_secrets
from harness.config.trial import RECIPE_VERSION, flatten, label_of_row
from harness.storage import folder
from harness.storage.files import DamagedFileError, parse_json, write_json
from harness.storage.folder import TrialRecord, TrialResult
from harness.tracking import TrackingError, notes, view
from harness.tracking.client import SQLITE, MlflowClient, connect, entities, resolve_uri, tracking_errors
from harness.tracking.model import log_network, register_best

STATE = "mlflow.json"
LARGEST_BATCH = 1000  # metrics in one call
LOCAL_PAGE = "http://127.0.0.1:5000"
_ERROR, _WARNINGS = "error", "warnings"  # tags
_MAX_TEXT = 5000  # characters of a tag or param that every store takes
_MAX_RUNS = 50_000  # in one search


class Logged(BaseModel):
    """What mlflow.json holds: what the store has of a trial.

    run: the run's ID. start, time: when the trial began, and when its last logged epoch ended if it never paused, in
    ms. epoch: that one. result, tables: digests of result.json and of the leaderboard's files. status, row: the run's.
    """

    run: str
    start: int
    time: int
    epoch: int = -1
    result: str = ""
    tables: str = ""
    status: str = "RUNNING"
    row: str = ""


class Tracker:
    """The MLflow experiment of one sweep. runs: those that it has, by their trials' keys."""

    def __init__(self, uri: str, sweep: str, experiment_id: str, client: MlflowClient):
        self.uri, self.sweep, self.experiment_id, self.client = uri, sweep, experiment_id, client
        self.runs = {run.data.tags.get("trial", ""): run.info.run_id for run in self._all_runs()}

    @classmethod
    def open(cls, sweep: str, uri: str | None = None) -> "Tracker":
        """Find or create the experiment that is called like the sweep, with its view; a deleted one is restored.

        Without a URI the store is $MLFLOW_TRACKING_URI, else mlflow.db in the working directory. Artifacts lie in
        mlruns/ beside an SQLite file; otherwise the store decides. MLflow keeps their absolute paths: if the file was
        moved with them, the old experiment gets another name, and everything is logged again. Raises TrackingError.
        """
        uri, artifacts = resolve_uri(uri), None
        if uri.startswith(SQLITE):
            artifacts = str(Path(uri.removeprefix(SQLITE)).parent / "mlruns" / sweep)
        with connect(uri) as client:
            experiment = client.get_experiment_by_name(sweep)
            if experiment and experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            if experiment and artifacts and _was_moved(experiment.artifact_location, artifacts):
                old = f"{sweep}, experiment {experiment.experiment_id}, files in {experiment.artifact_location}"
                client.rename_experiment(experiment.experiment_id, old)
                experiment = None
            number = experiment.experiment_id if experiment else client.create_experiment(sweep, artifacts)
            client.set_experiment_tag(number, view.TAG, view.view())
            return cls(uri, sweep, number, client)

    def sync(self, trial_dir: Path, row: str | None = None, running: bool = True) -> None:
        """Log what the trial's folder has and its run lacks; create the run if there is none. Raises TrackingError.

        The run is FINISHED with a result.json, else FAILED with a failure.json, else RUNNING or KILLED. It lasts from
        the trial's start for as many seconds as the trial has worked.

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
        digest = _digest([trial_dir / folder.RESULT]) if result else ""
        with tracking_errors(self.uri):
            logged = self._find(trial_dir, trial) or self._create(trial_dir, trial, label_of_row(row, trial.config))
            new = {"status": status, "row": tags[view.ROW_TAG], "result": digest}
            is_changed = new != logged.model_dump(include=set(new))
            if not (is_changed or status == "RUNNING"):
                return
            self._log_epochs(trial_dir, logged, folder.read_epochs(trial_dir, logged.epoch))
            if not is_changed:
                return
            before, end = self.client.get_run(logged.run).data, logged.start + _worked(trial_dir, result)
            tags[notes.TAG] = notes.describe_run(trial, row, logged.run, mask_secrets(self.uri))
            self.client.log_batch(logged.run, tags=[entities.RunTag(*tag) for tag in tags.items()])
            for name in {_ERROR, _WARNINGS} & (before.tags.keys() - tags.keys()):
                self.client.delete_tag(logged.run, name)
            if result and digest != logged.result:
                metrics = {name: value for name, value in result.metrics.items() if before.metrics.get(name) != value}
                written = round(1000 * (trial_dir / folder.RESULT).stat().st_mtime)
                # At any other step than 0 MLflow draws a curve of one point.
                self.client.log_batch(logged.run, _metrics(metrics, 0, written))
                for name in (folder.VERDICTS, folder.WEIGHTS, folder.RESULT, folder.CHOSEN):
                    if (trial_dir / name).exists():
                        self.client.log_artifact(logged.run, str(trial_dir / name))
                log_network(self.client, self.experiment_id, logged.run, trial_dir)
            if status == "RUNNING":
                self.client.update_run(logged.run, status)
            else:
                self.client.set_terminated(logged.run, status, end)
            _write_state(trial_dir, logged.model_copy(update=new))

    def log_tables(self, sweep_dir: Path, note: str) -> None:
        """Attach the leaderboard's files to each run, over older ones, and set the experiment's note."""
        tables = sorted(Path(sweep_dir).glob("leaderboard.*"))
        digest = _digest(tables)
        with tracking_errors(self.uri):
            self.client.set_experiment_tag(self.experiment_id, notes.TAG, note)
            for trial_dir in folder.trial_folders(sweep_dir):
                logged = self._read(trial_dir)
                if logged is not None and logged.tables != digest:
                    for path in tables:
                        self.client.log_artifact(logged.run, str(path), "tables")
                    _write_state(trial_dir, logged.model_copy(update={"tables": digest}))

    def register(self, trials: Collection[str]) -> None:
        """Register the network of the best of these trials, by their keys, as the model that is called like the sweep.

        Raises TrackingError, also for a store without a registry.
        """
        with tracking_errors(self.uri):
            runs = [run for run in self._all_runs() if run.data.tags.get("trial") in trials]
            register_best(self.client, self.sweep, runs)

    def how_to_open(self) -> str:
        """Return the command that serves the store, unless it is a server, and a link to this sweep's charts."""
        address = mask_secrets(self.uri)
        if address.startswith(("http://", "https://")):  # a server, with pages of its own
            return view.link(address, self.experiment_id)
        command = f"uv run mlflow ui --backend-store-uri {shlex.quote(address)}"
        return f"{command}\n{view.link(LOCAL_PAGE, self.experiment_id)}"

    def _all_runs(self) -> list[entities.Run]:
        return list(self.client.search_runs([self.experiment_id], max_results=_MAX_RUNS))

    def _read(self, trial_dir: Path) -> Logged | None:
        """Return what mlflow.json says, None if there is none or it is about a run that this experiment lacks."""
        with suppress(DamagedFileError):
            logged: Logged = parse_json(trial_dir / STATE, Logged.model_validate)
            return logged if self.runs.get(trial_dir.name) == logged.run else None
        return None

    def _find(self, trial_dir: Path, trial: TrialRecord) -> Logged | None:
        """Return what the store has of a trial, None without a run. Without mlflow.json the run is asked."""
        if (logged := self._read(trial_dir)) is not None or trial.key not in self.runs:
            return logged
        run = self.client.get_run(self.runs[trial.key])
        points = self.client.get_metric_history(run.info.run_id, names.TRAIN_EPS) if run.data.metrics else []
        start = run.info.start_time
        last = max(((point.step, point.timestamp) for point in points), default=(-1, start))
        return self._describe(trial_dir, trial, Logged(run=run.info.run_id, start=start, time=last[1], epoch=last[0]))

    def _create(self, trial_dir: Path, trial: TrialRecord, label: str) -> Logged:
        """Create a trial's run together with its tags, so that it is never without."""
        tags = {name: _text(getattr(trial.config, name)) for name in ("sweep", "model", "method", "seed", "profile")}
        result, epochs = trial_dir / folder.RESULT, trial_dir / folder.EPOCHS
        last = next((path.stat().st_mtime for path in (result, epochs) if path.exists()), time.time())
        start = round(1000 * last) - _worked(trial_dir, folder.read_result(trial_dir))
        run = self.client.create_run(self.experiment_id, start, {"trial": trial.key, **tags}, label)
        self.runs[trial.key] = run.info.run_id
        return self._describe(trial_dir, trial, Logged(run=run.info.run_id, start=start, time=start))

    def _describe(self, trial_dir: Path, trial: TrialRecord, logged: Logged) -> Logged:
        """Log a run's trial.json and parameters, and write mlflow.json."""
        config = {
            "recipe_version": trial.recipe_version,
            "fingerprint": trial.fingerprint,
            **trial.config.model_dump(mode="json"),
        }
        params = [entities.Param(name, _text(value)) for name, value in flatten(config).items()]
        self.client.log_artifact(logged.run, str(trial_dir / folder.TRIAL))
        self.client.log_batch(logged.run, params=params)
        _write_state(trial_dir, logged)
        return logged

    def _log_epochs(self, trial_dir: Path, logged: Logged, rows: list[dict[str, Any]]) -> None:
        """Log epochs. A batch of whole epochs goes in altogether or not at all."""
        ends = accumulate((_ms(row.get(names.TRAIN_EPOCH_SECONDS)) for row in rows), initial=logged.time)
        points = [_metrics(row, row[names.EPOCH], end) for row, end in zip(rows, islice(ends, 1, None), strict=True)]
        size = LARGEST_BATCH // max([1, *map(len, points)]) or 1
        for start in range(0, len(rows), size):
            batch = points[start : start + size]
            self.client.log_batch(logged.run, list(chain.from_iterable(batch)))
            logged.epoch, logged.time = batch[-1][0].step, batch[-1][0].timestamp
            _write_state(trial_dir, logged)


def _write_state(trial_dir: Path, logged: Logged) -> None:
    """Write mlflow.json. Raises TrackingError, which names the file: the store is not to blame."""
    try:
        write_json(trial_dir / STATE, logged.model_dump())
    except OSError as error:
        raise TrackingError(f"{trial_dir / STATE} cannot be written: {error.strerror or error}") from error


def _was_moved(location: str, expected: str) -> bool:
    return location != expected and location.startswith("/") and not Path(location).exists()


def _worked(trial_dir: Path, result: TrialResult | None) -> int:
    """Return for how many ms a trial has worked, without pauses."""
    epochs = sum(_ms(row.get(names.TRAIN_EPOCH_SECONDS)) for row in folder.read_epochs(trial_dir))
    return epochs + (_ms(result.metrics.get(names.EVALUATION_SECONDS)) if result else 0)


def _ms(seconds: float | None) -> int:
    return round(1000 * (seconds or 0))


def _text(value: Any) -> str:
    """Return a tag's or param's text: strings as they are, without secrets, anything else as JSON."""
    return mask_secrets(value if isinstance(value, str) else json.dumps(value))[:_MAX_TEXT]


def _status_and_tags(
    result: TrialResult | None, failure: dict[str, Any] | None, running: bool
) -> tuple[str, dict[str, str]]:
    if result:
        tags = {f"environment.{name}": _text(value) for name, value in result.environment.items()}
        return "FINISHED", tags | ({_WARNINGS: _text("\n".join(result.warnings))} if result.warnings else {})
    if failure:
        return "FAILED", {_ERROR: _text(failure["error"])}
    return "RUNNING" if running else "KILLED", {}


def _metrics(values: dict[str, Any], step: int, time: int) -> list[entities.Metric]:
    """Return a metric for each number among `values` but the epoch."""
    numbers = {k: v for k, v in values.items() if type(v) in (int, float) and k != names.EPOCH}
    return [entities.Metric(name, value, time, step) for name, value in numbers.items()]


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
