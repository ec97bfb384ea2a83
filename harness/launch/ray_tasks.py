"""Run independent pieces of work as Ray tasks."""

from collections.abc import Callable, Iterator
from typing import Any

from harness.device import take_share
from harness.launch.ray_cluster import MAX_RETRIES, check_resources, cluster, ray

_CPUS = 1


def run_tasks(
    work: Callable[..., Any], pieces: list[tuple[Any, ...]], workers: int, gpus: float
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each piece with what `work(*piece)` returned, or the exception that it raised, in the order they end.

    workers: the most pieces at a time. gpus: the GPUs, or the share of one, that each piece reserves. A piece whose
    worker died runs again in another one. Raises ResourceError if torch sees a GPU and Ray does not.
    """
    with cluster(None) as resources:
        check_resources(resources, _CPUS, gpus)
        task = ray.remote(num_cpus=_CPUS, num_gpus=gpus, max_retries=MAX_RETRIES)(_within_share)
        queue, running = pieces[::-1], dict[Any, tuple[Any, ...]]()
        while queue or running:
            while queue and len(running) < workers:
                piece = queue.pop()
                running[task.remote(work, gpus, *piece)] = piece
            (ended, *_), _ = ray.wait(list(running))
            yield running.pop(ended), _outcome(ended)


def _within_share(work: Callable[..., Any], gpus: float, *piece: Any) -> Any:
    """Run a piece in a worker."""
    take_share(gpus)
    return work(*piece)


def _outcome(ended: Any) -> Any:
    try:
        return ray.get(ended)
    except ray.exceptions.RayError as error:
        return getattr(error, "cause", None) or error
