"""The networks of a sweep's directory under their evaluations, as one row each."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.common.errors import InputError
from harness.common.terminal import printable_lines
from harness.config.sweep import Ran
from harness.config.training import flatten
from harness.leaderboard.columns import COLUMNS, REPORTED, SECONDS_PER_IMAGE
from harness.leaderboard.fronts import FRONTS
from harness.pretrained.network_file import Source
from harness.settings import Evaluation
from harness.storage import folder, study_tables
from harness.storage.records import EvaluationRecord, Result, TrainingRecord
from harness.storage.state import EvaluationState, State, evaluation_dirs, read_state
from harness.storage.sweep_file import read_ran

LABEL = ["model", "method", "options"]
EPS_VALUE = "eps_value"
"""Column of CSV, JSON and `harness.results`: the radius as a number, beside its text in `eps`."""
ENTRY_LABEL = "entry_label"  # column: the label that the sweep file gives the row
CHOSEN = "chosen by"  # column: how a search chose the row's settings
NOT_COUNTED = "not counted"
"""The state here of an evaluation that is OLDER or DAMAGED, or whose numbers cannot be right."""
NO_PROFILE = "none"
"""The profile of a network that no sweep file of the directory has had."""
_NO_SETTINGS = (
    "row", "training", "state", "evaluation_dir", "evaluation", "evaluation_settings", "held_out", "is_main",
    "is_own_data", "is_asked", ENTRY_LABEL, "result", "seed", "problem", "warnings", "published", FRONTS,
    *REPORTED,
)  # fmt: skip


def read_evaluations(*directories: Path) -> pd.DataFrame:
    """Return a row for each network of these sweeps under each of its evaluations and profiles, finished ones first.

    `state` is a `State` or NOT_COUNTED; `problem` says why a row has no usable numbers. `row` is the same for networks
    that differ in their seeds alone; `training` is the same in rows of other evaluations, too. `evaluation` is the
    evaluation's key, `evaluation_settings` the Evaluation, `held_out` how many held-out images there are, 0 for test
    images. `published` is the Source of a network trained elsewhere. `is_asked` is whether the last command in the
    directory asked for it, as its sweep.yaml says; True without that file.
    Raises InputError where a directory has no networks, or none can be read.
    """
    paths = [path for directory in directories for path in _evaluation_dirs(directory)]
    states = {path: read_state(path) for path in paths}
    for directory in directories:
        states |= study_tables.read_stored_states(directory)
    asked = {directory: read_ran(directory) for directory in {*map(_sweep_dir, states)}}
    found = [row for path, state in states.items() for row in _rows(path, state, asked[_sweep_dir(path)])]
    rows = pd.DataFrame(found, dtype=object)
    if "dataset" not in rows:
        first = paths[0]
        raise InputError(f"{first.parents[3]} holds no network that can be read, such as {first}: {rows.problem[0]}")
    rows = rows.sort_values("problem", key=pd.Series.notna, kind="stable")
    twice = list(_not_counted("another folder has the same network").values())
    rows.loc[rows.duplicated(["row", "seed"]), ["state", "problem"]] = twice
    rows["is_asked"] = rows["is_asked"].astype(bool)
    return rows.astype({column.name: float for column in COLUMNS if column.name in rows})


def _evaluation_dirs(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory: give a sweep's, such as results/<sweep>")
    if not (paths := evaluation_dirs(directory)) and not (directory / study_tables.EVALUATIONS).exists():
        missing = f"there is no {directory}/{folder.NETWORKS}/*/{folder.TRAINING}"
        raise InputError(f"{directory} holds no networks: {missing}")
    return paths


def _sweep_dir(evaluation_dir: Path) -> Path:
    return folder.sweep_dir_of(folder.network_of(evaluation_dir))


def _is_asked(evaluation_dir: Path, profile: str, ran: Ran) -> bool:
    """Return whether a command asked for an evaluation under a profile. ran: of the command."""
    is_network = not ran.networks or folder.network_of(evaluation_dir).name in ran.network_keys
    return is_network and evaluation_dir.name in ran.evaluations and profile == ran.profile


def _rows(path: Path, state: EvaluationState, ran: Ran | None) -> list[dict[str, Any]]:
    """Return the rows of a network under an evaluation, one for each profile, texts without control characters."""
    name = folder.network_of(path).name
    row: dict[str, Any] = {"row": name, "evaluation_dir": path, "model": name, "warnings": [], "result": None}
    row |= {"sweep": folder.sweep_dir_of(folder.network_of(path)).name, "evaluation": path.name, "is_main": False}
    row |= {column.name: None for column in COLUMNS if column.is_required}
    if state.training is not None:
        row |= _settings(state.training, state.evaluation)
    if state.choices:
        row[CHOSEN] = "; ".join(dict.fromkeys(each.text for each in state.choices))
        row[FRONTS] = [each for each in state.choices if each.front]
    row |= _problem(state)
    if state.state is State.FINISHED and state.result is not None:
        row |= _numbers(state.result)
    row |= {name: printable_lines(value) for name, value in row.items() if isinstance(value, str)}
    row["warnings"] = [printable_lines(warning) for warning in row["warnings"]]
    rows = []
    for profile, main in (state.study or {NO_PROFILE: ""}).items():
        is_asked = ran is None or _is_asked(path, profile, ran)
        main_key = ran.evaluations[0] if ran is not None and is_asked else main  # study.json may be of an older command
        own = {"row": f"{row['row']} {profile}", "profile": printable_lines(profile), "is_main": main_key == path.name}
        rows.append(row | own | {"is_asked": is_asked})
    return rows


def _settings(training: TrainingRecord, evaluation: EvaluationRecord | None) -> dict[str, Any]:
    config = training.config
    version = {"recipe_version": training.recipe_version, "fingerprint": training.fingerprint}
    own: dict[str, Any] = {"evaluation": "", "evaluation_settings": None, "held_out": 0, "eps": None}
    flat = {}
    if evaluation is not None:
        asked = evaluation.config
        own = {
            "evaluation": evaluation.key,
            "evaluation_settings": asked,
            "held_out": config.validation_images if asked.split == "validation" else 0,
            "eps": str(asked.eps),
        }
        flat = flatten({"evaluation": asked.model_dump(mode="json", exclude={"eps"})})
    flat = config.settings | flat | version
    training_text = json.dumps([config.identity, version], sort_keys=True)
    return {
        **own,
        "row": f"{training_text} {own['evaluation']}",
        "training": training_text,
        "is_own_data": config.own_data is not None,
        **({ENTRY_LABEL: config.entry_label} if config.entry_label else {}),
        "seed": config.seed,
        "model": config.model,
        "method": config.method,
        "options": config.options_text,
        **{name: str(value) if isinstance(value, list) else value for name, value in flat.items()},
        **_source_columns(config.source),
    }


def describe_images(evaluation: Evaluation, held_out: int) -> str:
    """Return which images a network is evaluated on; held-out ones are others where others are held out."""
    if evaluation.split == "test":
        return evaluation.images
    images = f"{held_out:,} held-out images"
    return f"first {evaluation.test_images:,} of {images}" if evaluation.test_images else images


def _source_columns(source: Source | None) -> dict[str, Any]:
    """Return what stands beside a network trained elsewhere; nothing for other networks."""
    if source is None:
        return {"published": None}
    accuracies = source.certified_accuracy, source.clean_accuracy
    errors = [None if accuracy is None else round(100 - accuracy, 6) for accuracy in accuracies]
    return {**dict(zip(REPORTED, [*errors, f"{source.method}, {source.paper}"], strict=True)), "published": source}


def _problem(state: EvaluationState) -> dict[str, Any]:
    """Return the columns of a state: what tables show of it is its problem, unless it is finished."""
    if state.state is State.FINISHED:
        return {"state": State.FINISHED, "problem": None}
    if state.state in (State.OLDER, State.DAMAGED):
        return _not_counted(state.text)
    return {"state": state.state, "problem": state.text}


def _not_counted(why: str) -> dict[str, Any]:
    return {"state": NOT_COUNTED, "problem": f"{NOT_COUNTED}: {why}"}


def _numbers(result: Result) -> dict[str, Any]:
    numbers = _finite_numbers(result)
    order = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
    errors = [round(numbers[name], 9) for name in order if name in numbers]
    if errors != sorted(errors):
        return _not_counted(f"standard <= attack <= certified error does not hold: {errors}")
    expected = [column.name for column in COLUMNS if column.is_required or column.name in result.metrics]
    missing = [f"{name} is missing or not finite" for name in expected if name not in numbers]
    return {**numbers, "result": result, "warnings": [*result.warnings, *missing]}


def _finite_numbers(result: Result) -> dict[str, float]:
    """Return the finite numbers of a result for COLUMNS, by their names."""
    metrics = dict(result.metrics)
    seconds, images = metrics.get(names.EVALUATION_SECONDS), metrics.get(names.examples_at(names.CLEAN))
    if seconds is not None and images:
        metrics[SECONDS_PER_IMAGE] = seconds / images
    values = {column.name: metrics.get(column.name) for column in COLUMNS}
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def setting_columns(rows: pd.DataFrame) -> list[str]:
    """Return the columns that are settings, but for the width, in the config's order; data and recipe version last."""
    others = {*_NO_SETTINGS, *LABEL, "width", CHOSEN, *(column.name for column in COLUMNS)}
    return [name for name in rows if name not in others]
