"""Slurm of Debian's packages: a controller and two nodes of two CPUs each, all on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from processes import wait_for
from servers import free_port

PACKAGES = ["slurm-wlm", "munge"]
NODES = ("node0", "node1")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthInfo=socket={root}/munge
SlurmUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PartitionName=main Nodes=ALL Default=YES
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2\n"


def install():
    """Skip where Slurm is not there and cannot be installed."""
    if os.geteuid() != 0:
        pytest.skip("needs root, which starts Slurm")
    if shutil.which("slurmctld"):
        return
    if not shutil.which("apt-get"):
        pytest.skip("needs Slurm, by Debian's packages")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs Slurm, and apt-get {command[0]} failed: {done.stderr.splitlines()[-1:]}")


@contextmanager
def slurm():
    """The environment in which Slurm's commands reach it, until the end of all its processes."""
    install()
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # munge wants directories that others may not write to
    root.chmod(0o755)
    host = socket.gethostname()
    nodes = [NODE.format(name=name, host=host, port=free_port()) for name in NODES]
    (root / "slurm.conf").write_text(CONFIGURATION.format(host=host, port=free_port(), root=root) + "".join(nodes))
    (root / "key").write_bytes(os.urandom(1024))
    (root / "key").chmod(0o400)
    environment = {"SLURM_CONF": f"{root}/slurm.conf", "RAY_TMPDIR": str(root)}

    def start(*command):
        with open(root / f"{command[0]}.txt", "a") as log:
            subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=log, cwd=root, start_new_session=True
            )

    files = {"key-file": "key", "socket": "munge", "pid-file": "pid", "log-file": "munge.log", "seed-file": "seed"}
    try:
        start("munged", "--foreground", *(f"--{option}={root}/{file}" for option, file in files.items()))
        wait_for((root / "munge").exists)
        start("slurmctld", "-D")
        for name in NODES:
            start("slurmd", "-D", "-N", name)
        idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        wait_for(lambda: subprocess.run(idle, env=os.environ | environment, capture_output=True).stdout == b"2\n")
        yield environment
    finally:
        stop_all(f"SLURM_CONF={root}/slurm.conf")
        shutil.rmtree(root, ignore_errors=True)


def processes_with(variable):
    """The process ids of all that have this in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if variable.encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def stop_all(variable):
    while running := processes_with(variable):
        for each in running:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
