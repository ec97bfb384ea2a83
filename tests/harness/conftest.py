"""Commands that must stop before anything starts."""

import socket
import sys

import pytest

from harness.command_line import main

pytest.register_assert_rewrite("fake_data", "mlflow_folders", "study")


@pytest.fixture
def nothing_starts(monkeypatch, tmp_path):
    """Ray cannot be imported by the command, MLflow not opened, nor the network reached; the directory is empty."""
    monkeypatch.setitem(sys.modules, "harness.work.on_ray", None)
    monkeypatch.setattr("harness.tracking.tracker.Tracker.open", lambda *_: pytest.fail("it goes on to MLflow"))
    for variable in ("CERDEQ_DATA", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)

    def blocked(*_args, **_kwargs):
        raise OSError("blocked by the test")

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def refused(nothing_starts, capsys, tmp_path):
    """A function of a sweep file and options to the message of a command that must exit with 2."""

    def refuse(path, *options):
        status = main("run", [str(path), "--results-dir", str(tmp_path / "results"), *options])
        captured = capsys.readouterr()
        assert status == 2
        assert set(captured.out.splitlines()) <= {"reads the file", "loads packages and data"}
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        return captured.err

    return refuse
