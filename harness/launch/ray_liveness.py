"""Find out that Ray has died. Ray itself does not report it, and the driver would wait for ever."""

import ctypes
import os
import signal
import socket
import time

from harness.launch.ray_cluster import CONNECTION_SECONDS, host_and_port, ray

_PERIOD = 1.0  # seconds between two checks
_PATIENCE = 2.0  # seconds without an answer, of a server on this machine
_NETWORK_PATIENCE = 30.0  # on another machine; after 60 s Ray ends the driver without a message
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class RayDiedError(ConnectionError):
    """The head of the cluster, or the raylet that serves this process, is dead."""


class Liveness:
    """Checks the two servers that a driver waits for: gcs_server at the head of the cluster, and its machine's raylet.

    is_local: the head is this machine.
    """

    def __init__(self, is_local: bool):
        """Look up the servers. Ray must be up."""
        context = ray.get_runtime_context()
        raylet = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self.servers = {
            "gcs_server": (host_and_port(context.gcs_address), _PATIENCE if is_local else _NETWORK_PATIENCE),
            "raylet": ((raylet["NodeManagerAddress"], raylet["NodeManagerPort"]), _PATIENCE),
        }
        self.checked = time.monotonic()
        self.silent_since: dict[str, float] = {}

    def check(self) -> None:
        """Try to connect, at most once a second. Raises RayDiedError if a server has not answered for some seconds."""
        if time.monotonic() - self.checked < _PERIOD:
            return
        for name, (address, patience) in self.servers.items():
            try:
                socket.create_connection(address, CONNECTION_SECONDS).close()
                self.silent_since.pop(name, None)
            except OSError as error:
                since = self.silent_since.setdefault(name, time.monotonic())
                if time.monotonic() - since >= patience:
                    raise RayDiedError(f"Ray has died: its {name} does not answer ({error})") from None
        self.checked = time.monotonic()


def end_with_raylet() -> None:
    """Let the kernel kill this worker once its raylet is dead: another worker will write to the same folder."""
    raylet = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != raylet:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)
