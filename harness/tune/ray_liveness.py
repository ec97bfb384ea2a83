"""Find out that Ray has died, and start the command again.

Ray does not report its own death. The main thread then waits in Ray's C++ code, which nothing can break off, and after
a minute Ray ends the process without a message. So another thread watches, and replaces the whole process.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from harness.command_line import FAILED
from harness.common.terminal import say
from harness.tune.ray_cluster import CONNECTION_SECONDS, host_and_port, keep_server_logs, ray

_PERIOD = 1.0  # seconds between two checks
_PATIENCE = 2.0  # seconds without an answer, of a server on this machine
_NETWORK_PATIENCE = 30.0  # of the head of a cluster; after 60 s Ray ends the driver without a message
_SERVERS = ("gcs_server", "raylet")
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_DEATHS = "HARNESS_RAY_DEATHS"  # the environment variable by which a command that starts again counts
_RESTARTS = 2  # of a Ray on this machine that died
_ending = threading.Lock()  # two threads may notice at once


class RayDiedError(ConnectionError):
    """The head of the cluster, or the raylet that serves this process, is dead."""


class StartedServers:
    """Checks gcs_server and the raylet of a Ray that this process starts, or has started: they are its children."""

    def __init__(self) -> None:
        self.servers: dict[int, str] = {}

    def check(self) -> None:
        """Look for new servers. Raises RayDiedError if one that was there has ended."""
        running = {child: name for child, name in _children() if name in _SERVERS}
        for child, name in self.servers.items():
            if child not in running:
                raise RayDiedError(f"Ray has died: its {name} has ended{keep_server_logs()}")
        self.servers = running


class ClusterServers:
    """Checks the servers that a driver of a cluster waits for: gcs_server at its head, and this machine's raylet."""

    def __init__(self) -> None:
        """Look up the servers. Ray must be up."""
        context = ray.get_runtime_context()
        raylet = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self.servers = {
            "gcs_server": (host_and_port(context.gcs_address), _NETWORK_PATIENCE),
            "raylet": ((raylet["NodeManagerAddress"], raylet["NodeManagerPort"]), _PATIENCE),
        }
        self.silent_since: dict[str, float] = {}

    def check(self) -> None:
        """Try to connect. Raises RayDiedError if a server has not answered for some seconds."""
        for name, (address, patience) in self.servers.items():
            try:
                socket.create_connection(address, CONNECTION_SECONDS).close()
                self.silent_since.pop(name, None)
            except OSError as error:
                since = self.silent_since.setdefault(name, time.monotonic())
                if time.monotonic() - since >= patience:
                    raise RayDiedError(f"Ray has died: its {name} does not answer ({error})") from None


@contextmanager
def watch_servers(check: Callable[[], None], end: Callable[[RayDiedError], None]) -> Iterator[None]:
    """Within the block, let a thread call `check` each second, and `end` with the RayDiedError that it raises."""
    has_ended = threading.Event()

    def watch() -> None:
        while not has_ended.wait(_PERIOD):
            try:
                check()
            except RayDiedError as error:
                if not has_ended.is_set():
                    end(error)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        has_ended.set()


def count_deaths() -> int:
    """Return how often Ray has died under this command."""
    return int(os.environ.get(_DEATHS, "0"))


def start_again(error: RayDiedError, address: str | None, stop_file: Path) -> NoReturn:
    """Replace this process by the same command, which continues from what is saved. Files are left as after a kill.

    It ends with status 1 instead if Ray is a cluster at `address`, if trials are to stop (`stop_file` exists), or if
    Ray has died too often.
    """
    _ending.acquire()
    deaths, ends = count_deaths() + 1, True
    if address is not None:
        message = f"{error}; start the cluster again, then the same command continues"
    elif stop_file.exists():
        message = f"{error} while trials were asked to stop; the same command continues"
    elif deaths > _RESTARTS:
        message = f"{error}, {deaths} times now; the same command continues"
    else:
        message, ends = f"{error}; Ray is started again and continues from what is saved", False
    say(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    for child, _ in _children():  # workers end with the raylet
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    if ends:
        os._exit(FAILED)
    with suppress(OSError, ValueError):  # a stream that is no file
        os.dup2(sys.stderr.fileno(), 2)  # which Ray's log has been until now
    for number in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if int(number.name) > 2:
                os.set_inheritable(int(number.name), False)  # Ray's connections
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, _DEATHS: str(deaths)})


def _children() -> Iterator[tuple[int, str]]:
    """Yield the number and the name of each running process that this one has started."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread has ended
            for child in (task / "children").read_text().split():
                with suppress(OSError):  # the process has ended
                    before, _, after = Path(f"/proc/{child}/stat").read_text().rpartition(")")
                    if after.split()[0] not in "ZX":
                        yield int(child), before.partition("(")[2]


def end_with_raylet() -> None:
    """Let the kernel kill this worker once its raylet is dead: another worker will write to the same folder."""
    raylet = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != raylet:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)
