"""Do jobs one after the other in this process."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from harness.common import names
from harness.common.errors import error_line
from harness.machine.freed_memory import free_memory
from harness.storage.lock import HeldError, lock_directory
from harness.work.jobs import Do
from harness.work.queue import Listener, Queue, end_job

_WAIT_SECONDS = 5.0  # between two looks at a lock


def run_here(queue: Queue, do: Do, listener: Listener) -> None:
    """Do jobs until none is left; one that fails ends no other one, except by FailedFast."""
    while (job := queue.take()) is not None:
        error, report = None, partial(listener.on_report, job)
        listener.on_start(job)
        try:
            with _hold_folder(job.network_dir, report):
                do(job, report)
        except Exception as cause:
            error = error_line(cause)
        free_memory()
        end_job(queue, listener, job, error)


@contextmanager
def _hold_folder(network_dir: Path, report: names.Report) -> Iterator[None]:
    """Hold a network's folder, which other commands of an array may want, each with --here."""
    with ExitStack() as lock:
        while True:
            try:
                lock.enter_context(lock_directory(network_dir))
                break
            except HeldError as error:
                report({names.ACTIVITY: f"waits: {error}"})
                time.sleep(_WAIT_SECONDS)
        yield
