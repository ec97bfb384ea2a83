"""`python -m harness.run SWEEP.yaml`: train and certify every trial of a sweep, log them, write the leaderboard."""

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from harness import folder, tables
from harness.config import CPU_PROFILE, ConfigError, Sweep, load_sweep
from harness.data import Data, DataError, data_directory, load
from harness.folder import Trial
from harness.progress import Progress
from harness.settings import FULL_PROFILE, SettingError, labels, parse_eps

# harness.sweep and harness.tracking are imported late: Ray and MLflow take seconds, and bad input is told first.
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_RAY = ".ray"


class BadInputError(ValueError):
    """Something that was asked for cannot be done; nothing was started."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 all well, 1 some trial failed, 2 bad input."""
    options = _parser().parse_args(argv)
    console = Console(highlight=False)
    try:
        return _run(options, console)
    except (ConfigError, DataError, SettingError, folder.DamagedFileError, BadInputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from each trial's last epoch")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.run", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a sweep file, sweeps/*.yaml")
    parser.add_argument(
        "--profile", help="a profile of the sweep file, or 'full'; default: 'cpu' where there is no GPU"
    )
    parser.add_argument("--data-dir", help="where data sets lie; default: $CERDEQ_DATA, else ./data")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="default: results")
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
    return parser


def _run(options: argparse.Namespace, console: Console) -> int:
    sweep = load_sweep(options.sweep, options.profile, _has_gpu(options.ray_address))
    data = load(sweep.dataset, options.data_dir)
    _check_data(sweep, data)
    trials = [folder.make_trial(config, data.fingerprint) for config in sweep.trials]
    if options.export:
        return _export(trials, options.export)
    directory = (options.results_dir / sweep.name).absolute()
    _check_owner(directory, sweep)
    with _locked(directory):
        return _complete(sweep, data, trials, directory, options, console)


def _complete(
    sweep: Sweep, data: Data, trials: list[Trial], directory: Path, options: argparse.Namespace, console: Console
) -> int:
    """Run what lacks a result, then bring MLflow and the tables up to date."""
    for trial in trials:
        place = folder.place(directory, trial.key)
        if place.exists():
            folder.claim(place, trial)
    waiting = _unfinished(trials, directory)
    from harness.tracking import Tracker, TrackingError

    _announce(sweep, data, trials, waiting, options.profile, console)
    try:
        mirror = _Mirror(Tracker.open(sweep.name, options.tracking_uri), trials, console)
    except TrackingError as error:
        raise BadInputError(str(error)) from None
    for trial in trials:
        folder.claim(folder.place(directory, trial.key), trial)
    shutil.rmtree(directory / _RAY, ignore_errors=True)  # what Ray left of a driver that was killed
    if waiting:
        _train(sweep, waiting, directory, options, mirror, console)
    table = tables.write(directory)
    tables.show(table, console)
    mirror.finish(directory)
    return FAILED if _unfinished(trials, directory) or mirror.broken else OK


def _unfinished(trials: list[Trial], directory: Path) -> list[Trial]:
    """The trials without a result. Raises DamagedFileError where a folder has the result of another trial."""
    results = {trial.key: folder.read_result(folder.place(directory, trial.key)) for trial in trials}
    for key, result in results.items():
        if result is not None and result.key != key:
            path = folder.place(directory, key) / folder.RESULT
            raise folder.DamagedFileError(f"{path} belongs to another trial, {result.key}")
    return [trial for trial in trials if results[trial.key] is None]


def _train(
    sweep: Sweep,
    waiting: list[Trial],
    directory: Path,
    options: argparse.Namespace,
    mirror: "_Mirror",
    console: Console,
) -> None:
    from harness.sweep import ResourceError, run_folders

    data_dir = str(data_directory(options.data_dir).absolute())  # workers run elsewhere
    gpu = sweep.resources.gpu if _has_gpu(options.ray_address) else 0
    with Progress(waiting, console) as progress:

        def on_epoch(place: Path, row: dict[str, Any]) -> None:
            progress.epoch(place.name, row)
            mirror.sync(place)

        def on_end(place: Path, error: str | None) -> None:
            result = folder.read_result(place)
            if result is not None:
                progress.finished(place.name, result)
            else:
                why = folder.read_failure(place) or {"error": error or "its worker ended without a result"}
                folder.write_json(place / folder.FAILURE, why)
                progress.failed(place.name, why["error"])
            mirror.sync(place)

        places = [folder.place(directory, trial.key) for trial in waiting]
        for place in places:
            (place / folder.FAILURE).unlink(missing_ok=True)  # an old failure is not this run's
        storage = directory / _RAY
        try:
            run_folders(places, data_dir, sweep.resources.cpu, gpu, storage, on_epoch, on_end, options.ray_address)
        except ResourceError as error:
            raise BadInputError(str(error)) from None


class _Mirror:
    """MLflow beside the running trials. Where it stops answering, it is left alone until the end: folders keep all."""

    def __init__(self, tracker: Any, trials: list[Trial], console: Console):
        self.tracker, self.console, self.broken = tracker, console, False
        named = labels([trial.config for trial in trials])
        self.labels = {trial.key: label for trial, label in zip(trials, named, strict=True)}

    def sync(self, place: Path) -> None:
        """Log what the trial's folder has and MLflow lacks."""
        self._try(lambda: self.tracker.sync(place, self.labels.get(place.name)))

    def finish(self, directory: Path) -> None:
        """Log whatever is missing, imported trials too, attach the tables and say how to look at them."""
        self.broken = False
        for place in folder.trial_folders(directory):
            try:
                self.sync(place)
            except folder.DamagedFileError as error:
                self.console.print(f"[yellow]warning[/] {escape(str(error))}", soft_wrap=True)
        self._try(lambda: self.tracker.sync_tables(directory))
        self._try(lambda: self.console.print(f"\nMLflow:\n{escape(self.tracker.how_to_open())}", soft_wrap=True))

    def _try(self, action: Any) -> None:
        from harness.tracking import TrackingError

        if self.broken:
            return
        try:
            action()
        except TrackingError as error:
            self.broken = True
            self.console.print(
                f"[yellow]warning[/] {escape(str(error))}; results are safe, the same command logs them later"
            )


def _has_gpu(ray_address: str | None) -> bool:
    if ray_address is None:
        return torch.cuda.is_available()
    from harness.sweep import ResourceError, cluster_has_gpu

    try:
        return cluster_has_gpu(ray_address)
    except ResourceError as error:
        raise BadInputError(str(error)) from None


def _check_data(sweep: Sweep, data: Data) -> None:
    """Raise DataError or BadInputError where a trial asks for images that are not there."""
    config = max(sweep.trials, key=lambda trial: trial.train.batch_size)
    training, held_out = data.training_images(config.train_images, config.validation_images)
    if held_out is None:
        data.test_images(config.evaluation.test_images)
    if len(training) < config.train.batch_size:
        raise BadInputError(
            f"train.batch_size: found {config.train.batch_size}, allowed: at most the {len(training)} training images"
        )


def _check_owner(directory: Path, sweep: Sweep) -> None:
    """Raise BadInputError where the directory holds trials of a sweep with another name, data set or eps."""
    mine = (sweep.name, sweep.dataset, parse_eps(sweep.eps))
    for place in folder.trial_folders(directory):
        if folder.is_stale(place):
            continue
        config = folder.read_trial(place / folder.TRIAL).config
        theirs = (config.sweep, config.dataset, parse_eps(config.eps))
        if theirs != mine:
            found, wanted = (f"{name} on {dataset} at eps {eps}" for name, dataset, eps in (theirs, mine))
            raise BadInputError(
                f"{directory} belongs to another sweep: found {found}, this one is {wanted}; rename one of them"
            )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the sweep's directory for this process alone; the lock goes with the process, however it ends."""
    folder.make_directory(directory)
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInputError(f"another run is writing to {directory}") from None
        yield


def _export(trials: list[Trial], target: Path) -> int:
    folder.make_directory(target)
    print(f"profile '{trials[0].config.profile}'", file=sys.stderr)
    for trial in trials:
        config = trial.config
        name = f"{config.model}-{config.method}-seed{config.seed}-{trial.key}.json"
        folder.write_json(target / name, folder.trial_json(trial))
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


if __name__ == "__main__":
    sys.exit(main())
