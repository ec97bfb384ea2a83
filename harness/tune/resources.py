"""What this machine, or those of a Ray cluster, have: CPUs, GPUs, the results and the data."""

import time
from pathlib import Path
from typing import Any

# isort: off
from harness.tune.cluster import ResourceError, cluster, ray  # before Ray itself

# isort: on
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

WORKER_RETRIES = 2  # of an item whose worker died
_MARKER = ".shared-"


def resources_at(address: str) -> dict[str, float]:
    """Return the largest "CPU" and "GPU" that any machine of the cluster at `address` has."""
    with cluster(address):
        return _largest()


def _largest() -> dict[str, float]:
    machines = [node["Resources"] for node in _nodes()]
    return {name: max((machine.get(name, 0) for machine in machines), default=0) for name in ("CPU", "GPU")}


def check_resources(cpu: int, gpu: float) -> None:
    """Raise ResourceError if no machine has the resources of a trial."""
    largest = _largest()
    if gpu and not largest["GPU"]:
        raise ResourceError(
            "torch sees a GPU on this machine and Ray does not; look at CUDA_VISIBLE_DEVICES and at the cluster's start"
        )
    for key, needed in (("cpu", cpu), ("gpu", gpu)):
        most = largest[key.upper()]
        if needed > most:
            raise ResourceError(f"resources.{key}: found {needed:g}, allowed: at most {most:g}, as Ray's machines have")


def side_by_side(cpu: int, gpu: float) -> int:
    """Return how many trials with these reservations the machines run at a time."""
    needs = [(name, count) for name, count in (("CPU", cpu), ("GPU", gpu)) if count]
    return sum(min(int(node["Resources"].get(name, 0) / count) for name, count in needs) for node in _nodes())


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


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
