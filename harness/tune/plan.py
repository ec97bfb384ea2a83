"""The trials of a sweep that `harness.run` runs: checked before anything starts, in which state, what is printed."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Self

import pandas as pd
from rich.console import Console

from harness.common import names
from harness.common.errors import InputError, collect_problems
from harness.common.patterns import select_by_pattern
from harness.common.terminal import print_table, with_plural
from harness.config.expansion import ExpandedSweep, expand_file
from harness.config.file import CPU_PROFILE, SweepFile
from harness.config.trial import FULL_PROFILE
from harness.data import Data, load
from harness.leaderboard.rows import NOT_COUNTED
from harness.own_data import MeasuredData, OwnData
from harness.settings import describe_weak_attack
from harness.storage import folder
from harness.storage.files import DamagedFileError
from harness.storage.folder import TrialRecord
from harness.storage.state import State, TrialState
from harness.training.trial import split_images
from harness.tune.progress import minutes


@dataclass(frozen=True)
class PlannedSweep:
    """The trials of a sweep that a command runs or reports.

    sweep_dir: the directory of the sweep's results.
    records: of the trials, by their folders.
    """

    sweep: ExpandedSweep
    data: Data
    sweep_dir: Path
    records: dict[Path, TrialRecord]

    @classmethod
    def of(cls, sweep: ExpandedSweep, data: Data, sweep_dir: Path, patterns: list[str]) -> Self:
        """Return the plan of the trials that match a pattern by label, key or recipe; of all without patterns.

        Raises InputError for a pattern without a match.
        """
        all_records = [folder.make_trial(trial, data.fingerprint) for trial in sweep.trials]
        records = {folder.trial_dir(sweep_dir, record.key): record for record in all_records}
        if patterns:
            labels = {trial_dir: record.config.names(record.key) for trial_dir, record in records.items()}
            records = {trial_dir: records[trial_dir] for trial_dir in select_by_pattern("--only", patterns, labels)}
        return cls(sweep, data, sweep_dir, records)

    def select(self, found: dict[Path, TrialState]) -> dict[Path, TrialState]:
        """Return the states of this plan's trials, of those found in the directory. Raises DamagedFileError."""
        states = {trial_dir: found.get(trial_dir, TrialState()) for trial_dir in self.records}
        for trial_dir, state in states.items():
            if state.problem:
                raise DamagedFileError(f"{trial_dir}/{state.problem}")
        return states

    @cached_property
    def unchanged_keys(self) -> set[str]:
        """The keys of the trials that the sweep file has without `--set`."""
        unchanged = [trial for trial in self.sweep.trials if trial.profile == self.sweep.profile]
        return {trial.key(self.data.fingerprint) for trial in unchanged}

    def unusable(self, table: pd.DataFrame) -> dict[Path, str]:
        """Return what is wrong with trials that tables do not count, or that lack a file of a finished one, by folder.

        table: a row for each trial in the directory, as `leaderboard.rows.read_trials` returns it.
        """
        problems = {}
        for row in table[table["trial_dir"].isin(list(self.records))].itertuples():
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
    file: SweepFile, states: dict[Path, TrialState], data_dir: str | None, writes: bool
) -> tuple[ExpandedSweep, Data]:
    """Return a file's sweep, and its data.

    states: of the trials in the sweep's directory; networks that are trained there are not built to be checked.
    data_dir, writes: as in `load`. Raises InputError, also for fewer images than a batch or a validation set needs.
    """
    trained = {state.trial.config.identity for state in states.values() if state.trial and state.result}
    source, is_right = file.sweep.dataset, False
    if isinstance(source, OwnData):  # networks are built for what is measured
        source = source.relative_to(file.path.parent)
        with file.located():
            data = load(source, data_dir, writes)
        sweep = expand_file(file, trained, MeasuredData(source=source, entry=data.info))
    else:
        with collect_problems() as at:
            with at(""):
                sweep = expand_file(file, trained)
                is_right = True
            with at(""):  # also of a wrong file, for which nothing is downloaded
                data = load(source, data_dir, writes and is_right)
    with file.located(), collect_problems() as at:
        for trial in sweep.trials:
            with at(""):
                split_images(trial, data)
    return sweep, data


def check_owner(sweep_dir: Path, sweep: ExpandedSweep, states: dict[Path, TrialState]) -> None:
    """Raise InputError if the directory holds trials of another name, data set or eps.

    states: of the trials there. Trials of another recipe version, or that cannot be read, do not count.
    """
    expected = f"{sweep.name} on {sweep.dataset} at eps {sweep.eps}"
    for state in states.values():
        if state.trial is None or state.state is State.OLDER:
            continue
        trial = state.trial.config
        owner = f"{trial.sweep} on {trial.dataset} at eps {trial.eps}"
        if owner != expected:
            message = f"{sweep_dir} belongs to another sweep: found {owner}, this one is {expected}"
            raise InputError(f"{message}; rename one of them")


def print_header(
    plan: PlannedSweep, states: dict[Path, TrialState], gpus: float, asked_profile: str | None, console: Console
) -> None:  # fmt: skip
    """Print what runs, on which data, under which profile. gpus: what a trial reserves."""
    sweep, records = plan.sweep, plan.records.values()
    first = sweep.trials[0]
    all_trials = with_plural(len(sweep.trials), "trial")
    counted = all_trials if len(records) == len(sweep.trials) else f"{len(records)} of {all_trials}"
    profile = "" if sweep.profile == FULL_PROFILE else f", profile {sweep.profile}"
    finished = sum(state.state is State.FINISHED for state in states.values())
    lines = [
        f"{sweep.name}: {plan.data.info.title}, eps {sweep.eps}{profile}; {counted}, {finished} finished already",
        f"data: {plan.data.describe()}",
    ]
    if sweep.profile == CPU_PROFILE and asked_profile is None:
        lines.append("no GPU here: profile 'cpu' was picked")
    elif sweep.resources.gpu and not gpus:
        lines.append("no GPU here: trials train on the CPU")
    if sweep.profile != FULL_PROFILE:
        widths = ", ".join(f"{width:g}" for width in sorted({trial.width for trial in sweep.trials}))
        epochs = ", ".join(str(count) for count in sorted({trial.epochs for trial in sweep.trials}))
        lines.append(
            f"profile '{sweep.profile}': width {widths}, {first.train_images or 'all'} training images, "
            f"epochs {epochs}; its numbers are not comparable with published ones"
        )
    if changed := [record for record in records if record.key not in plan.unchanged_keys]:
        lines.append(
            f"changed by --set: {with_plural(len(changed), 'trial')}, in tables under profile "
            f"'{changed[0].config.profile}'; their numbers are not comparable with published ones"
        )
    attack = first.evaluation
    if warning := describe_weak_attack(attack.attack_step, attack.attack_steps):
        lines.append(f"warning: {warning}")
    console.print("\n".join(lines))


def print_plan(
    plan: PlannedSweep, found: dict[Path, TrialState], gpus: float, at_once: int, retry_failed: bool, console: Console
) -> None:  # fmt: skip
    """Print a line for each trial, the resources and the time.

    found: the states of all trials in the directory, by which the time is estimated. at_once: how many trials run side
    by side.
    """
    states, measured = plan.select(found), _measured_seconds(found)
    to_run = trials_to_run(states, retry_failed)
    left, rows = list[float | None](), []
    for trial_dir, state in states.items():
        record, time = plan.records[trial_dir], ""
        if trial_dir in to_run:
            seconds, epochs = measured.get(record.config.identity), record.config.epochs
            if seconds is not None and epochs:
                seconds *= 1 - state.epochs / epochs
            left.append(seconds)
            time = "unknown" if seconds is None else minutes(seconds)
        would_run = "yes" if trial_dir in to_run else "no"
        rows.append([record.config.label, record.key, state.state, state.description, would_run, time])
    print_table(console, ["trial", "key", "state", "", "would run", "time"], rows)
    each = f"{with_plural(plan.sweep.resources.cpu, 'CPU')} and {with_plural(gpus, 'GPU')}"
    console.print(f"resources: {each} for each trial: {at_once} side by side")
    console.print(_describe_time(left, at_once))
    console.print("dry run: nothing was started or written")


def _measured_seconds(states: dict[Path, TrialState]) -> dict[str, float]:
    """Return the mean seconds of finished trials, by `identity`: that of trials that differ in seeds."""
    seconds = defaultdict[str, list[float]](list)
    for state in states.values():
        if state.trial and state.result:
            parts = (state.result.metrics.get(name) for name in (names.TRAIN_SECONDS, names.EVALUATION_SECONDS))
            seconds[state.trial.config.identity].append(sum(part or 0.0 for part in parts))
    return {row: mean(each) for row, each in seconds.items()}


def _describe_time(left: list[float | None], at_once: int) -> str:
    """Return the time that the trials need, as far as trials of their rows have finished here."""
    if not left:
        return "time: none, nothing is left to do"
    known = [seconds for seconds in left if seconds is not None]
    if not known:
        return f"time: unknown for {with_plural(len(left), 'trial')}, of whose rows none has finished here"
    work = f"time: {minutes(sum(known))} of work for {len(known)} of {len(left)} trials"
    return f"{work}; {minutes(max(*known, sum(known) / at_once))} side by side" if at_once > 1 else work
