"""Train and certify every trial of a sweep, log them to MLflow, write the leaderboard.

After a stop, the same command continues. Finished trials stay as they are; failed ones run again last, unless they
would fail again. Ctrl-C once stops each running trial after its epoch, twice stops at once; both keep what is saved.
"""

import argparse
import errno
import os
import shutil
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_results_dir, add_sweep_options
from harness.common.errors import InputError, require
from harness.common.patterns import select_by_pattern
from harness.common.terminal import new_console
from harness.machine.clock import Stopped
from harness.machine.environment import data_directory, source_digest
from harness.report import up_to_date
from harness.storage import folder
from harness.storage.files import refuse_links, remove_unfinished
from harness.storage.folder import Trial
from harness.storage.lock import lock_directory
from harness.sweep.profiles import Sweep, check_keys, describe_source, name_source
from harness.sweep.trial import labels
from harness.tracking.logged import LOGGED, LoggedMark
from harness.tune import plan
from harness.tune.callbacks import TrialCallbacks
from harness.tune.child import start_call
from harness.tune.progress import SweepProgress
from harness.tune.stopping import Stopping
from harness.tune.study import Study
from harness.tune.work import RAY_STATE, RayOptions, train_item

if TYPE_CHECKING:
    import pandas as pd

    from harness.tracking.mlflow_sync import MlflowSync
    from harness.tune.search import Search

# Wrong input is refused first, so what takes long to import is imported late: MLflow, pandas, Ray, Optuna. Only other
# processes import torch and matplotlib, by `start_call`, unless the sweep has a search or plugins.


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("sweep", type=Path, help="a sweep file, sweeps/*.yaml")
    add_sweep_options(parser)
    add_data_dir(parser)
    add_results_dir(parser)
    parser.add_argument(
        "--tracking-uri", help="MLflow store or server; default: $MLFLOW_TRACKING_URI, else ./mlflow.db"
    )
    parser.add_argument(
        "--ray-address",
        default=os.environ.get("RAY_ADDRESS"),
        help="a running Ray cluster; default: $RAY_ADDRESS, else this machine",
    )
    dry_run = "show which trials would run and an estimate of the time; starts and writes nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    parser.add_argument(
        "--max-concurrent", type=int, metavar="N", help="run at most N trials at a time; default: all that fit"
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop the sweep after the first failed trial")
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="also retry trials whose failure would repeat (loss not finite, contradicting bounds)",
    )


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        InputError: wrong input; nothing was started.
        KeyboardInterrupt: a second Ctrl-C, or one after SIGTERM.
    """
    console, is_dry, count = new_console(), options.dry_run, options.max_concurrent
    require("--max-concurrent", count, count is None or count > 0, "a whole number from 1")
    sweep, data, machine, warnings = _check(options)
    for warning in warnings:
        console.print(f"warning: {warning}", soft_wrap=True)
    _check_resources(sweep, machine, options)
    sweep_dir = (options.results_dir / sweep.name).absolute()
    ray = RayOptions(
        cpu=sweep.resources.cpu,
        gpu=sweep.resources.gpu if machine["GPU"] else 0,
        data_dir=str(data_directory(options.data_dir).absolute()),  # workers have another working directory
        address=options.ray_address,
        at_once=options.max_concurrent,
    )
    lacks_candidates = False
    if sweep.search is not None:
        search = _make_search(sweep, sweep_dir, options, console)
        if is_dry:
            search.show()
            search.say("its winners become the trials; a dry run: nothing was started or written")
            return OK
        winners = search.run(ray, options.fail_fast)
        if winners is None:
            return FAILED
        sweep, lacks_candidates = winners
    all_trials = [folder.make_trial(config, data["fingerprint"]) for config in sweep.trials]
    by_key = dict(zip((trial.key for trial in all_trials), labels(sweep.trials), strict=True))
    trials = _select(all_trials, by_key, options.only)
    _check_owner(sweep_dir, sweep)
    study = Study(sweep, data, trials, by_key, sweep_dir)
    for trial in trials:
        folder.refuse_another(study.trial_dirs[trial.key], trial)
    if is_dry:
        plan.print_header(study, ray.gpu, options.profile, console)
        plan.print_plan(study, options.retry_failed, options.ray_address, console)
        return OK
    is_complete = _run_study(study, ray, options, console)
    return OK if is_complete and not lacks_candidates else FAILED


def _make_search(sweep: Sweep, sweep_dir: Path, options: argparse.Namespace, console: Console) -> "Search":
    """Return the sweep's search. Raises InputError for options that it does not allow, or a wrong MLflow store."""
    require("--only", options.only, not options.only, "a sweep without `search`, whose trials are in its file")
    _check_owner(sweep_dir, sweep)
    from harness.data import load
    from harness.tracking.mlflow_sync import MlflowSync
    from harness.tune.search import Search

    images = load(sweep.dataset, options.data_dir, writes=not options.dry_run)
    search = Search(sweep, images, sweep_dir, console)
    if not options.dry_run:
        MlflowSync.open(sweep.name, options.tracking_uri, {}, console)  # refuses a wrong store before hours of work
    return search


def _run_study(study: Study, ray: RayOptions, options: argparse.Namespace, console: Console) -> bool:
    """Run the trials that are left, log them and write the reports; return True if everything is complete.

    Raises Stopped if a signal has stopped the trials.
    """
    with lock_directory(study.sweep_dir):
        plan.print_header(study, ray.gpu, options.profile, console)
        to_run, mark = study.longest_first(study.to_run(options.retry_failed)), study.mark(options.tracking_uri)
        mlflow = None
        if to_run or mark.read() is None:
            from harness.tracking.mlflow_sync import MlflowSync

            mlflow = MlflowSync.open(study.sweep.name, options.tracking_uri, mark.rows, console)
        _prepare_folders(study, to_run, console)
        is_interrupted = False
        if to_run and mlflow is not None:
            is_interrupted = _run(study, to_run, ray, mlflow, options.fail_fast, console)
        table = _write_reports(study, mlflow, mark, options.data_dir, console)
        is_damaged = _print_unusable(study, table, console)
    if is_interrupted:
        raise Stopped
    is_away = mlflow is not None and mlflow.is_away
    return not (study.unfinished() or is_damaged or is_away)


def _check(options: argparse.Namespace) -> tuple[Sweep, dict[str, Any], dict[str, float], list[str]]:
    """Return the sweep, its data's summary, what the largest machine has, "CPU" and "GPU", and warnings.

    Raises InputError; for wrong keys, before torch is imported, unless a plugin imports it.
    """
    keys, machine = check_keys(options.sweep, options.profile, options.set), None
    if options.ray_address is not None:
        from harness.tune.ray_cluster import resources_at

        machine = resources_at(options.ray_address)
    request = (options.sweep, options.profile, machine, options.set, options.data_dir, not options.dry_run)
    if keys.search or keys.plugins:
        return import_module("harness.tune.checks").check_sweep(*request)
    result = start_call("harness.tune.checks", "check_sweep", *request)
    if not options.dry_run:
        if not (options.results_dir / keys.name / LOGGED).exists():
            import_module("harness.tracking.client")  # import while the child checks
        import_module("harness.leaderboard.files")
    return result()


def _check_resources(sweep: Sweep, machine: dict[str, float], options: argparse.Namespace) -> None:
    """Raise InputError if a trial reserves more than a machine has; GPUs count only where there is one."""
    where = "of this machine" if options.ray_address is None else "of the cluster's largest machine"
    for name, needed in (("CPU", sweep.resources.cpu), ("GPU", sweep.resources.gpu)):
        allowed = f"at most {machine[name]:g}, the {name}s {where}"
        try:
            require(f"resources.{name.lower()}", needed, needed <= machine[name] or machine[name] == 0, allowed)
        except InputError as error:
            raise name_source(error, sweep.profile, describe_source(options.sweep, options.set), "") from None


def _check_owner(sweep_dir: Path, sweep: Sweep) -> None:
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


def _select(trials: list[Trial], by_key: dict[str, str], patterns: list[str]) -> list[Trial]:
    """Return the trials whose label or key matches a pattern; all without patterns."""
    if not patterns:
        return trials
    keys = select_by_pattern("--only", patterns, {key: (label, key) for key, label in by_key.items()})
    return [trial for trial in trials if trial.key in keys]


def _prepare_folders(study: Study, to_run: list[Trial], console: Console) -> None:
    """Make the trials' folders and remove what killed runs left; print which trials are not run."""
    _print_left_out(study, to_run, console)
    for trial in study.trials:
        folder.take_over(study.trial_dirs[trial.key], trial)
    for trial in to_run:
        if (checkpoint := trial.config.checkpoint) is not None:
            path = study.sweep.checkpoints[checkpoint.sha256]
            folder.copy_checkpoint(checkpoint, path, study.trial_dirs[trial.key] / folder.SOURCE)
    shutil.rmtree(study.sweep_dir / RAY_STATE, ignore_errors=True)  # of a driver that was killed
    for directory in (study.sweep_dir, study.sweep_dir / folder.FIGURES):
        remove_unfinished(directory)


def _run(
    study: Study, trials: list[Trial], options: RayOptions, mlflow: "MlflowSync", fail_fast: bool, console: Console
) -> bool:
    """Run trials side by side; return True if a signal has stopped them.

    Raises:
        KeyboardInterrupt: a second Ctrl-C, or one after SIGTERM.
        RayDiedError: Ray has died and cannot be started again.
    """
    from harness.tune.ray_tune import RayDiedError, run_on_ray

    sweep_dir = study.sweep_dir
    trial_dirs = [study.trial_dirs[trial.key] for trial in trials]
    for trial_dir in trial_dirs:  # else an old failure would be reported as this run's
        (trial_dir / folder.FAILURE).unlink(missing_ok=True)
    work = partial(train_item, data_dir=options.data_dir, code=source_digest())
    with (
        SweepProgress(trials, study.labels, console) as progress,
        Stopping(sweep_dir / folder.STOP, progress.print_line) as stopping,
    ):
        callbacks = TrialCallbacks(mlflow, progress, stopping, fail_fast)
        try:
            run_on_ray(trial_dirs, work, callbacks.on_report, callbacks.on_end, options, sweep_dir)
        except (KeyboardInterrupt, RayDiedError):
            for trial_dir in trial_dirs:
                mlflow.sync(trial_dir, running=False)
            raise
        return stopping.interrupted


def _print_left_out(study: Study, to_run: list[Trial], console: Console) -> None:
    """Print which trials failed before and would fail again."""
    for trial in study.unfinished():
        if trial not in to_run:
            failure = folder.read_failure(study.trial_dirs[trial.key]) or {}
            message = f"failed {study.labels[trial.key]}: {failure.get('error')}"
            console.print(
                f"{message}; it would fail the same way again. To retry anyway: --retry-failed",
                soft_wrap=True,
            )


def _write_reports(
    study: Study, mlflow: "MlflowSync | None", mark: LoggedMark, data_dir: str | None, console: Console
) -> "pd.DataFrame":
    """Write the tables and the page, and log them unless MLflow has everything, as the mark says.

    Returns a row for each trial in the directory.
    """
    from harness.leaderboard.files import print_leaderboard, write_leaderboard
    from harness.tracking.mlflow_sync import print_how_to_open

    sweep_dir = study.sweep_dir
    if not folder.trial_folders(sweep_dir):
        raise FileNotFoundError(errno.ENOENT, "the results directory is gone", str(sweep_dir))
    table, summaries = write_leaderboard(sweep_dir)
    print_leaderboard(table, summaries, console)
    if mlflow is None:
        print_how_to_open(str(mark.read()), console)
    elif how_to_open := mlflow.finish(sweep_dir, table, mark.trials):
        mark.write(how_to_open)
    if not up_to_date.is_up_to_date(sweep_dir, data_dir):  # last: figures take seconds
        start_call("harness.report.sweep_page", "write_sweep", sweep_dir, data_dir)()
        up_to_date.mark_up_to_date(sweep_dir, data_dir)
    console.print(f"\nAll results on a page:\n{sweep_dir / folder.REPORT}", soft_wrap=True)
    return table.trials


def _print_unusable(study: Study, table: "pd.DataFrame", console: Console) -> bool:
    """Print which finished trials cannot be used, and why; return True if there are any."""
    problems = study.unusable(table)
    for key, problem in problems.items():
        trial = f"{study.labels[key]} ({study.trial_dirs[key]})"
        advice = "put the file back, or remove that folder to train the trial again"
        console.print(f"cannot be used: {trial}: {problem}; {advice}", soft_wrap=True)
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(command_line.main("run"))
