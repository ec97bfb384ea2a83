"""Train and certify every trial of a sweep, log them to MLflow, write the leaderboard.

The same command goes on after a stop. Finished trials stay as they are; failed ones run again last, unless they would
fail again. Ctrl-C once stops each running trial after its epoch, twice stops at once; both keep what is saved.
"""

import argparse
import errno
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from harness import command_line
from harness.analysis.table_files import print_leaderboard, write_leaderboard
from harness.clock import Stopped
from harness.command_line import FAILED, OK, add_data_dir, add_patterns, add_results_dir, select_by_pattern
from harness.config.sweep_file import Sweep, load_sweep
from harness.config.trial import labels, rows
from harness.data import Data, data_directory, load
from harness.device import best_device
from harness.errors import InputError, require
from harness.launch import plan
from harness.launch.progress import Progress
from harness.launch.shared import SharedResults
from harness.launch.stopping import Stopping
from harness.launch.study import Study
from harness.reports import sweep_page
from harness.storage import folder, names
from harness.storage.files import DamagedFileError, file_name, make_directory, remove_unfinished, write_json
from harness.storage.folder import Trial
from harness.storage.lease import lock_directory
from harness.terminal import new_console
from harness.tracking.mlflow_sync import MlflowSync

# Modules that import Ray are imported late: Ray takes seconds, and wrong input is refused first.
_RAY = ".ray"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("sweep", type=Path, help="a sweep file, sweeps/*.yaml")
    parser.add_argument(
        "--profile", help="a profile of the sweep file, or 'full'; default: 'cpu' where there is no GPU"
    )
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
    add_patterns(parser, "--only", "only trials whose label or key")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="override a key of the sweep file, such as train.epochs=2 or seeds=[0,1], after the profile; repeatable",
    )  # fmt: skip
    dry_run = "show which trials would run and an estimate of the time; starts and writes nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    parser.add_argument(
        "--max-concurrent", type=int, metavar="N", help="run at most N trials at a time; default: all that fit"
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop as by Ctrl-C once a trial has failed")
    parser.add_argument("--retry-failed", action="store_true", help="run again also trials that would fail again")
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="write one file for each trial, for `python -m harness.trial`, and stop",
    )


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        InputError: wrong input; nothing was started.
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    console = new_console()
    _check_options(options)
    sweep = load_sweep(options.sweep, options.profile, _has_gpu(options.ray_address), options.set)
    data = load(sweep.dataset, options.data_dir, writes=not options.dry_run)
    _check_data(sweep, data)
    shared = SharedResults.at(options.results_dir, sweep.name)
    lacks_candidates = False
    if sweep.search is not None:
        require("--results-dir", options.results_dir, shared.uri is None, "a directory, for a sweep with `search`")
        _check_owner(shared.sweep_dir, sweep)
        winners = _search(sweep, data, shared.sweep_dir, options, console)
        if winners is None:
            return OK if options.dry_run else FAILED
        sweep, lacks_candidates = winners
    all_trials = [folder.make_trial(config, data.fingerprint) for config in sweep.trials]
    by_key = dict(zip((trial.key for trial in all_trials), labels(sweep.trials), strict=True))
    trials = _select(all_trials, by_key, options.only)
    if options.export:
        return _export(trials, options.export)
    shared.prepare(writes=not options.dry_run)
    _check_owner(shared.sweep_dir, sweep)
    study = Study(sweep, data, trials, by_key, shared)
    for trial in trials:
        folder.refuse_another(study.trial_dirs[trial.key], trial)
    if options.dry_run:
        plan.print_header(study, _reserved_gpus(sweep, options), options.profile, console)
        plan.show(study, options.retry_failed, options.ray_address, console)
        return OK
    with lock_directory(shared.sweep_dir), shared.lock():
        plan.print_header(study, _reserved_gpus(sweep, options), options.profile, console)
        status = _Run(study, options, console).complete()
    return FAILED if lacks_candidates else status


def _check_options(options: argparse.Namespace) -> None:
    writes_in_dry_run = options.dry_run and options.export
    require("--export", str(options.export), not writes_in_dry_run, "a call without --dry-run, which writes nothing")
    count = options.max_concurrent
    require("--max-concurrent", count, count is None or count > 0, "a whole number from 1")


def _check_data(sweep: Sweep, data: Data) -> None:
    """Raise InputError if a trial asks for images that do not exist."""
    config = max(sweep.trials, key=lambda trial: trial.train.batch_size)
    training, held_out = data.training_images(config.train_images, config.validation_images)
    if held_out is None:
        data.test_images(config.evaluation.test_images)
    batch, available = config.train.batch_size, len(training)
    require("train.batch_size", batch, batch <= available, f"at most the {available} training images")


def _check_owner(sweep_dir: Path, sweep: Sweep) -> None:
    """Raise InputError if the directory holds trials of a sweep with another name, data set or eps."""
    expected = f"{sweep.name} on {sweep.dataset} at eps {sweep.eps}"
    for trial_dir in folder.trial_folders(sweep_dir):
        if folder.is_stale(trial_dir):
            continue
        config = folder.read_trial(trial_dir / folder.TRIAL).config
        owner = f"{config.sweep} on {config.dataset} at eps {config.eps}"
        if owner != expected:
            message = f"{sweep_dir} belongs to another sweep: found {owner}, this one is {expected}"
            raise InputError(f"{message}; rename one of them")


def _search(
    sweep: Sweep, data: Data, sweep_dir: Path, options: argparse.Namespace, console: Console
) -> tuple[Sweep, bool] | None:
    """Search, and return the sweep with the winners as its trials; None without a winner, and for a dry run.

    The second value is True if candidates have failed that the same command would try again.
    """
    from harness.launch import searching

    search = searching.Search(sweep, data, sweep_dir, options, console)
    if options.dry_run:
        search.show()
        search.say("its winners become the trials; a dry run: nothing was started or written")
        return None
    MlflowSync.open(sweep.name, options.tracking_uri, {}, console)  # refuses a wrong store before hours of work
    return search.run(_reserved_gpus(sweep, options))


def _select(trials: list[Trial], by_key: dict[str, str], patterns: list[str]) -> list[Trial]:
    """Return the trials whose label or key matches a pattern; all without patterns."""
    if not patterns:
        return trials
    keys = select_by_pattern("--only", patterns, {key: (label, key) for key, label in by_key.items()})
    return [trial for trial in trials if trial.key in keys]


def _export(trials: list[Trial], directory: Path) -> int:
    make_directory(directory)
    print(f"profile '{trials[0].config.profile}'", file=sys.stderr)
    for trial in trials:
        config = trial.config
        path = directory / file_name(f"{config.model}-{config.method}-seed{config.seed}-{trial.key}.json")
        write_json(path, folder.trial_json(trial))
        print(path)
    return OK


def _has_gpu(ray_address: str | None) -> bool:
    if ray_address is None:
        return best_device().type == "cuda"
    from harness.launch.ray_cluster import cluster_has_gpu

    return cluster_has_gpu(ray_address)


def _reserved_gpus(sweep: Sweep, options: argparse.Namespace) -> float:
    """Return the GPUs that a trial reserves."""
    return sweep.resources.gpu if _has_gpu(options.ray_address) else 0


@dataclass
class _Run:
    """Runs the unfinished trials of a study, and brings MLflow and the tables up to date."""

    study: Study
    options: argparse.Namespace
    console: Console
    begun: set[Path] = field(default_factory=set)

    def complete(self) -> int:
        """Return the exit status. Raises Stopped after one Ctrl-C, KeyboardInterrupt after two."""
        study, sweep_dir = self.study, self.study.sweep_dir
        to_run = study.longest_first(study.to_run(self.options.retry_failed))
        self.report_left_out(to_run)
        row_names = _row_names(sweep_dir, study.trials)
        self.mlflow = MlflowSync.open(study.sweep.name, self.options.tracking_uri, row_names, self.console)
        for trial in study.trials:
            folder.claim(study.trial_dirs[trial.key], trial)
        study.shared.push_trials()
        shutil.rmtree(sweep_dir / _RAY, ignore_errors=True)  # Ray's state of a driver that was killed
        for directory in (sweep_dir, sweep_dir / sweep_page.FIGURES):
            remove_unfinished(directory)
        is_interrupted = self.train(to_run) if to_run else False
        self.write_reports()
        if is_interrupted:
            raise Stopped
        return OK if not study.unfinished() and not self.mlflow.is_away else FAILED

    def report_left_out(self, to_run: list[Trial]) -> None:
        """Print which trials failed before and would fail again."""
        keys = {trial.key for trial in to_run}
        for trial in self.study.unfinished():
            if trial.key not in keys:
                failure = folder.read_failure(self.study.trial_dirs[trial.key]) or {}
                message = f"failed {self.study.labels[trial.key]}: {failure.get('error')}"
                self.console.print(f"{message}; it would fail again: --retry-failed", markup=False, soft_wrap=True)

    def train(self, trials: list[Trial]) -> bool:
        """Run the trials side by side; return True if a signal has stopped them."""
        from harness.launch.ray_tune import run_folders

        study, options = self.study, self.options
        trial_dirs = [study.trial_dirs[trial.key] for trial in trials]
        data_dir = str(data_directory(options.data_dir).absolute())  # workers have another working directory
        study.shared.remove_failures(trial_dirs)  # else an old failure would be reported as this run's
        with (
            Progress(trials, study.labels, self.console) as self.progress,
            Stopping(study.sweep_dir / folder.STOP, self.progress.print_line, study.shared.push_stop) as self.stopping,
        ):
            try:
                run_folders(
                    trial_dirs, data_dir, study.sweep.resources.cpu, _reserved_gpus(study.sweep, options),
                    study.sweep_dir / _RAY, self.on_report, self.on_end, options.ray_address, options.max_concurrent,
                    uri=study.shared.uri,
                )  # fmt: skip
            except KeyboardInterrupt:
                for trial_dir in trial_dirs:
                    self.mlflow.sync(trial_dir, running=False)
                raise
            return self.stopping.interrupted

    def on_report(self, trial_dir: Path, row: dict[str, Any]) -> None:
        """Show and log an epoch's row, or how many images are evaluated."""
        if not trial_dir.is_dir():  # `on_end` reports it
            return
        is_epoch = names.EPOCH in row
        if is_epoch:
            self.progress.epoch(trial_dir.name, row)
        else:
            self.progress.evaluated(trial_dir.name, row[names.JUDGED], row[names.IMAGES])
        if is_epoch or trial_dir not in self.begun:  # a trial that is only evaluated reports no row
            self.study.shared.pull_trial(trial_dir)
            with self.stopping.delayed():
                self.mlflow.sync(trial_dir)
        self.begun.add(trial_dir)

    def on_end(self, trial_dir: Path, error: str | None) -> None:
        """Show and log what came of a trial. error: of its worker, if that died."""
        if not trial_dir.is_dir():
            self.progress.failed(trial_dir.name, f"its folder is gone: {trial_dir}")
            return
        storage_error = self.study.shared.pull_ended_trial(trial_dir)
        error = error or storage_error
        result, failure = folder.read_result(trial_dir), folder.read_failure(trial_dir)
        if result is not None:
            self.progress.finished(trial_dir.name, result)
        elif failure is None and error is None and self.stopping.asked:
            self.progress.stopped(trial_dir.name)
        else:
            if failure is None:  # the worker died before it could write one
                failure = _write_failure(trial_dir, error or "its worker ended without a result")
                self.study.shared.push_failure(trial_dir)
            self.progress.failed(trial_dir.name, failure["error"])
            if self.options.fail_fast:
                self.stopping.ask("a trial failed")
        with self.stopping.delayed():
            self.mlflow.sync(trial_dir, running=False)

    def write_reports(self) -> None:
        """Write the tables and the page, and log them."""
        study, sweep_dir = self.study, self.study.sweep_dir
        if not folder.trial_folders(sweep_dir):
            raise FileNotFoundError(errno.ENOENT, "the results directory is gone", str(sweep_dir))
        table, summaries = write_leaderboard(sweep_dir)
        print_leaderboard(table, summaries, self.console)
        self.mlflow.finish(sweep_dir, table, study.unchanged_keys)
        page = sweep_page.write_page(table, summaries, self.options.data_dir)  # last: figures take seconds
        study.shared.push_tables()
        self.console.print(f"\nAll results on a page:\n{escape(str(page))}", soft_wrap=True)
        if study.shared.uri is not None:
            self.console.print(f"\nAnd at:\n{escape(study.shared.uri)}", soft_wrap=True)


def _write_failure(trial_dir: Path, error: str) -> dict[str, Any]:
    """Return the failure; it is written unless the disk is full."""
    try:
        return folder.write_failure(trial_dir, error)
    except OSError as cause:
        return {"error": f"{error}; not written: {cause}"}


def _row_names(sweep_dir: Path, trials: list[Trial]) -> dict[str, str]:
    """Return the name of each trial's row by its key, for these trials and all others in the directory."""
    configs = {trial.key: trial.config for trial in trials}
    for trial_dir in folder.trial_folders(sweep_dir):
        with suppress(DamagedFileError):  # the leaderboard names it
            configs[trial_dir.name] = folder.read_trial(trial_dir / folder.TRIAL).config
    return dict(zip(configs, rows(list(configs.values())), strict=True))


if __name__ == "__main__":
    raise SystemExit(command_line.main("run"))
