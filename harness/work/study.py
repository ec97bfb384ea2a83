"""What a command runs of a study: its networks and evaluations, checked before anything starts, in which state."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, partial
from pathlib import Path

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
from harness.storage.files import DamagedFileError
from harness.storage.records import TrainingRecord, make_record
from harness.storage.state import EvaluationState, State, read_state
from harness.training.train import check_images


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


def find_records(
    study: Study, fingerprint: str, sweep_dir: Path, patterns: Sequence[str]
) -> dict[Path, TrainingRecord]:  # fmt: skip
    """Return the networks that match a pattern of `--only` by label, key or recipe, by folder; all without patterns.

    fingerprint: of the data. sweep_dir: of the results. Raises InputError for a pattern without a match.
    """
    all_records = (make_record(training, fingerprint) for training in study.trainings)
    records = {folder.network_dir(sweep_dir, record.key): record for record in all_records}
    if not patterns:
        return records
    names = {network_dir: record.config.names(record.key) for network_dir, record in records.items()}
    return {network_dir: records[network_dir] for network_dir in select_by_pattern("--only", patterns, names)}


def find_evaluations(network_dirs: Iterable[Path], study: Study) -> dict[Path, Evaluation]:
    """Return the evaluations of all networks, by their folders."""
    return {
        folder.evaluation_dir(network_dir, evaluation): evaluation
        for network_dir in network_dirs
        for evaluation in study.evaluations
    }


def find_states(
    evaluation_dirs: Iterable[Path], found: dict[Path, EvaluationState]
) -> dict[Path, EvaluationState]:  # fmt: skip
    """Return the states of evaluations, by their folders. Raises DamagedFileError.

    found: the states of those that were read before.
    """
    states = {path: found[path] if path in found else read_state(path) for path in evaluation_dirs}
    for path, state in states.items():
        if state.problem:
            raise DamagedFileError(f"{folder.network_of(path)}/{state.problem}")
    return states


def to_run(states: dict[Path, EvaluationState], retry_failed: bool) -> list[Path]:
    """Return the folders of evaluations without a result, failed ones last.

    Without `retry_failed`, none that would fail again.
    """
    unfinished = [path for path, state in states.items() if state.state is not State.FINISHED]
    chosen = [path for path in unfinished if retry_failed or not states[path].fails_again]
    return sorted(chosen, key=lambda path: states[path].state is State.FAILED)


def unusable(asked: Collection[Path], table: pd.DataFrame) -> dict[Path, str]:
    """Return what is wrong with evaluations that tables do not count, or that lack a file, by their folders.

    asked: the folders of evaluations.
    table: a row for each in the directory, as `leaderboard.evaluations.read_evaluations` returns it.
    """
    problems, problem_of_weights = {}, cache(partial(_find_problem, folder.read_trained_weights))
    for row in table[table["evaluation_dir"].isin(list(asked))].itertuples():
        if row.state == NOT_COUNTED:
            problems[row.evaluation_dir] = str(row.problem)
        elif row.state == State.FINISHED:
            network_dir = folder.network_of(row.evaluation_dir)
            files = network_dir / folder.WEIGHTS, row.evaluation_dir / folder.VERDICTS
            if missing := [path.name for path in files if not path.exists()]:
                problems[row.evaluation_dir] = f"{' and '.join(missing)} is missing"
            elif problem := (
                problem_of_weights(network_dir) or _find_problem(folder.check_verdicts, row.evaluation_dir, row.result)
            ):
                problems[row.evaluation_dir] = problem
    return problems


def _find_problem(check: Callable[..., object], *arguments: object) -> str:
    """Return what a check of a file raises, empty if it is right."""
    try:
        check(*arguments)
    except DamagedFileError as error:
        return str(error)
    return ""


def changed_plugins(records: dict[Path, TrainingRecord], found: Iterable[EvaluationState]) -> list[str]:
    """Return a line for each plugin whose source has changed since networks were trained.

    records: of the networks that are asked for. found: the states of the evaluations in the directory.
    """
    trained = [state.training for state in found if state.trained and state.training]
    others = {_without_plugins(each): each.config.plugins for each in trained if each.config.plugins}
    keys = {each.key for each in trained}
    changed = Counter(
        name
        for record in records.values()
        if record.key not in keys
        for name, digest in record.config.plugins.items()
        if others.get(_without_plugins(record), {}).get(name, digest) != digest
    )
    return [
        f"plugin {name} has changed since {with_plural(count, 'network')} were trained: they are trained again, "
        "under other keys"
        for name, count in changed.items()
    ]


def _without_plugins(record: TrainingRecord) -> str:
    """Return what decides a network, but for the sources of plugins, its teacher's too."""
    content = record.config.canonical()
    for part in (content, content.get("teacher", {})):
        part.pop("plugins", None)
    return json.dumps([content, record.fingerprint], sort_keys=True)
