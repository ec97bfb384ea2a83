"""The queue of jobs: what may be done next."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.storage import folder
from harness.work.jobs import Job

Propose = Callable[[list[Job]], list[Job]]
"""Takes the jobs that wait, of which none can be done now, and returns more; none if there are none now."""


class Listener:
    """What happens to jobs, shown and logged in the process of the command; the methods here do nothing."""

    def on_start(self, job: Job) -> None:
        """A job begins, or begins again in another worker."""

    def on_report(self, job: Job, row: dict[str, Any]) -> None:
        """A job has reported."""

    def on_end(self, job: Job, error: str | None) -> None:
        """A job has ended, by an error or by none."""

    def on_text(self, text: str) -> None:
        """There is something to be said to a person."""


class FailedFast(Exception):  # noqa: N818
    """A job has failed, and no other is wanted."""


class Queue:
    """Jobs in their order. A job may be done once those in its `after` have ended.

    There is one rule of priority, the order: the evaluation of a network stands before the training of the next one.
    A job of a network or an evaluation that has failed is dropped.

    propose: asked for more jobs when nothing can be done. fail_fast: whether a failed job ends all.
    """

    def __init__(self, jobs: Iterable[Job], propose: Propose | None = None, fail_fast: bool = False):
        self.waiting, self.running = list(jobs), set[Job]()
        self.ended = set[Job]()
        self.propose, self.fail_fast, self.is_finished = propose, fail_fast, False

    def take(self) -> Job | None:
        """Return the next job, which begins; None if there is none now. Then `is_finished` says if none will come."""
        job = self._next()
        if job is None and self.propose is not None:
            self.waiting += self.propose(self.waiting)
            job = self._next()
        if job is None:
            self.is_finished = not self.waiting
            return None
        self.waiting.remove(job)
        self.running.add(job)
        return job

    def end(self, job: Job, error: str | None) -> None:
        """Note that a job has ended. error: why it failed, if it did, which is written if its worker could not."""
        self.running.discard(job)
        self.ended.add(job)
        if error is not None:
            _write_failure(job, error)
            dropped = {each for each in self.waiting if each.network_dir == job.network_dir and each.has_failed}
            self.ended |= dropped
            self.waiting = [each for each in self.waiting if each not in dropped]

    def left(self, network_dir: Path) -> list[Job]:
        """Return the jobs of a network that have not ended."""
        return [job for job in (*self.running, *self.waiting) if job.network_dir == network_dir]

    def shared_images(self) -> int:
        """Return how many images are left of shared evaluations that have begun, or can begin."""
        ready = (job for job in self.waiting if self._is_ready(job))
        return sum(len(job.part.images) for job in (*self.running, *ready) if job.part is not None)

    def _next(self) -> Job | None:
        return next(filter(self._is_ready, self.waiting), None)

    def _is_ready(self, job: Job) -> bool:
        return self.ended.issuperset(job.after)


def end_job(queue: Queue, listener: Listener, job: Job, error: str | None) -> None:
    """Note that a job has ended, and show it. Raises FailedFast after an error, if the queue ends with it."""
    queue.end(job, error)
    listener.on_end(job, error)
    if error is not None and queue.fail_fast:
        raise FailedFast


def _write_failure(job: Job, error: str) -> None:
    """Write why a job failed, unless its worker has."""
    evaluation_dir = job.evaluation_dir
    directory = evaluation_dir if evaluation_dir and folder.is_trained(job.network_dir) else job.network_dir
    with suppress(OSError):  # of a full disk
        if folder.read_failure(directory) is None:
            folder.write_failure(directory, error)
