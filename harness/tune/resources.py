"""What the machines of a Ray cluster have: CPUs, GPUs and files."""

import time
from pathlib import Path
from typing import Any

# isort: off
from harness.tune.ray_connection import ResourceError, connected_to_ray, ray  # before Ray itself

# isort: on
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.tune.workers import check_fits, count_fitting

WORKER_RETRIES = 2  # of an item whose worker died
_MARKER = ".shared-"


def machines_of_cluster(address: str) -> list[dict[str, float]]:
    """Return the "CPU" and "GPU" of each machine of the cluster at `address`."""
    with connected_to_ray(address):
        return _machines()


def check_resources(cpu: int, gpu: float) -> None:
    """Raise InputError if no machine has the resources of a trial: Ray would wait for them for ever."""
    machines = _machines()
    if gpu and not any(machine["GPU"] for machine in machines):
        raise ResourceError(
            "torch sees a GPU on this machine and Ray does not; look at CUDA_VISIBLE_DEVICES and at the cluster's start"
        )
    check_fits(machines, cpu, gpu)


def count_parallel_trials(cpu: int, gpu: float) -> int:
    """Return how many trials with these reservations the machines run at a time."""
    return count_fitting(_machines(), cpu, gpu)


def check_storage(directory: Path, data_dir: str) -> None:
    """Raise ResourceError if a machine of the cluster lacks the results in `directory`, or the data."""
    for old in directory.glob(f"{_MARKER}*"):  # of a driver that was killed
        old.unlink(missing_ok=True)
    marker = directory.absolute() / f"{_MARKER}{time.time_ns()}"  # a new name: no machine has a copy
    marker.touch()
    needed = [marker, *([Path(data_dir)] if Path(data_dir).exists() else [])]
    probe = ray.remote(num_cpus=0, max_retries=WORKER_RETRIES)(_find_missing)
    answers = []
    for node in _nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answer = probe.options(scheduling_strategy=there).remote([str(path) for path in needed])
        answers.append((node["NodeManagerAddress"], answer))
    try:
        for machine, answer in answers:
            if lack := ray.get(answer):
                raise ResourceError(f"machine {machine} of the Ray cluster {lack}")
    finally:
        marker.unlink(missing_ok=True)


def _find_missing(paths: list[str]) -> str:
    """Return what this machine lacks of these paths; an empty text for nothing."""
    missing = ", ".join(path for path in paths if not Path(path).exists())
    advice = "results and data must lie on storage that all machines share, or the same files at the same path"
    return f"does not have {missing}; {advice}" if missing else ""


def _machines() -> list[dict[str, float]]:
    return [{name: node["Resources"].get(name, 0) for name in ("CPU", "GPU")} for node in _nodes()]


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
