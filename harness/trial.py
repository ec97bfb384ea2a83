"""`python -m harness.trial TRIAL.json ...`: train and certify exported trials, without Ray, MLflow or pydantic.

They are worked through in order, those that failed before last. One that is finished is left as it is, one that was
begun goes on from what is saved of it. SIGTERM, or Ctrl-C, ends it with the epoch; the same command then goes on.
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from harness import command_line
from harness.clock import Clock, Stopped
from harness.command_line import BAD_INPUT, FAILED, OK, STOPPED, add_data_dir, add_results_dir
from harness.config.buildable import check_buildable
from harness.config.plugins import load_for
from harness.config.trial import RECIPE_VERSION, labels
from harness.data import load
from harness.errors import InputError, SettingError, require
from harness.launch.stopping import signals_call
from harness.launch.watched import Bar, Lines
from harness.masking import masked
from harness.memory import free_memory
from harness.storage import folder, names
from harness.storage.files import DamagedFileError, make_directory
from harness.training import run_trial

WORDS = {OK: "finished", FAILED: "failed", BAD_INPUT: "cannot be had", STOPPED: "left"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    files = "files that `python -m harness.run SWEEP.yaml --export DIR` wrote"
    parser.add_argument("trials", type=Path, nargs="+", metavar="TRIAL.json", help=files)
    add_data_dir(parser)
    add_results_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError before anything is started."""
    place = options.results_dir
    require("--results-dir", place, isinstance(place, Path), "a directory; addresses are for harness.run")
    trials = [_read(path) for path in options.trials]
    named = dict(zip((trial.key for trial in trials), labels([trial.config for trial in trials]), strict=True))
    places = {trial.key: folder.place(options.results_dir / trial.config.sweep, trial.key) for trial in trials}
    for trial in trials:
        folder.refuse_another(places[trial.key], trial)
    waiting = [trial for trial in trials if not _finished(named[trial.key], places[trial.key])]
    _check_data(waiting, options.data_dir)
    for trial in waiting:
        make_directory(places[trial.key])
    failed_before = {trial.key for trial in waiting if folder.read_failure(places[trial.key]) is not None}
    ends = {trial.key: FAILED if trial.key in failed_before else STOPPED for trial in waiting}
    for trial in sorted(waiting, key=lambda trial: trial.key in failed_before):
        print(f"{named[trial.key]} -> {places[trial.key]}", flush=True)
        ends[trial.key] = _run(trial, places[trial.key], options.data_dir)
        free_memory()
        if ends[trial.key] == STOPPED:
            break
    if len(trials) > 1 or STOPPED in ends.values():
        _print_summary(named, ends)
    return next((status for status in (STOPPED, FAILED, BAD_INPUT) if status in ends.values()), OK)


def _run(trial: folder.Trial, place: Path, data_dir: str | None) -> int:
    """Run a trial and say what came of it; the exit status if it were the only one."""
    console, epochs, asked = Console(), trial.config.train.epochs, list[str]()

    def stop(signal: str) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signal)
        print(f"{signal}: stops after this epoch, or batch of evaluation, which is saved; Ctrl-C stops at once")

    clock = Clock(asked=lambda: bool(asked))
    try:
        with _said(), signals_call(stop), Bar(epochs, console) if console.is_terminal else Lines() as watched:
            result = run_trial(trial.config, place, watched.epoch, data_dir, watched.judged, clock)
    except Stopped:
        return STOPPED
    except InputError as error:
        print(masked(f"error: {error}"), file=sys.stderr)
        return BAD_INPUT
    except Exception as error:  # others are still to be tried
        print(masked(f"failed: {type(error).__name__}: {error}"), file=sys.stderr)
        return FAILED
    for name, value in result.metrics.items():
        print(f"{name}: {value if value is None else format(value, '.6g')}")
    for warning in result.warnings:
        print(f"warning: {warning}")
    return OK


class _Printed(logging.Handler):
    """Prints what the harness has to say, above a bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        print(record.getMessage(), flush=True)


@contextmanager
def _said() -> Iterator[None]:
    """Within, what the harness logs is printed."""
    logger, handler, level = logging.getLogger("harness"), _Printed(logging.INFO), logging.getLogger("harness").level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _finished(label: str, place: Path) -> bool:
    """Whether the trial has its result; then it is said."""
    result = folder.read_result(place)
    if result is not None:
        name = names.CERTIFIED_ERROR
        print(f"{label} -> {place}: finished, {name} {result.metrics[name]}", flush=True)
    return result is not None


def _print_summary(named: dict[str, str], ends: dict[str, int]) -> None:
    """What became of every trial, by its key, and of which those that are not finished."""
    for status, word in WORDS.items():
        those = [label for key, label in named.items() if ends.get(key, OK) == status]
        if those:
            print(f"{len(those)} of {len(named)} {word}" + ("" if status == OK else f": {', '.join(those)}"))
    if STOPPED in ends.values():
        print("stopped; the same command goes on from what is saved")


def _check_data(trials: list[folder.Trial], data_dir: str | None) -> None:
    """Raise InputError where the data is not there or not what a trial was exported for."""
    fingerprints = {dataset: load(dataset, data_dir).fingerprint for dataset in {t.config.dataset for t in trials}}
    for trial in trials:
        found, expected = fingerprints[trial.config.dataset], trial.fingerprint
        require("data", found, found == expected, f"the data this trial was exported for, {expected}")


def _read(path: Path) -> folder.Trial:
    try:
        trial = folder.read_trial(path)
    except DamagedFileError as error:
        raise SettingError(str(path), str(error), "a file that `harness.run SWEEP.yaml --export DIR` wrote") from None
    version = trial.recipe_version
    require(f"{path}: recipe_version", version, version == RECIPE_VERSION, f"{RECIPE_VERSION}; export it again")
    try:
        load_for(trial.config)
        check_buildable(trial.config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (TypeError, ValueError) as error:
        raise SettingError(f"{path}: config", trial.config.label, f"what this code has: {error}") from None
    return trial


if __name__ == "__main__":
    raise SystemExit(command_line.main("trial"))
