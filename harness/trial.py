"""Train and certify exported trials, without Ray, MLflow or pydantic: `python -m harness.trial TRIAL.json ...`.

Trials run in order, those that failed before last. Finished trials stay as they are; the others go on from what is
saved. SIGTERM or Ctrl-C stops a trial after its epoch; the same command then goes on.
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
from harness.device import best_device
from harness.environment import device_title
from harness.errors import InputError, SettingError, require
from harness.launch.progress import Bar, Lines
from harness.launch.stopping import signals_call
from harness.masking import mask_secrets
from harness.memory import free_memory
from harness.storage import folder, names
from harness.storage.files import DamagedFileError, make_directory
from harness.training import run_trial

_OUTCOMES = {OK: "finished", FAILED: "failed", BAD_INPUT: "refused", STOPPED: "unfinished"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    files = "files that `python -m harness.run SWEEP.yaml --export DIR` wrote"
    parser.add_argument("trials", type=Path, nargs="+", metavar="TRIAL.json", help=files)
    add_data_dir(parser)
    add_results_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises InputError for wrong input; nothing was started."""
    results_dir = options.results_dir
    require("--results-dir", results_dir, isinstance(results_dir, Path), "a directory; addresses are for harness.run")
    trials = [_load_trial(path) for path in options.trials]
    by_key = dict(zip((trial.key for trial in trials), labels([trial.config for trial in trials]), strict=True))
    trial_dirs = {trial.key: folder.trial_dir(results_dir / trial.config.sweep, trial.key) for trial in trials}
    for trial in trials:
        folder.refuse_another(trial_dirs[trial.key], trial)
    unfinished = [trial for trial in trials if not _print_finished(by_key[trial.key], trial_dirs[trial.key])]
    _check_data(unfinished, options.data_dir)
    if unfinished:
        print(f"device: {device_title(best_device())}", flush=True)
    for trial in unfinished:
        make_directory(trial_dirs[trial.key])
    failed_before = {trial.key for trial in unfinished if folder.read_failure(trial_dirs[trial.key]) is not None}
    statuses = {trial.key: FAILED if trial.key in failed_before else STOPPED for trial in unfinished}
    for trial in sorted(unfinished, key=lambda trial: trial.key in failed_before):
        print(f"{by_key[trial.key]} -> {trial_dirs[trial.key]}", flush=True)
        statuses[trial.key] = _run(trial, trial_dirs[trial.key], options.data_dir)
        free_memory()
        if statuses[trial.key] == STOPPED:
            break
    if len(trials) > 1 or STOPPED in statuses.values():
        _print_summary(by_key, statuses)
    return next((status for status in (STOPPED, FAILED, BAD_INPUT) if status in statuses.values()), OK)


def _run(trial: folder.Trial, trial_dir: Path, data_dir: str | None) -> int:
    """Run a trial, print its result, and return the exit status as if it were the only one."""
    console, epochs, signals = Console(), trial.config.train.epochs, list[str]()

    def stop(signal: str) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(signal)
        print(f"{signal}: stops after this epoch, or batch of evaluation, which is saved; Ctrl-C stops at once")

    clock = Clock(asked=lambda: bool(signals))
    try:
        with _print_log(), signals_call(stop), Bar(epochs, console) if console.is_terminal else Lines() as progress:
            result = run_trial(trial.config, trial_dir, progress.epoch, data_dir, progress.evaluated, clock)
    except Stopped:
        return STOPPED
    except InputError as error:
        print(mask_secrets(f"error: {error}"), file=sys.stderr)
        return BAD_INPUT
    except Exception as error:  # the next trial runs all the same
        print(mask_secrets(f"failed: {type(error).__name__}: {error}"), file=sys.stderr)
        return FAILED
    for name, value in result.metrics.items():
        print(f"{name}: {value if value is None else format(value, '.6g')}")
    for warning in result.warnings:
        print(f"warning: {warning}")
    return OK


class _PrintHandler(logging.Handler):
    """Prints log messages, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        print(record.getMessage(), flush=True)


@contextmanager
def _print_log() -> Iterator[None]:
    """Print what the harness logs within the block."""
    logger, handler = logging.getLogger("harness"), _PrintHandler(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _print_finished(label: str, trial_dir: Path) -> bool:
    """Return True if the trial has a result, and print its error."""
    result = folder.read_result(trial_dir)
    if result is not None:
        name = names.CERTIFIED_ERROR
        print(f"{label} -> {trial_dir}: finished, {name} {result.metrics[name]}", flush=True)
    return result is not None


def _print_summary(by_key: dict[str, str], statuses: dict[str, int]) -> None:
    """Print how many trials finished, and the labels of the others. by_key: all labels."""
    for status, word in _OUTCOMES.items():
        matching = [label for key, label in by_key.items() if statuses.get(key, OK) == status]
        if matching:
            print(f"{len(matching)} of {len(by_key)} {word}" + ("" if status == OK else f": {', '.join(matching)}"))
    if STOPPED in statuses.values():
        print("stopped; the same command goes on from what is saved")


def _check_data(trials: list[folder.Trial], data_dir: str | None) -> None:
    """Raise InputError if data is missing, or not what a trial was exported for."""
    fingerprints = {dataset: load(dataset, data_dir).fingerprint for dataset in {t.config.dataset for t in trials}}
    for trial in trials:
        fingerprint, expected = fingerprints[trial.config.dataset], trial.fingerprint
        require("data", fingerprint, fingerprint == expected, f"the data this trial was exported for, {expected}")


def _load_trial(path: Path) -> folder.Trial:
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
