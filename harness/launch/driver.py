"""Train and certify every trial of a sweep, log them, write the leaderboard."""

import argparse
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from harness.analysis import tables
from harness.command_line import FAILED, OK, add_data_dir, add_results_dir
from harness.config.sweep_file import CPU_PROFILE, Sweep, load_sweep
from harness.config.trial import FULL_PROFILE, labels, rows
from harness.data import Data, data_directory, load
from harness.errors import InputError, require
from harness.launch.mlflow_policy import Mirror
from harness.launch.progress import Progress
from harness.reports import report
from harness.storage import folder, names
from harness.storage.files import DamagedFileError, locked, make_directory, write_json
from harness.storage.folder import Trial

# harness.launch.ray_tune is imported late: Ray takes seconds, and bad input is told first.
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
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="write a file a trial for `python -m harness.trial`, and stop"
    )


def main(options: argparse.Namespace) -> int:
    """Returns the exit status: 0 all well, 1 some trial failed. Raises InputError before anything is started."""
    console = Console(highlight=False)
    sweep = load_sweep(options.sweep, options.profile, _has_gpu(options.ray_address))
    data = load(sweep.dataset, options.data_dir)
    _check_data(sweep, data)
    trials = [folder.make_trial(config, data.fingerprint) for config in sweep.trials]
    if options.export:
        return _export(trials, options.export)
    directory = (options.results_dir / sweep.name).absolute()
    _check_owner(directory, sweep)
    with locked(directory):
        return _complete(sweep, data, trials, directory, options, console)


def _complete(
    sweep: Sweep, data: Data, trials: list[Trial], directory: Path, options: argparse.Namespace, console: Console
) -> int:
    """Run what lacks a result, then bring MLflow and the tables up to date."""
    places = {trial.key: folder.place(directory, trial.key) for trial in trials}
    for trial in trials:
        folder.refuse_another(places[trial.key], trial)
    waiting = [trial for trial in trials if folder.read_result(places[trial.key]) is None]
    _announce(sweep, data, trials, waiting, options.profile, console)
    named = dict(zip(places, labels(sweep.trials), strict=True))
    mirror = Mirror(sweep.name, options.tracking_uri, _rows(directory, trials), console)
    for trial in trials:
        folder.claim(places[trial.key], trial)
    shutil.rmtree(directory / _RAY, ignore_errors=True)  # what Ray left of a driver that was killed
    if waiting:
        with Progress(waiting, named, console) as progress:
            _train(sweep, [places[trial.key] for trial in waiting], directory / _RAY, options, mirror, progress)
    table, said = report.write(directory, options.data_dir)
    tables.show(table, said, console)
    console.print(directory / report.REPORT, soft_wrap=True)
    mirror.finish(directory, table, places.keys())
    finished = all(folder.read_result(place) for place in places.values())
    return OK if finished and not mirror.broken else FAILED


def _train(
    sweep: Sweep, places: list[Path], storage: Path, options: argparse.Namespace, mirror: Mirror, progress: Progress
) -> None:
    from harness.launch.ray_tune import run_folders

    data_dir = str(data_directory(options.data_dir).absolute())  # workers run elsewhere
    gpu = sweep.resources.gpu if _has_gpu(options.ray_address) else 0

    def on_report(place: Path, row: dict[str, Any]) -> None:
        if names.EPOCH in row:
            progress.epoch(place.name, row)
            mirror.sync(place)
        else:
            progress.judged(place.name, row[names.JUDGED], row[names.IMAGES])

    def on_end(place: Path, error: str | None) -> None:
        result = folder.read_result(place)
        if result is not None:
            progress.finished(place.name, result)
        else:
            failure = folder.read_failure(place)
            if failure is None:  # the worker died before it could say why
                failure = folder.write_failure(place, error or "its worker ended without a result")
            progress.failed(place.name, failure["error"])
        mirror.sync(place)

    for place in places:
        (place / folder.FAILURE).unlink(missing_ok=True)  # an old failure is not this run's
    run_folders(places, data_dir, sweep.resources.cpu, gpu, storage, on_report, on_end, options.ray_address)


def _rows(directory: Path, trials: list[Trial]) -> dict[str, str]:
    """What the row of each trial is called, by its key: of these, and of whatever else the directory holds."""
    known = {trial.key: trial.config for trial in trials}
    for place in folder.trial_folders(directory):
        with suppress(DamagedFileError):  # which is told at the end
            known[place.name] = folder.read_trial(place / folder.TRIAL).config
    return dict(zip(known, rows(list(known.values())), strict=True))


def _has_gpu(ray_address: str | None) -> bool:
    if ray_address is None:
        return torch.cuda.is_available()
    from harness.launch.ray_tune import cluster_has_gpu

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
        name = f"{config.model}-{config.method}-seed{config.seed}-{trial.key}.json"
        write_json(target / name, folder.trial_json(trial))
        print(target / name)
    return OK


def _announce(
    sweep: Sweep, data: Data, trials: list[Trial], waiting: list[Trial], asked: str | None, console: Console
) -> None:
    """The first lines: what runs, on which data, under which profile."""
    config, finished = sweep.trials[0], len(trials) - len(waiting)
    lines = [
        f"[bold]{sweep.name}[/]: {data.info.title}, eps {sweep.eps}, profile {sweep.profile}; "
        f"{len(trials)} trials, {finished} finished already",
        f"data: {len(data.train):,} training and {len(data.test):,} test images "
        f"from {escape(str(data.directory or 'a package'))}",
    ]
    if sweep.profile == CPU_PROFILE and asked is None:
        lines.append("no GPU here: profile 'cpu' was picked")
    if sweep.profile != FULL_PROFILE:
        widths = ", ".join(f"{width:g}" for width in sorted({trial.width for trial in sweep.trials}))
        epochs = ", ".join(str(count) for count in sorted({trial.train.epochs for trial in sweep.trials}))
        lines.append(
            f"profile '{sweep.profile}': width {widths}, {config.train_images or 'all'} training images, "
            f"{epochs} epochs; its numbers are not comparable with published ones"
        )
    console.print("\n".join(lines), soft_wrap=True)
