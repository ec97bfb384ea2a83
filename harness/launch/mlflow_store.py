"""Mirrors trial folders into MLflow: one experiment a sweep, one flat run a trial.

Only the driver calls this, never a worker. The folder is the truth and its run is compared with it, so that whatever is
missing is logged and nothing is logged twice, whoever was killed when. A run is found by its tag `trial`; one that was
deleted in the UI is made anew.
"""

import hashlib
import json
import os
import re
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

# MLflow reads some of these when it is imported; what the user has set stays. Left alone, it waits minutes for a server
# that does not answer: we need not, since a later sync catches up with whatever was lost.
os.environ.update(
    {
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    }
    | os.environ
)

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

from baselines.datasets import DATASETS
from harness.config.trial import flat, to_dict
from harness.storage import folder as files
from harness.storage.folder import Trial, TrialResult
from harness.storage.names import EPOCH, TRAIN_EPS

SQLITE = "sqlite:///"
ERROR_TAG, RESULT_TAG, TABLES_TAG, WARNINGS_TAG = "error", "result", "tables", "warnings"
LONGEST_TEXT = 5000  # characters of a tag or param that every store takes
LARGEST_BATCH = 1000  # metrics in one call
LARGEST_PAGE = 50_000  # runs in one search
COMPARED_RUNS = 20  # runs on the comparison page, which has one column a run


class TrackingError(RuntimeError):
    """MLflow cannot be reached or does not take what it is given. The trial folders are not affected."""


@contextmanager
def _mlflow(uri: str) -> Iterator[None]:
    """Within, MLflow's warnings are hushed and its failures become a TrackingError, passwords masked."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrackingError(_masked(f"MLflow store {uri} cannot be used: {reason}")) from error


def _masked(text: str) -> str:
    return re.sub(r"(//[^/@\s:]*):[^/@\s]+@", r"\1:***@", text)


def _text(value: Any) -> str:
    """A tag's or param's text: strings as they are, anything else as JSON."""
    return (value if isinstance(value, str) else json.dumps(value))[:LONGEST_TEXT]


def _identity(trial: Trial) -> dict[str, str]:
    """The tags that tell runs apart."""
    told = ("sweep", "model", "method", "seed", "profile")
    return {"trial": trial.key, **{name: _text(getattr(trial.config, name)) for name in told}}


def _outcome(result: TrialResult | None, failure: dict[str, Any] | None) -> tuple[str, dict[str, str]]:
    """The status a run should have, and the tags that go with it."""
    if result:
        tags = {f"environment.{name}": _text(value) for name, value in result.environment.items()}
        return "FINISHED", tags | ({WARNINGS_TAG: _text("\n".join(result.warnings))} if result.warnings else {})
    return ("FAILED", {ERROR_TAG: _text(failure["error"])}) if failure else ("RUNNING", {})


def _metrics(values: dict[str, Any], step: int) -> list[Metric]:
    """Every number among `values` but the epoch."""
    now = int(time.time() * 1000)
    return [Metric(k, v, now, step) for k, v in values.items() if type(v) in (int, float) and k != EPOCH]


def _dataset(trial: Trial) -> DatasetInput:
    """The data set as a run's input. MLflow takes 36 characters of a digest; a param has the whole fingerprint."""
    name = trial.config.dataset
    profile = json.dumps(asdict(DATASETS[name])) if name in DATASETS else None
    dataset = Dataset(name, trial.fingerprint[:36], "local", json.dumps({"uri": name}), profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training, evaluation")])


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def _check_database(uri: str) -> None:
    """Ask a database once whether it is there: MLflow would ask ten times, for 100 s."""
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


@dataclass(frozen=True)
class Tracker:
    """An MLflow experiment that mirrors one sweep."""

    uri: str
    experiment_id: str
    client: MlflowClient

    @classmethod
    def open(cls, experiment: str, uri: str | None = None) -> "Tracker":
        """Connect to the store and make the experiment, or restore it where it was deleted.

        uri: where None, the environment's MLFLOW_TRACKING_URI, and without that mlflow.db in the working directory.
        Artifacts lie in mlruns/ beside an SQLite file; elsewhere the store decides. Making a store takes seconds.
        Raises TrackingError where the store cannot be used.
        """
        uri, artifacts = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db", None
        if uri.startswith(SQLITE):
            path = Path(uri.removeprefix(SQLITE)).absolute()
            uri, artifacts = f"{SQLITE}{path}", str(path.parent / "mlruns" / experiment)
        with _mlflow(uri):
            if urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
                _check_database(uri)
            client = MlflowClient(uri)
            known = client.get_experiment_by_name(experiment)
            if known is None:
                return cls(uri, client.create_experiment(experiment, artifact_location=artifacts), client)
            if known.lifecycle_stage == "deleted":
                client.restore_experiment(known.experiment_id)
            return cls(uri, known.experiment_id, client)

    def sync(self, folder: Path, label: str | None = None) -> None:
        """Bring the trial's run up to date with its folder, making the run where there is none.

        label: the name of a new run, the config's own unless given.
        It is FINISHED with a result.json, else FAILED with a failure.json, else RUNNING. Raises TrackingError.
        """
        trial, result = files.read_trial(folder / files.TRIAL), files.read_result(folder)
        status, tags = _outcome(result, files.read_failure(folder))
        digest, rows = _digest(folder / files.RESULT) if result else None, files.read_epochs(folder)
        with _mlflow(self.uri):
            run = self._find(trial, label or trial.config.label)
            if result and run.info.status == status and run.data.tags.get(RESULT_TAG) == digest:
                return
            self._describe(run, trial, tags, folder)
            self._log_epochs(run, rows)
            if result:
                self._log_result(run, result, trial.config.train.epochs, folder)
                self.client.set_tag(run.info.run_id, RESULT_TAG, digest)
            if run.info.status != status:
                set_status = self.client.update_run if status == "RUNNING" else self.client.set_terminated
                set_status(run.info.run_id, status)

    def sync_tables(self, directory: Path) -> None:
        """Attach a sweep's leaderboard files to each of its runs, over older ones. Raises TrackingError."""
        tables = sorted(Path(directory).glob("leaderboard.*"))
        if not tables:
            return
        digest = _digest(*tables)
        with _mlflow(self.uri):
            for run in self.client.search_runs([self.experiment_id], max_results=LARGEST_PAGE):
                if run.data.tags.get(TABLES_TAG) != digest:
                    self._log_files(run, tables, "tables")
                    self.client.set_tag(run.info.run_id, TABLES_TAG, digest)

    def how_to_open(self) -> str:
        """The command that serves the store, unless a server does, and this sweep's pages. Raises TrackingError."""
        with _mlflow(self.uri):
            finished = "attributes.status = 'FINISHED'"
            runs = self.client.search_runs([self.experiment_id], finished, max_results=COMPARED_RUNS)
        address = _masked(self.uri).rstrip("/")
        served = address.startswith("http")
        page = f"{address if served else 'http://127.0.0.1:5000'}/#"
        lines = [] if served else [f"uv run mlflow ui --backend-store-uri {shlex.quote(address)}"]
        lines.append(f"{page}/experiments/{self.experiment_id}/runs?compareRunsMode=CHART")
        if runs:
            chosen, experiments = json.dumps([run.info.run_id for run in runs]), json.dumps([self.experiment_id])
            lines.append(f"{page}/compare-runs?runs={quote(chosen)}&experiments={quote(experiments)}")
        return "\n".join(lines)

    def _find(self, trial: Trial, label: str) -> Run:
        """The trial's run; a new one is made together with its tags, so that none is ever without."""
        known = self.client.search_runs([self.experiment_id], f"tags.trial = '{trial.key}'", max_results=1)
        if known:
            return known[0]
        made = self.client.create_run(self.experiment_id, tags=_identity(trial), run_name=label)
        return self.client.get_run(made.info.run_id)

    def _describe(self, run: Run, trial: Trial, tags: dict[str, str], folder: Path) -> None:
        run_id, known = run.info.run_id, run.data
        data = {"recipe_version": trial.recipe_version, "fingerprint": trial.fingerprint, **to_dict(trial.config)}
        params = [Param(name, _text(value)) for name, value in flat(data).items() if name not in known.params]
        changed = [RunTag(name, text) for name, text in tags.items() if known.tags.get(name) != text]
        self.client.log_batch(run_id, params=params, tags=changed)
        for name in {ERROR_TAG, WARNINGS_TAG} & (known.tags.keys() - tags.keys()):
            self.client.delete_tag(run_id, name)
        if not (run.inputs and run.inputs.dataset_inputs):  # logged last: where it is, trial.json is
            self._log_files(run, [folder / files.TRIAL])
            self.client.log_inputs(run_id, [_dataset(trial)])

    def _log_epochs(self, run: Run, rows: list[dict[str, Any]]) -> None:
        """Log the epochs after the last one in the store. A batch of whole epochs goes in altogether or not at all."""
        run_id, any_logged = run.info.run_id, TRAIN_EPS in run.data.metrics  # which every row has, epoch 0's too
        last = max(point.step for point in self.client.get_metric_history(run_id, TRAIN_EPS)) if any_logged else -1
        new = [_metrics(row, row[EPOCH]) for row in rows if row[EPOCH] > last]
        size = LARGEST_BATCH // max([1, *map(len, new)]) or 1
        for start in range(0, len(new), size):
            self.client.log_batch(run_id, list(chain.from_iterable(new[start : start + size])))

    def _log_result(self, run: Run, result: TrialResult, step: int, folder: Path) -> None:
        """Final metrics, where the run does not have them yet, and the files behind them."""
        new = {name: value for name, value in result.metrics.items() if run.data.metrics.get(name) != value}
        self.client.log_batch(run.info.run_id, _metrics(new, step))
        self._log_files(run, [folder / name for name in (files.VERDICTS, files.WEIGHTS, files.RESULT)])

    def _log_files(self, run: Run, paths: list[Path], under: str | None = None) -> None:
        for path in paths:
            if path.exists():
                self.client.log_artifact(run.info.run_id, str(path), under)
