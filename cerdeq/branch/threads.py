"""Run parts of a search in several threads: the tensors of one leaf are too small to occupy several cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from cerdeq.deadline import current_deadline, stop_at
from cerdeq.precision import counted_rounding

_MOST = 4  # threads: more would wait for Python's lock
_SMALLEST_PART, _PARTS = 32, 4  # fewest leaves of a part; number of parts if all leaves fit into one batch

Part = TypeVar("Part")
Result = TypeVar("Result")


def slices(count: int, batch_size: int) -> list[slice]:
    """Return slices of `count` leaves, of at most `batch_size` each, several if there are enough leaves.

    The slices do not depend on the number of threads, so results do not either.
    """
    parts = max(-(-count // batch_size), min(_PARTS, count // _SMALLEST_PART), 1)
    size = max(1, -(-count // parts))
    return [slice(start, start + size) for start in range(0, count, size)]


def map_parts(function: Callable[[Part], Result], parts: Sequence[Part], device: torch.device) -> list[Result]:
    """Return the function's result of each part, in order; on a CPU in up to as many threads as torch has."""
    threads = torch.get_num_threads()
    workers = min(_MOST, threads, len(parts))
    if workers < 2 or device.type != "cpu":
        return [function(part) for part in parts]

    deadline = current_deadline()

    def run(part: Part) -> Result:
        torch.set_num_threads(threads // workers)
        with torch.no_grad(), counted_rounding("cpu"), stop_at(deadline):  # a new thread has none of these
            return function(part)

    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(run, parts))
    finally:
        torch.set_num_threads(threads)
