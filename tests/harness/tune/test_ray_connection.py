"""Clusters that are somebody else's: out of reach, closed to us, without our files."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private import worker
from ray_nodes import running_node
from servers import free_port
from study import POLITENESS, TINY, Study

from harness.tune import ray_connection, resources
from harness.tune.ray_connection import ResourceError, ray

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


@pytest.fixture
def no_cluster(monkeypatch):
    """Ray is not up, and cannot be."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("it would take two minutes"))


def test_an_address_where_nothing_listens_is_refused_before_ray_tries(no_cluster):
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ResourceError, match=f"no Ray cluster answers at {address}: .*refused"):
        resources.machines_of_cluster(address)


def test_a_cluster_that_asks_for_a_token_is_recognised_by_what_ray_prints(no_cluster, monkeypatch):
    def refuse(address, **_options):
        os.write(2, b"gcs_client.cc:210: Unauthenticated: RPC error: InvalidAuthToken: missing or incorrect\n")
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ResourceError, match=r"asks for a token.*RAY_AUTH_MODE"):
        resources.machines_of_cluster("auto")


def test_what_ray_prints_goes_to_a_file(no_cluster, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(ray, "init", lambda *_, **__: os.write(2, b"state of a dead node\n"))
    died = {"lines": ["a node died", "in two lines"], "pid": "raylet", "is_err": False}
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    log = tmp_path / "ray.log"
    with ray_connection.connected_to_ray(None, log):
        print("ours", file=sys.stderr)
        worker.print_to_stdstream(died, ignore_prefix=False)
    print("after", file=sys.stderr)
    assert log.read_text() == "state of a dead node\na node died\nin two lines\n"
    assert capfd.readouterr() == ("", "ours\nafter\n")


def test_why_ray_s_servers_died_is_said_and_their_logs_stay(no_cluster, monkeypatch, tmp_path):
    logs, log = tmp_path / f"session_2026-11-27_22-30-05_535339_{os.getpid()}/logs", tmp_path / "ray.log"
    logs.mkdir(parents=True)
    error = (
        "[2026-11-27 22:30:50,222 C 281 281] (raylet) port.cc:9: Check failed: Timed out waiting for file agent_port"
    )
    (logs / "raylet.out").write_text(f"[2026-11-27 22:30:49,222 I 281 281] starting\n{error}\n*** StackTrace ***\n")

    def time_out(*_, **__):
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", time_out)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_connection, "get_default_ray_temp_dir", lambda: str(tmp_path))
    with (
        pytest.raises(
            ResourceError, match=r"timed out during startup.; its log ends with: .* waiting for file agent_port"
        ),
        ray_connection.connected_to_ray(None, log),
    ):
        pass
    assert error in log.read_text() and str(logs / "raylet.out") in log.read_text()


SLOW_AGENTS = """
import sys, time
if any(name.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for name in sys.orig_argv):
    time.sleep(30)
"""
STARTED = """
from harness.tune.ray_connection import connected_to_ray, ray
with connected_to_ray(None):
    print(ray.get(ray.remote(lambda: "a task ran").remote()))
"""


@pytest.mark.slow
def test_ray_starts_where_its_agents_take_longer_than_its_limit_of_15_seconds(tmp_path):
    """As on a machine with much other work."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENTS)
    environment = {**os.environ, **POLITENESS, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    done = subprocess.run([sys.executable, "-c", STARTED], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a task ran\n"), done.stderr


@pytest.mark.slow
def test_machines_are_asked_for_the_files(cluster, tmp_path, monkeypatch):
    resources.check_storage(tmp_path, str(tmp_path / "no data yet"))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "touch", lambda self: None)
    with pytest.raises(ResourceError, match=f"machine .* does not have {re.escape(str(tmp_path))}/.*share"):
        resources.check_storage(tmp_path, str(tmp_path))


@pytest.fixture
def plain_cluster(tmp_path):
    """Two machines on this one, where Ray was used before: what it leaves there, `ray start` then asks for."""
    environment = {**os.environ, **POLITENESS, "HOME": str(tmp_path / "head")}
    environment.pop("RAY_AUTH_MODE", None)
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
    assert all((trial_dir / "result.json").exists() for trial_dir in study.trial_dirs.values())
    assert "Unauthenticated" not in done.stderr


BLOCKED = """
import socket, threading
from types import SimpleNamespace
from harness.tune.ray_connection import exit_if_ray_dies, ray

servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
gcs, raylet = (server.getsockname()[1] for server in servers)
ray.get_runtime_context = lambda: SimpleNamespace(gcs_address=f"127.0.0.1:{gcs}", get_node_id=lambda: "1")
ray.nodes = lambda: [{"NodeID": "0"}, {"NodeID": "1", "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": raylet}]
with exit_if_ray_dies():
    pass  # a Ray that is shut down has not died
with exit_if_ray_dies():
    servers[1].close()
    threading.Semaphore(0).acquire()  # as in Ray's C++ code: no signal or exception ends it
"""


def test_a_command_that_waits_for_a_dead_ray_ends_within_half_a_minute():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    died, *others = done.stderr.splitlines()
    assert not others and re.fullmatch(
        r"failed: Ray has died: its raylet does not answer .*; the same command continues", died
    )


UNDER_A_SIGNAL = """
import signal, time
from harness.tune.ray_connection import connected_to_ray, ray
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
with connected_to_ray(None):
    print("up", flush=True)
    while not asked:
        time.sleep(0.1)
    time.sleep(2)
    print(ray.get(ray.remote(lambda: "a task ran").remote()), flush=True)
"""


@pytest.mark.slow
def test_a_signal_to_the_whole_group_as_of_timeout_leaves_ray_to_its_trials():
    shell = f"{sys.executable} -c '{UNDER_A_SIGNAL}' & trap '' TERM; wait $!; wait $!"
    group = subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert group.stdout.readline() == "up\n"
    os.killpg(group.pid, signal.SIGTERM)
    printed, _ = group.communicate(timeout=100)
    assert printed == "a task ran\n"


def test_a_ray_of_this_machine_has_the_address_of_the_loopback(monkeypatch):
    """All its servers listen on the address that its start asks for."""
    from ray._private import services

    monkeypatch.setattr(ray_connection.ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(worker, "_global_node", None)
    addresses = []
    monkeypatch.setattr(ray, "init", lambda *_, **__: addresses.append(services.get_node_ip_address()))
    ray_connection._connect(None, io.StringIO())
    assert addresses == ["127.0.0.1"]


def refusal_of_a_start():
    with pytest.raises(ResourceError) as caught, ray_connection.connected_to_ray(None):
        pass
    return str(caught.value)


def test_a_folder_where_ray_s_sockets_cannot_lie_is_refused_with_what_to_set(no_cluster, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", long := str(tmp_path / ("x" * 95)))
    message = refusal_of_a_start()
    assert message.startswith(f"TMPDIR: found {long!r}, allowed: up to ") and "set RAY_TMPDIR to a short" in message
    monkeypatch.setenv("RAY_TMPDIR", "/proc/1")
    assert refusal_of_a_start().startswith("RAY_TMPDIR: /proc/1/ray cannot be made: ")
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("RAY_TMPDIR", short := f"/tmp/of-{os.getpid()}")
    assert refusal_of_a_start().startswith(f"RAY_TMPDIR: {short}/ray cannot be written; set RAY_TMPDIR")
    shutil.rmtree(short)


def test_ray_has_a_token_of_its_own_where_home_cannot_be_written(no_cluster, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: tokens.append(os.environ["RAY_AUTH_TOKEN"]))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    tokens = []
    with ray_connection.connected_to_ray(None):
        pass
    assert len(tokens[0]) == 64
