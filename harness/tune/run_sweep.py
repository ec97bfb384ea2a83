"""Run the trials of a sweep: under Ray or here, shown in the terminal, logged to MLflow, with tables at the end."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from harness.common import names
from harness.common.masking import mask_secrets
from harness.common.terminal import percent
from harness.config.trial import Trial
from harness.leaderboard.files import print_leaderboard, write_leaderboard
from harness.leaderboard.table import Leaderboard
from harness.machine.device import best_device
from harness.machine.environment import device_name, source_digest
from harness.storage import folder, training_record
from harness.storage.files import remove_unfinished
from harness.storage.folder import TrialRecord
from harness.storage.state import State, TrialState, read_state
from harness.training.trial import Report, train_and_certify
from harness.tune.items import FailedFast, Item, run_items
from harness.tune.machines import RayOptions
from harness.tune.plan import PlannedSweep, trials_to_run
from harness.tune.progress import Progress

_ERRORS = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
Log = Callable[[Path, bool], None]
"""Takes the folder of a trial that has something new, and whether the trial runs."""


@dataclass(frozen=True)
class RunOptions:
    """How the trials of a sweep or of a search are run.

    ray: None for one after the other in this process, without MLflow. threads: of each there.
    data_dir: None for the default one; absolute under Ray, whose workers have another working directory.
    tracking_uri: of the MLflow store; None for the default one.
    fail_fast: stop after the first failure. retry_failed: also run trials that would fail again.
    """

    ray: RayOptions | None
    data_dir: str | None
    threads: int = 1
    tracking_uri: str | None = None
    fail_fast: bool = False
    retry_failed: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep. is_complete: all trials have usable results, and MLflow has them."""

    leaderboard: Leaderboard
    is_complete: bool


def run_sweep(
    plan: PlannedSweep, states: dict[Path, TrialState], options: RunOptions, console: Console
) -> Outcome:  # fmt: skip
    """Run the trials that are left, log them and write the tables.

    states: of the plan's trials. Under Ray the caller has locked the sweep's directory.

    Raises:
        InputError: a wrong MLflow store.
        Stopped, KeyboardInterrupt: a signal came.
        ConnectionError: Ray has died.
    """
    to_run, mlflow = trials_to_run(states, options.retry_failed), None
    if options.ray is not None:
        from harness.tracking.tracker import Tracker  # here, since --here needs no MLflow

        if to_run:
            console.print("opens MLflow")
        mlflow = Tracker.open(plan.sweep.name, options.tracking_uri, console)
        for directory in (plan.sweep_dir, plan.sweep_dir / folder.FIGURES):
            remove_unfinished(directory)
    for trial_dir, state in states.items():
        record = plan.records[trial_dir]
        if state.state is not State.FINISHED and trial_dir not in to_run:
            message = f"failed {record.config.label}: {state.description}; it would fail the same way again"
            console.print(f"{message}. To retry anyway: --retry-failed")
        if state.trial is None or folder.trial_json(state.trial) != folder.trial_json(record):
            folder.take_over(trial_dir, record)
        if trial_dir in to_run and (checkpoint := record.config.checkpoint) is not None:
            path = plan.sweep.checkpoints[checkpoint.sha256]
            folder.copy_network_file(checkpoint, path, trial_dir / folder.NETWORK_FILE)
    run_trials({path: plan.records[path] for path in to_run}, options, console, mlflow.log if mlflow else None)
    leaderboard = write_leaderboard(plan.sweep_dir)
    print_leaderboard(leaderboard, console)
    own = {record.key for record in plan.records.values()}
    is_logged = mlflow is None or mlflow.finish(plan.sweep_dir, own, plan.unchanged_keys)
    problems = plan.unusable(leaderboard.trials)
    for trial_dir, problem in problems.items():
        trial = f"{plan.records[trial_dir].config.label} ({trial_dir})"
        advice = "put the file back, or remove that folder to train the trial again"
        console.print(f"cannot be used: {trial}: {problem}; {advice}")
    finished = leaderboard.trials["trial_dir"][leaderboard.trials["state"] == State.FINISHED]
    is_finished = not problems and plan.records.keys() <= set(finished)
    return Outcome(leaderboard, is_logged and is_finished)


def run_trials(
    records: dict[Path, TrialRecord], options: RunOptions, console: Console, log: Log | None = None
) -> None:  # fmt: skip
    """Run trials, by their folders. Raises as `run_items` does."""
    if not records:
        return
    items = [begin_item(trial_dir, record, record.config.label) for trial_dir, record in records.items()]
    work = partial(train_item, data_dir=options.data_dir, code=source_digest())
    with SweepListener(console, len(items), log, options.fail_fast) as listener:
        if options.ray is None:
            torch.set_num_threads(options.threads)
            listener.on_text(f"device: {device_name(best_device())}")
        try:
            run_items(items, work, listener, options.ray, items[0].directory.parents[1])
        finally:
            for item in items:  # MLflow then says that nobody runs them
                listener.log(item.directory, False)


class SweepListener(Progress):
    """Shows and logs what trials report and how they end."""

    def __init__(self, console: Console, total: int, log: Log | None, fail_fast: bool):
        super().__init__(console, "trials", total)
        self.log, self.fail_fast, self.warned = log or (lambda *_: None), fail_fast, set[tuple[Item, str]]()

    def on_report(self, item: Item, row: dict[str, Any]) -> None:
        """Show what a trial does, and log the row of an epoch."""
        super().on_report(item, row)
        if names.EPOCH in row:
            self._warn(item, training_record.read_lines(item.directory / folder.TRAINING_WARNINGS))
        if names.EPOCH in row or names.ACTIVITY in row:
            self.log(item.directory, True)

    def on_end(self, item: Item, error: str | None) -> None:
        """Show and log the result or the failure of a trial."""
        self.end(item)
        state = read_outcome(item.directory, error)
        if state.result is not None:
            errors = [f"{name.replace('_', ' ')} {percent(state.result.metrics[name])}" for name in _ERRORS]
            self.print_outcome("done", "green", item, f"{', '.join(errors)} ({self.summary()})")
            self._warn(item, state.result.warnings)
        else:
            self.print_outcome("failed", "red", item, state.description)
        self.log(item.directory, False)
        if state.result is None and self.fail_fast:
            raise FailedFast

    def _warn(self, item: Item, warnings: list[str]) -> None:
        """Show the warnings of a trial that were not shown before."""
        for warning in warnings:
            if (item, warning) not in self.warned:
                self.warned.add((item, warning))
                self.warn(item, warning)


def begin_item(trial_dir: Path, record: TrialRecord, label: str) -> Item:
    """Return the work of training and certifying a trial, after removing how it failed before."""
    (trial_dir / folder.FAILURE).unlink(missing_ok=True)
    return Item(trial_dir, label, record.config.model_dump(mode="json"))


def train_item(item: Item, report: Report, data_dir: str | None, code: str | None = None) -> dict[str, Any]:
    """Train and certify a trial, of a sweep or of a search, and return its metrics. Raises as its function does."""
    report({names.ACTIVITY: "reads its data"})
    return train_and_certify(Trial.model_validate(item.settings), item.directory, report, data_dir, code=code).metrics


def read_outcome(trial_dir: Path, error: str | None) -> TrialState:
    """Return the state of a trial that has ended, after writing why it failed if its worker could not.

    error: of its worker.
    """
    state = read_state(trial_dir)
    if state.state in (State.FINISHED, State.FAILED, State.DAMAGED):
        return state
    message = mask_secrets(error or "its worker ended without a result")
    with suppress(OSError):  # of a full disk
        folder.write_failure(trial_dir, message)
    return replace(state, failure=folder.Failure(error=message))
