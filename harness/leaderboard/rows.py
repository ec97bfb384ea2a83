"""The trials of a sweep's directory, and their certifications by `harness.certify`, as one row each."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.common.errors import InputError
from harness.common.terminal import printable_lines
from harness.config.trial import RECIPE_VERSION, Trial
from harness.leaderboard.columns import COLUMNS, REPORTED, numbers_of
from harness.pretrained.checkpoint import Source
from harness.settings import Evaluation
from harness.storage import certification, folder, ranges, study_tables, training_record

LABEL = ["model", "method", "options"]
CHOSEN = "chosen by"  # column: how a search chose the row's settings
FINISHED, FAILED, UNFINISHED, NOT_BEGUN = "finished", "failed", "unfinished", "not begun"
NOT_COUNTED = "not counted"
"""States of a trial; the last one is that of a trial whose files cannot be right, or of another recipe version."""
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

    `state` is one of those above; `problem` says why a trial has no usable numbers. `row` is the same for trials that
    differ in their seeds alone.
    Raises InputError where a directory has no trials, or none can be read.
    """
    trial_dirs = [path for directory in directories for path in _trial_dirs(directory)]
    rows = [_read(path, path / folder.TRIAL) for path in trial_dirs]
    certifications = [path for trial_dir in trial_dirs for path in certification.folders(trial_dir)]
    rows += [_read(path, path / certification.CERTIFICATION) for path in certifications]
    stored = [row for directory in directories for row in study_tables.read_stored_trials(directory)]
    rows += [_printable(_stored(row)) for row in sorted(stored, key=lambda row: row.is_certification)]
    trials = pd.DataFrame(rows, dtype=object)
    if "profile" not in trials:
        first = trial_dirs[0]
        raise InputError(f"{first.parents[1]} holds no trial that can be read, such as {first}: {trials.problem[0]}")
    trials = trials.sort_values("problem", key=pd.Series.notna, kind="stable")
    twice = list(_problem(NOT_COUNTED, "another folder has the same trial").values())
    trials.loc[trials.duplicated(["row", "seed"]), ["state", "problem"]] = twice
    return trials.astype({column.name: float for column in COLUMNS if column.name in trials})


def _trial_dirs(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory: give a sweep's, such as results/<sweep>")
    if not (trial_dirs := folder.trial_folders(directory)) and not (directory / study_tables.TRIALS).exists():
        raise InputError(f"{directory} holds no trials: there is no {directory}/trials/*/{folder.TRIAL}")
    return trial_dirs


def _read(path: Path, file: Path) -> dict[str, Any]:
    """Return a trial or certification as a flat row, its texts without control characters. file: with its config."""
    return _printable(_read_as_written(path, file))


def _printable(row: dict[str, Any]) -> dict[str, Any]:
    row |= {name: printable_lines(value) for name, value in row.items() if isinstance(value, str)}
    return row | {"warnings": [printable_lines(warning) for warning in row["warnings"]]}


def _empty(path: Path, is_certification: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"row": path.name, "trial_dir": path, "model": path.name, "warnings": []}
    row |= {"is_certification": is_certification, "evaluated_by": "", "result": None}
    row |= _problem(FINISHED)
    return row | {column.name: None for column in COLUMNS if column.is_required}


def _stored(stored: study_tables.StoredTrial) -> dict[str, Any]:
    """Return a trial of a study's table as a row."""
    row = _empty(stored.path, stored.is_certification)
    row |= _settings(stored.trial, describe_evaluation(stored.trial.config, stored.is_certification))
    if stored.chosen:
        row[CHOSEN] = stored.chosen["text"]
    return row | (_other_version(stored.trial) or _numbers(stored.result, stored.trial))


def _read_as_written(path: Path, file: Path) -> dict[str, Any]:
    is_certification = file.name == certification.CERTIFICATION
    row = _empty(path, is_certification)
    try:
        trial = (folder.read_certified_trial if is_certification else folder.read_trial)(file)
        row |= _settings(trial, describe_evaluation(trial.config, is_certification))
        if chosen := folder.read_chosen(certification.trial_of(path)):
            row[CHOSEN] = chosen["text"]
        return row | (_other_version(trial) or _outcome(path, trial))
    except (OSError, ValueError, KeyError) as error:
        return row | _problem(NOT_COUNTED, str(error).replace(f"{path}/", ""))


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
        "options": " ".join(f"{name}={value}" for name, value in config.named_options.items()),
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


def _outcome(path: Path, trial: folder.TrialRecord) -> dict[str, Any]:
    """Return numbers, result and warnings of a finished trial or certification; of any other its problem."""
    result, _ = folder.read_result(path), folder.read_failure(path)  # a damaged one of either is a problem
    if result is not None:
        return _numbers(result, trial)
    if (path / certification.CERTIFICATION).exists():
        return _problem(UNFINISHED, f"{ranges.count_saved_images(path)} images of {path.name} are evaluated")
    return _problem(*state_of(path, trial.config.epochs))


def state_of(trial_dir: Path, epochs: int) -> tuple[str, str]:
    """Return the state of a trial's folder, and the error, or how far the trial is. Raises DamagedFileError.

    epochs: of the trial, 0 for a network trained elsewhere.
    """
    if folder.read_result(trial_dir) is not None:
        return FINISHED, ""
    if (failure := folder.read_failure(trial_dir)) is not None:
        return FAILED, str(failure["error"])
    if folder.last_write(trial_dir) is None:
        return NOT_BEGUN, ""
    parts = [f"epoch {training_record.last_epoch(trial_dir)} of {epochs}"] if epochs else []
    return UNFINISHED, ", ".join([*parts, *(["being evaluated"] if (trial_dir / ranges.RANGES).exists() else [])])


def _problem(state: str, text: str = "") -> dict[str, Any]:
    """Return the columns of a trial's state: what tables show of it is its problem, unless it is finished."""
    return {"state": state, "problem": None if state == FINISHED else ": ".join(filter(None, [state, text]))}


def _other_version(trial: folder.TrialRecord) -> dict[str, Any]:
    """Return the problem of a trial of another recipe version; nothing for one of today's."""
    if trial.recipe_version == RECIPE_VERSION:
        return {}
    advice = f"older, of recipe version {trial.recipe_version}, today's is {RECIPE_VERSION}: run it again"
    return _problem(NOT_COUNTED, advice)


def _numbers(result: folder.TrialResult, trial: folder.TrialRecord) -> dict[str, Any]:
    if result.key != trial.key:
        return _problem(NOT_COUNTED, f"{folder.RESULT} belongs to another trial, {result.key}")
    numbers = numbers_of(result)
    order = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
    errors = [round(numbers[name], 9) for name in order if name in numbers]
    if errors != sorted(errors):
        return _problem(NOT_COUNTED, f"standard <= attack <= certified error does not hold: {errors}")
    expected = [column.name for column in COLUMNS if column.is_required or column.name in result.metrics]
    missing = [f"{name} is missing or not finite" for name in expected if name not in numbers]
    return {**numbers, "result": result, "warnings": [*result.warnings, *missing]}


def setting_columns(trials: pd.DataFrame) -> list[str]:
    """Return the columns that are settings, but for the width, in the config's order; data and recipe version last."""
    others = {*_NO_SETTINGS, *LABEL, "width", CHOSEN, *(column.name for column in COLUMNS)}
    return [name for name in trials if name not in others]
