"""The trials of a sweep that `harness.run` runs: checked before anything starts, where they lie, how long they take."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch

from harness.common.errors import InputError
from harness.common.patterns import select_by_pattern
from harness.config.expansion import expand_file
from harness.config.file import ExpandedSweep, SweepFile
from harness.data import load
from harness.leaderboard.rows import NOT_COUNTED
from harness.machine.device import best_device, count_cores
from harness.own_data import MeasuredData, OwnData
from harness.storage import folder, training_record
from harness.storage.files import DamagedFileError, refuse_links
from harness.storage.folder import TrialRecord
from harness.storage.state import State
from harness.training.trial import split_images
from harness.tune.time_left import TimeLeft
from harness.tune.workers import check_fits


@dataclass(frozen=True)
class PlannedSweep:
    """The trials of a sweep that a command runs or reports.

    data: the data set's summary, its `title` and `description`.
    trials: those that the command runs or reports.
    sweep_dir: the directory of the sweep's results.
    """

    sweep: ExpandedSweep
    data: dict[str, Any]
    trials: list[TrialRecord]
    sweep_dir: Path

    @classmethod
    def of(cls, sweep: ExpandedSweep, data: dict[str, Any], sweep_dir: Path, patterns: list[str]) -> Self:
        """Return the plan of the trials that match a pattern by label, key or recipe; of all without patterns.

        Raises InputError for a pattern without a match, and for a trial's folder that holds another one.
        """
        trials = {trial.key: trial for trial in (folder.make_trial(each, data["fingerprint"]) for each in sweep.trials)}
        names = {key: trial.config.names(key) for key, trial in trials.items()}
        keys = select_by_pattern("--only", patterns, names) if patterns else list(trials)
        plan = cls(sweep, data, [trials[key] for key in keys], sweep_dir)
        for key, trial_dir in plan.trial_dirs.items():
            folder.refuse_another(trial_dir, trials[key])
        return plan

    @cached_property
    def trial_dirs(self) -> dict[str, Path]:
        """The folder of each trial, by key."""
        return {trial.key: folder.trial_dir(self.sweep_dir, trial.key) for trial in self.trials}

    @cached_property
    def unchanged_keys(self) -> set[str]:
        """The keys of the trials that the sweep file has without `--set`."""
        unchanged = [config for config in self.sweep.trials if config.profile == self.sweep.profile]
        return {config.key(self.data["fingerprint"]) for config in unchanged}

    def unfinished(self) -> list[TrialRecord]:
        """Return the trials without a result."""
        return [trial for trial in self.trials if folder.read_result(self.trial_dirs[trial.key]) is None]

    def unusable(self, table: pd.DataFrame) -> dict[Path, str]:
        """Return what is wrong with trials that tables do not count, or that lack a file of a finished one, by folder.

        table: a row for each trial in the directory, as `leaderboard.rows.read_trials` returns it.
        """
        problems = {}
        for row in table[table["trial_dir"].isin(list(self.trial_dirs.values()))].itertuples():
            missing = [name for name in (folder.WEIGHTS, folder.VERDICTS) if not (row.trial_dir / name).exists()]
            if row.state == NOT_COUNTED:
                problems[row.trial_dir] = str(row.problem)
            elif row.state == State.FINISHED and missing:
                problems[row.trial_dir] = f"{' and '.join(missing)} is missing"
        return problems

    def to_run(self, retry_failed: bool) -> list[TrialRecord]:
        """Return the unfinished trials without those that would fail again; with `retry_failed`, all of them."""
        unfinished = self.unfinished()
        failures = {trial.key: folder.read_failure(self.trial_dirs[trial.key]) for trial in unfinished}
        fails_again = {key for key, failure in failures.items() if failure and failure["repeats"]}
        return [trial for trial in unfinished if retry_failed or trial.key not in fails_again]

    @cached_property
    def times(self) -> TimeLeft:
        """What the finished trials in the sweep's directory took."""
        return TimeLeft.measured_in(self.sweep_dir)

    def seconds_left(self, trials: list[TrialRecord]) -> dict[str, float | None]:
        """Return the seconds that each trial has left, by key; None where no trial of its row has finished."""
        return {
            trial.key: self.times.seconds(trial, training_record.last_epoch(self.trial_dirs[trial.key]))
            if self.times.is_measured(trial)
            else None
            for trial in trials
        }

    def longest_first(self, trials: list[TrialRecord]) -> list[TrialRecord]:
        """Return the trials with the longest first, then unknown ones, then those that failed before."""
        left = self.seconds_left(trials)

        def rank(trial: TrialRecord) -> tuple[bool, float]:
            has_failed = folder.read_failure(self.trial_dirs[trial.key]) is not None
            return has_failed, -(left[trial.key] or 0.0)

        return sorted(trials, key=rank)


def machines_at(ray_address: str | None) -> list[dict[str, float]]:
    """Return the "CPU" and "GPU" of this machine, or of each machine of a Ray cluster. Raises InputError."""
    if ray_address is not None:
        from harness.tune.resources import machines_of_cluster  # here, since a finished sweep needs no Ray

        return machines_of_cluster(ray_address)
    gpus = torch.cuda.device_count() if best_device().type == "cuda" else 0
    return [{"CPU": count_cores(), "GPU": gpus}]


def load_checked(
    file: SweepFile, results_dir: Path, data_dir: str | None, writes: bool
) -> tuple[ExpandedSweep, dict[str, Any]]:
    """Return a file's sweep, and the summary and title of its data.

    results_dir: of all sweeps; networks that are trained there are not built to be checked. data_dir, writes: as in
    `load`. Raises InputError, also for fewer images than a batch or a validation set needs.
    """
    sweep_dir = results_dir / file.sweep.name
    trained = set[str]()
    for trial_dir in folder.trial_folders(sweep_dir):
        with suppress(DamagedFileError):  # the leaderboard names it
            if (trial_dir / folder.RESULT).exists():
                trained.add(folder.read_trial(trial_dir / folder.TRIAL).config.identity)
    source = file.sweep.dataset
    if isinstance(source, OwnData):  # networks are built for what is measured
        source = source.relative_to(file.path.parent)
        with file.located():
            data = load(source, data_dir, writes)
        sweep = expand_file(file, trained, MeasuredData(source=source, entry=data.info))
    else:
        sweep = expand_file(file, trained)
        data = load(source, data_dir, writes)
    with file.located():
        for config in sweep.trials:
            split_images(config, data)
    return sweep, data.summary() | {"title": data.info.title, "description": data.describe()}


def check_reserved(sweep: ExpandedSweep, gpu: float, machines: list[dict[str, float]], file: SweepFile) -> None:
    """Raise InputError unless one machine has the CPUs and GPUs that a trial reserves."""
    with file.located():
        check_fits(machines, sweep.resources.cpu, gpu)


def check_owner(sweep_dir: Path, sweep: ExpandedSweep) -> None:
    """Raise InputError if the directory holds trials of another name, data set or eps, or a link leads out of it."""
    refuse_links(sweep_dir)
    expected = f"{sweep.name} on {sweep.dataset} at eps {sweep.eps}"
    for trial_dir in folder.trial_folders(sweep_dir):
        if folder.is_stale(trial_dir):
            continue
        config = folder.read_trial(trial_dir / folder.TRIAL).config
        owner = f"{config.sweep} on {config.dataset} at eps {config.eps}"
        if owner != expected:
            message = f"{sweep_dir} belongs to another sweep: found {owner}, this one is {expected}"
            raise InputError(f"{message}; rename one of them")
