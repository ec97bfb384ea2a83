"""Clusters that are somebody else's: out of reach, closed to us, without our files."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
from ray._private import worker
from ray_nodes import free_port, start_node, stop_node
from study import POLITENESS, TINY, Study

from harness.launch import ray_cluster
from harness.launch.ray_cluster import ResourceError, check_storage, ray

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


def test_where_nothing_listens_is_told_before_ray_would_try(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("it would take two minutes"))
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ResourceError, match=f"no Ray cluster answers at {address}: .*refused"):
        ray_cluster.cluster_has_gpu(address)


def test_a_token_that_is_missing_is_told_by_what_ray_prints(monkeypatch):
    def refuse(address, **_options):
        os.write(2, b"gcs_client.cc:210: Unauthenticated: RPC error: InvalidAuthToken: missing or incorrect\n")
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ResourceError, match=r"asks for a token.*RAY_AUTH_MODE"):
        ray_cluster.cluster_has_gpu("auto")


def test_what_ray_itself_prints_goes_to_a_file_and_python_s_to_the_terminal(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: os.write(2, b"state of a dead node\n"))
    died = {"lines": ["a node died", "in two lines"], "pid": "raylet", "is_err": False}
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    log = tmp_path / "ray.log"
    with ray_cluster.cluster(None, log):
        print("ours", file=sys.stderr)
        worker.print_to_stdstream(died, ignore_prefix=False)
    print("after", file=sys.stderr)
    assert log.read_text() == "state of a dead node\na node died\nin two lines\n"
    assert capfd.readouterr() == ("", "ours\nafter\n")


def test_a_ray_started_here_refuses_who_has_no_token(cluster):
    """It listens on every address of the machine, and runs what it is sent."""
    ask = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None)"
    command = [sys.executable, "-c", ask, ray.get_runtime_context().gcs_address]
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    asked = {
        mode: subprocess.run(
            command, env={**others, "RAY_AUTH_MODE": mode}, capture_output=True, text=True, check=False
        )
        for mode in ("disabled", "token")
    }
    assert asked["token"].returncode == 0, asked["token"].stderr
    assert asked["disabled"].returncode != 0
    assert "Unauthenticated" in asked["disabled"].stderr or "AuthToken" in asked["disabled"].stderr


def test_machines_are_asked_for_the_files(cluster, tmp_path):
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.mkdir()
    check_storage([there])
    with pytest.raises(ResourceError, match=f"machine .* does not have {re.escape(str(missing))};.*share"):
        check_storage([there, missing])


@pytest.fixture
def plain_cluster(tmp_path):
    """Two machines on this one, where Ray was used before: what it leaves there, `ray start` then asks for."""
    environment = {**os.environ, **POLITENESS, "HOME": str(tmp_path / "head"), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_AUTH_MODE", None)
    (tmp_path / "head/.ray").mkdir(parents=True)
    (tmp_path / "head/.ray/auth_token").write_text("0123456789abcdef" * 4)
    port = free_port()
    second = {**environment, "RAY_AUTH_MODE": "token"}
    with (
        _started(environment, "--head", f"--port={port}", "--include-dashboard=false"),
        _started(second, f"--address=127.0.0.1:{port}"),
    ):
        yield f"127.0.0.1:{port}", environment


@contextmanager
def _started(environment, *options):
    """A machine of a cluster, until the end."""
    node = start_node(environment, *options)
    try:
        yield
    finally:
        stop_node(node)


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
    assert all((place / "result.json").exists() for place in study.places.values())
    assert "Unauthenticated" not in done.stderr
