"""One Ray, one finished sweep and one new MLflow store for all tests, since each takes seconds to make."""

import logging
import shutil
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import pytest
from processes import descendants
from rich.console import Console
from study import SETTINGS, TINY, TOKEN, Study

from harness.report.figures import catalogue
from harness.tracking.tracker import Tracker
from harness.work.ray_connection import ray  # which prepares the environment that Ray reads

STORED_PATHS = (  # where MLflow's tables say where files lie
    ("runs", "artifact_uri"),
    ("experiments", "artifact_location"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@pytest.fixture(scope="module", autouse=True)
def _no_figures():
    """Of commands in this process; figures are drawn in tests/harness/report and by commands in their own."""
    with patch.object(catalogue, "FIGURES", []):
        yield


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    """What the environment says of data, Ray and MLflow is not for tests."""
    for variable in SETTINGS:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def cluster():
    """A Ray with four CPUs and two GPUs, all pretended, for all calls in this process; `finished` starts its own.

    Workers inherit three OpenMP threads, so that whoever has one has it from the project.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "3")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        options = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
        ray.init("local", num_cpus=4, num_gpus=2, **options)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def store(tmp_path_factory, opened_store):
    """The URI of an MLflow store of the sweeps', by their names."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(opened_store.removeprefix("sqlite:///"), path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The command in a process of its own, on a terminal nobody watches, and what is left of it.

    It makes the store of MLflow that is the default, in the working directory.
    """
    root = tmp_path_factory.mktemp("tiny")
    study = Study(root, TINY, f"sqlite:///{root}/mlflow.db")
    driver = study.start(study.options[:-2], cwd=root)
    started = set()

    def watch():
        while driver.poll() is None:
            started.update(descendants(driver.pid))
            time.sleep(0.3)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        study.out, study.err = driver.communicate(timeout=280)
    finally:
        driver.kill()  # if it has not ended in time
        watching.join()
    study.status, study.processes = driver.returncode, started
    return study


@pytest.fixture
def copied(finished, tmp_path):
    """The finished study in a directory and an MLflow store that a test may spoil, files that it logged included."""
    shutil.copytree(finished.root / "results", tmp_path / "results")
    path = Path(finished.store.removeprefix("sqlite:///"))
    shutil.copy(path, tmp_path / "mlflow.db")
    shutil.copytree(path.parent / "mlruns", tmp_path / "mlruns")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        for table, column in STORED_PATHS:
            moved = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            database.execute(moved, (str(path.parent / "mlruns"), str(tmp_path / "mlruns")))
    return Study(tmp_path, TINY, f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def no_ray(monkeypatch):
    """Ray cannot be imported by the command, let alone started."""
    monkeypatch.setitem(sys.modules, "harness.work.on_ray", None)


@pytest.fixture(scope="session")
def opened_store(tmp_path_factory):
    """The URI of an MLflow store that has been opened; each test's experiment has its name."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('opened-store')}/mlflow.db"
    Tracker.open("first", uri, Console())
    return uri


@pytest.fixture
def tracker(opened_store, request):
    """An experiment of the test's own."""
    return Tracker.open(request.node.name, opened_store, Console(width=300))
