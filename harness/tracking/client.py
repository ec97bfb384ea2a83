"""Connections to an MLflow store, and its errors.

The only module that imports MLflow, which reads some settings when it is imported.
"""

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

# What the user has set stays. By default MLflow waits minutes for a server that does not answer.
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

import mlflow  # noqa: F401
import sqlalchemy
from mlflow import MlflowClient, entities  # noqa: F401
from mlflow.exceptions import MlflowException

from harness.common.errors import InputError
from harness.common.masking import mask_secrets
from harness.tracking import TrackingError

SQLITE = "sqlite:///"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # that MLflow documents


def resolve_uri(uri: str | None) -> str:
    """Return the store's URI, by default $MLFLOW_TRACKING_URI, else ./mlflow.db; an SQLite file's path is absolute."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}" if uri.startswith(SQLITE) else uri


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Within, hide MLflow's warnings and turn its errors into a TrackingError with passwords masked."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except InputError:
        raise
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrackingError(mask_secrets(f"MLflow store {uri} cannot be used: {reason}")) from error


@contextmanager
def connect(uri: str) -> Iterator[MlflowClient]:
    """Yield a client of the store; a missing database is created, which takes seconds.

    Until the block ends, other processes wait before they open the same SQLite file: MLflow creates its tables without
    a lock. Raises TrackingError as `tracking_errors` does.
    """
    with tracking_errors(uri), ExitStack() as stack:
        if uri.startswith(SQLITE):
            path = Path(uri.removeprefix(SQLITE))
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a directory that cannot be written, or a file system without locks
                file = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
                stack.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX)
        if urlsplit(uri).scheme.partition("+")[0] in _DATABASES:  # asks once; MLflow would ask ten times, for 100 s
            engine = sqlalchemy.create_engine(uri)
            stack.callback(engine.dispose)
            sqlalchemy.inspect(engine).get_table_names()
        yield MlflowClient(uri)
