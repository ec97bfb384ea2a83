"""Run the trials of a sweep: under Ray, shown in the terminal, logged to MLflow, with tables at the end."""

import argparse
import errno
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from harness.config.file import ExpandedSweep
from harness.data import load
from harness.leaderboard.files import print_leaderboard, write_leaderboard
from harness.leaderboard.summary import Summary
from harness.leaderboard.table import Leaderboard
from harness.machine.environment import source_digest
from harness.storage import folder
from harness.storage.files import read_text, remove_unfinished
from harness.storage.folder import TrialRecord
from harness.tracking.outages import PatientTracker
from harness.tune.planned_sweep import PlannedSweep
from harness.tune.progress import Callbacks, SweepProgress
from harness.tune.status import print_header
from harness.tune.stopping import Stopping
from harness.tune.workers import RAY_STATE, RayOptions, train_item


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep.

    summaries: of the leaderboard's sections, by their headings. has_changed: the leaderboard is another one than
    before. is_complete: all trials have usable results, and MLflow has them. is_interrupted: a signal stopped trials.
    """

    leaderboard: Leaderboard
    summaries: dict[str, Summary]
    has_changed: bool
    is_complete: bool
    is_interrupted: bool


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
    PatientTracker.open(sweep.name, options.tracking_uri, {}, console)
    return search.run(ray, options.fail_fast)


def run_sweep(plan: PlannedSweep, ray: RayOptions, options: argparse.Namespace, console: Console) -> Outcome:
    """Run the trials that are left, log them and write the tables. The sweep's directory is locked by the caller.

    options: of `harness.run`.

    Raises:
        InputError: a wrong MLflow store.
        KeyboardInterrupt: a second Ctrl-C, or one after SIGTERM.
        RayDiedError: Ray has died.
    """
    print_header(plan, ray.gpu, options.profile, console)
    to_run = plan.longest_first(plan.to_run(options.retry_failed))
    mlflow = PatientTracker.open(plan.sweep.name, options.tracking_uri, plan.row_names(), console)
    _prepare_folders(plan, to_run, console)
    is_interrupted = bool(to_run) and _run(plan, to_run, ray, mlflow, options.fail_fast, console)
    if not folder.trial_folders(plan.sweep_dir):
        raise FileNotFoundError(errno.ENOENT, "the results directory is gone", str(plan.sweep_dir))
    before = _table_text(plan.sweep_dir)
    leaderboard, summaries = write_leaderboard(plan.sweep_dir)
    print_leaderboard(leaderboard, summaries, console)
    mlflow.finish(plan.sweep_dir, leaderboard, plan.unchanged_keys)
    problems = plan.unusable(leaderboard.trials)
    for key, problem in problems.items():
        trial = f"{plan.labels[key]} ({plan.trial_dirs[key]})"
        advice = "put the file back, or remove that folder to train the trial again"
        console.print(f"cannot be used: {trial}: {problem}; {advice}", soft_wrap=True)
    is_complete = not (plan.unfinished() or problems or mlflow.is_away)
    return Outcome(leaderboard, summaries, before != _table_text(plan.sweep_dir), is_complete, is_interrupted)


def _table_text(sweep_dir: Path) -> str:
    path = sweep_dir / "leaderboard.md"
    return read_text(path) if path.exists() else ""


def _prepare_folders(plan: PlannedSweep, to_run: list[TrialRecord], console: Console) -> None:
    """Make the trials' folders and remove what killed runs left; print which trials are not run."""
    for trial in plan.unfinished():
        if trial not in to_run:
            failure = folder.read_failure(plan.trial_dirs[trial.key]) or {}
            message = f"failed {plan.labels[trial.key]}: {failure.get('error')}; it would fail the same way again"
            console.print(f"{message}. To retry anyway: --retry-failed", soft_wrap=True)
    for trial in plan.trials:
        folder.take_over(plan.trial_dirs[trial.key], trial)
    for trial in to_run:
        if (checkpoint := trial.config.checkpoint) is not None:
            path = plan.sweep.checkpoints[checkpoint.sha256]
            folder.copy_checkpoint(checkpoint, path, plan.trial_dirs[trial.key] / folder.IMPORTED)
    shutil.rmtree(plan.sweep_dir / RAY_STATE, ignore_errors=True)  # of a driver that was killed
    for directory in (plan.sweep_dir, plan.sweep_dir / folder.FIGURES):
        remove_unfinished(directory)


def _run(
    plan: PlannedSweep,
    trials: list[TrialRecord],
    options: RayOptions,
    mlflow: PatientTracker,
    fail_fast: bool,
    console: Console,
) -> bool:
    """Run trials side by side; return True if a signal has stopped them. Raises as `run_sweep` does."""
    from harness.tune import ray_tune  # here, since a finished sweep needs no Ray

    trial_dirs = [plan.trial_dirs[trial.key] for trial in trials]
    for trial_dir in trial_dirs:  # else an old failure would be reported as this run's
        (trial_dir / folder.FAILURE).unlink(missing_ok=True)
    work = partial(train_item, data_dir=options.data_dir, code=source_digest())
    with (
        SweepProgress(trials, plan.labels, console) as progress,
        Stopping(plan.sweep_dir / folder.STOP, progress.print_line) as stopping,
    ):
        callbacks = Callbacks(progress, stopping, mlflow.sync, fail_fast)
        try:
            ray_tune.run_on_ray(trial_dirs, work, callbacks.on_report, callbacks.on_end, options, plan.sweep_dir)
        except (KeyboardInterrupt, ray_tune.RayDiedError):
            for trial_dir in trial_dirs:
                mlflow.sync(trial_dir, running=False)
            raise
        return stopping.interrupted
