"""Certifications of finished trials: which trials, stages and images `harness.certify` evaluates."""

import argparse
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

from rich.console import Console

from harness.common import names
from harness.common.errors import InputError
from harness.config import plugins
from harness.config.trial import RECIPE_VERSION, Trial
from harness.data import Data, Split, load
from harness.evaluation.network import load_network
from harness.evaluation.ranges import hash_inputs, plan_ranges
from harness.machine.device import best_device
from harness.machine.environment import describe_environment
from harness.storage import certification, folder, ranges
from harness.storage.files import read_bytes, refuse_links
from harness.storage.state import State, read_state
from harness.tune.trial_files import load_data


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


def finished_trials(paths: list[Path], console: Console) -> list[Path]:
    """Return the folders of the finished trials in these paths. Raises InputError for a path without one."""
    trial_dirs: list[Path] = []
    for path in paths:
        refuse_links(folder.sweep_dir_of(path))
        inside = [path] if (path / folder.TRIAL).exists() else folder.trial_folders(path)
        finished = [trial_dir for trial_dir in inside if read_state(trial_dir).state is State.FINISHED]
        if not finished:
            raise InputError(f"{path} holds no finished trial of recipe version {RECIPE_VERSION}")
        if len(finished) < len(inside):
            left_out = f"{len(inside) - len(finished)} of {len(inside)} trials"
            console.print(f"{path}: left out {left_out}, unfinished or of another recipe version")
        trial_dirs += finished
    return list(dict.fromkeys(path.resolve() for path in trial_dirs))


def plan_certifications(trial_dirs: list[Path], options: argparse.Namespace) -> list[Certification]:
    """Return the certification of each trial. Raises InputError if settings, data or weights do not fit."""
    planned, load_once = [], cache(partial(load, data_dir=options.data_dir))  # the data is large, and shared
    for trial_dir in trial_dirs:
        record = folder.read_trial(trial_dir / folder.TRIAL)
        plugins.require_trusted(record.config, options.plugin)
        record = replace(record, config=change_evaluation(record.config, options))
        if not (trial_dir / folder.WEIGHTS).exists():
            raise InputError(f"{trial_dir} has no {folder.WEIGHTS}")
        try:
            planned.append(Certification(trial_dir, record, load_data(record, load_once)))
            _ = planned[-1].images  # raises InputError
        except InputError as error:
            raise InputError(f"{trial_dir}: {error}") from None
    return planned


def change_evaluation(trial: Trial, options: argparse.Namespace) -> Trial:
    """Return a trial's config with the stages, budget and images of the options. Raises SettingError."""
    stages, before = tuple(options.stages.split(",")), trial.evaluation
    uses_it = names.BAB in stages or options.certificates
    budget = {"bab_seconds": options.seconds, "bab_branches": options.branches} if uses_it else {}
    images = trial.trial_image_count if options.images is None else options.images
    budget["certificates"] = options.certificates
    budget |= {"stage_seconds": options.stage_seconds or before.stage_seconds, "bab_trial_seconds": None}
    return trial.replace(evaluation=before.replace(stages=stages, test_images=images, **budget))
