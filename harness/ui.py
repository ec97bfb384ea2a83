"""`python -m harness.ui [SWEEP]`: print links to the charts of sweeps in an MLflow store, and serve the store.

A database is served on this machine alone, until Ctrl-C. For a server only the links are printed.
"""

import argparse
import os
import socket
import sys
from pathlib import Path

from harness import command_line
from harness.command_line import OK
from harness.common.errors import SettingError
from harness.common.masking import mask_secrets
from harness.common.terminal import say

# harness.tracking.client is imported late: MLflow takes seconds.
_HOST = "127.0.0.1"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("sweep", nargs="?", type=Path, help="a sweep's name, or its directory; default: all sweeps")
    parser.add_argument(
        "--tracking-uri", help="MLflow store or server; default: $MLFLOW_TRACKING_URI, else ./mlflow.db"
    )
    parser.add_argument("--port", type=int, default=5000, help="where to serve; default: 5000")


def main(options: argparse.Namespace) -> int:
    """Return the exit status for a server; for a database this process becomes MLflow's. Raises InputError."""
    try:
        socket.create_server((_HOST, options.port)).close()
    except (OSError, OverflowError):
        raise SettingError("--port", options.port, "a port that is free, from 1 to 65535") from None
    from harness.tracking.address import is_server, resolve_uri
    from harness.tracking.client import find_experiment, open_store
    from harness.tracking.view import TAG, link

    uri = resolve_uri(options.tracking_uri)
    client = open_store(uri)
    sweep = options.sweep and find_experiment(client, options.sweep.name)
    page = mask_secrets(uri) if is_server(uri) else f"http://{_HOST}:{options.port}"
    for experiment in [sweep] if sweep else client.search_experiments():
        if sweep or TAG in experiment.tags:
            say(f"{experiment.name}:\n{link(page, experiment.experiment_id)}")
    if is_server(uri):
        return OK
    say("these pages answer in about 15 seconds; Ctrl-C stops them")
    command = [sys.executable, "-m", "mlflow", "ui", "--host", _HOST, "--port", str(options.port), "--workers", "1"]
    settings = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # no password in `ps`
    os.execve(sys.executable, command, os.environ | settings)


if __name__ == "__main__":
    raise SystemExit(command_line.main("ui"))
