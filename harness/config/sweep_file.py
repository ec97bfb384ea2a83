"""Sweep files: YAML, checked to the last key, expanded to a list of trials."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from baselines import UnknownNameError
from harness.config import plugins
from harness.config.assignments import assigned, command_of, mark_of
from harness.config.entries import EntryError, candidate, refusals_of_all, resolve
from harness.config.grid import Choice, expanded
from harness.config.radius import Radius
from harness.config.search import Searched, SearchSettings, spaces_of
from harness.config.sweep_keys import FIXED, Resources, SweepFile, described
from harness.config.sweep_text import ConfigError, merged, read
from harness.config.trial import FULL_PROFILE, TrialConfig, identity
from harness.errors import SettingError, require, shown

CPU_PROFILE = "cpu"


@dataclass(frozen=True)
class Sweep:
    """A sweep file under one profile, checked and expanded.

    changed: what `--set` changed of its trials; those that differ in it from the file's have it in their profile.
    search, searched: how settings of its entries are searched, and each of the entries; None and empty where they are
        not.
    """

    name: str
    profile: str
    dataset: str
    eps: Radius
    resources: Resources
    trials: list[TrialConfig]
    changed: str = ""
    search: SearchSettings | None = None
    searched: tuple[Searched, ...] = ()


def load_sweep(path: Path, profile: str | None, has_gpu: bool, assignments: Sequence[str] = ()) -> Sweep:
    """Read and check a sweep file, every profile in it included, and expand it under one.

    profile: None picks `cpu` where there is no GPU and the file has such a profile, else `full`. assignments: what
    `--set` says, KEY=VALUE each, as a further profile over the chosen one. Raises ConfigError, and SettingError for an
    assignment that is none.
    """
    content, included = read(path)
    profiles = content.pop("profiles", None)
    profiles = {} if profiles is None else profiles
    if not isinstance(profiles, dict) or not all(isinstance(value, dict) for value in profiles.values()):
        raise ConfigError(
            path, [f"profiles: found {shown(profiles)}, allowed: a mapping from profile names to the keys they change"]
        )
    if FULL_PROFILE in profiles:
        raise ConfigError(path, [f"profiles.{FULL_PROFILE}: the name of the sweep without a profile; choose another"])
    told = f"includes {', '.join(included)}" if included else ""
    _load_plugins(path, content.get("plugins", []))
    resolved = {FULL_PROFILE: _validated(path, content, told)}
    for name, changes in profiles.items():
        unknown = sorted(set(changes) & FIXED)
        if unknown:
            raise ConfigError(path, [f"profiles.{name}.{key}: a profile cannot change this" for key in unknown])
        resolved[name] = _validated(path, merged(content, changes), ", ".join(filter(None, [f"profile {name}", told])))
    chosen = profile or (CPU_PROFILE if CPU_PROFILE in profiles and not has_gpu else FULL_PROFILE)
    if chosen not in resolved:
        raise ConfigError(path, [str(UnknownNameError("profile", chosen, list(resolved)))])
    sweeps = {name: _sweep(path, name, *checked) for name, checked in resolved.items()}
    if not assignments:
        return sweeps[chosen]
    changes, given = assigned(assignments, SweepFile.model_fields.keys() - FIXED), command_of(assignments)
    checked = _validated(given, merged(merged(content, profiles.get(chosen, {})), changes), f"profile {chosen}")
    return _marked(_sweep(given, chosen, *checked), sweeps[chosen], mark_of(changes))


def _load_plugins(path: Path, names: Any) -> None:
    """Import a file's plugins, so that what they register is known. Raises ConfigError."""
    try:
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        require("plugins", names, texts, "a list of names of modules, such as [my_package.nets]")
        plugins.digests(names)  # of all of them, before any is imported
        plugins.load(names)
    except SettingError as error:
        raise ConfigError(path, [str(error)]) from error


def _marked(sweep: Sweep, file_s: Sweep, mark: str) -> Sweep:
    """The sweep, each trial that the file does not have, under any seed, with the mark in its profile.

    Profiles are part of keys and stand over tables, so that nothing changed is ever taken for the file's.
    """
    known = {identity(trial) for trial in file_s.trials}

    def marked(trial: TrialConfig) -> TrialConfig:
        return trial if identity(trial) in known else replace(trial, profile=f"{trial.profile} {mark}")

    searched = tuple(replace(entry, base=marked(entry.base)) for entry in sweep.searched)
    return replace(sweep, trials=[marked(trial) for trial in sweep.trials], changed=mark, searched=searched)


def _validated(path: Path | str, content: dict[str, Any], where: str) -> tuple[SweepFile, list[Choice], dict[str, Any]]:
    """The file's content, checked, each of its entries one trial; which of the file's entries those are; the content.

    where: what it is besides the file, for messages. Raises ConfigError.
    """
    choices = _choices(path, content.get("trials"), where, content.get("plugins", []))
    made = {"trials": [choice.content for choice in choices]} if choices else {}
    try:
        checked = SweepFile.model_validate_json(json.dumps(content | made, default=str))
    except ValidationError as error:
        problems = [_placed(item, choices) for item in error.errors()]
        raise ConfigError(path, _told(problems, where)) from None
    return checked, choices, content


def _choices(path: Path | str, entries: Any, where: str, modules: list[str]) -> list[Choice]:
    """All that a file's `trials` stand for; none where they are no list. modules: its plugins. Raises ConfigError."""
    choices: list[Choice] = []
    problems = []
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        try:
            for model in _models(entry):
                plugins.add_factory(model, modules)
            choices += expanded(number, entry)
        except SettingError as error:
            problems.append((f"trials.{number}.{error}", ""))
    if problems:
        raise ConfigError(path, _told(problems, where))
    return choices


def _models(entry: Any) -> list[str]:
    """The networks that an entry names."""
    named = entry.get("model") if isinstance(entry, dict) else None
    return [model for model in (named if isinstance(named, list) else [named]) if isinstance(model, str)]


def _placed(item: Any, choices: list[Choice]) -> tuple[str, str]:
    """What is wrong, by its key in the file, and in which of an entry's choices."""
    section, *inside = item["loc"]
    if section != "trials" or not inside:
        return described(item), ""
    choice = choices[inside[0]]
    return described({**item, "loc": ("trials", choice.number, *inside[1:])}), choice.chosen


def _told(problems: list[tuple[str, str]], where: str) -> list[str]:
    """A line a problem, with the first choice that has it, and where it is besides the file."""
    first: dict[str, str] = {}
    for problem, chosen in problems:
        first.setdefault(problem, chosen)
    asides = {
        problem: "; ".join(filter(None, [chosen and f"with {chosen}", where])) for problem, chosen in first.items()
    }
    return [f"{problem} ({aside})" if aside else problem for problem, aside in asides.items()]


def _sweep(path: Path | str, profile: str, sweep: SweepFile, choices: list[Choice], given: dict[str, Any]) -> Sweep:
    """The checked file's trials. given: what the file says, as it stands there. Raises ConfigError."""
    twice = sorted({seed for seed in sweep.seeds if sweep.seeds.count(seed) > 1})
    problems = [(f"seeds: {seed} appears twice", "") for seed in twice]
    resolved: dict[str, Choice] = {}
    trials: list[TrialConfig] = []
    every: list[dict[str, str]] = []
    searched: list[Searched] = []
    for choice, entry in zip(choices, sweep.trials, strict=True):
        try:
            trial, ignored = resolve(profile, sweep, entry)
        except EntryError as error:
            problems += [(f"{choice.key}.{problem}", choice.chosen) for problem in error.args]
            continue
        every.append(ignored)
        same = resolved.setdefault(identity(trial), choice)
        if same is not choice:
            aside = f" with {same.chosen}" if same.chosen else ""
            problems.append((f"{choice.key}: the same trial as {same.key}{aside}", choice.chosen))
        trials += [replace(trial, seed=seed) for seed in sweep.seeds]
        if sweep.search is not None:
            spaces = spaces_of(sweep.search.spaces, trial.model, trial.method, ignored)
            searched.append(Searched(trial, spaces, partial(candidate, profile, sweep, entry)))
    if not problems:  # else of trials that are not there nothing is known
        problems = [(line, "") for line in refusals_of_all(sweep, given, trials[0], every)]
    if not problems and sweep.search is not None:
        problems = [(problem, "") for problem in _search_problems(sweep, sweep.search, searched)]
    if problems:
        raise ConfigError(path, _told(problems, f"profile {profile}"))
    found = tuple(searched)
    return Sweep(
        sweep.name, profile, sweep.dataset, sweep.eps, sweep.resources, trials, search=sweep.search, searched=found
    )


def _search_problems(sweep: SweepFile, search: SearchSettings, searched: list[Searched]) -> list[str]:
    """What is wrong with a search: slices, spaces that nothing uses, ends of spaces that cannot be had."""
    problems = []
    if sweep.validation_images:
        found = f"validation_images: found {sweep.validation_images}"
        problems.append(f"{found}, allowed: 0 beside search, whose winners are judged on test images")
    if search.seeds > len(sweep.seeds):
        problems.append(f"search.seeds: found {search.seeds}, allowed: at most the sweep's {len(sweep.seeds)}")
    used = {key for entry in searched for key in entry.spaces}
    problems += [
        f"search.spaces.{key}: found a space, allowed: a setting that a network or method of trials uses"
        for key in search.spaces
        if key not in used
    ]
    alike: dict[str, Searched] = {}
    for entry in searched:
        if not entry.spaces:
            problems.append(f"search.spaces: found none for {entry.base.row}, allowed: one for each of trials")
        first = {key: space.extremes[0] for key, space in entry.spaces.items()}
        with suppress(ValueError):  # told below
            if alike.setdefault(identity(entry.config(first)), entry) is not entry:
                problems.append(f"trials: {entry.base.row}: two that differ in what is searched alone")
        if search.asha is not None and search.asha.min_epochs >= entry.base.train.epochs:
            found = f"search.asha.min_epochs: found {search.asha.min_epochs}"
            problems.append(f"{found}, allowed: less than epochs = {entry.base.train.epochs} of {entry.base.row}")
        for key, space in entry.spaces.items():
            for value in space.extremes:
                try:
                    entry.config(first | {key: value})
                except ValueError as error:
                    problems.append(f"search.spaces.{key}: {'; '.join(map(str, error.args))}")
    return problems
