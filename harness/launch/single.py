"""`python -m harness.trial TRIAL.json`: train and certify one exported trial, without Ray, MLflow or pydantic."""

import argparse
import sys
from pathlib import Path
from typing import Any

from harness.command_line import FAILED, OK, add_data_dir, add_results_dir
from harness.config.buildable import check_buildable
from harness.config.trial import RECIPE_VERSION
from harness.data import load
from harness.errors import SettingError, require
from harness.storage import folder, names
from harness.storage.files import DamagedFileError, make_directory
from harness.training import run_trial


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("trial", type=Path, help="a file that `python -m harness.run SWEEP.yaml --export DIR` wrote")
    add_data_dir(parser)
    add_results_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status: 0 finished, 1 failed. Raises InputError."""
    trial = _read(options.trial)
    fingerprint, expected = load(trial.config.dataset, options.data_dir).fingerprint, trial.fingerprint
    require("data", fingerprint, fingerprint == expected, f"the data this trial was exported for, {expected}")
    place = folder.place(options.results_dir / trial.config.sweep, trial.key)
    make_directory(place)
    print(f"{trial.config.label} -> {place}", flush=True)
    try:
        result = run_trial(trial.config, directory=place, report=_print_epoch, data_dir=options.data_dir)
    except (OSError, RuntimeError, AssertionError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return FAILED
    for name, value in result.metrics.items():
        print(f"{name}: {value}")
    for warning in result.warnings:
        print(f"warning: {warning}")
    return OK


def _read(path: Path) -> folder.Trial:
    try:
        trial = folder.read_trial(path)
    except DamagedFileError as error:
        raise SettingError(str(path), str(error), "a file that `harness.run SWEEP.yaml --export DIR` wrote") from None
    version, made = trial.recipe_version, folder.make_trial(trial.config, trial.fingerprint)
    require(f"{path}: recipe_version", version, version == RECIPE_VERSION, f"{RECIPE_VERSION}; export it again")
    require(f"{path}: key", trial.key, trial == made, "the key of its config; the file was changed by hand")
    try:
        check_buildable(trial.config)
    except (TypeError, ValueError) as error:
        raise SettingError(f"{path}: config", trial.config.label, f"what this code has: {error}") from None
    return trial


def _print_epoch(row: dict[str, Any]) -> None:
    width = names.in_training(names.BOUND_WIDTH)
    figures = (names.TRAIN_EPS, names.TRAIN_LOSS, names.TRAIN_CERTIFIED_ERROR, width, names.TRAIN_EXAMPLES_PER_SECOND)
    print(
        f"epoch {row[names.EPOCH]}: "
        + ", ".join(f"{name} {row[name]:.5g}" for name in figures if row.get(name) is not None),
        flush=True,
    )
