"""The trials of a sweep's directory, and what `harness.certify` found of them, each as a flat row."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.columns import COLUMNS
from harness.analysis.judged import judged_by
from harness.config.trial import flat_settings, to_dict
from harness.errors import InputError
from harness.storage import certification, folder, names

LABEL = ["model", "method", "options"]
CHOSEN = "chosen by"  # a column where any trial's settings were
FAILED, UNFINISHED, NOT_COUNTED = "failed", "unfinished", "not counted"  # states of trials without usable numbers
TWICE = "another folder holds the same trial"


def without_numbers(state: str, reason: str) -> dict[str, Any]:
    """What stands for the numbers of a trial that has none."""
    return {"state": state, "problem": f"{state}: {reason}"}


def _outcome(path: Path, key: str, epochs: int) -> dict[str, Any]:
    """Numbers and warnings of a finished trial or certification; of any other the `state` and the `problem`."""
    result, failure = folder.read_result(path), folder.read_failure(path)
    if result is None and failure is not None:
        return without_numbers(FAILED, str(failure.get("error")))
    if result is None:
        return without_numbers(UNFINISHED, _done(path, epochs))
    if result.key != key:
        return without_numbers(NOT_COUNTED, f"{folder.RESULT} belongs to another trial, {result.key}")
    values = {column.name: column.value(result) for column in COLUMNS}
    numbers = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
    order = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
    errors = [round(numbers[name], 9) for name in order if name in numbers]
    if errors != sorted(errors):
        return without_numbers(NOT_COUNTED, f"standard <= attack <= certified error does not hold: {errors}")
    expected = [column.name for column in COLUMNS if column.everywhere or column.name in result.metrics]
    missing = [f"{name} is missing or not finite" for name in expected if name not in numbers]
    return {**numbers, "result": result, "warnings": [*result.warnings, *missing]}


def _done(path: Path, epochs: int) -> str:
    """How far an unfinished trial, or certification, has come."""
    if (path / certification.CERTIFICATION).exists():
        shards = certification.read_certification(path).shards
        return f"{shards - len(certification.missing(path))} of {shards} shards of {path.name}"
    return f"{max((row[names.EPOCH] for row in folder.read_epochs(path)), default=0)} of {epochs} epochs"


def _trial(path: Path, file: str = folder.TRIAL) -> dict[str, Any]:
    """One trial folder, flat. `row` names the table row it belongs to: its config but for the seed, data and recipe.

    file: where its config is: of a certification, in its own file.
    """
    certified = file == certification.CERTIFICATION
    trial: dict[str, Any] = {"row": path.name, "folder": path, "model": path.name, "warnings": []}
    trial |= {"certified": certified, "judged": "", "result": None}
    trial |= {"state": None, "problem": None} | {column.name: None for column in COLUMNS if column.everywhere}
    try:
        read = (folder.read_judged if certified else folder.read_trial)(path / file)
        trial["judged"] = judged_by(read.config, certified)
        version = {"recipe_version": read.recipe_version, "fingerprint": read.fingerprint}
        config = to_dict(read.config)
        trial["seed"] = config.pop("seed")
        trial["row"] = json.dumps([config, version, trial["judged"]], sort_keys=True)
        trial |= {"model": config["model"], "method": config["method"]}
        trial["options"] = " ".join(f"{name}={value}" for name, value in read.config.named_options.items())
        flat = flat_settings(read.config) | version
        trial |= {name: str(value) if isinstance(value, list) else value for name, value in flat.items()}
        chosen = folder.read_chosen(certification.trial_of(path) if certified else path)
        trial |= {CHOSEN: chosen["text"]} if chosen else {}
        return trial | _outcome(path, read.key, read.config.train.epochs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return trial | without_numbers(NOT_COUNTED, f"cannot be read: {type(error).__name__}: {error}")


def setting_columns(trials: pd.DataFrame) -> list[str]:
    """The columns of `trials_of` that are settings, in the config's order; data and recipe version last."""
    others = {"row", "folder", "certified", "judged", "result", *LABEL, "seed", "state", "problem", "warnings", CHOSEN}
    others |= {column.name for column in COLUMNS}
    return [name for name in trials if name not in others]


def trials_of(directory: Path) -> pd.DataFrame:
    """All trials of a sweep, those that count first, with a `problem` where a trial has no usable numbers.

    `row` is the same for trials that differ in their seeds alone. Raises InputError where there are no trials, or
    none can be read.
    """
    return _counted([_trial(path) for path in _trial_folders(directory)])


def trials_and_certifications(*directories: Path) -> pd.DataFrame:
    """`trials_of`, of these sweeps together, with what `harness.certify` found of them as further rows."""
    places = [path for directory in directories for path in _trial_folders(directory)]
    further = [_trial(path, certification.CERTIFICATION) for place in places for path in certification.folders(place)]
    return _counted([_trial(path) for path in places] + further)


def _trial_folders(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory: give a sweep's, such as results/<sweep>")
    if not (folders := folder.trial_folders(directory)):
        raise InputError(f"{directory} holds no trials: there is no {directory}/trials/*/{folder.TRIAL}")
    return folders


def _counted(read: list[dict[str, Any]]) -> pd.DataFrame:
    trials = pd.DataFrame(read, dtype=object)
    if "profile" not in trials:
        first = trials["folder"][0]
        raise InputError(f"{first.parents[1]} holds no trial that can be read, such as {first}: {trials.problem[0]}")
    trials = trials.sort_values("problem", key=pd.Series.notna, kind="stable")
    twice = without_numbers(NOT_COUNTED, TWICE)
    trials.loc[trials.duplicated(["row", "seed"]), list(twice)] = list(twice.values())
    return trials.astype({column.name: float for column in COLUMNS if column.name in trials})
