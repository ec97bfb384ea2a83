"""Recheck evaluations side by side, in a process for each core, with one thread each.

The checker's products are small: threads of one process wait for each other, ten times as long where other work runs on
the same cores.
"""

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

from harness.checker import evaluation
from harness.checker.evaluation import RecheckResult
from harness.common.errors import describe_error
from harness.config import plugins
from harness.config.own_data import OwnData
from harness.data import Data
from harness.machine.device import count_cores

PART = 2_500
"""Images that a process checks at a time; up to so many in all are checked in the process of the command."""
Part = tuple[int, int | None]  # the first image, and that after the last one
LoadData = Callable[[str | OwnData], Data]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def recheck_all(
    counts: Mapping[Path, int | None], load_data: LoadData, data_dir: str | None, trusted: Collection[str]
) -> Iterator[tuple[RecheckResult, float]]:  # fmt: skip
    """Recheck evaluations; yield the result of each, and its seconds, in their order.

    Args:
        counts: how many images of each evaluation are checked, from the first one, by its folder; None for all of what
            cannot be read.
        load_data, trusted: as in `recheck`. data_dir: where processes find the same data.
    """
    if sum(count or 0 for count in counts.values()) <= PART:
        for path, count in counts.items():
            yield _recheck_part(path, (0, count), load_data, trusted)
        return
    parts = [(path, _divide(count)) for path, count in counts.items()]
    load_data = partial(_load, data_dir=data_dir)
    with _one_thread_each(), _pool(sum(len(those) for _, those in parts), trusted) as pool:
        futures = [
            [pool.submit(_recheck_part, path, part, load_data, trusted) for part in those] for path, those in parts
        ]
        for those in futures:
            done = [future.result() for future in those]
            yield join([result for result, _ in done]), sum(seconds for _, seconds in done)


def _divide(count: int | None) -> list[Part]:
    return list(pairwise([*range(0, count, PART), count])) if count else [(0, count)]


@contextmanager
def _pool(parts: int, trusted: Collection[str]) -> Iterator[ProcessPoolExecutor]:
    """Return processes for so many parts; they end at once if the block does not end well."""
    pool = ProcessPoolExecutor(
        min(count_cores(), parts), multiprocessing.get_context("spawn"), plugins.load, (list(trusted),)
    )
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Within, processes that start have one thread for products of matrices."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


def _recheck_part(
    path: Path, part: Part, load_data: LoadData, trusted: Collection[str]
) -> tuple[RecheckResult, float]:  # fmt: skip
    """Recheck a part of an evaluation; return its seconds, too. Whatever its files hold, others are checked then."""
    began = time.monotonic()
    try:
        result = evaluation.recheck(path, load_data, part[1], trusted, part[0])
    except Exception as error:
        result = RecheckResult(0, 0, [f"not checked: {describe_error(error)}"])
    return result, time.monotonic() - began


@cache
def _load(source: str | OwnData, data_dir: str | None) -> Data:
    return evaluation.load_hashed(source, data_dir)


def join(parts: Sequence[RecheckResult]) -> RecheckResult:
    """Return the result of an evaluation from those of parts of its images. What several name is named once."""
    checked = [part for part in parts if part.images]
    images = sum(part.images for part in checked)

    def mean(name: str) -> float:
        return sum(getattr(part, name) * part.images for part in checked) / images if images else float("nan")

    return RecheckResult(
        images,
        max(part.of for part in parts),
        list(dict.fromkeys(problem for part in parts for problem in part.problems)),
        mean("recorded"),
        mean("confirmed"),
        sum((part.proofs for part in parts), Counter()),
        all(part.has_weights for part in parts),
    )
