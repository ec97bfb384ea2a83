"""The networks and evaluations of a study that `harness.run` runs: checked before anything starts, in which state.

Teachers, networks that others learn from, are trained once, before their students, in a folder beside theirs.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Self

import pandas as pd

from harness.common.errors import InputError, collect_problems
from harness.common.patterns import select_by_pattern
from harness.common.terminal import with_plural
from harness.config.expansion import Study, check_options, expand_file
from harness.config.file import SweepFile
from harness.config.own_data import MeasuredData, OwnData
from harness.data import Data, load
from harness.evaluation.ranges import evaluated_images
from harness.leaderboard.evaluations import NOT_COUNTED
from harness.settings import Evaluation
from harness.storage import folder
from harness.storage.files import DamagedFileError, write_atomically
from harness.storage.records import TrainingRecord, make_record
from harness.storage.state import EvaluationState, State, read_state
from harness.training.train import check_images
from harness.tune.items import Item


@dataclass(frozen=True)
class Plan:
    """The networks of a study that a command runs or reports, each under all evaluations of the study.

    sweep_dir: the directory of the sweep's results.
    records: of the networks, by their folders.
    """

    study: Study
    data: Data
    sweep_dir: Path
    records: dict[Path, TrainingRecord]

    @classmethod
    def of(cls, study: Study, data: Data, sweep_dir: Path, patterns: list[str]) -> Self:
        """Return the plan of the networks that match a pattern by label, key or recipe; of all without patterns.

        Raises InputError for a pattern without a match.
        """
        all_records = [make_record(training, data.fingerprint) for training in study.trainings]
        records = {folder.network_dir(sweep_dir, record.key): record for record in all_records}
        return cls(study, data, sweep_dir, select_networks(records, patterns))

    @cached_property
    def asked(self) -> dict[Path, Evaluation]:
        """The evaluations of all networks, by their folders."""
        return {
            folder.evaluation_dir(network_dir, evaluation): evaluation
            for network_dir in self.records
            for evaluation in self.study.evaluations
        }

    def record_of(self, evaluation_dir: Path) -> TrainingRecord:
        """Return the record of an evaluation's network."""
        return self.records[folder.network_of(evaluation_dir)]

    def select(self, found: dict[Path, EvaluationState]) -> dict[Path, EvaluationState]:
        """Return the states of this plan's evaluations, by their folders. Raises DamagedFileError.

        found: the states of those in the directory.
        """
        states = {path: found[path] if path in found else read_state(path) for path in self.asked}
        for path, state in states.items():
            if state.problem:
                raise DamagedFileError(f"{folder.network_of(path)}/{state.problem}")
        return states

    @property
    def all_keys(self) -> list[str]:
        """The keys of all networks of the study, also those that `--only` leaves out."""
        return [training.key(self.data.fingerprint) for training in self.study.trainings]

    def changed_plugins(self, found: Iterable[EvaluationState]) -> list[str]:
        """Return a line for each plugin whose source has changed since networks of this plan were trained.

        found: the states of the evaluations in the directory.
        """
        trained = [state.training for state in found if state.trained and state.training]
        others = {_without_plugins(each): each.config.plugins for each in trained if each.config.plugins}
        left = self.records.keys() - {folder.network_dir(self.sweep_dir, each.key) for each in trained}
        changed = Counter(
            name
            for record in map(self.records.__getitem__, left)
            for name, digest in record.config.plugins.items()
            if others.get(_without_plugins(record), {}).get(name, digest) != digest
        )
        return [
            f"plugin {name} has changed since {with_plural(count, 'network')} were trained: they are trained again, "
            "under other keys"
            for name, count in changed.items()
        ]

    def unusable(self, table: pd.DataFrame) -> dict[Path, str]:
        """Return what is wrong with evaluations that tables do not count, or that lack a file, by their folders.

        table: a row for each in the directory, as `leaderboard.evaluations.read_evaluations` returns it.
        """
        problems, problem_of_weights = {}, cache(partial(_find_problem, folder.read_trained_weights))
        for row in table[table["evaluation_dir"].isin(list(self.asked))].itertuples():
            if row.state == NOT_COUNTED:
                problems[row.evaluation_dir] = str(row.problem)
            elif row.state == State.FINISHED:
                network_dir = folder.network_of(row.evaluation_dir)
                files = network_dir / folder.WEIGHTS, row.evaluation_dir / folder.VERDICTS
                if missing := [path.name for path in files if not path.exists()]:
                    problems[row.evaluation_dir] = f"{' and '.join(missing)} is missing"
                elif problem := (
                    problem_of_weights(network_dir)
                    or _find_problem(folder.check_verdicts, row.evaluation_dir, row.result)
                ):
                    problems[row.evaluation_dir] = problem
        return problems


def select_networks(records: dict[Path, TrainingRecord], patterns: Sequence[str]) -> dict[Path, TrainingRecord]:
    """Return the networks that match a pattern of `--only` by label, key or recipe; all without patterns.

    Raises InputError for a pattern without a match.
    """
    if not patterns:
        return records
    names = {network_dir: record.config.names(record.key) for network_dir, record in records.items()}
    return {network_dir: records[network_dir] for network_dir in select_by_pattern("--only", patterns, names)}


def _find_problem(check: Callable[..., object], *arguments: object) -> str:
    """Return what a check of a file raises, empty if it is right."""
    try:
        check(*arguments)
    except DamagedFileError as error:
        return str(error)
    return ""


def to_run(states: dict[Path, EvaluationState], retry_failed: bool) -> list[Path]:
    """Return the folders of evaluations without a result, failed ones last.

    Without `retry_failed`, none that would fail again.
    """
    unfinished = [path for path, state in states.items() if state.state is not State.FINISHED]
    chosen = [path for path in unfinished if retry_failed or not states[path].fails_again]
    return sorted(chosen, key=lambda path: states[path].state is State.FAILED)


def load_checked(
    file: SweepFile, states: dict[Path, EvaluationState], data_dir: str | None, writes: bool
) -> tuple[Study, Data]:
    """Return a file's study, and its data.

    states: of what the sweep's directory holds; networks that are trained there are not built to be checked.
    data_dir, writes: as in `load`. Raises InputError, also for fewer images than a batch or a validation set needs.
    """
    finished = [state.training for state in states.values() if state.training and state.result]
    trained = {record.config.identity for record in finished}
    source, is_right = file.sweep.dataset, False
    if isinstance(source, OwnData):  # networks are built for what is measured
        check_options(file)  # reading may take minutes
        source = source.relative_to(file.path.parent)
        with file.located():
            data = load(source, data_dir, writes)
        study = expand_file(file, trained, MeasuredData(source=source, entry=data.info))
    else:
        with collect_problems() as at:
            with at(""):
                study = expand_file(file, trained)
                is_right = True
            with at(""):  # also of a wrong file, for which nothing is downloaded
                data = load(source, data_dir, writes and is_right)
    with file.located(), collect_problems() as at:
        for training in study.trainings:
            with at(""):
                check_images(training, data)
            for evaluation in study.evaluations:
                with at(""):
                    evaluated_images(data, training.validation_images, evaluation)
    return study, data


def check_owner(sweep_dir: Path, study: Study, states: dict[Path, EvaluationState]) -> None:
    """Raise InputError if the directory holds networks of another data set. states: of what is there."""
    for state in states.values():
        if state.training is None or state.state is State.OLDER:
            continue
        found = state.training.config.dataset
        if found != study.dataset:
            message = f"{sweep_dir} belongs to another sweep: found data set {found}, this one's is {study.dataset}"
            raise InputError(f"{message}; rename one of them")


def adopt_trained(plan: Plan) -> dict[Path, int]:
    """Copy networks that sweeps beside this one have trained; return how many are of which directory."""
    adopted = (
        adopt_network(network_dir, plan.sweep_dir.parent, plan.study.evaluations) for network_dir in plan.records
    )
    return Counter(source for source in adopted if source is not None)


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


def with_teachers(
    items: list[Item], checkpoints: Mapping[str, Path], retry_failed: bool = False
) -> list[Item]:  # fmt: skip
    """Return the items, before them those that train their teachers, for which they wait; make the teachers' folders.

    A teacher that a sweep beside this one has trained is copied. checkpoints: files of networks trained elsewhere, by
    their SHA-256. retry_failed: also train a teacher again that would fail the same way.
    """
    teachers, students = dict[Path, Item](), list[Item]()
    for item in items:
        record = folder.read_training(item.directory / folder.TRAINING)
        training, is_trained = record.config.own_teacher, folder.is_trained(item.directory)
        if training is None or is_trained:
            students.append(item)
            continue
        own = make_record(training, record.fingerprint)
        teacher_dir = item.directory.with_name(own.key)
        students.append(replace(item, needs=teacher_dir))
        if teacher_dir in teachers:
            continue
        adopt_network(teacher_dir, item.directory.parents[2], [])
        folder.begin_network(teacher_dir, own)
        (teacher_dir / folder.TEACHER).touch()
        if training.checkpoint is not None:
            path = checkpoints[training.checkpoint.sha256]
            folder.copy_network_file(training.checkpoint, path, teacher_dir / folder.NETWORK_FILE)
        failure = folder.read_failure(teacher_dir)
        would_fail = failure is not None and failure.repeats and not retry_failed
        if not would_fail and not folder.is_trained(teacher_dir):
            teachers[teacher_dir] = Item.of(teacher_dir, training, [], label=f"teacher {training.label}")
    # A network of the study that is also a teacher is not trained by two items at once.
    return [*teachers.values(), *(replace(item, needs=item.needs or item.directory) for item in students)]


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


def _without_plugins(record: TrainingRecord) -> str:
    """Return what decides a network, but for the sources of plugins, its teacher's too."""
    content = record.config.canonical()
    for part in (content, content.get("teacher", {})):
        part.pop("plugins", None)
    return json.dumps([content, record.fingerprint], sort_keys=True)
