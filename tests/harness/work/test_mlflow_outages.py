"""MLflow goes away: one warning, and the end of the sweep logs what is missing, each point once."""

import os
import sys

import pytest
from mlflow.exceptions import MlflowException
from mlflow_folders import assert_complete, finish, make_folder, train
from rich.console import Console
from servers import free_port, running

from harness.tracking.tracker import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


class Unreliable:
    """A client that answers nothing while `is_away`, and has no registry."""

    def __init__(self, client):
        self.client, self.is_away, self.calls = client, False, 0

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls += 1
            if self.is_away or "registered" in name:
                raise MlflowException("no registry" if "registered" in name else "no answer")
            return getattr(self.client, name)(*args, **kwargs)

        return call


def test_one_warning_while_it_is_away_and_all_is_logged_at_the_end(tracker, tmp_path, capsys):
    network_dirs = [make_folder(tmp_path, seed) for seed in range(2)]
    (tmp_path / "leaderboard.md").write_text("")
    tracker.client = client = Unreliable(tracker.client)
    tracker.log(network_dirs[0])
    client.is_away, before = True, client.calls
    train(network_dirs[0], 1, 4)
    for network_dir in network_dirs:
        tracker.log(network_dir)
    client.is_away = False
    tracker.log(network_dirs[0])
    assert client.calls == before + 1 and tracker.is_away
    assert capsys.readouterr().out.count("warning: MLflow store") == 1
    finish(network_dirs[0])
    assert tracker.finish(tmp_path, [], [network_dirs[0].name])
    out = capsys.readouterr().out
    assert "no network is registered as a model: MLflow store" in out and "mlflow ui" in out and "warning" not in out
    assert len(tracker._runs()) == 2
    finish(network_dirs[1])
    client.is_away = True
    assert not tracker.finish(tmp_path, [], [])
    out = capsys.readouterr().out
    assert out.count("warning: MLflow store") == 1 and "mlflow ui" not in out and "registered" not in out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_server_that_was_away_has_each_point_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }

    def server():
        return running(command, port, tmp_path / "server.log", env=os.environ | settings, cwd=tmp_path)

    network_dir = make_folder(tmp_path)
    with server():
        mlflow = Tracker.open("study", f"http://127.0.0.1:{port}", Console())
        train(network_dir, 1, 2)
        mlflow.log(network_dir)
    train(network_dir, 3, 4)
    mlflow.log(network_dir)
    assert mlflow.is_away
    finish(network_dir)
    with server():
        mlflow.is_away = False
        mlflow.log(network_dir, running=False)
        assert not mlflow.is_away
        assert_complete(mlflow)
