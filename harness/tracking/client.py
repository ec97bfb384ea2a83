"""An MLflow store, reached: which one is meant, whether it is there, and what it says where it fails.

The only module that imports MLflow; others have it from here, since what it reads when it is imported is set here.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

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

import mlflow
import sqlalchemy
from mlflow import MlflowClient, entities
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from harness.errors import InputError
from harness.masking import masked

SQLITE = "sqlite:///"
LARGEST_PAGE = 50_000  # runs in one search


class TrackingError(RuntimeError):
    """MLflow cannot be reached or does not take what it is given. The trial folders are not affected."""


@contextmanager
def failures(uri: str) -> Iterator[None]:
    """Within, MLflow's warnings are hushed and its failures become a TrackingError, passwords masked."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrackingError(masked(f"MLflow store {uri} cannot be used: {reason}")) from error


def located(uri: str | None) -> str:
    """The store that is meant: where None, $MLFLOW_TRACKING_URI, without that ./mlflow.db; SQLite's file absolute."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}" if uri.startswith(SQLITE) else uri


def is_served(uri: str) -> bool:
    """Whether a store is a server, with pages of its own."""
    return uri.startswith(("http://", "https://"))


def connect(uri: str) -> MlflowClient:
    """A client of the store, which is made where it is a database that is not there; that takes seconds.

    To be called within `failures`.
    """
    if urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
        _check_database(uri)
    return MlflowClient(uri)


def _check_database(uri: str) -> None:
    """Ask a database once whether it is there: MLflow would ask ten times, for 100 s."""
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def version_of(uri: str) -> str:
    """The version of the MLflow whose pages show the store: a server's own, else the one installed; '' if unknown."""
    if not is_served(uri):
        return mlflow.__version__
    try:
        answer = http_request(get_default_host_creds(uri), "/version", "GET")
    except MlflowException:
        return ""
    return answer.text.strip() if answer.ok else ""


def read_store(uri: str) -> MlflowClient:
    """A client of a store that is there. Raises InputError."""
    if uri.startswith(SQLITE) and not (path := Path(uri.removeprefix(SQLITE))).is_file():
        raise InputError(f"there is no MLflow store {path}: --tracking-uri or MLFLOW_TRACKING_URI names another")
    try:
        with failures(uri):
            client = connect(uri)
            client.search_experiments(max_results=1)
            return client
    except TrackingError as error:
        raise InputError(str(error)) from None


def experiment_of(client: MlflowClient, sweep: str) -> entities.Experiment:
    """A sweep's experiment. Raises InputError where the store has none."""
    known = client.get_experiment_by_name(sweep)
    if known is None or known.lifecycle_stage == "deleted":
        others = ", ".join(sorted(experiment.name for experiment in client.search_experiments()))
        raise InputError(f"there is no experiment {sweep!r} in {masked(client.tracking_uri)}; it has: {others}")
    return known


def runs_of(client: MlflowClient, experiment_id: str, which: str = "") -> list[entities.Run]:
    """The runs of an experiment that a filter lets through, newest first."""
    return list(client.search_runs([experiment_id], which, max_results=LARGEST_PAGE))
