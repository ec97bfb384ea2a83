"""Addresses of MLflow stores, without MLflow, whose import takes seconds."""

import os
from pathlib import Path

SQLITE = "sqlite:///"


def resolve_uri(uri: str | None) -> str:
    """Return the store's URI, by default $MLFLOW_TRACKING_URI, else ./mlflow.db; an SQLite file's path is absolute."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}" if uri.startswith(SQLITE) else uri


def is_server(uri: str) -> bool:
    """Return whether a store is a server, with pages of its own."""
    return uri.startswith(("http://", "https://"))
