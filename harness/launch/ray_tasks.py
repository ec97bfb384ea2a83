"""Runs pieces of work that do not depend on each other as Ray tasks."""

from collections.abc import Callable, Iterator
from typing import Any

from harness.device import take_share
from harness.launch.ray_cluster import MAX_RETRIES, check_resources, cluster, ray

_CPUS = 1


def run_tasks(
    work: Callable[..., Any], pieces: list[tuple[Any, ...]], workers: int, gpus: float
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each piece with what `work(*piece)` returned, or the exception that it raised, as they end.

    workers: so many at a time, or as many as there are CPUs and GPUs for. gpus: the GPUs that each is given, or its
    share of one. A piece whose worker died is tried again, on another one. Ray is started and stopped again unless it
    was up already. Raises ResourceError where CUDA is there and Ray does not see it.
    """
    with cluster(None) as resources:
        check_resources(resources, _CPUS, gpus)
        task = ray.remote(num_cpus=_CPUS, num_gpus=gpus, max_retries=MAX_RETRIES)(_within_share)
        waiting, running = pieces[::-1], dict[Any, tuple[Any, ...]]()
        while waiting or running:
            while waiting and len(running) < workers:
                piece = waiting.pop()
                running[task.remote(work, gpus, *piece)] = piece
            (ended, *_), _ = ray.wait(list(running))
            yield running.pop(ended), _outcome(ended)


def _within_share(work: Callable[..., Any], gpus: float, *piece: Any) -> Any:
    """What a worker runs."""
    take_share(gpus)
    return work(*piece)


def _outcome(ended: Any) -> Any:
    try:
        return ray.get(ended)
    except ray.exceptions.RayError as error:
        return getattr(error, "cause", None) or error
