"""The trials of a sweep's directory, and their certifications by `harness.certify`, as one row each."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.common.errors import InputError
from harness.common.terminal import printable_lines
from harness.config.trial import Trial
from harness.leaderboard.columns import COLUMNS, REPORTED, SECONDS_PER_IMAGE
from harness.pretrained.network_file import Source
from harness.settings import Evaluation
from harness.storage import certification, folder, study_tables
from harness.storage.certification import is_certification
from harness.storage.state import State, TrialState, read_state

LABEL = ["model", "method", "options"]
CHOSEN = "chosen by"  # column: how a search chose the row's settings
NOT_COUNTED = "not counted"
"""The state here of a trial that is OLDER or DAMAGED, or whose numbers cannot be right."""
_NO_SETTINGS = (
    "row",
    "state",
    "trial_dir",
    "is_certification",
    "is_own_data",
    "evaluated_by",
    "result",
    "seed",
    "problem",
    "warnings",
    *REPORTED,
)


def describe_evaluation(config: Trial, is_certification: bool) -> str:
    """Return stages, images and command, such as 'ibp > bab (60 s), first 1,000 test images, by harness.certify'.

    is_certification: whether it is the evaluation of `harness.certify`.
    """
    settings = config.evaluation
    stages = [f"{stage} ({_budget(settings)})" if stage == names.BAB else stage for stage in settings.stages]
    limit = settings.test_images
    if config.validation_images:  # a trial evaluates all of them, whatever test_images says
        images = f"{config.validation_images:,} held-out images"
        images = f"first {limit:,} of {images}" if is_certification and limit else images
    else:
        images = f"first {limit:,} test images" if limit else "all test images"
    return ", ".join([" > ".join(stages), images, *(["by harness.certify"] if is_certification else [])])


def _budget(settings: Evaluation) -> str:
    seconds, branches, of_trial = settings.bab_seconds, settings.bab_branches, settings.bab_trial_seconds
    limits = [] if seconds is None else [f"{seconds:g} s"]
    limits += [] if branches is None else [f"{branches:,} branches"]
    return ", ".join([" or ".join(limits), *([] if of_trial is None else [f"{of_trial:g} s in all"])])


def read_trials(*directories: Path) -> pd.DataFrame:
    """Return a row for each trial of these sweeps and each of its certifications, finished ones first.

    `state` is a `State` or NOT_COUNTED; `problem` says why a trial has no usable numbers. `row` is the same for trials
    that differ in their seeds alone.
    Raises InputError where a directory has no trials, or none can be read.
    """
    trial_dirs = [path for directory in directories for path in _trial_dirs(directory)]
    certifications = [path for trial_dir in trial_dirs for path in certification.folders(trial_dir)]
    states = {path: read_state(path) for path in (*trial_dirs, *certifications)}
    for directory in directories:
        states |= study_tables.read_stored_trials(directory)
    trials = pd.DataFrame([_row(path, states[path]) for path in sorted(states, key=is_certification)], dtype=object)
    if "profile" not in trials:
        first = trial_dirs[0]
        raise InputError(f"{first.parents[1]} holds no trial that can be read, such as {first}: {trials.problem[0]}")
    trials = trials.sort_values("problem", key=pd.Series.notna, kind="stable")
    twice = list(_not_counted("another folder has the same trial").values())
    trials.loc[trials.duplicated(["row", "seed"]), ["state", "problem"]] = twice
    return trials.astype({column.name: float for column in COLUMNS if column.name in trials})


def _trial_dirs(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory: give a sweep's, such as results/<sweep>")
    if not (trial_dirs := folder.trial_folders(directory)) and not (directory / study_tables.TRIALS).exists():
        raise InputError(f"{directory} holds no trials: there is no {directory}/trials/*/{folder.TRIAL}")
    return trial_dirs


def _row(path: Path, state: TrialState) -> dict[str, Any]:
    """Return a trial or certification as a flat row, its texts without control characters."""
    row: dict[str, Any] = {"row": path.name, "trial_dir": path, "model": path.name, "warnings": []}
    row |= {"is_certification": is_certification(path), "evaluated_by": "", "result": None}
    row |= {column.name: None for column in COLUMNS if column.is_required}
    if state.trial is not None:
        row |= _settings(state.trial, describe_evaluation(state.trial.config, row["is_certification"]))
    if state.chosen is not None:
        row[CHOSEN] = state.chosen.text
    row |= _problem(state)
    if state.state is State.FINISHED and state.result is not None:
        row |= _numbers(state.result)
    row |= {name: printable_lines(value) for name, value in row.items() if isinstance(value, str)}
    return row | {"warnings": [printable_lines(warning) for warning in row["warnings"]]}


def _settings(trial: folder.TrialRecord, evaluation: str) -> dict[str, Any]:
    config = trial.config
    version = {"recipe_version": trial.recipe_version, "fingerprint": trial.fingerprint}
    flat = config.settings | version
    return {
        "row": json.dumps([config.identity, version, evaluation], sort_keys=True),
        "evaluated_by": evaluation,
        "is_own_data": config.own_data is not None,
        "seed": config.seed,
        "model": config.model,
        "method": config.method,
        "options": config.options_text,
        **{name: str(value) if isinstance(value, list) else value for name, value in flat.items()},
        **_source_columns(config.source),
    }


def _source_columns(source: Source | None) -> dict[str, Any]:
    """Return what stands beside a network trained elsewhere; nothing for other networks."""
    if source is None:
        return {}
    accuracies = source.certified_accuracy, source.clean_accuracy
    errors = [None if accuracy is None else round(100 - accuracy, 6) for accuracy in accuracies]
    return dict(zip(REPORTED, [*errors, f"{source.method}, {source.paper}"], strict=True))


def _problem(state: TrialState) -> dict[str, Any]:
    """Return the columns of a trial's state: what tables show of it is its problem, unless it is finished."""
    if state.state is State.FINISHED:
        return {"state": State.FINISHED, "problem": None}
    if state.state in (State.OLDER, State.DAMAGED):
        return _not_counted(state.text)
    return {"state": state.state, "problem": state.text}


def _not_counted(why: str) -> dict[str, Any]:
    return {"state": NOT_COUNTED, "problem": f"{NOT_COUNTED}: {why}"}


def _numbers(result: folder.TrialResult) -> dict[str, Any]:
    numbers = _finite_numbers(result)
    order = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
    errors = [round(numbers[name], 9) for name in order if name in numbers]
    if errors != sorted(errors):
        return _not_counted(f"standard <= attack <= certified error does not hold: {errors}")
    expected = [column.name for column in COLUMNS if column.is_required or column.name in result.metrics]
    missing = [f"{name} is missing or not finite" for name in expected if name not in numbers]
    return {**numbers, "result": result, "warnings": [*result.warnings, *missing]}


def _finite_numbers(result: folder.TrialResult) -> dict[str, float]:
    """Return the finite numbers of a trial for COLUMNS, by their names."""
    metrics = dict(result.metrics)
    seconds, images = metrics.get(names.EVALUATION_SECONDS), metrics.get(names.examples_at(names.CLEAN))
    if seconds is not None and images:
        metrics[SECONDS_PER_IMAGE] = seconds / images
    values = {column.name: metrics.get(column.name) for column in COLUMNS}
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def setting_columns(trials: pd.DataFrame) -> list[str]:
    """Return the columns that are settings, but for the width, in the config's order; data and recipe version last."""
    others = {*_NO_SETTINGS, *LABEL, "width", CHOSEN, *(column.name for column in COLUMNS)}
    return [name for name in trials if name not in others]
