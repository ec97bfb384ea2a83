"""MLflow goes away: one warning, and the end of the sweep logs what is missing, each point once."""

import os
import sys

import pytest
from mlflow_folders import assert_complete, finish, make_folder, train
from rich.console import Console
from servers import free_port, running

from harness.leaderboard.files import write_leaderboard
from harness.tracking import TrackingError
from harness.tracking.outages import PatientTracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


class StubTracker:
    """A tracker that answers nothing while `away`, and has no registry."""

    def __init__(self):
        self.away, self.synced, self.calls = False, [], 0

    def _call(self, *_args):
        self.calls += 1
        if self.away:
            raise TrackingError("no answer")

    log_tables = _call

    def sync(self, trial_dir, row, running):
        self._call()
        self.synced.append((trial_dir.name, row, running))

    def register(self, trials):
        raise TrackingError("there is no registry")

    def how_to_open(self):
        self._call()
        return "the link"


def test_one_warning_while_it_is_away_and_all_is_logged_at_the_end(tmp_path, capsys):
    trial_dirs = [make_folder(tmp_path, seed) for seed in range(2)]
    table, _ = write_leaderboard(tmp_path)
    mlflow = PatientTracker(StubTracker(), {trial_dirs[0].name: "a row"}, Console(width=200))
    mlflow.sync(trial_dirs[0])
    mlflow.tracker.away = True
    for trial_dir in trial_dirs:
        mlflow.sync(trial_dir)
    mlflow.tracker.away = False
    mlflow.sync(trial_dirs[0])
    assert mlflow.tracker.synced == [(trial_dirs[0].name, "a row", True)] and mlflow.tracker.calls == 2
    assert mlflow.is_away and capsys.readouterr().out.count("warning: no answer") == 1
    mlflow.finish(tmp_path, table, [])
    rows = [(trial_dirs[0].name, "a row", False), (trial_dirs[1].name, None, False)]
    assert sorted(mlflow.tracker.synced[1:]) == sorted(rows) and not mlflow.is_away
    out = capsys.readouterr().out
    assert "no network is registered as a model: there is no registry" in out and "the link" in out
    mlflow.tracker.away = True
    mlflow.finish(tmp_path, table, [])
    assert mlflow.is_away
    out = capsys.readouterr().out
    assert out.count("warning: no answer") == 1 and "the link" not in out and "registered" not in out


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

    trial_dir = make_folder(tmp_path)
    with server():
        mlflow = PatientTracker.open("study", f"http://127.0.0.1:{port}", {}, Console())
        train(trial_dir, 1, 2)
        mlflow.sync(trial_dir)
    train(trial_dir, 3, 4)
    mlflow.sync(trial_dir)
    assert mlflow.is_away
    finish(trial_dir)
    with server():
        mlflow.is_away = False
        mlflow.sync(trial_dir, running=False)
        assert not mlflow.is_away
        assert_complete(mlflow.tracker)
