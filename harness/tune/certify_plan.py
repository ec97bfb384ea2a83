"""Certifications of finished trials: which trials, stages and images `harness.certify` evaluates."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

from rich.console import Console

from harness.common import names
from harness.common.errors import InputError, located
from harness.config import plugins
from harness.config.trial import RECIPE_VERSION, Trial
from harness.data import Data, Split, load
from harness.evaluation.network import load_network
from harness.evaluation.ranges import hash_inputs, plan_ranges
from harness.machine.device import best_device
from harness.machine.environment import describe_environment
from harness.storage import certification, folder, ranges
from harness.storage.files import read_bytes, refuse_links
from harness.storage.state import State, read_state, read_states
from harness.tune.trial_files import load_data


@dataclass(frozen=True)
class EvaluationChanges:
    """In what a certification differs from its trial's own evaluation.

    images: how many are evaluated, the first ones. stage_seconds: limit of each other stage for an image. None for
    either: as the trial did. seconds, branches: limits of branch and bound for an image; None for no limit.
    """

    stages: tuple[str, ...]
    images: int | None = None
    seconds: float | None = None
    branches: int | None = None
    stage_seconds: float | None = None
    certificates: bool = False


@dataclass(frozen=True)
class Certification:
    """The evaluation of a finished trial by other stages.

    record: of the trial, with the settings of this evaluation.
    """

    trial_dir: Path
    record: folder.TrialRecord
    data: Data

    @property
    def trial(self) -> Trial:
        """The trial, with the settings of this evaluation."""
        return self.record.config

    @property
    def directory(self) -> Path:
        """Where the results go."""
        return certification.directory_of(self.trial_dir, self.trial.evaluation)

    @property
    def images(self) -> Split:
        """The images to evaluate. Raises InputError if there are too few."""
        return self.data.evaluated_images(self.trial.validation_images, self.trial.evaluation.test_images)

    @cached_property
    def ranges(self) -> list[range]:
        """The ranges of these images."""
        model = load_network(self.trial, self.trial_dir / folder.WEIGHTS, self.weights).to(best_device())
        return plan_ranges(self.images, model, self.trial.data_info.classes, self.trial.evaluation)

    @cached_property
    def weights(self) -> bytes:
        """The content of the trial's file."""
        return read_bytes(self.trial_dir / folder.WEIGHTS)

    @cached_property
    def environment(self) -> dict[str, str]:
        """Where this process evaluates, on one thread: the numbers are the same however many workers there are."""
        return describe_environment(best_device()) | {"threads": "1"}

    @cached_property
    def ranges_dir(self) -> Path:
        """Where the ranges are saved that this process can go on from."""
        inputs = hash_inputs(self.weights, self.record.key, self.trial, self.environment)
        return ranges.ranges_dir(self.directory, inputs)


def finished_trials(paths: list[Path], console: Console) -> dict[Path, folder.TrialRecord]:
    """Return the finished trials in these paths, by their folders. Raises InputError for a path without one."""
    trials = dict[Path, folder.TrialRecord]()
    for path in paths:
        refuse_links(folder.sweep_dir_of(path))
        states = {path: read_state(path)} if (path / folder.TRIAL).exists() else read_states(path)
        finished = {path.resolve(): state.trial for path, state in states.items() if state.state is State.FINISHED}
        if not finished:
            raise InputError(f"{path} holds no finished trial of recipe version {RECIPE_VERSION}")
        if len(finished) < len(states):
            left_out = f"{len(states) - len(finished)} of {len(states)} trials"
            console.print(f"{path}: left out {left_out}, unfinished or of another recipe version")
        trials |= {path: trial for path, trial in finished.items() if trial is not None}
    return trials


def plan_certifications(
    trials: dict[Path, folder.TrialRecord], changes: EvaluationChanges, data_dir: str | None, trusted: Collection[str]
) -> list[Certification]:
    """Return the certification of each trial. Raises InputError if settings, data or weights do not fit.

    trusted: the plugins that may be imported.
    """
    planned, load_once = [], cache(partial(load, data_dir=data_dir))  # the data is large, and shared
    for trial_dir, trial in trials.items():
        plugins.require_trusted(trial.config, trusted)
        record = replace(trial, config=change_evaluation(trial.config, changes))
        if not (trial_dir / folder.WEIGHTS).exists():
            raise InputError(f"{trial_dir} has no {folder.WEIGHTS}")
        with located(f"{trial_dir}: "):
            planned.append(Certification(trial_dir, record, load_data(record, load_once)))
            _ = planned[-1].images  # raises InputError
    return planned


def change_evaluation(trial: Trial, changes: EvaluationChanges) -> Trial:
    """Return a trial's config with the changes. Raises SettingError."""
    limits = {"bab_seconds": changes.seconds, "bab_branches": changes.branches, "bab_trial_seconds": None}
    uses_limits = names.BAB in changes.stages or changes.certificates
    evaluation = trial.evaluation.replace(
        stages=changes.stages,
        test_images=trial.trial_image_count if changes.images is None else changes.images,
        stage_seconds=changes.stage_seconds or trial.evaluation.stage_seconds,
        certificates=changes.certificates,
        **(limits if uses_limits else {"bab_trial_seconds": None}),
    )
    return trial.replace(evaluation=evaluation)
