"""The trials of a sweep's directory, and their certifications by `harness.certify`, as one row each."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.columns import COLUMNS
from harness.config.settings import BAB, EvaluationSettings
from harness.config.trial import TrialConfig, flat_settings, to_dict
from harness.errors import InputError
from harness.storage import certification, folder, names

LABEL = ["model", "method", "options"]
CHOSEN = "chosen by"  # column: how a search chose the row's settings
FAILED, UNFINISHED, NOT_COUNTED = "failed", "unfinished", "not counted"  # states of trials without usable numbers
TWICE = "another folder holds the same trial"
_NO_SETTINGS = ("row", "trial_dir", "certified", "evaluated_by", "result", "seed", "state", "problem", "warnings")


def evaluated_by(config: TrialConfig, certified: bool) -> str:
    """Return the stages and the images, such as 'ibp > bab (60 s), first 1,000 test images'.

    certified: whether it is the evaluation of `harness.certify`.
    """
    settings = config.evaluation
    stages = [f"{stage} ({_budget(settings)})" if stage == BAB else stage for stage in settings.stages]
    limit = settings.test_images
    if config.validation_images:  # a trial evaluates all of them, whatever test_images says
        images = f"{config.validation_images:,} held-out images"
        images = f"first {limit:,} of {images}" if certified and limit else images
    else:
        images = f"first {limit:,} test images" if limit else "all test images"
    return f"{' > '.join(stages)}, {images}"


def _budget(settings: EvaluationSettings) -> str:
    seconds, branches = settings.bab_seconds, settings.bab_branches
    limits = [] if seconds is None else [f"{seconds:g} s"]
    limits += [] if branches is None else [f"{branches:,} branches"]
    return " or ".join(limits)


def problem(state: str, reason: str) -> dict[str, Any]:
    """Return the cells of a trial that has no numbers."""
    return {"state": state, "problem": f"{state}: {reason}"}


def _outcome(path: Path, key: str, epochs: int) -> dict[str, Any]:
    """Return numbers and warnings of a finished trial or certification; of any other the `state` and the `problem`."""
    result, failure = folder.read_result(path), folder.read_failure(path)
    if result is None and failure is not None:
        return problem(FAILED, str(failure.get("error")))
    if result is None:
        return problem(UNFINISHED, _progress(path, epochs))
    if result.key != key:
        return problem(NOT_COUNTED, f"{folder.RESULT} belongs to another trial, {result.key}")
    values = {column.name: column.value(result) for column in COLUMNS}
    numbers = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
    order = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
    errors = [round(numbers[name], 9) for name in order if name in numbers]
    if errors != sorted(errors):
        return problem(NOT_COUNTED, f"standard <= attack <= certified error does not hold: {errors}")
    expected = [column.name for column in COLUMNS if column.is_required or column.name in result.metrics]
    missing = [f"{name} is missing or not finite" for name in expected if name not in numbers]
    return {**numbers, "result": result, "warnings": [*result.warnings, *missing]}


def _progress(path: Path, epochs: int) -> str:
    """Return how far an unfinished trial, or certification, has come."""
    if (path / certification.CERTIFICATION).exists():
        shards = certification.read_certification(path).shards
        return f"{shards - len(certification.missing(path))} of {shards} shards of {path.name}"
    return f"{max((row[names.EPOCH] for row in folder.read_epochs(path)), default=0)} of {epochs} epochs"


def _trial(path: Path, file: str = folder.TRIAL) -> dict[str, Any]:
    """Return one trial as a flat row. Trials with the same `row` differ in their seeds alone.

    file: the file with the config; a certification has its own.
    """
    certified = file == certification.CERTIFICATION
    trial: dict[str, Any] = {"row": path.name, "trial_dir": path, "model": path.name, "warnings": []}
    trial |= {"certified": certified, "evaluated_by": "", "result": None}
    trial |= {"state": None, "problem": None} | {column.name: None for column in COLUMNS if column.is_required}
    try:
        read = (folder.read_certified_trial if certified else folder.read_trial)(path / file)
        trial["evaluated_by"] = evaluated_by(read.config, certified)
        version = {"recipe_version": read.recipe_version, "fingerprint": read.fingerprint}
        config = to_dict(read.config)
        trial["seed"] = config.pop("seed")
        trial["row"] = json.dumps([config, version, trial["evaluated_by"]], sort_keys=True)
        trial |= {"model": config["model"], "method": config["method"]}
        trial["options"] = " ".join(f"{name}={value}" for name, value in read.config.named_options.items())
        flat = flat_settings(read.config) | version
        trial |= {name: str(value) if isinstance(value, list) else value for name, value in flat.items()}
        chosen = folder.read_chosen(certification.trial_of(path) if certified else path)
        trial |= {CHOSEN: chosen["text"]} if chosen else {}
        return trial | _outcome(path, read.key, read.config.train.epochs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return trial | problem(NOT_COUNTED, f"cannot be read: {type(error).__name__}: {error}")


def setting_columns(trials: pd.DataFrame) -> list[str]:
    """Return the columns that are settings, in the config's order; data and recipe version last."""
    others = {*_NO_SETTINGS, *LABEL, CHOSEN, *(column.name for column in COLUMNS)}
    return [name for name in trials if name not in others]


def read_trials(*directories: Path) -> pd.DataFrame:
    """Return a row for each trial of these sweeps and each of its certifications, finished ones first.

    `problem` says why a trial has no usable numbers. `row` is the same for trials that differ in their seeds alone.
    Raises InputError where a directory has no trials, or none can be read.
    """
    trial_dirs = [path for directory in directories for path in _trial_dirs(directory)]
    rows = [_trial(path) for path in trial_dirs]
    certifications = [path for trial_dir in trial_dirs for path in certification.folders(trial_dir)]
    rows += [_trial(path, certification.CERTIFICATION) for path in certifications]
    trials = pd.DataFrame(rows, dtype=object)
    if "profile" not in trials:
        first = trial_dirs[0]
        raise InputError(f"{first.parents[1]} holds no trial that can be read, such as {first}: {trials.problem[0]}")
    trials = trials.sort_values("problem", key=pd.Series.notna, kind="stable")
    twice = problem(NOT_COUNTED, TWICE)
    trials.loc[trials.duplicated(["row", "seed"]), list(twice)] = list(twice.values())
    return trials.astype({column.name: float for column in COLUMNS if column.name in trials})


def _trial_dirs(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory: give a sweep's, such as results/<sweep>")
    if not (trial_dirs := folder.trial_folders(directory)):
        raise InputError(f"{directory} holds no trials: there is no {directory}/trials/*/{folder.TRIAL}")
    return trial_dirs
