"""Recheck evaluations side by side, in a process for each core, with one thread each.

The checker's products are small: threads of one process wait for each other, ten times as long where other work runs on
the same cores.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path

import harness
from harness.checker import evaluation
from harness.checker.evaluation import RecheckResult
from harness.common.errors import InputError, describe_error, require
from harness.config import plugins
from harness.config.own_data import OwnData
from harness.data import Data
from harness.machine.device import count_cores
from harness.machine.environment import source_digest

PART = 2_500
"""Images that a process checks at a time; up to so many in all are checked in the process of the command."""
LoadData = Callable[[str | OwnData], Data]
_DIED = RecheckResult(0, 0, ["not checked: a process died, such as for lack of memory"])
_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONSAFEPATH"), "1")
"""Of the processes: one thread for products of matrices, and no modules of the working directory."""


def recheck_all(
    counts: Mapping[Path, int | None], load_data: LoadData, data_dir: str | None, trusted: Collection[str]
) -> Iterator[tuple[RecheckResult, float]]:  # fmt: skip
    """Recheck evaluations; yield the result of each, and its seconds, in their order.

    Args:
        counts: how many images of each evaluation are checked, from the first one, by its folder; None if the
            evaluation cannot be read, which its result then says.
        load_data: as in `recheck`. data_dir: where processes find the same data.
        trusted: the plugins that may be imported.
    """
    if sum(count or 0 for count in counts.values()) <= PART:
        for path, count in counts.items():
            yield _recheck_part(path, (0, count), load_data, trusted)
        return
    parts = {path: divide(count) for path, count in counts.items()}
    with _processes(sum(map(len, parts.values())), data_dir, trusted) as pool:
        digest = source_digest()
        futures = [[pool.submit(_recheck_there, path, part, digest) for part in parts[path]] for path in parts]
        for of_evaluation in futures:
            try:
                done = [future.result() for future in of_evaluation]
            except BrokenProcessPool:
                done = [(_DIED, 0.0)]
            yield join([result for result, _ in done]), sum(seconds for _, seconds in done)


def divide(count: int | None) -> list[tuple[int, int | None]]:
    """Return parts of so many images: the first image of each, and the one after its last; None for all."""
    return list(pairwise([*range(0, count, PART), count])) if count else [(0, count)]


@contextmanager
def _processes(parts: int, data_dir: str | None, trusted: Collection[str]) -> Iterator[ProcessPoolExecutor]:
    """Return processes for so many parts; they end at once if the block does not end well."""
    root = str(Path(harness.__file__).parents[1])
    before, path = {name: os.environ.get(name) for name in _ENVIRONMENT}, list(sys.path)
    os.environ.update(_ENVIRONMENT)
    sys.path[:] = path if root in path else [*path, root]  # that of the processes, too
    pool = ProcessPoolExecutor(
        min(count_cores(), parts), multiprocessing.get_context("spawn"), _begin, (data_dir, list(trusted))
    )
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        sys.path[:] = path
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


_there = dict[str, tuple[LoadData, list[str]]]()
"""In a process: the function that loads data, and trusted plugins."""


def _begin(data_dir: str | None, trusted: list[str]) -> None:
    """Begin a process, which ends with the command, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_command, daemon=True).start()
    plugins.load(trusted)
    _there["begun"] = make_loader(data_dir), trusted


def _end_with_command() -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os._exit(1)


def _recheck_there(path: Path, part: tuple[int, int | None], digest: str) -> tuple[RecheckResult, float]:
    """Recheck a part in a process. digest: of the command's source."""
    load_data, trusted = _there["begun"]
    try:
        own = source_digest()
        require("code", own, own == digest, f"the command's, {digest}: another copy of harness is installed")
    except InputError as error:
        return RecheckResult(0, 0, [f"not checked: {error}"]), 0.0
    return _recheck_part(path, part, load_data, trusted)


def _recheck_part(
    path: Path, part: tuple[int, int | None], load_data: LoadData, trusted: Collection[str]
) -> tuple[RecheckResult, float]:
    """Recheck a part of an evaluation; return its seconds, too. Whatever its files hold, others are checked then."""
    began = time.monotonic()
    try:
        result = evaluation.recheck(path, load_data, part[1], trusted, part[0])
    except Exception as error:
        result = RecheckResult(0, 0, [f"not checked: {describe_error(error)}"])
    return result, time.monotonic() - began


def make_loader(data_dir: str | None) -> LoadData:
    """Return a function that loads a data set once, as `load_hashed`, and raises the same InputError each time."""

    @cache
    def attempt(source: str | OwnData) -> Data | InputError:
        try:
            return evaluation.load_hashed(source, data_dir)
        except InputError as error:
            return error

    def load_data(source: str | OwnData) -> Data:
        result = attempt(source)
        if isinstance(result, InputError):
            raise result
        return result

    return load_data


def join(parts: Sequence[RecheckResult]) -> RecheckResult:
    """Return the result of an evaluation from those of parts of its images.

    A problem that several parts have is listed once. Nothing counts as checked if a part was not.
    """
    problems = list(dict.fromkeys(problem for part in parts for problem in part.problems))
    if len({part.files for part in parts if part.files}) > 1:
        problems.append("its files changed while they were checked")
    of, has_weights = max(part.of for part in parts), all(part.has_weights for part in parts)
    if not all(part.images for part in parts):
        return RecheckResult(0, of, problems, has_weights=has_weights)
    images = sum(part.images for part in parts)
    return RecheckResult(
        images,
        of,
        problems,
        recorded=sum(part.recorded * part.images for part in parts) / images,
        confirmed=sum(part.confirmed * part.images for part in parts) / images,
        proofs=sum((part.proofs for part in parts), Counter()),
        has_weights=has_weights,
        files=parts[0].files,
    )
