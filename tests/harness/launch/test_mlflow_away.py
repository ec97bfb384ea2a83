"""MLflow's server goes away for a while: what it lacks is logged once it is back, each point once."""

import os
import signal
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest
from mlflow_folders import assert_complete, finish, make_folder, train
from rich.console import Console

from harness.tracking import policy
from harness.tracking.client import TrackingError
from harness.tracking.policy import Mirror

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


class Away:
    """A tracker that cannot log while `away`."""

    def __init__(self):
        self.away, self.synced, self.tries = False, [], 0

    def sync(self, place, row, running):
        self.tries += 1
        if self.away:
            raise TrackingError("no answer")
        self.synced.append((place.name, running))


def test_what_is_lacking_is_logged_for_every_trial_once_it_is_back(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(policy.time, "monotonic", lambda: now[0])
    mirror = Mirror.__new__(Mirror)
    mirror.rows, mirror.console, mirror.broken, mirror.failure = {}, Console(), False, TrackingError
    mirror.lacking, mirror.again, mirror.tracker = {}, 0.0, Away()
    mirror.tracker.away = True
    mirror.sync(tmp_path / "a")
    mirror.sync(tmp_path / "b")
    mirror.sync(tmp_path / "a", running=False)
    assert mirror.tracker.tries == 1, "left alone for a while"
    now[0] += policy.PAUSE
    mirror.sync(tmp_path / "c")
    assert mirror.tracker.tries == 2
    mirror.tracker.away = False
    now[0] += policy.PAUSE
    mirror.sync(tmp_path / "c")
    assert sorted(mirror.tracker.synced) == [("a", False), ("b", True), ("c", True)]
    out = capsys.readouterr().out
    assert out.count("warning") == 1 and out.count("MLflow is back") == 1
    assert not mirror.broken


def served(tmp_path, port):
    """MLflow's server on this machine, which answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    settings |= {
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    server = subprocess.Popen(
        command, env=os.environ | settings, cwd=tmp_path, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 200
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return server
        except OSError:
            assert server.poll() is None and time.monotonic() < until
            time.sleep(0.3)


def stopped(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_server_that_was_away_has_each_point_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(policy, "PAUSE", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = make_folder(tmp_path)
    server = served(tmp_path, port)
    try:
        mirror = Mirror("study", f"http://127.0.0.1:{port}", {}, Console())
        train(place, 1, 2)
        mirror.sync(place)
        stopped(server)
        train(place, 3, 3)
        mirror.sync(place)
        assert mirror.broken
        train(place, 4, 4)
        server = served(tmp_path, port)
        time.sleep(1.1)
        finish(place)
        mirror.sync(place, running=False)
        assert not mirror.broken and "MLflow is back" in capsys.readouterr().out
        assert_complete(mirror.tracker)
    finally:
        stopped(server)
