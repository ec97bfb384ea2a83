"""`python -m harness.trial TRIAL.json`: train and certify one exported trial, without Ray, MLflow or pydantic.

Argparse and not typer here, in harness.run and in harness.tables: typer imports pydantic.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from harness import folder, names
from harness.data import DataError, load
from harness.settings import RECIPE_VERSION, SettingError
from harness.training import run_trial
from harness.training.check import check

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 finished, 1 failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m harness.trial", description=__doc__)
    parser.add_argument("trial", type=Path, help="a file that `python -m harness.run SWEEP.yaml --export DIR` wrote")
    parser.add_argument("--data-dir", help="where data sets lie; default: $CERDEQ_DATA, else ./data")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="default: results")
    options = parser.parse_args(argv)
    try:
        trial = _read(options.trial)
        fingerprint = load(trial.config.dataset, options.data_dir).fingerprint
        if fingerprint != trial.fingerprint:
            raise SettingError("data", fingerprint, f"the data this trial was exported for, {trial.fingerprint}")
        place = folder.place(options.results_dir / trial.config.sweep, trial.key)
        folder.make_directory(place)
        print(f"{trial.config.label} -> {place}", flush=True)
        result = run_trial(trial.config, directory=place, report=_print_epoch, data_dir=options.data_dir)
    except (DataError, SettingError, folder.DamagedFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last epoch", file=sys.stderr)
        return INTERRUPTED
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
    except folder.DamagedFileError as error:
        raise SettingError(
            str(path), str(error), "a file written by `python -m harness.run SWEEP.yaml --export DIR`"
        ) from None
    if trial.recipe_version != RECIPE_VERSION:
        raise SettingError(
            f"{path}: recipe_version", trial.recipe_version, f"{RECIPE_VERSION}, this code's; export it again"
        )
    if trial != folder.make_trial(trial.config, trial.fingerprint):
        raise SettingError(f"{path}: key", trial.key, "the key of its config; the file was changed by hand")
    try:
        check(trial.config)
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


if __name__ == "__main__":
    sys.exit(main())
