"""The trials of a sweep that `harness.run` runs: checked before anything starts, and what state they are in."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd

from harness.common.errors import InputError
from harness.common.patterns import select_by_pattern
from harness.config.expansion import expand_file
from harness.config.file import ExpandedSweep, SweepFile
from harness.data import load
from harness.leaderboard.rows import NOT_COUNTED
from harness.own_data import MeasuredData, OwnData
from harness.storage import folder
from harness.storage.files import DamagedFileError, refuse_links
from harness.storage.folder import TrialRecord
from harness.storage.lock import holder
from harness.storage.state import State, TrialState, read_state, read_state_or_raise
from harness.training.trial import split_images
from harness.tune.items import check_fits


@dataclass(frozen=True)
class PlannedSweep:
    """The trials of a sweep that a command runs or reports.

    data: the data set's summary, its `title` and `description`.
    sweep_dir: the directory of the sweep's results.
    trials: by their folders.
    """

    sweep: ExpandedSweep
    data: dict[str, Any]
    sweep_dir: Path
    trials: dict[Path, TrialRecord]

    @classmethod
    def of(cls, sweep: ExpandedSweep, data: dict[str, Any], sweep_dir: Path, patterns: list[str]) -> Self:
        """Return the plan of the trials that match a pattern by label, key or recipe; of all without patterns.

        Raises InputError for a pattern without a match, and for a trial's folder that holds another one.
        """
        records = [folder.make_trial(config, data["fingerprint"]) for config in sweep.trials]
        trials = {folder.trial_dir(sweep_dir, trial.key): trial for trial in records}
        if patterns:
            names = {trial_dir: trial.config.names(trial.key) for trial_dir, trial in trials.items()}
            trials = {trial_dir: trials[trial_dir] for trial_dir in select_by_pattern("--only", patterns, names)}
        for trial_dir, trial in trials.items():
            folder.refuse_another(trial_dir, trial)
        return cls(sweep, data, sweep_dir, trials)

    def states(self) -> dict[Path, TrialState]:
        """Return the state of each trial now, by its folder. Raises DamagedFileError."""
        run = holder(self.sweep_dir)
        return {trial_dir: read_state_or_raise(trial_dir, run.since if run else None) for trial_dir in self.trials}

    @cached_property
    def unchanged_keys(self) -> set[str]:
        """The keys of the trials that the sweep file has without `--set`."""
        unchanged = [config for config in self.sweep.trials if config.profile == self.sweep.profile]
        return {config.key(self.data["fingerprint"]) for config in unchanged}

    def unusable(self, table: pd.DataFrame) -> dict[Path, str]:
        """Return what is wrong with trials that tables do not count, or that lack a file of a finished one, by folder.

        table: a row for each trial in the directory, as `leaderboard.rows.read_trials` returns it.
        """
        problems = {}
        for row in table[table["trial_dir"].isin(list(self.trials))].itertuples():
            missing = [name for name in (folder.WEIGHTS, folder.VERDICTS) if not (row.trial_dir / name).exists()]
            if row.state == NOT_COUNTED:
                problems[row.trial_dir] = str(row.problem)
            elif row.state == State.FINISHED and missing:
                problems[row.trial_dir] = f"{' and '.join(missing)} is missing"
        return problems


def trials_to_run(states: dict[Path, TrialState], retry_failed: bool) -> list[Path]:
    """Return the trials without a result, failed ones last; without `retry_failed` none that would fail again."""
    unfinished = [trial_dir for trial_dir, state in states.items() if state.state is not State.FINISHED]
    to_run = [trial_dir for trial_dir in unfinished if retry_failed or not states[trial_dir].fails_again]
    return sorted(to_run, key=lambda trial_dir: states[trial_dir].state is State.FAILED)


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
        if read_state(trial_dir).state is State.OLDER:
            continue
        config = folder.read_trial(trial_dir / folder.TRIAL).config
        owner = f"{config.sweep} on {config.dataset} at eps {config.eps}"
        if owner != expected:
            message = f"{sweep_dir} belongs to another sweep: found {owner}, this one is {expected}"
            raise InputError(f"{message}; rename one of them")
