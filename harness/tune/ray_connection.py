"""Start Ray here or connect to a cluster, and exit if it dies.

This module sets Ray's environment variables before it imports `ray`: other modules import `ray` from here.
"""

import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from unittest.mock import patch

os.environ.update(
    {
        "RAY_AIR_NEW_OUTPUT": "0",  # documented; with the new output, Tune prints a box even if verbose=0
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stops the command instead of ending each trial as if it were done
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker that reserves no GPU sees none
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use this very environment; Ray would pack and rebuild it
        "RAY_enable_metrics_collection": "0",  # nobody reads them, and no agent takes them: `patient_start`
        # A worker runs many trials, each in its own thread. With an arena for each thread, memory of ended trials stays
        # (seen: 7 GB after 4 trials), and `reuse_freed_memory` speeds up the first arena alone.
        "MALLOC_ARENA_MAX": "1",
    }
    # With a token in the home directory `ray start` requires it, but a client sends it only in this mode.
    | ({"RAY_AUTH_MODE": "token"} if (Path.home() / ".ray/auth_token").exists() else {})
    | os.environ
)

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants, services, utils, worker
from ray._private.node import Node
from ray._raylet import (  # type: ignore[attr-defined]
    DASHBOARD_AGENT_LISTEN_PORT_NAME,
    METRICS_AGENT_PORT_NAME,
    METRICS_EXPORT_PORT_NAME,
    persist_port,
)

from harness.common.errors import InputError
from harness.common.terminal import say

_LIMITS = {  # minutes, as on a machine with much other work; Ray's own are 5 to 60 s
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_gcs_rpc_server_connect_timeout_s": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_initial_delay_ms": "60000",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_failure_threshold": "10",
}
_START_SECONDS = 300.0
_LONGEST_SOCKET = 107  # bytes of a path
_SOCKET = "session_2026-11-28_12-00-00_000000_{}/sockets/plasma_store"  # of a process, below Ray's temporary files
_LINES = 50  # of each log that are kept once Ray has died
_ERROR = re.compile(r"(\[[^]]+ [EC] \d+ \d+\] .*)")  # a line of such a log
_CONNECTION_SECONDS = 5.0  # to try for; Ray itself would try for two minutes
_PERIOD = 2.0  # seconds between two checks of a server
_FAILED_CHECKS = 3  # in a row: then Ray counts as dead, after 6 to 21 s


class ResourceError(InputError):
    """No Ray can be used, or its machines lack what trials need."""


class RayDiedError(ConnectionError):
    """Ray has died; the same command continues."""


@contextmanager
def connected_to_ray(address: str | None, log: Path | None = None) -> Iterator[None]:
    """Start Ray, or connect to it, within the block, unless this process has it already.

    address: of a running cluster; None starts one here. log: the file for what Ray itself prints.
    Raises ResourceError if no cluster answers there, or it asks for a token.
    """
    started = not ray.is_initialized()
    with _redirect_stderr(log if started else None) as printed:
        if started:
            _connect(address, printed)
        try:
            yield
        finally:
            if started:
                ray.shutdown()


@contextmanager
def exit_if_ray_dies() -> Iterator[None]:
    """Within the block, end this process with status 1 once Ray has died.

    Ray does not report its own death: the main thread waits in Ray's C++ code, which nothing can break off, and after a
    minute Ray ends the process without a message. So another thread watches. Workers end with their raylet.
    """
    has_ended = threading.Event()
    context = ray.get_runtime_context()
    raylet = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    servers = {
        "gcs_server": _host_and_port(context.gcs_address),
        "raylet": (raylet["NodeManagerAddress"], raylet["NodeManagerPort"]),
    }

    def watch() -> None:
        failed = Counter[str]()
        while not has_ended.wait(_PERIOD):
            for name, server in servers.items():
                try:
                    socket.create_connection(server, _CONNECTION_SECONDS).close()
                    del failed[name]
                except OSError as error:
                    failed[name] += 1
                    if failed[name] == _FAILED_CHECKS and not has_ended.is_set():
                        cause = f"Ray has died: its {name} does not answer ({error}){copy_server_logs()}"
                        say(f"failed: {cause}; the same command continues", file=sys.stderr)
                        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        has_ended.set()


def _connect(address: str | None, printed: Any) -> None:
    if address is not None:
        _check_port(address)
    else:
        _check_temporary_files()
        _make_token()
    dashboard, begin = None if address else False, printed.seek(0, os.SEEK_END)
    ray_constants.ENABLE_RAY_CLUSTER = address is not None  # without, all of Ray listens on the loopback alone
    try:
        with _apart_from_signals(), nullcontext() if address else patient_start():
            ray.init(address or "local", include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # Ray raises plain ones, too, such as where its start takes too long
        printed.seek(begin)
        if address and "InvalidAuthToken" in printed.read():
            raise ResourceError(
                f"the Ray cluster at {address} asks for a token and did not get it: copy ~/.ray/auth_token "
                "of its first machine to this one, and to each that joins it with RAY_AUTH_MODE=token, or start its "
                "machines with RAY_AUTH_MODE=disabled"
            ) from None
        problem = f"no Ray cluster answers at {address}" if address else "Ray cannot be started here"
        raise ResourceError(
            f"{problem}: {' '.join(str(error).split())}{'' if address else copy_server_logs()}"
        ) from error


def _check_temporary_files() -> None:
    """Raise ResourceError if the paths of Ray's sockets would be too long, or their folder cannot be written."""
    path, name = Path(get_default_ray_temp_dir()), "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    most = _LONGEST_SOCKET - len(f"/ray/{_SOCKET.format(os.getpid())}")
    advice = "set RAY_TMPDIR to a short folder of your own, such as /tmp/$USER"
    if len(os.fsencode(path.parent)) > most:
        raise ResourceError(
            f"{name}: found {str(path.parent)!r}, allowed: up to {most} bytes, as Ray's sockets lie there; {advice}"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{name}: {path} cannot be made: {error.strerror}; {advice}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ResourceError(f"{name}: {path} cannot be written; {advice}")


def _make_token() -> None:
    """Give Ray here a token of its own where it could not write ~/.ray/auth_token, as in containers."""
    path = Path.home() / ".ray/auth_token"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() and not os.access(path.parent, os.W_OK):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def patient_start() -> Iterator[None]:
    """Within, `ray.init` starts a Ray with limits of minutes, and of all its processes only those that trials need.

    There is no setting for either, hence Ray's private names. Left out are the dashboard, the monitors of an autoscaler
    and of logs, and the agent for metrics: files say that its ports are not in use, else the raylet would wait for them
    for 15 s and end. The agent for environments of workers stays, at a port that the raylet need not wait for.
    """
    start, look_up = Node.start_raylet, services.get_node
    nodes = list[Node]()

    def start_raylet(node: Node, *arguments: Any) -> None:
        for name in (METRICS_AGENT_PORT_NAME, METRICS_EXPORT_PORT_NAME, DASHBOARD_AGENT_LISTEN_PORT_NAME):
            persist_port(node._session_dir, node._node_id, name, -1)
        with socket.create_server(("127.0.0.1", 0)) as free:
            node._ray_params.runtime_env_agent_port = free.getsockname()[1]
        start(node, *arguments)
        nodes.append(node)

    def wait_for_node(*arguments: Any) -> Any:
        """Wait for minutes until the raylet is registered; Ray would wait for 30 s."""
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if dead := [name for node in nodes for name, _ in node.dead_processes()]:
                raise ConnectionError(f"{' and '.join(dead)} ended at once")
            with suppress(RuntimeError):  # not registered yet
                return look_up(*arguments)
            time.sleep(0.1)
        return look_up(*arguments)

    def start_nothing(node: Node, **_options: Any) -> None:
        """Leave a process out."""

    methods: dict[str, Any] = {"start_raylet": start_raylet}
    methods |= dict.fromkeys(("start_api_server", "start_monitor", "start_log_monitor"), start_nothing)
    os.environ.update(_LIMITS | os.environ)  # not for a cluster that does not answer: hence here
    with (
        patch.multiple(Node, **methods),
        patch.object(services, "get_node", wait_for_node),
        patch.object(utils, "get_dashboard_dependency_error", lambda: ImportError("left out")),
    ):
        yield


def copy_server_logs() -> str:
    """Write the ends of the logs of this process's Ray servers to stderr, and return their last error.

    Stderr is `ray.log` while Ray is up; Ray itself keeps the logs in /tmp alone. The error is the end of a message, ""
    if there is none.
    """
    sessions = sorted(Path(get_default_ray_temp_dir()).glob(f"session_*_{os.getpid()}"))
    errors = []
    for path in sorted(sessions[-1].glob("logs/*")) if sessions else []:
        if re.fullmatch(r"(raylet|gcs_server).*\.(out|err)", path.name):
            lines = path.read_text(errors="replace").splitlines()[-_LINES:]
            os.write(2, "\n".join([f"{path}:", *lines, ""]).encode())
            errors += [match[1] for line in lines if (match := _ERROR.match(line))]
    return f"; its log ends with: {errors[-1]}" if errors else ""


@contextmanager
def _apart_from_signals() -> Iterator[None]:
    """Within, processes start in a process group of their own; after it, SIGTERM is handled as before.

    `timeout` and Ctrl-C signal a whole group: Ray's servers would end before the trials that are asked to. And Ray sets
    a handler of its own, which ends this process.
    """
    handler, group = signal.getsignal(signal.SIGTERM), os.getpgrp()
    if group != os.getpid():  # the leader of a group cannot leave it; whoever started a leader signals that alone
        os.setpgid(0, 0)
    try:
        yield
    finally:
        with suppress(PermissionError):  # all others of the group have ended
            os.setpgid(0, group)
        if callable(handler):
            signal.signal(signal.SIGTERM, handler)


def _host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _check_port(address: str) -> None:
    """Raise ResourceError at once if nothing listens at HOST:PORT."""
    if not re.fullmatch(r"[^/]+:\d+", address):
        return
    try:
        socket.create_connection(_host_and_port(address), _CONNECTION_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(f"no Ray cluster answers at {address}: {error}") from None


@contextmanager
def _redirect_stderr(log: Path | None) -> Iterator[Any]:
    """Send to a file what Ray's C++ code writes to stderr, and what Ray prints when machines or workers die.

    Ray has no setting for either: hence its private `print_to_stdstream`, which no public call replaces, and which it
    calls for dead machines also if log_to_driver=False. What Python writes to stderr still goes there.
    """

    def write_lines(data: dict[str, Any], *_args: Any, **_kwargs: Any) -> None:
        print(*data["lines"], sep="\n", file=file, flush=True)

    with open(log, "a+") if log else TemporaryFile("w+") as file:
        before, stderr = os.dup(2), sys.stderr
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1) if _is_stderr(stderr) else stderr
        os.dup2(file.fileno(), 2)
        print_to_stdstream, worker.print_to_stdstream = worker.print_to_stdstream, write_lines
        try:
            yield file
        finally:
            worker.print_to_stdstream = print_to_stdstream
            os.dup2(before, 2)
            os.close(before)
            sys.stderr = stderr
            if log and not log.stat().st_size:
                log.unlink()


def _is_stderr(stream: Any) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError, AttributeError):
        return False
