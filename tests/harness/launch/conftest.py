"""A finished sweep and MLflow stores, each made once for all tests, since making one takes seconds."""

import shutil
import sys
import threading
import time

import pytest
from processes import descendants
from study import SETTINGS, TINY, Study

from harness.launch.mlflow_store import Tracker


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    """What the environment says of data, Ray and MLflow is not for tests."""
    for variable in SETTINGS:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The URI of an MLflow store that `finished` makes; experiments are told apart by sweep names."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="session")
def finished(tmp_path_factory, store):
    """The command in a process of its own, on a terminal nobody watches, and what is left of it."""
    study = Study(tmp_path_factory.mktemp("tiny"), TINY, store)
    driver = study.start(cwd=study.root)
    started = set()

    def watch():
        while driver.poll() is None:
            started.update(descendants(driver.pid))
            time.sleep(0.3)

    watching = threading.Thread(target=watch)
    watching.start()
    study.out, study.err = driver.communicate(timeout=280)
    watching.join()
    study.status, study.processes = driver.returncode, started
    return study


@pytest.fixture
def copied(finished, tmp_path):
    """The finished study in a directory and an MLflow store that a test may spoil."""
    shutil.copytree(finished.root / "results", tmp_path / "results")
    shutil.copy(finished.store.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    return Study(tmp_path, TINY, f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def no_ray(monkeypatch):
    """Ray cannot be imported by the command, let alone started."""
    monkeypatch.setitem(sys.modules, "harness.launch.ray_tune", None)


@pytest.fixture(scope="session")
def opened_store(tmp_path_factory):
    """The URI of an MLflow store that has been opened; experiments are told apart by tests' names."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('opened-store')}/mlflow.db"
    Tracker.open("first", uri)
    return uri


@pytest.fixture
def tracker(opened_store, request):
    """An experiment of the test's own."""
    return Tracker.open(request.node.name, opened_store)
