"""Expand a sweep file to its trials, each checked to the last key."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from os.path import abspath
from pathlib import Path
from typing import Any, NamedTuple

from baselines import network_names, options_of, suggestion
from harness.common.errors import InputError, Location, collect_problems, located, require
from harness.common.models import MOST_PROBLEMS, validate
from harness.config import plugins
from harness.config.buildable import check_buildable, unused_settings
from harness.config.file import ExpandedSweep, SweepFile, profile_mark
from harness.config.grid import LARGEST, expand, names_in
from harness.config.search import SearchedRow, check_search, make_searched_row
from harness.config.sweep import Sweep, SweepEntry, options_model
from harness.config.text import merge, nest
from harness.config.trial import Trial, flatten
from harness.methods import METHODS, method_options
from harness.own_data import MeasuredData
from harness.pretrained.network_file import TRAINED_ELSEWHERE, digest_of, read_file
from harness.pretrained.weights import read_weights
from harness.settings import Recipe

Unused = dict[str, str]
"""Settings that change nothing in a trial, by dotted key, each with the reason."""
_SECTIONS = ("train", "options", "method_options")


class _Row(NamedTuple):
    """A row of the leaderboard: an entry of `trials` without lists, and its trial under seed 0.

    where, choice: begin and end messages about it.
    """

    where: str
    choice: str
    entry: SweepEntry
    trial: Trial


def expand_file(file: SweepFile, trained: Collection[str] = (), own_data: MeasuredData | None = None) -> ExpandedSweep:
    """Return a file's sweep. Networks are built as a check, except those of trials that have been trained.

    trained: the identities of these. own_data: that of the file, measured. Raises InputError, with a line for each
    problem: the file, the key, what was found, what is allowed.
    """
    with file.located():
        expansion = _Expansion(file.sweep, file.profile, file.path.parent, own_data)
        with collect_problems() as at:
            rows = _mark_changed(expansion.rows(at), expansion, file)
            unused = expansion.build_networks(rows, trained, at)
        return expansion.expanded(rows, unused)


def _mark_changed(rows: list[_Row], expansion: "_Expansion", file: SweepFile) -> list[_Row]:
    """Return the rows; the profile of those that the file has not without `--set` says what that changed.

    The profile is part of keys and stands over tables, so no changed trial is mistaken for the file's.
    """
    unchanged = set[str]()
    if mark := profile_mark(file.changes):
        # A file that is right with `--set` alone has no trials without.
        with suppress(InputError), collect_problems() as at:
            original = replace(expansion, sweep=validate(Sweep, file.content))
            unchanged = {row.trial.identity for row in original.rows(at)}
        rows = [
            row
            if row.trial.identity in unchanged
            else row._replace(trial=row.trial.replace(profile=f"{file.profile} {mark}"))
            for row in rows
        ]
    return rows


@dataclass(frozen=True)
class _Expansion:
    """Makes trials of the entries of a sweep file.

    directory: of the file, to which checkpoints are relative. own_data: measured, if the file names no registered data.
    """

    sweep: Sweep
    profile: str
    directory: Path
    own_data: MeasuredData | None

    def rows(self, at: Location) -> list[_Row]:
        """Return the rows of the entries of `trials`, one for each value of their lists.

        at: collects the first wrong trial of each entry. Raises InputError for too many trials.
        """
        expanded, rows, first, total = dict[str, list[Any]](), list[_Row](), dict[str, str](), 0
        for number, lists in enumerate(self.sweep.trials):
            with at(f"trials.{number}."):
                for name in names_in(lists, "model"):
                    plugins.add_factory(name, self.sweep.plugins)
                choices = expanded[f"trials.{number}"] = expand(lists)
                total += len(choices) * len(self.sweep.seeds)
            found = f"{total:,} trials or more with all seeds"
            require("trials", found, total <= LARGEST, f"at most {LARGEST:,}")
        for where, choices in expanded.items():
            with at(f"{where}."):
                for content, values in choices:
                    choice = f" (with {', '.join(f'{k} {v}' for k, v in values.items())})" if values else ""
                    with located("", choice):
                        entry = validate(SweepEntry, content)
                        trial = self.trial(entry)
                        same = first.get(trial.identity, "")
                        require("model", entry.model, not same, f"a trial that differs from {same}")
                    first[trial.identity] = where + choice
                    rows.append(_Row(where, choice, entry, trial))
        return rows

    def trial(self, entry: SweepEntry) -> Trial:
        """Return an entry's trial under seed 0. Raises InputError."""
        sweep, checkpoint = self.sweep, entry.checkpoint
        is_alone = sweep.search is None or checkpoint is None
        require("model", entry.model, is_alone, "networks without a checkpoint beside `search`, which trains")
        content = vars(sweep) | vars(entry)
        content |= {"sweep": sweep.name, "profile": self.profile, "seed": 0, "width": entry.width or sweep.width}
        content |= {"dataset": sweep.dataset_name, "own_data": self.own_data}
        with collect_problems() as at:
            if checkpoint is None:
                with at(""):
                    recipe = sweep.train.model_dump(exclude_unset=True) | entry.train
                    content["train"] = validate(Recipe, recipe, "train")
                with at(""):
                    content["method_options"] = _changed_options("method_options", entry.method, entry.method_options)
            else:
                path = self.checkpoint_path(entry)
                sha256 = digest_of(read_file(path, checkpoint))
                content |= {"method": TRAINED_ELSEWHERE, "train": Recipe(), "train_images": None}
                content["checkpoint"] = checkpoint.replace(file=path.name, sha256=sha256)
            with at(""):
                content["options"] = _changed_options("options", entry.model, entry.options)
            with at(""):
                content["plugins"] = plugins.digests(sweep.plugins, entry.model)
        trial = validate(Trial, {name: content[name] for name in Trial.model_fields if name in content})
        own = [f"train.{name}" for name in entry.train if getattr(trial.train, name) != getattr(sweep.train, name)]
        return trial.replace(named=(*(["width"] if trial.width != sweep.width else []), *own))

    def build_networks(self, rows: list[_Row], trained: Collection[str], at: Location) -> list[Unused | None]:
        """Return the unused settings of rows, found by building their networks; None for one that is trained.

        at: collects what is wrong with networks, methods and checkpoints.
        """
        unused = list[Unused | None]()
        for where, choice, entry, trial in rows:
            is_new = trial.identity not in trained
            with at(f"{where}.", choice):
                is_built = is_new or self.sweep.search is not None
                unused.append(unused_settings(trial, check_buildable(trial)) if is_built else None)
                if trial.is_trained_elsewhere and is_new:
                    read_weights(self.checkpoint_path(entry), trial)
        return unused

    def expanded(self, rows: list[_Row], unused: list[Unused | None]) -> ExpandedSweep:
        """Return the sweep of rows that are right. Raises InputError where the search does not fit them."""
        sweep, trials, checkpoints = self.sweep, list[Trial](), dict[str, Path]()
        for _, _, entry, trial in rows:
            seeds = sweep.seeds[:1] if trial.is_trained_elsewhere else sweep.seeds
            trials += [trial.replace(seed=seed) for seed in seeds]
            if trial.checkpoint is not None:
                checkpoints[trial.checkpoint.sha256] = self.checkpoint_path(entry)
        searched: tuple[SearchedRow, ...] = ()
        if sweep.search is not None:
            searched = tuple(
                make_searched_row(sweep.search, row.trial, ignored or {}, partial(self.candidate, row.entry))
                for row, ignored in zip(rows, unused, strict=True)
            )
            check_search(sweep.search, sweep.validation_images, searched)
        return ExpandedSweep(
            name=sweep.name,
            profile=self.profile,
            dataset=sweep.dataset_name,
            eps=sweep.eps,
            resources=sweep.resources,
            trials=trials,
            search=sweep.search,
            searched=searched,
            checkpoints=checkpoints,
            warnings=_without_effect(sweep, rows, unused),
        )

    def candidate(self, entry: SweepEntry, settings: dict[str, Any]) -> Trial:
        """Return the entry's trial under seed 0 with these settings, by their keys in it. Raises InputError."""
        content = entry.model_dump()
        for key, value in settings.items():
            content = merge(content, nest(key.split("."), value))
        trial = self.trial(validate(SweepEntry, content))
        check_buildable(trial)
        return trial

    def checkpoint_path(self, entry: SweepEntry) -> Path:
        """Return the path of the file with an entry's weights."""
        return Path(abspath(self.directory / (entry.checkpoint.file if entry.checkpoint else "")))


def _changed_options(section: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a network or method that are not at their defaults, as JSON has them.

    So 1 and 1.0 name one trial. Raises InputError.
    """
    names, of = (network_names(), options_of) if section == "options" else (METHODS, method_options)
    allowed = of(name)
    text = f"allowed: {', '.join(allowed)}" if allowed else f"{name} has no options"
    with collect_problems() as at:
        for option in [option for option in options if option not in allowed][:MOST_PROBLEMS]:
            owners = [other for other in names if option in of(other)]
            owner = f"; `{'model' if section == 'options' else 'method'}: {owners[0]}` has {option}" if owners else ""
            hint = suggestion(option, list(allowed)) or owner
            with at(f"{section}.{option}: "):
                raise InputError(f"unknown option of {name}; {text}{hint}")
    return validate(options_model(allowed), options, section, is_json=True).model_dump(
        mode="json", exclude_defaults=True
    )


def _without_effect(sweep: Sweep, rows: list[_Row], unused: list[Unused | None]) -> tuple[str, ...]:
    """Return a line on the settings of the file and of its entries that change nothing, none if there are none.

    unused: of each row; None where the network was not built. The ramp may be 0 and settings of the file null, false
    or their defaults, so that a profile or an entry can take back what it does not use.
    """
    found = list[str]()
    for row, reasons in zip(rows, unused, strict=True):
        own = flatten({section: getattr(row.entry, section) for section in _SECTIONS})
        own = {key: value for key, value in own.items() if (key, value) != ("train.ramp_epochs", 0)}
        found += [f"{row.where}.{key} ({reasons[key]})" for key in own if reasons and key in reasons]
    shared = {section: getattr(sweep, section).model_dump(exclude_defaults=True) for section in ("train", "evaluation")}
    for key, value in flatten(shared).items():
        reasons_of_all = [reasons and reasons.get(key) for reasons in unused]
        if value and all(reasons_of_all):
            found.append(f"{key} ({reasons_of_all[0]})")
    if all(row.trial.is_trained_elsewhere for row in rows):
        found += ["train_images (no entry is trained)"] if sweep.train_images is not None else []
        found += ["all seeds but the first (no entry is trained)"] if len(sweep.seeds) > 1 else []
    if "width" in sweep.model_fields_set and all(row.entry.width is not None for row in rows):
        found.append("width (each entry has its own)")
    return (f"settings without effect: {'; '.join(dict.fromkeys(found))}",) if found else ()
