"""Expand a sweep file to its study: trainings and evaluations, each checked to the last key."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from os.path import abspath
from pathlib import Path
from typing import Any

from harness.common.errors import Location, collect_problems, located, require
from harness.common.models import validate
from harness.common.radius import Radius
from harness.config import plugins
from harness.config.buildable import check_buildable, unused_evaluation_settings, unused_settings
from harness.config.entry import SweepEntry, changed_options, check_count, expand_entry, merge_recipes
from harness.config.file import SweepFile
from harness.config.own_data import MeasuredData
from harness.config.search import SearchedRow, SearchSettings, check_search, make_searched_row
from harness.config.sweep import Resources, Sweep
from harness.config.training import Training, flatten
from harness.config.yaml_text import merge, nest
from harness.pretrained.network_file import TRAINED_ELSEWHERE, NetworkFile, digest_of, read_file
from harness.pretrained.weights import read_weights
from harness.settings import Evaluation, Recipe


@dataclass(frozen=True)
class Study:
    """A sweep file under one profile, checked and expanded: its networks, each under all of its evaluations.

    profile: its name and what `--set` changed of trainings. evaluations: the main one first.
    search: how settings are searched; None without a search.
    searched: the rows of `trials` if their settings are searched; empty without a search.
    checkpoints: the files of networks trained elsewhere, by their SHA-256.
    warnings: a line on settings without effect, if there are any.
    """

    file: SweepFile
    name: str
    profile: str
    dataset: str
    eps: Radius
    resources: Resources
    trainings: list[Training]
    evaluations: list[Evaluation]
    search: SearchSettings | None = None
    searched: tuple[SearchedRow, ...] = ()
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    """A row of the leaderboard: an entry without lists, and its training under seed 0.

    where: of the entry in the file. choice: what it took of lists, as the end of messages.
    unused: the settings that change nothing in it, by dotted key, each with the reason; None if its network was not
    built.
    """

    where: str
    choice: str
    entry: SweepEntry
    training: Training
    unused: dict[str, str] | None = None


def check_options(file: SweepFile) -> None:
    """Raise InputError with what is wrong with options of networks and methods, before own images are read."""
    with file.located(), collect_problems() as at:
        _rows(file, None, at)


def expand_file(file: SweepFile, trained: Collection[str] = (), own_data: MeasuredData | None = None) -> Study:
    """Return a file's study. Networks are built as a check, except those that have been trained.

    trained: the identities of these. own_data: that of the file, measured. Raises InputError, with a line for each
    problem: the file, the key, what was found, what is allowed.
    """
    with file.located():
        with collect_problems() as at:
            rows = _rows(file, own_data, at)
            rows = [_with_network(row, file, trained, at) for row in rows]
        return _expanded(rows, file, own_data)


def _rows(file: SweepFile, own_data: MeasuredData | None, at: Location) -> list[_Row]:
    """Return a file's rows with their trainings. at: collects the first wrong one of each entry."""
    rows, first, count = list[_Row](), dict[str, str](), 0
    for number, entry in enumerate(file.sweep.trials):
        where = f"trials.{number}"
        with at(f"{where}."):
            expanded = expand_entry(entry, file.sweep.train)
            count += len(expanded)
            check_count(count * len(file.sweep.seeds))
            for choice, each in expanded:
                with located("", choice):
                    is_trained = file.sweep.search is None or each.checkpoint is None
                    require("model", each.model, is_trained, "networks without a checkpoint beside `search`")
                    training = _training(file, own_data, each)
                    same = first.get(training.identity, "")
                    require("model", each.model, not same, f"an entry that differs from {same}")
                first[training.identity] = where + choice
                rows.append(_Row(where, choice, each, training))
    return rows


def _training(file: SweepFile, own_data: MeasuredData | None, entry: SweepEntry) -> Training:
    """Return an entry's training under seed 0. Raises InputError."""
    sweep, checkpoint = file.sweep, entry.checkpoint
    content = vars(sweep) | vars(entry)
    content |= {"seed": 0, "width": entry.width or sweep.width, "dataset": sweep.dataset_name, "own_data": own_data}
    content["plugins"] = plugins.digests(sweep.plugins, entry.model)
    with collect_problems() as at:
        with at("options."):
            content["options"] = changed_options("options", entry.model, entry.options)
        with at("method_options."):
            if checkpoint is None:
                content["method_options"] = changed_options("method_options", entry.method, entry.method_options)
    if checkpoint is None:
        recipe = merge_recipes(sweep.train, entry.train)
        content["train"] = recipe.replace(eps=recipe.eps or sweep.eps)
        options = content["method_options"]
        content["teacher"] = _teacher(file, own_data, entry)
        content["method_options"] = {name: value for name, value in options.items() if name != "teacher"}
    else:
        path = _checkpoint_path(file, checkpoint)
        sha256 = digest_of(read_file(path, checkpoint))
        content |= {"method": TRAINED_ELSEWHERE, "train": Recipe(), "train_images": None}
        content["checkpoint"] = checkpoint.replace(file=path.name, sha256=sha256)
    training = validate(Training, {name: content[name] for name in Training.model_fields if name in content})
    shared = sweep.train.replace(eps=sweep.train.eps or sweep.eps)
    own = [f"train.{name}" for name in entry.train if getattr(training.train, name) != getattr(shared, name)]
    named = (*(["width"] if training.width != sweep.width else []), *own)
    return training.replace(named=named, entry_label=entry.label)


def _teacher(file: SweepFile, own_data: MeasuredData | None, entry: SweepEntry) -> Training | None:
    """Return the training of an entry's teacher, None without one. Raises InputError."""
    if (teacher := entry.teacher_entry(file.sweep.train)) is None:
        return None
    with located("method_options.teacher."):
        return _training(file, own_data, teacher)


def _candidate(
    file: SweepFile, own_data: MeasuredData | None, entry: SweepEntry, settings: dict[str, Any]
) -> Training:  # fmt: skip
    """Return the entry's training under seed 0 with these settings, by their keys in it. Raises InputError."""
    content = entry.model_dump()
    for key, value in settings.items():
        content = merge(content, nest(key.split("."), value))
    training = _training(file, own_data, validate(SweepEntry, content, context=file.sweep.train))
    check_buildable(training, _evaluations(file.sweep))
    return training


def _evaluations(sweep: Sweep) -> list[Evaluation]:
    """Return the evaluations of networks and of a search's candidates."""
    search = sweep.search
    return sweep.evaluations + ([] if search is None else [search.evaluation_of_candidates(sweep.evaluations[0])])


def _checkpoint_path(file: SweepFile, checkpoint: NetworkFile) -> Path:
    """Return the path of an entry's weights, which is relative to the sweep file."""
    return Path(abspath(file.path.parent / checkpoint.file))


def _with_network(row: _Row, file: SweepFile, trained: Collection[str], at: Location) -> _Row:
    """Return the row with its unused settings, after building its network, if it is not trained.

    at: collects what is wrong with network, method and checkpoint.
    """
    training, is_new = row.training, row.training.identity not in trained
    with at(f"{row.where}.", row.choice):
        if is_new or file.sweep.search is not None:
            network = check_buildable(training, _evaluations(file.sweep))
            row = replace(row, unused=unused_settings(training, network))
        for path, elsewhere in _checkpoints(file, row).items() if is_new else ():
            with located("" if elsewhere is training else "method_options.teacher."):
                read_weights(path, elsewhere)
    return row


def _checkpoints(file: SweepFile, row: _Row) -> dict[Path, Training]:
    """Return the file of the row's network, and of its teacher, where these are trained elsewhere."""
    networks = (row.entry, row.training), (row.entry.teacher_entry(file.sweep.train), row.training.teacher)
    return {
        _checkpoint_path(file, entry.checkpoint): training
        for entry, training in networks
        if entry is not None and training is not None and entry.checkpoint is not None
    }


def _expanded(rows: list[_Row], file: SweepFile, own_data: MeasuredData | None) -> Study:
    """Return the study of rows that are right. Raises InputError where the search does not fit them."""
    sweep, trainings, checkpoints = file.sweep, list[Training](), dict[str, Path]()
    for row in rows:
        seeds = sweep.seeds[:1] if row.training.is_trained_elsewhere else sweep.seeds
        trainings += [row.training.replace(seed=seed) for seed in seeds]
        for path, elsewhere in _checkpoints(file, row).items():
            assert elsewhere.checkpoint is not None
            checkpoints[elsewhere.checkpoint.sha256] = path
    searched: tuple[SearchedRow, ...] = ()
    if sweep.search is not None:
        searched = tuple(
            make_searched_row(
                sweep.search, row.training, row.unused or {}, partial(_candidate, file, own_data, row.entry)
            )
            for row in rows
        )
        check_search(sweep.search, sweep.validation_images, searched)
    return Study(
        file=file,
        name=sweep.name,
        profile=file.profile,
        dataset=sweep.dataset_name,
        eps=sweep.eps,
        resources=sweep.resources,
        trainings=trainings,
        evaluations=sweep.evaluations,
        search=sweep.search,
        searched=searched,
        checkpoints=checkpoints,
        warnings=(*_without_effect(sweep, rows), *_late_ramps(rows)),
    )


def _late_ramps(rows: list[_Row]) -> tuple[str, ...]:
    """Return a line on the rows whose eps grows until the last step, none if there are none."""
    late = list[str]()
    for row in rows:
        recipe, is_used = row.training.train, row.unused is not None and "train.ramp_epochs" not in row.unused
        if is_used and recipe.ramp_epochs > 0 and recipe.epochs <= recipe.ramp_start - 1 + recipe.ramp_epochs:
            late.append(row.where)
    where = ", ".join(dict.fromkeys(late))
    return (f"the ramp ends with the last epoch, so that no epoch trains at the full eps: {where}",) if late else ()


def _without_effect(sweep: Sweep, rows: list[_Row]) -> tuple[str, ...]:
    """Return a line on the settings of the file and of its entries that change nothing, none if there are none.

    The ramp may be 0 and settings of the file null, false or their defaults, so that a profile or an entry can take
    back what it does not use.
    """
    found = list[str]()
    for row in rows:
        own = flatten({name: getattr(row.entry, name) for name in ("train", "options", "method_options")})
        own = {key: value for key, value in own.items() if (key, value) != ("train.ramp_epochs", 0)}
        found += [f"{row.where}.{key} ({row.unused[key]})" for key in own if row.unused and key in row.unused]
    for key, value in flatten({"train": sweep.train.model_dump(exclude_defaults=True)}).items():
        reasons = [row.unused and row.unused.get(key) for row in rows]
        if value and all(reasons):
            found.append(f"{key} ({reasons[0]})")
    for number, settings in enumerate(sweep.evaluation):
        where = f"evaluation.{number}" if len(sweep.evaluation) > 1 else "evaluation"
        unused = unused_evaluation_settings(settings, sweep.validation_images)
        values = settings.model_dump(exclude_defaults=True)
        found += [f"{where}.{name} ({unused[name]})" for name, value in values.items() if value and name in unused]
    if all(row.training.is_trained_elsewhere for row in rows):
        found += ["train_images (no entry is trained)"] if sweep.train_images is not None else []
        found += ["all seeds but the first (no entry is trained)"] if len(sweep.seeds) > 1 else []
    if "width" in sweep.model_fields_set and all(row.entry.width is not None for row in rows):
        found.append("width (each entry has its own)")
    return (f"settings without effect: {'; '.join(dict.fromkeys(found))}",) if found else ()
