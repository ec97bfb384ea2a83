"""Notice that Ray has died. It does not say so: the driver would wait for ever, while workers train on."""

import ctypes
import os
import signal
import socket
import time

from harness.launch.ray_cluster import CONNECTION_SECONDS, host_and_port, ray

_PERIOD = 1.0  # seconds between two checks
_LOCAL_PATIENCE, _CLUSTER_PATIENCE = 2.0, 30.0  # seconds; after 60, Ray's own code ends the driver without a word
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class RayDiedError(ConnectionError):
    """The head of the cluster, or the raylet that serves this process, is dead."""


class Liveness:
    """Checks the two servers that a driver waits for, gcs_server at the head of the cluster and its own raylet.

    is_local: this process has started them, and no network lies between.
    """

    def __init__(self, is_local: bool):
        """Look up the servers. Ray must be up."""
        context = ray.get_runtime_context()
        raylet = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self.servers = {
            "gcs_server": host_and_port(context.gcs_address),
            "raylet": (raylet["NodeManagerAddress"], raylet["NodeManagerPort"]),
        }
        self.patience = _LOCAL_PATIENCE if is_local else _CLUSTER_PATIENCE
        self.checked = self.answered = time.monotonic()

    def check(self) -> None:
        """Try to connect, at most once a second. Raises RayDiedError if a server has not answered for some seconds."""
        now = time.monotonic()
        if now - self.checked < _PERIOD:
            return
        self.checked = now
        for name, address in self.servers.items():
            try:
                socket.create_connection(address, CONNECTION_SECONDS).close()
            except OSError as error:
                if time.monotonic() - self.answered > self.patience:
                    raise RayDiedError(f"Ray has died: its {name} does not answer ({error})") from None
                return
        self.answered = now


def end_with_raylet() -> None:
    """Let the kernel kill this worker once its raylet is dead: another worker will write to the same folder."""
    raylet = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != raylet:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)
