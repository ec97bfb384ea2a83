"""Run the trials of a sweep: under Ray or here, shown in the terminal, logged to MLflow, with tables at the end."""

import argparse
import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.common import names
from harness.config.file import ExpandedSweep
from harness.data import load
from harness.leaderboard.files import print_leaderboard, write_leaderboard
from harness.leaderboard.summary import Summary
from harness.leaderboard.table import Leaderboard
from harness.machine.device import best_device
from harness.machine.environment import device_name, source_digest
from harness.storage import folder, training_record
from harness.storage.files import read_text, remove_unfinished
from harness.storage.folder import TrialRecord
from harness.tune.planned_sweep import PlannedSweep
from harness.tune.progress import SweepProgress
from harness.tune.status import print_header
from harness.tune.time_left import TimeLeft
from harness.tune.workers import (
    FailedFast,
    Item,
    Listener,
    RayOptions,
    read_outcome,
    run_here,
    train_item,
    trial_item,
)


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep.

    summaries: of the leaderboard's sections, by their headings. has_changed: the leaderboard is another one than
    before. is_complete: all trials have usable results, and MLflow has them.
    """

    leaderboard: Leaderboard
    summaries: dict[str, Summary]
    has_changed: bool
    is_complete: bool


def run_search(
    sweep: ExpandedSweep, sweep_dir: Path, ray: RayOptions, options: argparse.Namespace, console: Console
) -> tuple[ExpandedSweep, bool] | None:
    """Run a sweep's search, as `Search.run` does; with --dry-run, only print what is searched.

    options: of `harness.run`. Raises InputError for a wrong MLflow store, before hours of work.
    """
    from harness.tune.run_search import Search  # here, since most sweeps need no Optuna

    data = load(sweep.trials[0].data_source, options.data_dir, writes=not options.dry_run)
    search = Search(sweep, data, sweep_dir, console)
    if options.dry_run:
        search.show()
        search.say("its winners become the trials; a dry run: nothing was started or written")
        return None
    from harness.tracking.tracker import Tracker

    Tracker.open(sweep.name, options.tracking_uri, console)
    return search.run(ray, options.fail_fast)


def run_sweep(plan: PlannedSweep, ray: RayOptions, options: argparse.Namespace, console: Console) -> Outcome:
    """Run the trials that are left, log them and write the tables.

    options: of `harness.run`. With --here, trials run in this process, and MLflow is left alone; without, the caller
    has locked the sweep's directory.

    Raises:
        InputError: a wrong MLflow store.
        Stopped, KeyboardInterrupt: a signal came.
        RayDiedError: Ray has died.
    """
    print_header(plan, ray.gpu, options.profile, console)
    to_run = plan.longest_first(plan.to_run(options.retry_failed))
    mlflow = None
    if not options.here:
        from harness.tracking.tracker import Tracker  # here, since --here needs no MLflow

        if to_run:
            console.print("opens MLflow")
        mlflow = Tracker.open(plan.sweep.name, options.tracking_uri, console)
        for directory in (plan.sweep_dir, plan.sweep_dir / folder.FIGURES):
            remove_unfinished(directory)
    _prepare_folders(plan, to_run, console)
    trials = {plan.trial_dirs[trial.key]: trial for trial in to_run}
    log = mlflow.log if mlflow else lambda trial_dir, running: None
    run_trials(trials, None if options.here else ray, ray.data_dir, console, log, options.fail_fast)
    if not folder.trial_folders(plan.sweep_dir):
        raise FileNotFoundError(errno.ENOENT, "the results directory is gone", str(plan.sweep_dir))
    before = _table_text(plan.sweep_dir)
    leaderboard, summaries = write_leaderboard(plan.sweep_dir)
    print_leaderboard(leaderboard, summaries, console)
    is_logged = mlflow is None or mlflow.finish(plan.sweep_dir, plan.trial_dirs, plan.unchanged_keys)
    problems = plan.unusable(leaderboard.trials)
    labels = {plan.trial_dirs[trial.key]: trial.config.label for trial in plan.trials}
    for trial_dir, problem in problems.items():
        trial = f"{labels[trial_dir]} ({trial_dir})"
        advice = "put the file back, or remove that folder to train the trial again"
        console.print(f"cannot be used: {trial}: {problem}; {advice}", soft_wrap=True)
    is_complete = is_logged and not plan.unfinished() and not problems
    return Outcome(leaderboard, summaries, before != _table_text(plan.sweep_dir), is_complete)


def _table_text(sweep_dir: Path) -> str:
    path = sweep_dir / "leaderboard.md"
    return read_text(path) if path.exists() else ""


def _prepare_folders(plan: PlannedSweep, to_run: list[TrialRecord], console: Console) -> None:
    """Make the trials' folders; print which trials are not run."""
    for trial in plan.unfinished():
        if trial not in to_run:
            failure = folder.read_failure(plan.trial_dirs[trial.key]) or {}
            message = f"failed {trial.config.label}: {failure.get('error')}; it would fail the same way again"
            console.print(f"{message}. To retry anyway: --retry-failed", soft_wrap=True)
    for trial in plan.trials:
        folder.take_over(plan.trial_dirs[trial.key], trial)
    for trial in to_run:
        if (checkpoint := trial.config.checkpoint) is not None:
            path = plan.sweep.checkpoints[checkpoint.sha256]
            folder.copy_checkpoint(checkpoint, path, plan.trial_dirs[trial.key] / folder.IMPORTED)


class _SweepListener(Listener):
    """Shows and logs what trials report and how they end.

    log: called with a trial's folder that has something new, and whether it runs.
    """

    def __init__(self, progress: SweepProgress, log: Callable[[Path, bool], None], fail_fast: bool = False):
        self.progress, self.log, self.fail_fast = progress, log, fail_fast

    def on_text(self, text: str) -> None:
        """Print it."""
        self.progress.print_line(text)

    def on_step(self) -> None:
        """Say what runs, if it is time for that."""
        self.progress.tick()

    def on_start(self, item: Item) -> None:
        """Show that a worker is started."""
        self.progress.begin(item.directory.name)

    def on_report(self, item: Item, row: dict[str, Any]) -> None:
        """Show what a trial does, and log the row of an epoch."""
        if not item.directory.is_dir():  # `on_end` reports it
            return
        self.progress.report(item.directory.name, row)
        if names.EPOCH in row:
            self.progress.warn(item.directory.name, training_record.read_training_warnings(item.directory))
        if names.EPOCH in row or names.ACTIVITY in row:
            self.log(item.directory, True)

    def on_end(self, item: Item, error: str | None) -> None:
        """Show and log the result or the failure of a trial."""
        if not item.directory.is_dir():
            self.progress.failed(item.directory.name, f"its folder is gone: {item.directory}")
            return
        result, failure = read_outcome(item.directory, error)
        if result is not None:
            self.progress.finished(item.directory.name, result)
        else:
            self.progress.failed(item.directory.name, failure["error"])
        self.log(item.directory, False)
        if failure and self.fail_fast:
            raise FailedFast


def run_trials(
    trials: dict[Path, TrialRecord],
    options: RayOptions | None,
    data_dir: str | None,
    console: Console,
    log: Callable[[Path, bool], None] = lambda trial_dir, running: None,
    fail_fast: bool = False,
) -> None:
    """Run trials, by their folders, under Ray or, without its options, here. Raises as `run_sweep` does.

    log: as in `_SweepListener`.
    """
    if not trials:
        return
    items = [trial_item(trial, trial.config.label, trial_dir) for trial_dir, trial in trials.items()]
    for item in items:  # else an old failure would be reported as this run's
        (item.directory / folder.FAILURE).unlink(missing_ok=True)
    work = partial(train_item, data_dir=data_dir, code=source_digest())
    sweep_dir = items[0].directory.parents[1]
    with SweepProgress(list(trials.values()), console, TimeLeft.measured_in(sweep_dir)) as progress:
        listener = _SweepListener(progress, log, fail_fast)
        try:
            if options is None:
                progress.print_line(f"device: {device_name(best_device())}")
                run_here(items, work, listener)
            else:
                progress.print_line("connects to Ray" if options.address else "loads Ray and starts it")
                from harness.tune import ray_tune  # here, since a finished sweep needs no Ray

                ray_tune.run_on_ray(items, work, listener, options, sweep_dir)
        except FailedFast:
            progress.print_line("a trial failed: the others are stopped")
        except BaseException:
            for item in items:  # MLflow then says that nobody runs them
                log(item.directory, False)
            raise
