"""A command whose Ray has died starts again, though its main thread waits for ever; or it ends."""

import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from study import SETTINGS

from harness.tune import ray_liveness
from harness.tune.ray_cluster import ray
from harness.tune.ray_liveness import ClusterServers, RayDiedError, start_again

BLOCKED = """
import os, shutil, subprocess, sys, threading
from functools import partial
from pathlib import Path
from harness.tune.ray_liveness import StartedServers, count_deaths, start_again, watch_servers

os.write(2, b"started\\n")
if count_deaths():
    print("deaths:", count_deaths(), "arguments:", sys.argv[1:])
    print("open:", any(os.path.realpath(link).endswith("/held") for link in Path("/proc/self/fd").iterdir()))
    sys.exit(0)
os.set_inheritable(os.open(sys.argv[1], os.O_CREAT | os.O_RDWR), True)  # as Ray's connections
sys.stderr = os.fdopen(os.dup(2), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as Ray's log
server = shutil.copy(shutil.which("sleep"), Path(sys.argv[1]).with_name("gcs_server"))
with watch_servers(StartedServers().check, partial(start_again, address=None, stop_file=Path(sys.argv[1] + ".stop"))):
    subprocess.Popen([server, "3"])
    threading.Semaphore(0).acquire()
"""


def test_a_command_that_waits_for_a_dead_ray_starts_again_with_its_own_output_and_open_files(tmp_path):
    command = [sys.executable, "-c", BLOCKED, str(tmp_path / "held")]
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"deaths: 1 arguments: {command[3:]}\nopen: False\n"
    first, died, second = done.stderr.splitlines()
    assert first == second == "started"
    assert died == "Ray has died: its gcs_server has ended; Ray is started again and continues from what is saved"


@pytest.mark.parametrize(
    ("deaths", "address", "is_stopped", "message", "ends"),
    [
        ("0", None, False, "gone; Ray is started again and continues from what is saved", False),
        ("1", None, False, "gone; Ray is started again and continues from what is saved", False),
        ("2", None, False, "gone, 3 times now; the same command continues", True),
        ("0", None, True, "gone while trials were asked to stop; the same command continues", True),
        ("0", "10.0.0.1:6379", False, "gone; start the cluster again, then the same command continues", True),
    ],
)
def test_ray_is_started_again_twice_unless_it_is_a_cluster_or_trials_are_to_stop(
    tmp_path, monkeypatch, capsys, deaths, address, is_stopped, message, ends
):
    calls = []
    monkeypatch.setattr(ray_liveness, "_ending", SimpleNamespace(acquire=lambda: calls.append("once")))
    monkeypatch.setattr(ray_liveness, "_children", lambda: [(123, "raylet")])
    monkeypatch.setattr(os, "kill", lambda *killed: calls.append(killed))
    monkeypatch.setattr(os, "set_inheritable", lambda *_: None)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(os, "_exit", lambda status: sys.exit(status))
    monkeypatch.setattr(os, "execve", lambda *_: sys.exit(_[2]["HARNESS_RAY_DEATHS"]))
    monkeypatch.setenv("HARNESS_RAY_DEATHS", deaths)
    if is_stopped:
        (tmp_path / ".stop").touch()
    with pytest.raises(SystemExit) as ended:
        start_again(RayDiedError("gone"), address, tmp_path / ".stop")
    assert ended.value.code == (1 if ends else str(int(deaths) + 1))
    assert capsys.readouterr().err == f"{message}\n"
    assert calls == ["once", (123, 9)]


def test_a_server_that_no_longer_answers_is_noticed(monkeypatch):
    monkeypatch.setattr(ray_liveness, "_PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as head, socket.create_server(("127.0.0.1", 0)) as raylet:
        ports = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": raylet.getsockname()[1]}
        context = SimpleNamespace(gcs_address=f"127.0.0.1:{head.getsockname()[1]}", get_node_id=lambda: "1")
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "0"}, {"NodeID": "1", **ports}])
        liveness = ClusterServers()
        liveness.check()
        raylet.close()
        liveness.check()
        time.sleep(0.15)
        with pytest.raises(RayDiedError, match="its raylet does not answer"):
            liveness.check()
