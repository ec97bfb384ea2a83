"""A Ray of this machine's or a running cluster, what it has, and whether its machines can do the work.

What Ray needs in the environment is set here, before it is imported: others have `ray` from here.
"""

import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

os.environ.update(
    {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stops the command instead of ending each trial as if it were done
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker that reserves no GPU sees none
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use this very environment; Ray would pack and rebuild it
        # A worker runs many trials, each in a thread of its own. An arena a thread would keep what ended trials had
        # (seen: 7 GB for 4 of them), and `kept_memory` speeds up the first arena alone.
        "MALLOC_ARENA_MAX": "1",
    }
    # Where Ray has left a token, `ray start` asks for it; who joins gives it only if told to, and nobody else minds.
    | ({"RAY_AUTH_MODE": "token"} if (Path.home() / ".ray/auth_token").exists() else {})
    | os.environ
)

import ray
import torch
from ray._private import worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.errors import InputError
from harness.storage.remote import check

MAX_RETRIES = 2
_PATIENCE = 5.0  # seconds for a connection; Ray itself would try for two minutes


class ResourceError(InputError):
    """What trials ask for is not there; Ray would leave them waiting for ever."""


@contextmanager
def cluster(address: str | None, log: Path | None = None) -> Iterator[dict[str, float]]:
    """Ray's resources; Ray is started and stopped again unless it was up already.

    address: of a running cluster; else one is started here. log: where what Ray's own code prints is kept.
    Raises ResourceError where no cluster answers there, or it asks for a token.
    """
    started = not ray.is_initialized()
    with _apart(log if started else None) as chatter:
        if started:
            _connect(address, chatter)
        try:
            yield ray.cluster_resources()
        finally:
            if started:
                ray.shutdown()


def cluster_has_gpu(address: str) -> bool:
    """Whether the Ray cluster at `address` has a GPU."""
    with cluster(address) as resources:
        return resources.get("GPU", 0) > 0


def check_resources(resources: dict[str, float], cpu: int, gpu: float) -> None:
    """Raise ResourceError where a piece of work would wait for ever."""
    if torch.cuda.is_available() and not resources.get("GPU", 0):
        raise ResourceError(
            "torch sees a GPU on this machine and Ray does not; look at CUDA_VISIBLE_DEVICES and at the cluster's start"
        )
    machines = [node["Resources"] for node in _nodes()]
    for name, wanted in (("CPU", cpu), ("GPU", gpu)):
        if not any(wanted <= machine.get(name, 0) for machine in machines):
            raise ResourceError(
                f"a trial asks for {wanted:g} {name} and Ray has {resources.get(name, 0):g}; "
                "lower `resources` in the sweep file"
            )


def side_by_side(cpu: int, gpu: float) -> int:
    """How many trials that reserve so much the machines run at a time."""
    return sum(
        min(int(machine["Resources"].get(name, 0) / wanted) for name, wanted in (("CPU", cpu), ("GPU", gpu)) if wanted)
        for machine in _nodes()
    )


def check_storage(needed: list[Path], uri: str | None = None) -> None:
    """Raise ResourceError where a machine of the cluster does not have one of these files or directories, or cannot
    use the storage at an address."""
    probe = ray.remote(num_cpus=0, max_retries=MAX_RETRIES)(_missing)
    asked = []
    for node in _nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answer = probe.options(scheduling_strategy=there).remote([str(path) for path in needed], uri)
        asked.append((node["NodeManagerAddress"], answer))
    for machine, answer in asked:
        missing, why = ray.get(answer)
        if why:
            raise ResourceError(f"machine {machine} of the Ray cluster: {why}; credentials are its own environment's")
        if missing:
            raise ResourceError(
                f"machine {machine} of the Ray cluster does not have {', '.join(missing)}; results and data must lie "
                "on storage that all of its machines share, or the same files at the same path"
            )


def _missing(paths: list[str], uri: str | None) -> tuple[list[str], str]:
    """Which of the paths are not there, and why the storage at the address cannot be used, where it cannot."""
    missing = [path for path in paths if not Path(path).exists()]
    try:
        if uri is not None:
            check(uri)
    except InputError as error:
        return missing, str(error)
    return missing, ""


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _connect(address: str | None, chatter: Any) -> None:
    if address is not None:
        _knock(address)
    dashboard = None if address else False
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # Ray raises plain ones, too, such as where its start takes too long
        chatter.seek(0)
        if address and "InvalidAuthToken" in chatter.read():
            raise ResourceError(
                f"the Ray cluster at {address} asks for a token and did not get it: copy ~/.ray/auth_token "
                "of its first machine to this one, and to each that joins it with RAY_AUTH_MODE=token, or start its "
                "machines with RAY_AUTH_MODE=disabled"
            ) from None
        what = f"no Ray cluster answers at {address}" if address else "Ray cannot be started here"
        raise ResourceError(f"{what}: {' '.join(str(error).split())}") from error
    if callable(on_sigterm):
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler ends the process


def _knock(address: str) -> None:
    """Raise ResourceError at once where nothing listens at HOST:PORT."""
    if not (found := re.fullmatch(r"(?P<host>[^/]+):(?P<port>\d+)", address)):
        return
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(f"no Ray cluster answers at {address}: {error}") from None


@contextmanager
def _apart(log: Path | None) -> Iterator[Any]:
    """What is written to the standard error by anything but Python goes to a file, in pages where a node dies, and so
    does what Ray prints of machines and workers that die, for which it has no setting."""

    def keep(data: dict[str, Any], *_given: Any, **_named: Any) -> None:
        print(*data["lines"], sep="\n", file=file, flush=True)

    with open(log, "w+") if log else TemporaryFile("w+") as file:
        before, stderr = os.dup(2), sys.stderr
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1) if _is_two(stderr) else stderr
        os.dup2(file.fileno(), 2)
        printed, worker.print_to_stdstream = worker.print_to_stdstream, keep
        try:
            yield file
        finally:
            worker.print_to_stdstream = printed
            os.dup2(before, 2)
            os.close(before)
            sys.stderr = stderr
            if log and not log.stat().st_size:
                log.unlink()


def _is_two(stream: Any) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError, AttributeError):
        return False
