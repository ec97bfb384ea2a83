"""Further evaluations of trained networks, as `harness.certify` asks for them."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from rich.console import Console

from harness.common import names
from harness.common.errors import InputError, located, require
from harness.common.radius import Radius
from harness.common.terminal import with_plural
from harness.config import plugins
from harness.config.buildable import check_buildable
from harness.config.own_data import OwnData
from harness.config.training import RECIPE_VERSION
from harness.data import Data, load
from harness.evaluation.ranges import evaluated_images
from harness.machine.environment import data_directory
from harness.settings import Evaluation
from harness.storage import folder
from harness.storage.files import refuse_links
from harness.storage.lock import lock_directory
from harness.storage.records import TrainingRecord
from harness.storage.state import State, read_state_or_raise
from harness.tune.items import Item
from harness.tune.machines import share_machine
from harness.tune.plan import select_networks
from harness.tune.run_study import RunOptions, run_networks

_MOST_WORKERS = 2**10  # as many as fit: a network of one range alone does not need them, which shows once it is open


@dataclass(frozen=True)
class EvaluationChanges:
    """In what evaluations differ from the main one of a network.

    eps: the radii; empty for that of the main one. images: how many are evaluated, the first ones. stage_seconds: limit
    of each other stage for an image. None for either: as the main one. seconds, branches: limits of branch and bound
    for an image; None for no limit.
    """

    stages: tuple[str, ...]
    eps: tuple[Radius, ...] = ()
    images: int | None = None
    seconds: float | None = None
    branches: int | None = None
    stage_seconds: float | None = None
    certificates: bool = False

    def of(self, main: Evaluation) -> list[Evaluation]:
        """Return the evaluations. Raises SettingError."""
        limits = {"bab_seconds": self.seconds, "bab_branches": self.branches}
        uses_limits = names.BAB in self.stages or self.certificates
        evaluation = main.replace(
            stages=self.stages,
            test_images=main.test_images if self.images is None else self.images,
            stage_seconds=self.stage_seconds or main.stage_seconds,
            certificates=self.certificates,
            bab_total_seconds=None,
            **(limits if uses_limits else {}),
        )
        return [evaluation.replace(eps=eps) for eps in dict.fromkeys(self.eps)] or [evaluation]


def trained_networks(paths: list[Path], patterns: Sequence[str], console: Console) -> dict[Path, TrainingRecord]:
    """Return the trained networks in these paths that match a pattern, all without patterns, by their folders.

    Raises InputError for a path without one, and for a pattern without a match.
    """
    records = dict[Path, TrainingRecord]()
    for path in paths:
        refuse_links(folder.sweep_dir_of(path))
        network_dirs = [path] if (path / folder.TRAINING).exists() else folder.network_folders(path)
        found = {path.resolve(): record for path in network_dirs if (record := _trained(path)) is not None}
        if not found:
            raise InputError(f"{path} holds no trained network of recipe version {RECIPE_VERSION} with its weights")
        if len(found) < len(network_dirs):
            left_out = f"{len(network_dirs) - len(found)} of {len(network_dirs)} networks"
            console.print(f"{path}: left out {left_out}: untrained, without weights, or of another recipe version")
        records |= found
    return select_networks(records, patterns)


def _trained(network_dir: Path) -> TrainingRecord | None:
    """Return the record of a network, None unless it is trained and its weights are there. Raises DamagedFileError."""
    record = folder.read_training(network_dir / folder.TRAINING)
    is_today = record.recipe_version == RECIPE_VERSION
    return record if is_today and folder.is_trained(network_dir) else None


def plan_evaluations(
    records: dict[Path, TrainingRecord], changes: EvaluationChanges, data_dir: str | None, trusted: Collection[str]
) -> dict[Path, list[Evaluation]]:
    """Return the evaluations of each network. Raises InputError if settings, data or weights do not fit.

    trusted: the plugins that may be imported.
    """
    planned, load_once = {}, cache(partial(load, data_dir=data_dir))  # the data is large, and shared
    for network_dir, record in records.items():
        plugins.require_trusted(record.config, trusted)
        with located(f"{network_dir}: "):
            planned[network_dir] = changes.of(folder.main_evaluation(network_dir))
            _load_data(record, planned[network_dir], load_once)
    return planned


def _load_data(
    record: TrainingRecord, evaluations: Iterable[Evaluation], load_source: Callable[[str | OwnData], Data]
) -> Data:  # fmt: skip
    """Return the data set of a network, after checking that this code can train and evaluate it.

    load_source: `harness.data.load`. Raises InputError if it cannot, or if the data is missing, small or another one.
    """
    for training in filter(None, (record.config, record.config.teacher)):
        plugins.load_for(training)
    check_buildable(record.config, evaluations)
    data = load_source(record.config.data_source)
    fits = data.fingerprint == record.fingerprint
    require("data", data.fingerprint, fits, f"the data it was made for, {record.fingerprint}")
    for evaluation in evaluations:
        evaluated_images(data, record.config.validation_images, evaluation)
    return data


def certify(
    records: dict[Path, TrainingRecord],
    planned: dict[Path, list[Evaluation]],
    data_dir: str | None,
    workers: int | None,
    console: Console,
) -> bool:
    """Evaluate what is left; return True if all is complete.

    data_dir, workers: options of `harness.certify`. Raises InputError for a sweep that another run works on, and if Ray
    cannot start, and DamagedFileError; nothing was started.
    """
    items, asked = list[Item](), [evaluation for evaluations in planned.values() for evaluation in evaluations]
    for network_dir, evaluations in planned.items():
        _, weights = folder.read_trained_weights(network_dir)
        left = [each for each in evaluations if not _is_answered(folder.evaluation_dir(network_dir, each), weights)]
        items += [Item.of(network_dir, records[network_dir].config, left)] if left else []
    finished = len(asked) - sum(len(item.evaluations) for item in items)
    networks, count = with_plural(len(planned), "trained network"), with_plural(len(asked), "evaluation")
    with ExitStack() as locks:
        for directory in dict.fromkeys(map(folder.sweep_dir_of, records)):
            locks.enter_context(lock_directory(directory))
        console.print(f"{networks}; {count}, {finished} finished already")
        for description in dict.fromkeys(evaluation.description for evaluation in asked):
            console.print(f"evaluation: {description}")
        ray = share_machine(workers or _MOST_WORKERS, workers) if items else None
        options = RunOptions(ray, str(data_directory(data_dir).absolute()))  # workers have another working directory
        states = run_networks(items, options, console, None)
    return all(state.state is State.FINISHED for state in states.values())


def _is_answered(evaluation_dir: Path, weights: str) -> bool:
    """Return whether an evaluation has a result. weights: the SHA-256 of the network's. Raises DamagedFileError."""
    state = read_state_or_raise(evaluation_dir)
    return state.state is State.FINISHED and state.result is not None and state.result.weights == weights
