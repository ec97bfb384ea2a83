"""Clusters that are somebody else's: out of reach, closed to us, without our files."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray_nodes import running_node
from servers import free_port
from study import TINY, TOKEN, Study

from harness.common.errors import InputError
from harness.work import ray_connection
from harness.work.machines import machines_at
from harness.work.ray_connection import ray, shared_ray

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


@pytest.fixture
def no_cluster(monkeypatch):
    """Ray is not up, and cannot be."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("it would take two minutes"))


def test_an_address_where_nothing_listens_is_refused_before_ray_tries(no_cluster):
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=f"no Ray cluster answers at {address}: .*refused"):
        machines_at(address)


def test_ray_is_started_once_for_a_search_and_its_study_and_ends_with_an_error(monkeypatch):
    calls = []

    def init(*_, **__):
        calls.append("init")
        return SimpleNamespace(dashboard_url="")

    monkeypatch.setattr(ray, "is_initialized", lambda: calls[-1:] == ["init"])
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    for _ in range(2):
        with shared_ray(None):
            pass
    assert calls == ["init"]
    with pytest.raises(KeyboardInterrupt), shared_ray(None):
        raise KeyboardInterrupt
    assert calls == ["init", "shutdown"]


@pytest.fixture
def plain_cluster(tmp_path):
    """Two machines on this one, where Ray was used before: what it leaves there, `ray start` then asks for."""
    environment = {**os.environ, "HOME": str(tmp_path / "head")}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    (tmp_path / "head/.ray").mkdir(parents=True)
    (tmp_path / "head/.ray/auth_token").write_text("0123456789abcdef" * 4)
    port = free_port()
    second = {**environment, "RAY_AUTH_MODE": "token"}
    with (
        running_node(environment, "--head", f"--port={port}", "--include-dashboard=false"),
        running_node(second, f"--address=127.0.0.1:{port}"),
    ):
        yield f"127.0.0.1:{port}", environment


@pytest.mark.slow
def test_a_cluster_as_ray_starts_it_needs_its_token_and_no_more(plain_cluster, tmp_path, store):
    address, environment = plain_cluster
    study = Study(tmp_path, TINY, store)
    command = [sys.executable, "-m", "harness.run", *study.options, "--ray-address", address]
    (tmp_path / "stranger").mkdir()
    stranger = {**environment, "HOME": str(tmp_path / "stranger")}
    refused = subprocess.run(command, env=stranger, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "asks for a token" in refused.stderr and "auth_token" in refused.stderr
    assert not study.directory.exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((path / "result.json").exists() for path in study.evaluation_dirs.values())
    assert "Unauthenticated" not in done.stderr


def refusal_of_a_start():
    with pytest.raises(InputError) as caught, ray_connection.connected_to_ray(None):
        pass
    return str(caught.value)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_start_that_fails_is_tried_three_times_and_then_says_why(no_cluster, monkeypatch, tmp_path, failures):
    tokens = []

    def init(*_, **__):
        tokens.append(os.environ["RAY_AUTH_TOKEN"])
        if len(tokens) <= failures:
            raise RuntimeError("The current node timed out during startup.")
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if failures == 2:
        with ray_connection.connected_to_ray(None):
            pass
    else:
        message = refusal_of_a_start()
        assert message.startswith(
            "Ray cannot be started here, 3 attempts in 0 s. The last one: The current node timed out"
        )
        assert f"its logs: {tmp_path}/ray/session_latest/logs. To do without Ray: harness.run --here" in message
    assert len(tokens) == 3 and len(tokens[0]) == 64


INTRUDER = """
import logging, sys, ray
ray.init(sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)
print("is in")
"""


@pytest.mark.slow
def test_a_ray_of_this_machine_lets_nobody_in_without_its_token_and_workers_are_not_nice(cluster):
    address = ray.get_runtime_context().gcs_address
    for token, is_in in ((TOKEN, True), ("0" * 64, False)):
        environment = {**os.environ, "RAY_AUTH_TOKEN": token}
        command = [sys.executable, "-c", INTRUDER, address]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.stdout == "is in\n") == is_in, done.stderr
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
