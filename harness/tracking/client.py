"""Connections to an MLflow store, and its errors. The only module that imports MLflow, which reads settings then."""

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

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

import sqlalchemy
from mlflow import MlflowClient, entities, models  # noqa: F401
from mlflow.exceptions import MlflowException
from requests.utils import get_environ_proxies, select_proxy

from harness.common.errors import InputError
from harness.common.masking import mask_secrets
from harness.common.terminal import one_line

SQLITE, _QUOTED = "sqlite:///", "sqlite+pysqlite:///"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # that MLflow documents


class TrackingError(InputError):
    """MLflow cannot be reached, or refuses a request. The folders of networks are not affected."""


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Within, hide MLflow's warnings and turn its errors into a TrackingError with passwords masked."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
        message = f"MLflow store {uri} cannot be used: {_reason(error)}{_proxy_hint(uri)}"
        raise TrackingError(mask_secrets(message)) from error


def _reason(error: BaseException) -> str:
    """Return why in a line: of a connection that failed, the words of the system, such as 'Connection refused'."""
    text, cause = str(error) or type(error).__name__, error.__cause__ or error.__context__
    while cause is not None:
        text = getattr(cause, "strerror", None) or text
        cause = cause.__cause__ or cause.__context__
    return one_line(text)


def _proxy_hint(uri: str) -> str:
    """Return the end of a message that names the proxy between here and a server, if there is one."""
    proxy = select_proxy(uri, get_environ_proxies(uri)) if uri.startswith("http") else None
    host = urlsplit(uri).hostname
    return f"; it was asked by way of the proxy {proxy}: to go without, add {host} to no_proxy" if proxy else ""


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite store, None for another one. Raises TrackingError for a path with an unquoted ?."""
    if not uri.startswith((SQLITE, _QUOTED)):
        return None
    url = sqlalchemy.make_url(uri)
    if "?" in uri and not url.query:
        raise TrackingError(
            f"MLflow store {uri} cannot be used: its path ends at the ?, write %3F for it and %25 for a %"
        )
    return Path(url.database or "")


def sqlite_uri(path: Path) -> str:
    """Return the address of an SQLite store. Characters that an address has other uses for are quoted.

    The driver is named then: of a plain `sqlite:` MLflow would create a folder with the quoted name.
    """
    plain = f"{SQLITE}{path}"
    return plain if sqlalchemy.make_url(plain).database == str(path) else f"{_QUOTED}{quote(str(path))}"


@contextmanager
def connect(uri: str) -> Iterator[MlflowClient]:
    """Yield a client of the store. Raises TrackingError as `tracking_errors` does.

    Until the block ends, other processes wait before they open the same SQLite file: MLflow has no lock.
    """
    with tracking_errors(uri), ExitStack() as stack:
        if path := sqlite_path(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a directory that cannot be written, or a file system without locks
                fcntl.flock(stack.enter_context(open(path.with_name(f".{path.name}.lock"), "a")), fcntl.LOCK_EX)
        if urlsplit(uri).scheme.partition("+")[0] in _DATABASES:  # asks once; MLflow would ask ten times, for 100 s
            engine = sqlalchemy.create_engine(uri)
            stack.callback(engine.dispose)
            sqlalchemy.inspect(engine).get_table_names()
        yield MlflowClient(uri)
