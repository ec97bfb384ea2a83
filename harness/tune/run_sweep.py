"""Run the trials of a sweep: under Ray or here, shown in the terminal, logged to MLflow, with tables at the end."""

import argparse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
from harness.storage.folder import TrialRecord, TrialResult
from harness.storage.state import State, TrialState
from harness.training.trial import Report, train_and_certify
from harness.tune.items import FailedFast, Item, RayOptions, run_items
from harness.tune.plan import PlannedSweep, trials_to_run
from harness.tune.progress import Progress

_ERRORS = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
Log = Callable[[Path, bool], None]
"""Takes the folder of a trial that has something new, and whether the trial runs."""


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep. is_complete: all trials have usable results, and MLflow has them."""

    leaderboard: Leaderboard
    is_complete: bool


def run_sweep(
    plan: PlannedSweep,
    states: dict[Path, TrialState],
    ray: RayOptions | None,
    data_dir: str,
    options: argparse.Namespace,
    console: Console,
) -> Outcome:
    """Run the trials that are left, log them and write the tables.

    states: of the plan's trials, now.
    ray: None runs trials in this process, and leaves MLflow alone; else the caller has locked the sweep's directory.
    options: of `harness.run`.

    Raises:
        InputError: a wrong MLflow store.
        Stopped, KeyboardInterrupt: a signal came.
        RayDiedError: Ray has died.
    """
    to_run = trials_to_run(states, options.retry_failed)
    mlflow = None
    if ray is not None:
        from harness.tracking.tracker import Tracker  # here, since --here needs no MLflow

        if to_run:
            console.print("opens MLflow")
        mlflow = Tracker.open(plan.sweep.name, options.tracking_uri, console)
        for directory in (plan.sweep_dir, plan.sweep_dir / folder.FIGURES):
            remove_unfinished(directory)
    _prepare_folders(plan, states, to_run, console)
    records, log = {trial_dir: plan.records[trial_dir] for trial_dir in to_run}, mlflow.log if mlflow else None
    run_trials(records, ray, data_dir, console, log, options.fail_fast)
    leaderboard = write_leaderboard(plan.sweep_dir)
    print_leaderboard(leaderboard, console)
    own = {record.key for record in plan.records.values()}
    is_logged = mlflow is None or mlflow.finish(plan.sweep_dir, own, plan.unchanged_keys)
    problems = plan.unusable(leaderboard.trials)
    for trial_dir, problem in problems.items():
        trial = f"{plan.records[trial_dir].config.label} ({trial_dir})"
        advice = "put the file back, or remove that folder to train the trial again"
        console.print(f"cannot be used: {trial}: {problem}; {advice}")
    is_finished = not problems and all(state.state is State.FINISHED for state in plan.states().values())
    return Outcome(leaderboard, is_logged and is_finished)


def _prepare_folders(
    plan: PlannedSweep, states: dict[Path, TrialState], to_run: list[Path], console: Console
) -> None:  # fmt: skip
    """Make the trials' folders; print which trials are not run."""
    for trial_dir, state in states.items():
        record = plan.records[trial_dir]
        if state.state is not State.FINISHED and trial_dir not in to_run:
            message = f"failed {record.config.label}: {state.description}; it would fail the same way again"
            console.print(f"{message}. To retry anyway: --retry-failed")
        folder.take_over(trial_dir, record)
        if trial_dir in to_run and (checkpoint := record.config.checkpoint) is not None:
            path = plan.sweep.checkpoints[checkpoint.sha256]
            folder.copy_network_file(checkpoint, path, trial_dir / folder.NETWORK_FILE)


def run_trials(
    records: dict[Path, TrialRecord],
    ray: RayOptions | None,
    data_dir: str | None,
    console: Console,
    log: Log | None = None,
    fail_fast: bool = False,
) -> None:
    """Run trials, by their folders, under Ray or, without its options, here. Raises as `run_items` does."""
    if not records:
        return
    for trial_dir in records:
        forget_failure(trial_dir)
    items = [trial_item(record, record.config.label, trial_dir) for trial_dir, record in records.items()]
    work = partial(train_item, data_dir=data_dir, code=source_digest())
    with SweepListener(console, len(items), log, fail_fast) as listener:
        if ray is None:
            listener.on_text(f"device: {device_name(best_device())}")
        try:
            run_items(items, work, listener, ray, items[0].directory.parents[1])
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
            self._warn(item, training_record.read_training_warnings(item.directory))
        if names.EPOCH in row or names.ACTIVITY in row:
            self.log(item.directory, True)

    def on_end(self, item: Item, error: str | None) -> None:
        """Show and log the result or the failure of a trial."""
        self.end(item)
        result, failure = record_outcome(item.directory, error)
        if result is not None:
            errors = [f"{name.replace('_', ' ')} {percent(result.metrics[name])}" for name in _ERRORS]
            self.print_outcome("done", "green", item, f"{', '.join(errors)} ({self.summary()})")
            self._warn(item, result.warnings)
        else:
            self.print_outcome("failed", "red", item, failure)
        self.log(item.directory, False)
        if failure and self.fail_fast:
            raise FailedFast

    def _warn(self, item: Item, warnings: list[str]) -> None:
        """Show the warnings of a trial that were not shown before."""
        for warning in warnings:
            if (item, warning) not in self.warned:
                self.warned.add((item, warning))
                self.warn(item, warning)


def forget_failure(trial_dir: Path) -> None:
    """Remove why a trial failed before: it would be reported as the failure of this run."""
    (trial_dir / folder.FAILURE).unlink(missing_ok=True)


def trial_item(record: TrialRecord, label: str, trial_dir: Path) -> Item:
    """Return the work of training and certifying a trial in its folder."""
    return Item(trial_dir, label, record.config.model_dump(mode="json"))


def train_item(item: Item, report: Report, data_dir: str | None, code: str | None = None) -> dict[str, Any]:
    """Train and certify a trial, of a sweep or of a search, and return its metrics. Raises as its function does."""
    report({names.ACTIVITY: "reads its data"})
    return train_and_certify(Trial.model_validate(item.settings), item.directory, report, data_dir, code=code).metrics


def record_outcome(trial_dir: Path, error: str | None) -> tuple[TrialResult | None, str]:
    """Return the result of a trial that has ended, or why it failed; write that if its worker could not.

    error: of its worker.
    """
    if (result := folder.read_result(trial_dir)) is not None:
        return result, ""
    if (failure := folder.read_failure(trial_dir)) is not None:
        return None, failure.error
    message = mask_secrets(error or "its worker ended without a result")
    with suppress(OSError):  # of a full disk
        folder.write_failure(trial_dir, message)
    return None, message
