"""Expand a sweep file to its trials, each checked to the last key."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from os.path import abspath
from pathlib import Path
from typing import Any

from baselines import network_names, options_of, suggestion
from harness.common.errors import InputError, require
from harness.common.models import MOST_PROBLEMS, validate
from harness.config import plugins
from harness.config.buildable import check_buildable, unused_settings
from harness.config.file import ASSIGNED, ExpandedSweep, SweepFile, locate, profile_mark
from harness.config.grid import LARGEST, expand, names_in
from harness.config.search import Searched, check_search, make_searched
from harness.config.sweep import Sweep, TrialEntry, options_model
from harness.config.text import merge, nest
from harness.config.trial import Trial, flatten
from harness.methods import METHODS, method_options
from harness.own_data import MeasuredData
from harness.pretrained.checkpoint import TRAINED_ELSEWHERE, digest_of, read_file
from harness.pretrained.weights import read_weights
from harness.settings import Recipe

_SECTIONS = ("train", "options", "method_options")


def expand_file(file: SweepFile, trained: Collection[str] = (), own_data: MeasuredData | None = None) -> ExpandedSweep:
    """Return a file's sweep, changed as `--set` says.

    trained: the identities of trials that have been trained: their networks are not built to be checked. own_data: that
    of the file, measured. Raises InputError, with a line for each problem: the file or `--set`, the key, what was
    found, what is allowed.
    """
    location: str | Path = file.path
    try:
        expansion = _Expansion(file.sweep, file.profile, file.path.parent, own_data)
        entries = expansion.entries()
        if file.changed is None:
            return expansion.checked(entries, trained)
        location, mark = ASSIGNED, profile_mark(file.changes)
        originals = {entry.trial.identity for entry in entries}
        expansion = replace(expansion, sweep=file.changed)
        changed = [
            # The profile is part of keys and stands over tables, so no changed trial is mistaken for the file's.
            entry if entry.trial.identity in originals else entry.with_trial(profile=f"{file.profile} {mark}")
            for entry in expansion.entries()
        ]
        return replace(expansion.checked(changed, trained), changed=mark)
    except InputError as error:
        raise locate(error, location, file.profile, file.included) from None


@dataclass(frozen=True)
class _Entry:
    """An entry of `trials` without lists.

    trial: its trial under seed 0. keys: of the entry. where: as messages name it. choice: of lists, at their end.
    """

    trial: Trial
    keys: TrialEntry
    where: str
    choice: str

    def with_trial(self, **changes: Any) -> "_Entry":
        return replace(self, trial=self.trial.replace(**changes))

    def problems(self, error: InputError) -> list[str]:
        """Return the lines of an error of this entry."""
        return [f"{self.where}.{line}{self.choice}" for line in str(error).splitlines()]


@dataclass(frozen=True)
class _Expansion:
    """Makes trials of the entries of a sweep file.

    directory: of the file, to which checkpoints are relative. own_data: measured, if the file names no registered data.
    """

    sweep: Sweep
    profile: str
    directory: Path
    own_data: MeasuredData | None

    def entries(self) -> list[_Entry]:
        """Return all that `trials` stand for. Raises InputError with the first wrong trial of each entry."""
        entries, first, problems, total = list[_Entry](), dict[str, str](), list[str](), 0
        for number, lists in enumerate(self.sweep.trials):
            where, choice = f"trials.{number}", ""
            try:
                for name in names_in(lists, "model"):
                    plugins.add_factory(name, self.sweep.plugins)
                choices = expand(lists)
                total += len(choices) * len(self.sweep.seeds)
                if total > LARGEST:
                    break
                for content, values in choices:
                    choice = f" (with {', '.join(f'{key} {value}' for key, value in values.items())})" if values else ""
                    keys = validate(TrialEntry, content)
                    trial = self.resolve(keys)
                    same = first.get(trial.identity, "")
                    require("model", keys.model, not same, f"a trial that differs from {same}")
                    first[trial.identity] = where + choice
                    entries.append(_Entry(trial, keys, where, choice))
            except InputError as error:
                problems += [f"{where}.{line}{choice}" for line in str(error).splitlines()]
        require("trials", f"{total:,} trials or more with all seeds", total <= LARGEST, f"at most {LARGEST:,}")
        _refuse(problems)
        return entries

    def resolve(self, keys: TrialEntry) -> Trial:
        """Return an entry's trial under seed 0. Raises InputError."""
        keys.check_keys()
        sweep, checkpoint = self.sweep, keys.checkpoint
        is_alone = sweep.search is None or checkpoint is None
        require("model", keys.model, is_alone, "networks without a checkpoint beside `search`, which trains")
        parts = {
            "train": lambda: validate(Recipe, sweep.train.model_dump(exclude_unset=True) | keys.train, "train"),
            "options": lambda: _changed_options("options", keys.model, keys.options),
            "method_options": lambda: _changed_options("method_options", keys.method, keys.method_options),
            "plugins": lambda: plugins.digests(sweep.plugins, keys.model),
        }
        content = vars(sweep) | vars(keys)
        content |= {"sweep": sweep.name, "profile": self.profile, "seed": 0, "width": keys.width or sweep.width}
        content |= {"dataset": sweep.dataset_name, "own_data": self.own_data}
        if checkpoint is not None:
            del parts["train"], parts["method_options"]
            path = self.checkpoint_path(keys)
            sha256 = digest_of(read_file(path, checkpoint))
            content |= {"method": TRAINED_ELSEWHERE, "train": Recipe(), "train_images": None}
            content["checkpoint"] = checkpoint.replace(file=path.name, sha256=sha256)
        content |= _all_or_none(**parts)
        trial = validate(Trial, {name: content[name] for name in Trial.model_fields if name in content})
        own = [f"train.{name}" for name in keys.train if getattr(trial.train, name) != getattr(sweep.train, name)]
        return trial.replace(named=(*(["width"] if trial.width != sweep.width else []), *own))

    def checked(self, entries: list[_Entry], trained: Collection[str]) -> ExpandedSweep:
        """Return the sweep, with networks built as a check, except those of trials that have been trained.

        Raises InputError.
        """
        sweep, problems, unused, trials = self.sweep, list[str](), dict[int, dict[str, str]](), list[Trial]()
        checkpoints = {}
        for number, entry in enumerate(entries):
            trial, checkpoint = entry.trial, entry.trial.checkpoint
            try:
                if trial.identity not in trained or sweep.search is not None:
                    unused[number] = unused_settings(trial, check_buildable(trial))
                if checkpoint is not None:
                    checkpoints[checkpoint.sha256] = self.checkpoint_path(entry.keys)
                    if trial.identity not in trained:
                        read_weights(checkpoints[checkpoint.sha256], trial)
            except InputError as error:
                problems += entry.problems(error)
            seeds = sweep.seeds[:1] if trial.is_trained_elsewhere else sweep.seeds
            trials += [trial.replace(seed=seed) for seed in seeds]
        _refuse(problems)
        searched: tuple[Searched, ...] = ()
        if sweep.search is not None:
            searched = tuple(
                make_searched(sweep.search, entry.trial, unused[number], partial(self.candidate, entry.keys))
                for number, entry in enumerate(entries)
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
            warnings=_without_effect(sweep, entries, unused),
        )

    def candidate(self, keys: TrialEntry, settings: dict[str, Any]) -> Trial:
        """Return the entry's trial under seed 0 with these settings, by their keys in it. Raises InputError."""
        content = keys.model_dump()
        for key, value in settings.items():
            content = merge(content, nest(key.split("."), value))
        trial = self.resolve(validate(TrialEntry, content))
        check_buildable(trial)
        return trial

    def checkpoint_path(self, keys: TrialEntry) -> Path:
        """Return the path of the file with an entry's weights."""
        return Path(abspath(self.directory / (keys.checkpoint.file if keys.checkpoint else "")))


def _refuse(problems: list[str]) -> None:
    """Raise InputError if there are problems."""
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def _all_or_none(**parts: Callable[[], Any]) -> dict[str, Any]:
    """Return the parts of a trial. Raises InputError with the problems of all of them."""
    result, problems = {}, list[str]()
    for name, part in parts.items():
        try:
            result[name] = part()
        except InputError as error:
            problems += str(error).splitlines()
    _refuse(problems)
    return result


def _changed_options(section: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a network or method that are not at their defaults, as JSON has them.

    So 1 and 1.0 name one trial. Raises InputError.
    """
    names, of = (network_names(), options_of) if section == "options" else (METHODS, method_options)
    allowed = of(name)
    problems = list[str]()
    for option in [option for option in options if option not in allowed][:MOST_PROBLEMS]:
        owners = [other for other in names if option in of(other)]
        owner = f"; `{'model' if section == 'options' else 'method'}: {owners[0]}` has {option}" if owners else ""
        text = f"allowed: {', '.join(allowed)}" if allowed else f"{name} has no options"
        hint = suggestion(option, list(allowed)) or owner
        problems.append(f"{section}.{option}: unknown option of {name}; {text}{hint}")
    _refuse(problems)
    return validate(options_model(allowed), options, section, is_json=True).model_dump(
        mode="json", exclude_defaults=True
    )


def _without_effect(sweep: Sweep, entries: list[_Entry], unused: dict[int, dict[str, str]]) -> tuple[str, ...]:
    """Return a line on the settings of the file and of its entries that change nothing, none if there are none.

    unused: of the entries whose networks were built. The ramp may be 0 and evaluation settings null or false, so that a
    profile or an entry can take back what it does not use.
    """
    found = list[str]()
    for number, reasons in unused.items():
        entry = entries[number]
        own = flatten({section: getattr(entry.keys, section) for section in _SECTIONS})
        own = {key: value for key, value in own.items() if (key, value) != ("train.ramp_epochs", 0)}
        found += [f"{entry.where}.{key} ({reasons[key]})" for key in own if key in reasons]
    shared = {section: getattr(sweep, section).model_dump(exclude_unset=True) for section in ("train", "evaluation")}
    for key, value in flatten(shared).items():
        reasons_of_all = [reasons.get(key) for reasons in unused.values()]
        if value and len(unused) == len(entries) and all(reasons_of_all):
            found.append(f"{key} ({reasons_of_all[0]})")
    if all(entry.trial.is_trained_elsewhere for entry in entries):
        found += ["train_images (no entry is trained)"] if sweep.train_images is not None else []
        found += ["all seeds but the first (no entry is trained)"] if len(sweep.seeds) > 1 else []
    if "width" in sweep.model_fields_set and all(entry.keys.width is not None for entry in entries):
        found.append("width (each entry has its own)")
    return (f"settings without effect: {'; '.join(dict.fromkeys(found))}",) if found else ()
