"""Servers on this machine alone, for as long as a test lasts: PostgreSQL, MLflow."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest

PASSWORD = "not%2Dto%2Dbe%2Dseen"
SEEN = ("not%2Dto%2Dbe%2Dseen", "not-to-be-seen")  # as it is written in an address, and as it is
ANYBODY = "nobody"  # PostgreSQL does not run as root


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def running(command, port, log, **options):
    """A server that answers at a port, until the end; what it prints goes to a file."""
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **options)
        try:
            until = time.monotonic() + 200
            while not answers(port):
                assert server.poll() is None and time.monotonic() < until, Path(log).read_text()
                time.sleep(0.1)
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def postgres():
    """The address of an empty PostgreSQL database, with a password in it; skips where there is no PostgreSQL."""
    paths = [shutil.which("initdb"), *map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    initdb = next((Path(path).resolve() for path in paths if path), None)
    if initdb is None:
        pytest.skip("needs PostgreSQL: no initdb on PATH or in /usr/lib/postgresql")
    is_root = os.geteuid() == 0
    if is_root and ANYBODY not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip(f"PostgreSQL does not run as root, and there is no user {ANYBODY!r}")
    with TemporaryDirectory(prefix="postgres-") as directory:  # pytest's own are closed to others
        if is_root:
            shutil.chown(directory, ANYBODY)
        options = {"cwd": directory, **({"user": ANYBODY, "extra_groups": []} if is_root else {})}
        port, data, password = free_port(), f"{directory}/data", Path(directory, "password")
        password.write_text(SEEN[1])
        made = [initdb, "-D", data, "-U", "bench", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync"]
        done = subprocess.run(made, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, done.stderr
        command = [initdb.with_name("postgres"), "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", directory, "-F"]
        with running(command, port, f"{directory}/postgres.log", **options):
            yield f"postgresql+psycopg2://bench:{PASSWORD}@127.0.0.1:{port}/postgres"


@contextmanager
def mlflow(directory, store, artifacts):
    """The address of an MLflow server with that store, whose artifacts lie at `artifacts`."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--serve-artifacts", "--artifacts-destination", artifacts]
    settings = {"MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    assert (urlsplit(store).password or "None") not in " ".join(command)
    with running(command, port, directory / "mlflow.log", cwd=directory, env=os.environ | settings):
        yield f"http://127.0.0.1:{port}"
