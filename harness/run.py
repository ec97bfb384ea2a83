"""Train and certify every trial of a sweep, log them, write the leaderboard.

What is finished is left as it is, what was begun goes on, what failed is tried again last, but for what would fail so
again. Ctrl-C once ends each running trial with its epoch, twice ends all at once; both keep what is done.
"""

import argparse
import errno
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from harness import command_line
from harness.analysis.table_files import print_leaderboard, write_leaderboard
from harness.clock import Stopped
from harness.command_line import FAILED, OK, add_data_dir, add_patterns, add_results_dir, meant
from harness.config.sweep_file import CPU_PROFILE, Sweep, load_sweep
from harness.config.trial import FULL_PROFILE, labels, rows
from harness.data import Data, data_directory, load
from harness.device import best_device
from harness.errors import InputError, require
from harness.launch import plan
from harness.launch.estimate import longest_first
from harness.launch.progress import Progress
from harness.launch.shared import Shared
from harness.launch.stopping import Stopping
from harness.launch.study import Study
from harness.reports import sweep_page
from harness.storage import folder, names
from harness.storage.files import DamagedFileError, file_name, make_directory, remove_unfinished, write_json
from harness.storage.folder import Trial
from harness.storage.lease import locked
from harness.terminal import new_console
from harness.tracking.mlflow_sync import MlflowSync

# What imports Ray is imported late: Ray takes seconds, and bad input is told first.
_RAY = ".ray"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
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
        help="a key of the sweep file, such as train.epochs=2 or seeds=[0,1], over the profile's; may be given again",
    )  # fmt: skip
    what = "say what would be run, how long it may take as far as that is known, and stop; writes nothing"
    parser.add_argument("--dry-run", action="store_true", help=what)
    parser.add_argument(
        "--max-concurrent", type=int, metavar="N", help="no more trials than that at a time; default: all that fit"
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop as by Ctrl-C once a trial has failed")
    parser.add_argument("--retry-failed", action="store_true", help="try again what would fail so again, too")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="write a file a trial for `python -m harness.trial`, and stop"
    )


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError before anything is started, KeyboardInterrupt after Ctrl-C."""
    console = new_console()
    both = options.dry_run and options.export
    require("--export", str(options.export), not both, "a call without --dry-run, which writes nothing")
    most = options.max_concurrent
    require("--max-concurrent", most, most is None or most > 0, "a whole number from 1")
    sweep = load_sweep(options.sweep, options.profile, _has_gpu(options.ray_address), options.set)
    data = load(sweep.dataset, options.data_dir, writes=not options.dry_run)
    _check_data(sweep, data)
    shared = Shared.of(options.results_dir, sweep.name)
    directory, lacks = shared.directory, False
    if sweep.search is not None:
        given = options.results_dir
        require("--results-dir", given, shared.uri is None, "a directory, for a sweep with `search`")
        _check_owner(directory, sweep)
        found = _searched(sweep, data, directory, options, console)
        if found is None:
            return OK if options.dry_run else FAILED
        sweep, lacks = found
    trials = [folder.make_trial(config, data.fingerprint) for config in sweep.trials]
    named = dict(zip((trial.key for trial in trials), labels(sweep.trials), strict=True))
    only = meant("--only", options.only, {key: (label, key) for key, label in named.items()}) if options.only else named
    chosen = [trial for trial in trials if trial.key in only]
    if options.export:
        return _export(chosen, options.export)
    shared.begin(writes=not options.dry_run)
    _check_owner(directory, sweep)
    places = {trial.key: folder.place(directory, trial.key) for trial in chosen}
    for trial in chosen:
        folder.refuse_another(places[trial.key], trial)
    study = Study(sweep, data, chosen, named, shared, places)
    if options.dry_run:
        _announce(study, study.waiting(), options, console)
        plan.show(study, options.retry_failed, options.ray_address, console)
        return OK
    with locked(directory), shared.held():
        ended = _complete(study, options, console)
    return FAILED if lacks else ended


def _searched(
    sweep: Sweep, data: Data, directory: Path, options: argparse.Namespace, console: Console
) -> tuple[Sweep, bool] | None:
    """The sweep with the trials that its search has found, and whether that lacks candidates which failed and may yet
    be trained; None where it found nothing, and of a dry run."""
    from harness.launch import searching

    search = searching.Search(sweep, data, directory, options, console)
    if options.dry_run:
        search.show()
        search.say("its winners become the trials; a dry run: nothing was started or written")
        return None
    MlflowSync.open(sweep.name, options.tracking_uri, {}, console)  # refuses a wrong store before hours of work
    return search.run(_gpu(sweep, options))


def _gpu(sweep: Sweep, options: argparse.Namespace) -> float:
    """What a trial reserves of GPUs."""
    return sweep.resources.gpu if _has_gpu(options.ray_address) else 0


def _complete(study: Study, options: argparse.Namespace, console: Console) -> int:
    """Run what lacks a result, then bring MLflow and the tables up to date."""
    sweep, directory, places = study.sweep, study.directory, study.places
    waiting = study.waiting()
    _announce(study, waiting, options, console)
    tried = longest_first(study, study.tried(options.retry_failed))
    meant = {trial.key for trial in tried}
    for trial in waiting:
        if trial.key not in meant:
            reason = (folder.read_failure(places[trial.key]) or {}).get("error")
            told = f"failed {study.named[trial.key]}: {reason}; it would again: --retry-failed tries"
            console.print(told, markup=False, soft_wrap=True)
    mirror = MlflowSync.open(sweep.name, options.tracking_uri, _rows(directory, study.trials), console)
    for trial in study.trials:
        folder.claim(places[trial.key], trial)
    study.shared.give_trials()
    shutil.rmtree(directory / _RAY, ignore_errors=True)  # what a driver that was killed left
    for place in (directory, directory / sweep_page.FIGURES):
        remove_unfinished(place)
    interrupted = False
    if tried:
        with (
            Progress(tried, study.named, console) as progress,
            Stopping(directory / folder.STOP, progress.say, study.shared.pass_on_stop) as stop,
        ):
            try:
                _train(study, tried, options, mirror, progress, stop)
            except KeyboardInterrupt:
                for trial in tried:
                    mirror.sync(places[trial.key], running=False)
                raise
            interrupted = stop.interrupted
    if not folder.trial_folders(directory):
        raise FileNotFoundError(errno.ENOENT, "the results directory is gone", str(directory))
    table, summaries = write_leaderboard(directory)
    print_leaderboard(table, summaries, console)
    mirror.finish(directory, table, study.file_s)
    page = sweep_page.write_page(table, summaries, options.data_dir)  # last: figures take seconds
    study.shared.give_tables()
    console.print(f"\nAll of it on a page:\n{escape(str(page))}", soft_wrap=True)
    if study.shared.uri is not None:
        console.print(f"\nAnd at:\n{escape(study.shared.uri)}", soft_wrap=True)
    if interrupted:
        raise Stopped
    return OK if not study.waiting() and not mirror.is_away else FAILED


def _train(
    study: Study,
    trials: list[Trial],
    options: argparse.Namespace,
    mirror: MlflowSync,
    progress: Progress,
    stop: Stopping,
) -> None:
    from harness.launch.ray_tune import run_folders

    places = [study.places[trial.key] for trial in trials]
    begun = set[Path]()
    data_dir = str(data_directory(options.data_dir).absolute())  # workers run elsewhere
    cpu, gpu, storage = study.sweep.resources.cpu, _gpu(study.sweep, options), study.directory / _RAY

    def on_report(place: Path, row: dict[str, Any]) -> None:
        if not place.is_dir():  # gone: told at its end
            return
        if names.EPOCH in row:
            progress.epoch(place.name, row)
        else:
            progress.judged(place.name, row[names.JUDGED], row[names.IMAGES])
        if names.EPOCH in row or place not in begun:  # one that is only judged has no row to come
            study.shared.fetch(place)
            with stop.whole():
                mirror.sync(place)
        begun.add(place)

    def on_end(place: Path, error: str | None) -> None:
        if not place.is_dir():
            progress.failed(place.name, f"its folder is gone: {place}")
            return
        away = study.shared.fetch_last(place)
        result, failure = folder.read_result(place), folder.read_failure(place)
        if result is not None:
            progress.finished(place.name, result)
        elif failure is None and error is None and away is None and stop.asked:
            progress.stopped(place.name)
        else:
            if failure is None:  # the worker died before it could say why
                failure = _written_failure(place, error or away or "its worker ended without a result")
                study.shared.give_failure(place)
            progress.failed(place.name, failure["error"])
            if options.fail_fast:
                stop.ask("a trial failed")
        with stop.whole():
            mirror.sync(place, running=False)

    study.shared.forget_failures(places)  # an old failure is not this run's
    run_folders(
        places, data_dir, cpu, gpu, storage, on_report, on_end, options.ray_address, options.max_concurrent,
        uri=study.shared.uri,
    )  # fmt: skip


def _written_failure(place: Path, error: str) -> dict[str, Any]:
    """The failure, written where that can be done: a full disk takes nothing."""
    try:
        return folder.write_failure(place, error)
    except OSError as unwritten:
        return {"error": f"{error}; not written: {unwritten}"}


def _rows(directory: Path, trials: list[Trial]) -> dict[str, str]:
    """What the row of each trial is called, by its key: of these, and of whatever else the directory holds."""
    known = {trial.key: trial.config for trial in trials}
    for place in folder.trial_folders(directory):
        with suppress(DamagedFileError):  # which is told at the end
            known[place.name] = folder.read_trial(place / folder.TRIAL).config
    return dict(zip(known, rows(list(known.values())), strict=True))


def _has_gpu(ray_address: str | None) -> bool:
    if ray_address is None:
        return best_device().type == "cuda"
    from harness.launch.ray_cluster import cluster_has_gpu

    return cluster_has_gpu(ray_address)


def _check_data(sweep: Sweep, data: Data) -> None:
    """Raise InputError where a trial asks for images that are not there."""
    config = max(sweep.trials, key=lambda trial: trial.train.batch_size)
    training, held_out = data.training_images(config.train_images, config.validation_images)
    if held_out is None:
        data.test_images(config.evaluation.test_images)
    batch, available = config.train.batch_size, len(training)
    require("train.batch_size", batch, batch <= available, f"at most the {available} training images")


def _check_owner(directory: Path, sweep: Sweep) -> None:
    """Raise InputError where the directory holds trials of a sweep with another name, data set or eps."""
    mine = f"{sweep.name} on {sweep.dataset} at eps {sweep.eps}"
    for place in folder.trial_folders(directory):
        if folder.is_stale(place):
            continue
        config = folder.read_trial(place / folder.TRIAL).config
        found = f"{config.sweep} on {config.dataset} at eps {config.eps}"
        if found != mine:
            raise InputError(
                f"{directory} belongs to another sweep: found {found}, this one is {mine}; rename one of them"
            )


def _export(trials: list[Trial], target: Path) -> int:
    make_directory(target)
    print(f"profile '{trials[0].config.profile}'", file=sys.stderr)
    for trial in trials:
        config = trial.config
        name = file_name(f"{config.model}-{config.method}-seed{config.seed}-{trial.key}.json")
        write_json(target / name, folder.trial_json(trial))
        print(target / name)
    return OK


def _announce(study: Study, waiting: list[Trial], options: argparse.Namespace, console: Console) -> None:
    """The first lines: what runs, on which data, under which profile."""
    sweep, data = study.sweep, study.data
    config, trials = sweep.trials[0], study.trials
    left_out = f" of {len(sweep.trials)}" if len(trials) < len(sweep.trials) else ""
    lines = [
        f"[bold]{sweep.name}[/]: {data.info.title}, eps {sweep.eps}, profile {escape(sweep.profile)}; "
        f"{len(trials)}{left_out} trials, {len(trials) - len(waiting)} finished already",
        f"data: {len(data.train):,} training and {len(data.test):,} test images "
        f"from {escape(str(data.directory or 'a package'))}",
    ]
    if sweep.profile == CPU_PROFILE and options.profile is None:
        lines.append("no GPU here: profile 'cpu' was picked")
    elif sweep.resources.gpu and not _gpu(sweep, options):
        lines.append("no GPU here: trials train on the CPU")
    if sweep.profile != FULL_PROFILE:
        widths = ", ".join(f"{width:g}" for width in sorted({trial.width for trial in sweep.trials}))
        epochs = ", ".join(str(count) for count in sorted({trial.train.epochs for trial in sweep.trials}))
        lines.append(
            f"profile '{escape(sweep.profile)}': width {widths}, {config.train_images or 'all'} training images, "
            f"{epochs} epochs; its numbers are not comparable with published ones"
        )
    if other := [trial for trial in trials if trial.key not in study.file_s]:
        lines.append(
            f"{len(other)} trials are not the file's: their profile, in tables too, is "
            f"'{escape(other[0].config.profile)}'; their numbers are not comparable with published ones"
        )
    console.print("\n".join(lines), soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(command_line.main("run"))
