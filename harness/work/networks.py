"""Folders of networks before and after a run: copied from other sweeps, those of teachers, removed if not begun."""

import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from harness.settings import Evaluation
from harness.storage import folder
from harness.storage.files import write_atomically
from harness.storage.records import TrainingRecord, make_record
from harness.work.jobs import Job, Train


def adopt_network(network_dir: Path, results_dir: Path, evaluations: Collection[Evaluation]) -> Path | None:
    """Copy a network that another sweep in a directory has trained, unless it is trained; return that directory.

    Its evaluations that are asked for are copied, too, if they are finished.
    """
    if folder.is_trained(network_dir):
        return None
    for trained in sorted(results_dir.glob(f"*/{folder.NETWORKS}/{network_dir.name}/{folder.TRAINED}")):
        source = trained.parent
        if source != network_dir and (source / folder.WEIGHTS).is_file() and not source.is_symlink():
            _copy_network(source, network_dir, evaluations)
            return source.parents[1]
    return None


class Teachers:
    """The jobs that train teachers, networks that others learn from, once each, in folders beside their students'.

    checkpoints: files of networks trained elsewhere, by their SHA-256. retry_failed: also train a teacher again that
    would fail the same way. jobs: by the teachers' folders; a network of the study may be a teacher, too.
    """

    def __init__(self, checkpoints: Mapping[str, Path], retry_failed: bool = False):
        self.checkpoints, self.retry_failed, self.jobs = checkpoints, retry_failed, dict[Path, Job]()

    def jobs_before(self, network_dir: Path, record: TrainingRecord) -> tuple[list[Job], tuple[Job, ...]]:
        """Return the job of an untrained network's teacher, if there was none before, and what the network waits for.

        A teacher that a sweep beside this one has trained is copied.
        """
        training, same = record.config.own_teacher, self.jobs.get(network_dir)  # trained as another's teacher
        after = (same,) if same else ()
        if training is None or folder.is_trained(network_dir):
            return [], after
        own = make_record(training, record.fingerprint)
        teacher_dir = network_dir.with_name(own.key)
        if teacher_dir in self.jobs:
            return [], (self.jobs[teacher_dir], *after)
        adopt_network(teacher_dir, network_dir.parents[2], [])
        folder.begin_network(teacher_dir, own)
        (teacher_dir / folder.TEACHER).touch()
        if training.checkpoint is not None:
            path = self.checkpoints[training.checkpoint.sha256]
            folder.copy_network_file(training.checkpoint, path, teacher_dir / folder.NETWORK_FILE)
        failure = folder.read_failure(teacher_dir)
        would_fail = failure is not None and failure.repeats and not self.retry_failed
        if would_fail or folder.is_trained(teacher_dir):
            return [], after
        (teacher_dir / folder.FAILURE).unlink(missing_ok=True)
        job = self.jobs[teacher_dir] = Job(teacher_dir, own, (Train(),), f"teacher {training.label}")
        return [job], (job, *after)


_OF_TRAINING = (
    folder.EPOCHS, folder.TRAINED_ON, folder.STEPS, folder.NETWORK_FILE, folder.LOG, folder.WEIGHTS, folder.TRAINED
)  # fmt: skip
_OF_EVALUATION = (
    folder.EVALUATION, folder.LOG, folder.VERDICTS, folder.COUNTEREXAMPLES, folder.CERTIFICATES, folder.RESULT
)  # fmt: skip


def _copy_network(source: Path, to: Path, evaluations: Collection[Evaluation]) -> None:
    """Copy the files of a trained network and of finished evaluations, those that say so last."""
    for evaluation in evaluations:
        directory = folder.evaluation_dir(source, evaluation)
        if (directory / folder.RESULT).is_file():
            _copy_files(directory, folder.evaluation_dir(to, evaluation), _OF_EVALUATION)
    _copy_files(source, to, _OF_TRAINING)


def _copy_files(source: Path, to: Path, file_names: tuple[str, ...]) -> None:
    for name in file_names:
        if (source / name).is_file():
            write_atomically(to / name, partial(shutil.copy2, source / name))


def remove_not_begun(sweep_dir: Path, wanted: Collection[Path]) -> None:
    """Remove the folders of networks and evaluations of which nothing has begun.

    wanted: the folders of evaluations that stay, those of a study that is about to run.
    """
    keep = {folder.network_of(path) for path in wanted}
    for network_dir in folder.network_folders(sweep_dir, teachers=True):
        evaluation_dirs = folder.evaluation_folders(network_dir)
        for path in evaluation_dirs:
            if path not in wanted and {each.name for each in path.iterdir()} <= {folder.EVALUATION}:
                shutil.rmtree(path)
        own = {path.name for path in network_dir.iterdir() if path.is_file()}
        is_empty = own <= {folder.TRAINING, folder.STUDY, folder.CHOSEN, folder.TEACHER, folder.NETWORK_FILE}
        if network_dir not in keep and is_empty and not folder.evaluation_folders(network_dir):
            shutil.rmtree(network_dir)
    with suppress(OSError):  # if a network is left
        (sweep_dir / folder.NETWORKS).rmdir()
