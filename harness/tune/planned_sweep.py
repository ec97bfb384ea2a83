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
from harness.config.changes import nearest_changes
from harness.config.expansion import expand_file
from harness.config.file import CheckedFile, ExpandedSweep
from harness.config.trial import distinguish, rows
from harness.data import load
from harness.leaderboard.rows import NOT_COUNTED
from harness.machine.device import best_device, count_cores
from harness.own_data import MeasuredData, OwnData
from harness.storage import folder
from harness.storage.files import DamagedFileError, refuse_links
from harness.storage.folder import TrialRecord
from harness.training.trial import split_images
from harness.tune.time_left import TimeLeft
from harness.tune.workers import check_fits


@dataclass(frozen=True)
class PlannedSweep:
    """The trials of a sweep that a command runs or reports.

    data: the data set's summary, its `title` and `description`.
    trials: those that the command runs or reports.
    labels: of all trials of the sweep, by key.
    sweep_dir: the directory of the sweep's results.
    stored: the trials that lie there, by key, the oldest first.
    """

    sweep: ExpandedSweep
    data: dict[str, Any]
    trials: list[TrialRecord]
    labels: dict[str, str]
    sweep_dir: Path
    stored: dict[str, TrialRecord]

    @classmethod
    def of(cls, sweep: ExpandedSweep, data: dict[str, Any], sweep_dir: Path, patterns: list[str]) -> Self:
        """Return the plan of the trials whose label or key matches a pattern, of all without patterns.

        Raises InputError for a pattern without a match, and for a trial's folder that holds another one.
        """
        fingerprint, stored_trials = data["fingerprint"], _stored_trials(sweep_dir)
        stored = {key: trial.config for key, trial in stored_trials.items()}
        names_there = {config.identity: config.named for config in stored.values() if config.named is not None}
        own = [config.replace(named=names_there.get(config.identity, config.named)) for config in sweep.trials]
        # A trial that is there keeps its name; a newer one that would read alike is named by what differs.
        configs = stored | {config.key(fingerprint): config for config in own}
        configs = dict(zip(configs, distinguish([*configs.values()]), strict=True))
        keys = [config.key(fingerprint) for config in own]
        trials = {key: folder.make_trial(configs[key], fingerprint) for key in keys}
        by_key = {key: trial.config.label for key, trial in trials.items()}
        names_of = {key: (label, key) for key, label in by_key.items()}
        keys = select_by_pattern("--only", patterns, names_of) if patterns else list(trials)
        plan = cls(sweep, data, [trials[key] for key in keys], by_key, sweep_dir, stored_trials)
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

    def row_names(self) -> dict[str, str]:
        """Return the name of each trial's row by its key, for these trials and all others in the directory."""
        trials = self.stored | {trial.key: trial for trial in self.trials}
        configs = {key: trial.config for key, trial in trials.items()}
        return dict(zip(configs, rows(list(configs.values())), strict=True))

    @cached_property
    def changes(self) -> dict[str, str]:
        """In what each trial that is not begun differs from the nearest of those that the file no longer has.

        By key, such as 'train.learning_rate 0.01, was 0.005'; trials without one alike are left out.
        """
        own = {config.key(self.data["fingerprint"]) for config in self.sweep.trials}
        others = [trial for key, trial in self.stored.items() if key not in own]
        configs, texts = [each.config for each in others], {}
        for trial in self.trials:
            if trial.key in self.stored or (changes := nearest_changes(trial.config, configs)) is None:
                continue
            if changes:
                texts[trial.key] = "; ".join(changes)
            else:
                same = next(each for each in others if each.config == trial.config)
                is_older = same.recipe_version != trial.recipe_version
                texts[trial.key] = f"older: of recipe version {same.recipe_version}" if is_older else "the data changed"
        return texts

    def unfinished(self) -> list[TrialRecord]:
        """Return the trials without a result."""
        return [trial for trial in self.trials if folder.read_result(self.trial_dirs[trial.key]) is None]

    def unusable(self, table: pd.DataFrame) -> dict[str, str]:
        """Return what is wrong with trials that tables do not count, or that lack a file of a finished one, by key.

        table: a row for each trial in the directory, as `leaderboard.rows.read_trials` returns it.
        """
        keys = {trial_dir: key for key, trial_dir in self.trial_dirs.items()}
        problems = {}
        for row in table[table["trial_dir"].isin(list(keys))].itertuples():
            missing = [name for name in (folder.WEIGHTS, folder.VERDICTS) if not (row.trial_dir / name).exists()]
            if str(row.problem).startswith(NOT_COUNTED):
                problems[keys[row.trial_dir]] = str(row.problem)
            elif row.result is not None and missing:
                problems[keys[row.trial_dir]] = f"{' and '.join(missing)} is missing"
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
            trial.key: self.times.seconds(trial, folder.last_epoch(self.trial_dirs[trial.key]))
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


def _stored_trials(sweep_dir: Path) -> dict[str, TrialRecord]:
    """Return the trials in a sweep's directory by key, the oldest first."""
    trials = {}
    for trial_dir in sorted(folder.trial_folders(sweep_dir), key=lambda path: (path / folder.TRIAL).stat().st_mtime):
        with suppress(DamagedFileError):  # the leaderboard names it
            trials[trial_dir.name] = folder.read_trial(trial_dir / folder.TRIAL)
    return trials


def machines_at(ray_address: str | None) -> list[dict[str, float]]:
    """Return the "CPU" and "GPU" of this machine, or of each machine of a Ray cluster. Raises InputError."""
    if ray_address is not None:
        from harness.tune.resources import machines_of_cluster  # here, since a finished sweep needs no Ray

        return machines_of_cluster(ray_address)
    gpus = torch.cuda.device_count() if best_device().type == "cuda" else 0
    return [{"CPU": count_cores(), "GPU": gpus}]


def load_checked(
    file: CheckedFile, has_gpu: bool, results_dir: Path, data_dir: str | None, writes: bool
) -> tuple[ExpandedSweep, dict[str, Any]]:
    """Return a file's sweep, and the summary and title of its data.

    results_dir: of all sweeps; networks that are trained there are not built to be checked. data_dir, writes: as in
    `load`. Raises InputError, also for fewer images than a batch or a validation set needs.
    """
    sweep_dir = results_dir / str(file.content["name"])
    trained = {
        trial.config.identity
        for key, trial in _stored_trials(sweep_dir).items()
        if (folder.trial_dir(sweep_dir, key) / folder.RESULT).exists()
    }
    source = file.sweep(file.profile_here(has_gpu), False).dataset
    if isinstance(source, OwnData):  # networks are built for what is measured
        source = source.relative_to(file.path.parent)
        try:
            data = load(source, data_dir, writes)
        except InputError as error:
            raise InputError(f"{file.path}: {error}") from None
        sweep = expand_file(file, has_gpu, trained, MeasuredData(source=source, entry=data.info))
    else:
        sweep = expand_file(file, has_gpu, trained)
        data = load(source, data_dir, writes)
    try:
        for config in sweep.trials:
            split_images(config, data)
    except InputError as error:
        raise file.with_location(error, sweep.profile) from None
    return sweep, data.summary() | {"title": data.info.title, "description": data.describe()}


def check_reserved(sweep: ExpandedSweep, gpu: float, machines: list[dict[str, float]], file: CheckedFile) -> None:
    """Raise InputError unless one machine has the CPUs and GPUs that a trial reserves."""
    try:
        check_fits(machines, sweep.resources.cpu, gpu)
    except InputError as error:
        raise file.with_location(error, sweep.profile) from None


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
