"""Machines of a Ray cluster, all on this one."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

from processes import descendants


def start_node(environment, *options):
    """`ray start` with these options, which has begun."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *options]
    environment = environment | {"RAY_USAGE_STATS_ENABLED": "0"}
    node = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if not any("Ray runtime started" in line for line in node.stdout):
        stop_node(node)
        raise RuntimeError("ray start ended")
    return node


def stop_node(node):
    for each in [node.pid, *descendants(node.pid)]:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    node.wait()
    node.stdout.close()


@contextmanager
def running_node(environment, *options):
    """A machine of a cluster, until the end."""
    node = start_node(environment, *options)
    try:
        yield node
    finally:
        stop_node(node)
