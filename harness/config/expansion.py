"""Expand a sweep file to its trials, each checked to the last key."""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from os.path import abspath
from pathlib import Path
from typing import Any

from harness.common.errors import InputError, Location, collect_problems, located, require
from harness.common.models import validate
from harness.config import plugins
from harness.config.buildable import check_buildable, unused_settings
from harness.config.entry import Row, SweepEntry, changed_options, merge_recipes
from harness.config.file import SweepFile
from harness.config.search import SearchedRow, SearchSettings, check_search, make_searched_row
from harness.config.sweep import Resources, Sweep
from harness.config.text import merge, nest
from harness.config.trial import Trial, flatten
from harness.own_data import MeasuredData
from harness.pretrained.network_file import TRAINED_ELSEWHERE, NetworkFile, digest_of, read_file
from harness.pretrained.weights import read_weights
from harness.settings import Radius, Recipe


@dataclass(frozen=True)
class ExpandedSweep:
    """A sweep file under one profile, checked and expanded.

    search: how settings are searched; None without a search.
    searched: the rows of `trials` if their settings are searched; empty without a search.
    checkpoints: the files of networks trained elsewhere, by their SHA-256.
    warnings: a line on settings without effect, if there are any.
    """

    name: str
    profile: str
    dataset: str
    eps: Radius
    resources: Resources
    trials: list[Trial]
    search: SearchSettings | None = None
    searched: tuple[SearchedRow, ...] = ()
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _TrialRow(Row):
    """A row with its trial under seed 0.

    unused: the settings that change nothing in it, by dotted key, each with the reason; None if its network was not
    built.
    """

    trial: Trial
    unused: dict[str, str] | None = None


def expand_file(file: SweepFile, trained: Collection[str] = (), own_data: MeasuredData | None = None) -> ExpandedSweep:
    """Return a file's sweep. Networks are built as a check, except those of trials that have been trained.

    trained: the identities of these. own_data: that of the file, measured. Raises InputError, with a line for each
    problem: the file, the key, what was found, what is allowed.
    """
    with file.located():
        with collect_problems() as at:
            with at(""):
                if file.problems:
                    raise InputError(file.problems)
            rows = _mark_changed(_rows(file, own_data, at), file, own_data)
            rows = [_with_network(row, file, trained, at) for row in rows]
        return _expanded(rows, file, own_data)


def _mark_changed(rows: list[_TrialRow], file: SweepFile, own_data: MeasuredData | None) -> list[_TrialRow]:
    """Return the rows; the profile of those that the file has not without `--set` says what that changed.

    The profile is part of keys and stands over tables, so no changed trial is mistaken for the file's.
    """
    if not (mark := _profile_mark(file.changes)):
        return rows
    unchanged = set[str]()
    # A file that is right with `--set` alone has no trials without.
    with suppress(InputError), collect_problems() as at:
        original = replace(file, sweep=validate(Sweep, file.content))
        unchanged = {row.trial.identity for row in _rows(original, own_data, at)}
    changed = f"{file.profile} {mark}"
    return [
        row if row.trial.identity in unchanged else replace(row, trial=row.trial.replace(profile=changed))
        for row in rows
    ]


def _profile_mark(changes: dict[str, Any]) -> str:
    """Return the changes that change trials, in one spelling; '' for none."""
    settings = flatten({key: value for key, value in changes.items() if key not in ("seeds", "resources", "search")})
    texts = []
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
        texts.append("--set trials" if key == "trials" else f"--set {key}={text}")  # rows say what their trials are
    return " ".join(sorted(texts))


def _rows(file: SweepFile, own_data: MeasuredData | None, at: Location) -> list[_TrialRow]:
    """Return a file's rows with their trials. at: collects the first wrong trial of each entry."""
    rows, first = list[_TrialRow](), dict[str, str]()
    for where, of_entry in groupby(file.sweep.trials, key=lambda row: row.where):
        with at(f"{where}."):
            for row in of_entry:
                with located("", row.choice):
                    trial = _trial(file, own_data, row.entry)
                    same = first.get(trial.identity, "")
                    require("model", row.entry.model, not same, f"a trial that differs from {same}")
                first[trial.identity] = where + row.choice
                rows.append(_TrialRow(**vars(row), trial=trial))
    return rows


def _trial(file: SweepFile, own_data: MeasuredData | None, entry: SweepEntry) -> Trial:
    """Return an entry's trial under seed 0. Raises InputError."""
    sweep, checkpoint = file.sweep, entry.checkpoint
    is_alone = sweep.search is None or checkpoint is None
    require("model", entry.model, is_alone, "networks without a checkpoint beside `search`, which trains")
    content = vars(sweep) | vars(entry)
    content |= {"sweep": sweep.name, "profile": file.profile, "seed": 0, "width": entry.width or sweep.width}
    content |= {"dataset": sweep.dataset_name, "own_data": own_data}
    content["options"] = changed_options("options", entry.model, entry.options)
    content["plugins"] = plugins.digests(sweep.plugins, entry.model)
    if checkpoint is None:
        content["train"] = merge_recipes(sweep.train, entry.train)
        content["method_options"] = changed_options("method_options", entry.method, entry.method_options)
    else:
        path = _checkpoint_path(file, checkpoint)
        sha256 = digest_of(read_file(path, checkpoint))
        content |= {"method": TRAINED_ELSEWHERE, "train": Recipe(), "train_images": None}
        content["checkpoint"] = checkpoint.replace(file=path.name, sha256=sha256)
    trial = validate(Trial, {name: content[name] for name in Trial.model_fields if name in content})
    own = [f"train.{name}" for name in entry.train if getattr(trial.train, name) != getattr(sweep.train, name)]
    return trial.replace(named=(*(["width"] if trial.width != sweep.width else []), *own))


def _candidate(file: SweepFile, own_data: MeasuredData | None, entry: SweepEntry, settings: dict[str, Any]) -> Trial:
    """Return the entry's trial under seed 0 with these settings, by their keys in it. Raises InputError."""
    content = entry.model_dump()
    for key, value in settings.items():
        content = merge(content, nest(key.split("."), value))
    trial = _trial(file, own_data, validate(SweepEntry, content, context=file.sweep.train))
    check_buildable(trial)
    return trial


def _checkpoint_path(file: SweepFile, checkpoint: NetworkFile) -> Path:
    """Return the path of an entry's weights, which is relative to the sweep file."""
    return Path(abspath(file.path.parent / checkpoint.file))


def _with_network(row: _TrialRow, file: SweepFile, trained: Collection[str], at: Location) -> _TrialRow:
    """Return the row with its unused settings, after building its network, if it is not trained.

    at: collects what is wrong with network, method and checkpoint.
    """
    trial, checkpoint, is_new = row.trial, row.entry.checkpoint, row.trial.identity not in trained
    with at(f"{row.where}.", row.choice):
        if is_new or file.sweep.search is not None:
            row = replace(row, unused=unused_settings(trial, check_buildable(trial)))
        if checkpoint is not None and is_new:
            read_weights(_checkpoint_path(file, checkpoint), trial)
    return row


def _expanded(rows: list[_TrialRow], file: SweepFile, own_data: MeasuredData | None) -> ExpandedSweep:
    """Return the sweep of rows that are right. Raises InputError where the search does not fit them."""
    sweep, trials, checkpoints = file.sweep, list[Trial](), dict[str, Path]()
    for row in rows:
        seeds = sweep.seeds[:1] if row.trial.is_trained_elsewhere else sweep.seeds
        trials += [row.trial.replace(seed=seed) for seed in seeds]
        if row.trial.checkpoint is not None and row.entry.checkpoint is not None:
            checkpoints[row.trial.checkpoint.sha256] = _checkpoint_path(file, row.entry.checkpoint)
    searched: tuple[SearchedRow, ...] = ()
    if sweep.search is not None:
        searched = tuple(
            make_searched_row(sweep.search, row.trial, row.unused or {}, partial(_candidate, file, own_data, row.entry))
            for row in rows
        )
        check_search(sweep.search, sweep.validation_images, searched)
    return ExpandedSweep(
        name=sweep.name,
        profile=file.profile,
        dataset=sweep.dataset_name,
        eps=sweep.eps,
        resources=sweep.resources,
        trials=trials,
        search=sweep.search,
        searched=searched,
        checkpoints=checkpoints,
        warnings=_without_effect(sweep, rows),
    )


def _without_effect(sweep: Sweep, rows: list[_TrialRow]) -> tuple[str, ...]:
    """Return a line on the settings of the file and of its entries that change nothing, none if there are none.

    The ramp may be 0 and settings of the file null, false or their defaults, so that a profile or an entry can take
    back what it does not use.
    """
    found = list[str]()
    for row in rows:
        own = flatten({name: getattr(row.entry, name) for name in ("train", "options", "method_options")})
        own = {key: value for key, value in own.items() if (key, value) != ("train.ramp_epochs", 0)}
        found += [f"{row.where}.{key} ({row.unused[key]})" for key in own if row.unused and key in row.unused]
    shared = {section: getattr(sweep, section).model_dump(exclude_defaults=True) for section in ("train", "evaluation")}
    for key, value in flatten(shared).items():
        reasons = [row.unused and row.unused.get(key) for row in rows]
        if value and all(reasons):
            found.append(f"{key} ({reasons[0]})")
    if all(row.trial.is_trained_elsewhere for row in rows):
        found += ["train_images (no entry is trained)"] if sweep.train_images is not None else []
        found += ["all seeds but the first (no entry is trained)"] if len(sweep.seeds) > 1 else []
    if "width" in sweep.model_fields_set and all(row.entry.width is not None for row in rows):
        found.append("width (each entry has its own)")
    return (f"settings without effect: {'; '.join(dict.fromkeys(found))}",) if found else ()
