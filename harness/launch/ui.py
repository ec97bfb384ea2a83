"""`python -m harness.ui [SWEEP]`: MLflow's pages of a store, and links to the charts of its sweeps.

A database is served until Ctrl-C, on this machine alone; of a server only the links are printed.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from urllib.request import urlopen

from harness.command_line import FAILED, OK
from harness.errors import require
from harness.masking import masked

# harness.tracking.client is imported late: MLflow takes seconds, and bad input is told first.
_HOST, _PORT, _PATIENCE = "127.0.0.1", 5000, 300  # seconds until it answers


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "sweep", nargs="?", type=Path, help="a sweep's name, or its directory; default: all that the store has"
    )
    parser.add_argument(
        "--tracking-uri", help="MLflow store or server; default: $MLFLOW_TRACKING_URI, else ./mlflow.db"
    )
    parser.add_argument("--port", type=int, help=f"where to serve; default: {_PORT}, or any where that is taken")


def main(options: argparse.Namespace) -> int:
    """Returns the exit status: 0 once it is stopped, 1 where MLflow does not serve. Raises InputError."""
    port = _free_port(options.port)
    from harness.tracking.client import experiment_of, is_served, located, read_store, version_of
    from harness.tracking.view import TAG, links

    uri = located(options.tracking_uri)
    client = read_store(uri)
    shown = [experiment_of(client, options.sweep.name)] if options.sweep else client.search_experiments()
    page = masked(uri) if is_served(uri) else f"http://{_HOST}:{port}"
    lines = [
        line
        for experiment in shown
        if options.sweep or TAG in experiment.tags
        for line in (f"{experiment.name}:", *links(page, experiment.experiment_id, version_of(uri)))
    ]
    if is_served(uri):
        print("\n".join(lines))
        return OK
    try:
        with _served(uri, port) as (server, log):
            if not _answers(server, page):
                log.seek(0)
                print(
                    masked(log.read().decode(errors="replace"))[-2000:],
                    "MLflow does not serve",
                    sep="\n",
                    file=sys.stderr,
                )
                return FAILED
            print(*(lines or [page]), "Ctrl-C stops it", sep="\n", flush=True)
            server.wait()
            return FAILED
    except KeyboardInterrupt:
        return OK


@contextmanager
def _served(uri: str, port: int) -> Iterator[tuple[subprocess.Popen, IO[bytes]]]:
    """Within, MLflow's server runs and writes its log to a file; afterwards none of its processes is left."""
    command = [sys.executable, "-m", "mlflow", "ui", "--host", _HOST, "--port", str(port), "--workers", "1"]
    settings = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # no password in `ps`
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TemporaryFile() as log:
        server = subprocess.Popen(
            command, env=os.environ | settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield server, log
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()
            signal.signal(signal.SIGTERM, before)


def _answers(server: subprocess.Popen, page: str) -> bool:
    """Wait until the server does; False where it ends, or takes too long."""
    until = time.monotonic() + _PATIENCE
    while server.poll() is None and time.monotonic() < until:
        with suppress(OSError), urlopen(f"{page}/health", timeout=5) as answer:
            return answer.status == 200
        time.sleep(0.2)
    return False


def _free_port(wanted: int | None) -> int:
    """The port to serve on. Raises SettingError where the one that is wanted cannot be had."""
    if wanted is not None:
        require("--port", wanted, 0 < wanted < 2**16 and _is_free(wanted), "a port from 1 to 65535 that is free")
        return wanted
    if _is_free(_PORT):
        return _PORT
    with socket.socket() as any_port:
        any_port.bind((_HOST, 0))
        return any_port.getsockname()[1]


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((_HOST, port))
        except OSError:
            return False
        return True
