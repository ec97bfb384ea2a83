"""Start Ray here or connect to a cluster.

This module sets Ray's environment variables before it imports `ray`: other modules import `ray` from here.
"""

import atexit
import logging
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir

os.environ.update(
    {
        "RAY_AIR_NEW_OUTPUT": "0",  # with the new output, Tune prints a box even if verbose=0
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # of three formats; `on_ray` adds the one that Ray reads
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stops the command instead of ending each trial as if it were done
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker that reserves no GPU sees none
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use this very environment; Ray would pack and rebuild it
        "RAY_AUTH_MODE": "token",
        "RAY_worker_niceness": "0",  # at Ray's own 15, any other process on the machine starves trials
        # A worker runs many trials, each in its own thread. With an arena for each thread, memory of ended trials stays
        # (seen: 7 GB after 4 trials), and `reuse_freed_memory` speeds up the first arena alone.
        "MALLOC_ARENA_MAX": "1",
        # Seconds to wait for Ray's own processes, on a machine with much other work; Ray's own are 5 to 60.
        "RAY_gcs_server_port_wait_time_s": "120",
        "RAY_gcs_rpc_server_connect_timeout_s": "120",
        "RAY_gcs_server_request_timeout_seconds": "120",
        "RAY_agent_register_timeout_ms": "120000",
        "RAY_worker_register_timeout_seconds": "120",
        "RAY_health_check_timeout_ms": "20000",
    }
    | os.environ
)

import ray

from harness.common.errors import InputError

_ATTEMPTS = 3
_TOKEN = secrets.token_hex(32)  # for each Ray that this process starts: Ray itself keeps the first one
_CONNECTION_SECONDS = 5.0  # to try for; Ray itself would try for ten minutes
_connection = ExitStack()
atexit.register(_connection.close)


@contextmanager
def connected_to_ray(address: str | None, dashboard: bool = False) -> Iterator[str]:
    """Start Ray, or connect to it, within the block, unless this process has it already.

    address: of a running cluster; None starts one here. dashboard: start Ray's dashboard, too.
    Yields the URL of the dashboard, "" without one.
    Raises InputError if no cluster answers there, or it asks for a token.
    """
    if ray.is_initialized():
        yield ""
        return
    handler = signal.getsignal(signal.SIGTERM)
    url = _connect(address) if address else _start(dashboard)
    signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    try:
        yield url
    finally:
        ray.shutdown()


@contextmanager
def shared_ray(address: str | None, dashboard: bool = False) -> Iterator[str]:
    """As `connected_to_ray`, but Ray stays after the block, for the study after a search, until the process ends.

    If an error or a signal ends the block, Ray and its workers end.
    """
    try:
        yield _connection.enter_context(connected_to_ray(address, dashboard))
    except BaseException:
        _connection.close()
        raise


def machines_of_ray() -> list[dict[str, float]]:
    """Return the "CPU" and "GPU" of each machine that this process is connected to."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [{name: resources.get(name, 0) for name in ("CPU", "GPU")} for resources in alive]


def is_here_alive() -> bool:
    """Return False once the Ray of this process has died on this machine; its own threads do not say so."""
    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and node["Alive"] for node in ray.nodes())


def _connect(address: str) -> str:
    """Connect to a cluster, with the token of this machine if it has one, and return the URL of its dashboard."""
    try:
        if re.fullmatch(r"[^/]+:\d+", address):
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _CONNECTION_SECONDS).close()
        return str(ray.init(address, logging_level=logging.ERROR, log_to_driver=False).dashboard_url)
    except Exception as error:  # Ray raises plain ones, too
        raise InputError(
            f"no Ray cluster answers at {address}: {' '.join(str(error).split())}. If it asks for a token (Ray printed "
            "InvalidAuthToken): copy ~/.ray/auth_token of its first machine to this one, and to each that joins it "
            "with RAY_AUTH_MODE=token"
        ) from error


def _start(dashboard: bool) -> str:
    """Start Ray on this machine, with a token that nobody else has, and return the URL of its dashboard."""
    os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    options = {"include_dashboard": dashboard, "logging_level": logging.ERROR, "log_to_driver": False}
    began = time.monotonic()
    for _ in range(_ATTEMPTS):
        try:
            return str(ray.init("local", **options).dashboard_url or "")
        except Exception as error:  # Ray raises plain ones, too, such as where its start takes too long
            ray.shutdown()
            cause = error
    logs = Path(os.environ.get("RAY_TMPDIR", gettempdir())) / "ray/session_latest/logs"
    raise InputError(
        f"Ray cannot be started here, {_ATTEMPTS} attempts in {time.monotonic() - began:.0f} s. The last one: "
        f"{' '.join(str(cause).split())}; its logs: {logs}. To do without Ray: harness.run --here"
    ) from cause
