"""A job: pieces of work on one network, done one after the other in one process, once the jobs before it have ended."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cerdeq.errors import is_out_of_memory
from harness.common import names
from harness.common.errors import require
from harness.config.plugins import line_in
from harness.config.training import Training
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.ranges import evaluate_range, join, plan_ranges
from harness.machine.environment import source_digest
from harness.machine.freed_memory import free_memory, reuse_freed_memory
from harness.settings import Evaluation
from harness.storage import folder
from harness.storage.ranges import remove_ranges
from harness.storage.records import TrainingRecord
from harness.storage.training_progress import log_to_folder
from harness.training.loop import NonFiniteLossError
from harness.training.train import train

DETERMINISTIC_ERRORS = (NonFiniteLossError, SoundnessError)
"""Errors of a network or an evaluation itself: it would end with them on any machine."""
_SHORT = 4
"""An evaluation of at most so many ranges, or of one with branch and bound, is short: one job does all of it."""


@dataclass(frozen=True)
class Train:
    """Train the network, unless it is trained."""

    kind: Literal["train"] = "train"


@dataclass(frozen=True)
class EvaluateRange:
    """Evaluate a range of the images of an evaluation, unless that is done."""

    evaluation: Evaluation
    start: int
    stop: int
    kind: Literal["range"] = "range"

    @property
    def images(self) -> range:
        """The range."""
        return range(self.start, self.stop)


@dataclass(frozen=True)
class Join:
    """Join the ranges of an evaluation, and write its result."""

    evaluation: Evaluation
    kind: Literal["join"] = "join"


Work = Annotated[Train | EvaluateRange | Join, Field(discriminator="kind")]


@dataclass(frozen=True, eq=False)
class Job:
    """Pieces of work on the network of a folder.

    name: of the network in messages. after: the jobs that come before it.
    """

    network_dir: Path
    record: TrainingRecord
    work: tuple[Work, ...]
    name: str
    after: tuple["Job", ...] = ()

    @property
    def label(self) -> str:
        """The name in Ray's dashboard, and while it runs."""
        return self.name if self.part is None else f"{self.name}, images {self.part.start} to {self.part.stop - 1}"

    @property
    def part(self) -> EvaluateRange | None:
        """The range of an evaluation that several jobs share; None for other jobs."""
        return self.work[0] if len(self.work) == 1 and isinstance(self.work[0], EvaluateRange) else None

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The evaluation that the job is part of; None for one that only trains."""
        return next((work.evaluation for work in self.work if not isinstance(work, Train)), None)

    @property
    def trains(self) -> bool:
        """Whether the job trains the network."""
        return isinstance(self.work[0], Train)

    @property
    def ends_evaluation(self) -> bool:
        """Whether an evaluation has its result after the job."""
        return isinstance(self.work[-1], Join)

    @property
    def evaluation_dir(self) -> Path | None:
        """The folder of the evaluation."""
        return None if self.evaluation is None else folder.evaluation_dir(self.network_dir, self.evaluation)

    @property
    def has_failed(self) -> bool:
        """Whether the network, or the evaluation, has failed: nothing more is to be done of it."""
        directories = filter(None, [self.network_dir, self.evaluation_dir])
        return any((path / folder.FAILURE).exists() for path in directories)


Do = Callable[[Job, names.Report], None]
"""Does a job."""


def make_jobs(
    network_dir: Path, record: TrainingRecord, evaluations: Sequence[tuple[Evaluation, int]], device: str, name: str,
    after: tuple[Job, ...] = (),
) -> list[Job]:  # fmt: skip
    """Return the jobs of a network: it is trained, then evaluated.

    Evaluations at larger radii come first: what is certified there is taken over at smaller ones. Each begins when that
    before it has ended.

    Args:
        evaluations: each with the number of its images.
        device: on which they are evaluated, "cpu" or "cuda".
        name: of the network in messages.
        after: the jobs before the first one.
    """
    jobs, waiting_work = list[Job](), tuple[Work, ...]([Train()])
    for evaluation, count in sorted(evaluations, key=lambda each: each[0].eps, reverse=True):
        ranges = plan_ranges(record.config, evaluation, count, device)
        parts = [EvaluateRange(evaluation, images.start, images.stop) for images in ranges]
        if len(parts) <= (1 if names.BAB in evaluation.stages else _SHORT):
            jobs.append(Job(network_dir, record, (*waiting_work, *parts, Join(evaluation)), name, after))
        else:
            if waiting_work:
                jobs.append(Job(network_dir, record, waiting_work, name, after))
                after = (jobs[-1],)
            shared = [Job(network_dir, record, (part,), name, after) for part in parts]
            jobs += [*shared, Job(network_dir, record, (Join(evaluation),), name, tuple(shared))]
        waiting_work, after = (), (jobs[-1],)
    return jobs


def do_job(job: Job, report: names.Report, data_dir: str | None, code: str) -> None:
    """Do the work of a job.

    Args:
        report: called as in `train`, and with the numbers of evaluated and of all images after each range.
        data_dir: as --data-dir. code: the `source_digest()` of the machine that asks for it.

    Raises:
        SettingError: the folder holds another network, the data or a plugin has changed, or the code here is another.
        InputError, NonFiniteLossError, SoundnessError: these and any other error also leave failure.json, in the folder
            of the network or of the evaluation.
    """
    own = source_digest()
    for work in job.work:
        directory = job.network_dir if isinstance(work, Train) else job.evaluation_dir
        assert directory is not None
        with _failure_recorded(directory, job.record.config), reuse_freed_memory():
            require("code", own, own == code, f"the driver's, {code}: the same version on every machine")
            match work:
                case Train():
                    train(job.record, job.network_dir, report, data_dir)
                    free_memory()
                case EvaluateRange():
                    evaluate_range(job.record, job.network_dir, work.evaluation, work.images, report, data_dir)
                case Join():
                    join(job.record, job.network_dir, work.evaluation, data_dir)


@contextmanager
def _failure_recorded(directory: Path, training: Training) -> Iterator[None]:
    """Write a log file within the block, and failure.json for an error; with the line of a plugin that raised it."""
    directory.mkdir(parents=True, exist_ok=True)
    with log_to_folder(directory):
        try:
            yield
        except Exception as error:
            message, repeats = f"{type(error).__name__}: {error}", isinstance(error, DETERMINISTIC_ERRORS)
            if is_out_of_memory(error):
                message = f"out of memory; raise train.accumulate, or on a GPU resources.gpu: {message}"
            if line := line_in(training.plugins, error):
                message += f"{line}; the log: {directory / folder.LOG}"
            earlier = folder.read_failure(directory)  # of another range
            with suppress(OSError):  # of a full disk, say
                if earlier is not None and earlier.repeats:
                    raise
                folder.write_failure(directory, message, getattr(error, "last_finite", None), repeats)
                if repeats:
                    remove_ranges(directory)  # what is saved beside such an error is not used again
            raise
