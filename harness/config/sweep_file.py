"""Sweep files: read, checked to the last key, and expanded to a list of trials."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from inspect import Parameter
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from baselines import UnknownNameError, UnknownOptionError, options_of, refuse_unknown_options
from harness.config import plugins
from harness.config.buildable import check_buildable, ignored_evaluation, ignored_settings
from harness.config.grid import Choice, expand
from harness.config.search import Searched, SearchSettings, search_problems, spaces_of
from harness.config.settings import Radius, TrainSettings
from harness.config.sweep_keys import FIXED, Resources, SweepFile, TrialEntry, describe
from harness.config.sweep_text import ConfigError, merge, parse_assignments, profile_mark, read
from harness.config.trial import FULL_PROFILE, TrialConfig, identity
from harness.errors import InputError, SettingError, shorten
from harness.methods import make_method, method_options

CPU_PROFILE = "cpu"


@dataclass(frozen=True)
class Sweep:
    """A sweep file under one profile, checked and expanded.

    changed: what `--set` changed of the trials, as it stands in the profile of trials that the file does not have.
    search, searched: how settings are searched, and the entries whose settings are; None and empty without a search.
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


class EntryError(ValueError):
    """An entry of `trials` that cannot be used: an argument a problem, each led by its key in the entry."""


def load_sweep(path: Path, profile: str | None, has_gpu: bool, assignments: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, check it under each of its profiles, and expand it under one.

    profile: None selects `cpu` where there is no GPU and the file has that profile, else `full`. assignments: of
    `--set`, KEY=VALUE each, applied after the profile. Raises ConfigError, and SettingError for a wrong assignment.
    """
    content, included = read(path)
    note = f"includes {', '.join(included)}" if included else ""
    try:
        plugins.load(content.get("plugins", []))
    except SettingError as error:
        raise ConfigError(path, [str(error)]) from error
    sweeps = {FULL_PROFILE: _expand(path, FULL_PROFILE, content, note)}
    profiles = content.get("profiles") or {}
    if FULL_PROFILE in profiles:
        raise ConfigError(path, [f"profiles.{FULL_PROFILE}: the name of the file without a profile; choose another"])
    for name, changes in profiles.items():
        if fixed := [key for key in changes if key in FIXED]:
            raise ConfigError(path, [f"profiles.{name}.{key}: a profile cannot change this" for key in fixed])
        sweeps[name] = _expand(path, name, merge(content, changes), note)
    selected = profile or (CPU_PROFILE if CPU_PROFILE in profiles and not has_gpu else FULL_PROFILE)
    if selected not in sweeps:
        raise ConfigError(path, [str(UnknownNameError("profile", selected, list(sweeps)))])
    if not assignments:
        return sweeps[selected]
    changes = parse_assignments(assignments, SweepFile.model_fields.keys() - FIXED)
    changed_content = merge(merge(content, profiles.get(selected, {})), changes)
    sweep = _expand("--set", selected, changed_content, note)
    return _mark_changed(sweep, sweeps[selected], profile_mark(changes))


def _mark_changed(sweep: Sweep, original: Sweep, mark: str) -> Sweep:
    """Return the sweep with the mark in the profile of each trial that the original has under no seed.

    Profiles are part of keys and stand over tables, so that no changed trial is mistaken for the file's.
    """
    known = {identity(trial) for trial in original.trials}

    def mark_trial(trial: TrialConfig) -> TrialConfig:
        return trial if identity(trial) in known else replace(trial, profile=f"{trial.profile} {mark}")

    searched = tuple(replace(entry, base=mark_trial(entry.base)) for entry in sweep.searched)
    return replace(sweep, trials=[mark_trial(trial) for trial in sweep.trials], changed=mark, searched=searched)


def _expand(source: Path | str, profile: str, content: dict[str, Any], note: str) -> Sweep:
    """Return the trials of a file's content under one profile. note: ends each message. Raises ConfigError."""
    note = ", ".join(filter(None, [f"profile {profile}", note]))
    choices = _expand_entries(source, content.get("trials"), content.get("plugins", []), note)
    entries = {"trials": [choice.content for choice in choices]} if choices else {}
    try:
        sweep = SweepFile.model_validate_json(json.dumps(content | entries))
    except ValidationError as error:
        raise _config_error(source, [_describe_in_file(item, choices) for item in error.errors()], note) from None
    problems = [(f"seeds: {seed} appears twice", "") for seed in {*sweep.seeds} if sweep.seeds.count(seed) > 1]
    first: dict[str, Choice] = {}
    trials: list[TrialConfig] = []
    ignored_by_trial: list[dict[str, str]] = []
    searched: list[Searched] = []
    for choice, entry in zip(choices, sweep.trials, strict=True):
        try:
            trial, ignored = _resolve(profile, sweep, entry)
        except EntryError as error:
            problems += [(f"{choice.key}.{problem}", choice.words) for problem in error.args]
            continue
        same = first.setdefault(identity(trial), choice)
        if same is not choice:
            words = f" with {same.words}" if same.words else ""
            problems.append((f"{choice.key}: the same trial as {same.key}{words}", choice.words))
        ignored_by_trial.append(ignored)
        trials += [replace(trial, seed=seed) for seed in sweep.seeds]
        if sweep.search is not None:
            spaces = spaces_of(sweep.search.spaces, trial, ignored)
            searched.append(Searched(trial, spaces, partial(_candidate, profile, sweep, entry)))
    if not problems:
        problems = [(line, "") for line in _ignored_by_all(sweep, content, trials[0], ignored_by_trial)]
    if not problems and sweep.search is not None:
        if sweep.validation_images:
            found = f"validation_images: found {sweep.validation_images}"
            problems.append((f"{found}, allowed: 0 beside search, whose winners are evaluated on test images", ""))
        problems += [(line, "") for line in search_problems(sweep.search, len(sweep.seeds), searched)]
    if problems:
        raise _config_error(source, problems, note)
    return Sweep(
        sweep.name, profile, sweep.dataset, sweep.eps, sweep.resources, trials,
        search=sweep.search, searched=tuple(searched),
    )  # fmt: skip


def _expand_entries(source: Path | str, entries: Any, modules: list[str], note: str) -> list[Choice]:
    """Return all that a file's `trials` stand for; nothing where they are no list. Raises ConfigError."""
    choices: list[Choice] = []
    problems = []
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        model = entry.get("model") if isinstance(entry, dict) else None
        try:
            for name in model if isinstance(model, list) else [model]:
                if isinstance(name, str):
                    plugins.add_factory(name, modules)
            choices += expand(number, entry)
        except SettingError as error:
            problems.append((f"trials.{number}.{error}", ""))
    if problems:
        raise _config_error(source, problems, note)
    return choices


def _describe_in_file(error: Any, choices: list[Choice]) -> tuple[str, str]:
    """Return what is wrong, by its key in the file, and the values chosen for the entry that it is in."""
    section, *inside = error["loc"]
    if section != "trials" or not inside:
        return describe(error), ""
    choice = choices[inside[0]]
    return describe({**error, "loc": ("trials", choice.number, *inside[1:])}), choice.words


def _config_error(source: Path | str, problems: list[tuple[str, str]], note: str) -> ConfigError:
    """Return the error with a line for each problem, with the first choice that has it."""
    first: dict[str, str] = {}
    for problem, words in problems:
        first.setdefault(problem, f"with {words}; " if words else "")
    return ConfigError(source, [f"{problem} ({words}{note})" for problem, words in first.items()])


def _resolve(profile: str, sweep: SweepFile, entry: TrialEntry) -> tuple[TrialConfig, dict[str, str]]:
    """Return the entry's trial under seed 0, and the settings that it ignores, with reasons. Raises EntryError."""
    settings = dict(sweep) | dict(entry)
    settings |= {
        "sweep": sweep.name,
        "profile": profile,
        "seed": 0,
        "width": entry.width or sweep.width,
        "train": _validate(TrainSettings, asdict(sweep.train) | entry.train, "train"),
        "options": _changed_options("options", entry.model, entry.options, options_of(entry.model)),
        "method_options": _method_options(entry.method, entry.method_options),
        "plugins": plugins.digests(sweep.plugins),
    }
    try:
        trial = TrialConfig(**{field.name: settings[field.name] for field in fields(TrialConfig)})
        ignored = ignored_settings(trial, check_buildable(trial))
    except InputError as error:
        raise EntryError(str(error)) from None
    except (TypeError, ValueError) as error:
        raise EntryError(f"options: {error}") from None
    sections = ("train", "options", "method_options")
    own = {f"{section}.{name}": value for section in sections for name, value in getattr(entry, section).items()}
    if problems := _refuse_ignored(own, ignored):
        raise EntryError(*problems)
    return trial, ignored


def _candidate(profile: str, sweep: SweepFile, entry: TrialEntry, settings: dict[str, Any]) -> TrialConfig:
    """Return the entry's trial under seed 0 with these settings, by their keys in the entry. Raises EntryError."""
    changes: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        changes.setdefault(section, dict(getattr(entry, section)))[name] = value
    return _resolve(profile, sweep, entry.model_copy(update=changes))[0]


def _changed_options(
    section: str, owner: str, options: dict[str, Any], allowed: Mapping[str, Parameter]
) -> dict[str, Any]:
    """Return the options that are not at their defaults, in their own types, so that 1 and 1.0 name one trial.

    Raises EntryError.
    """
    try:
        refuse_unknown_options(owner, options, allowed)
    except UnknownOptionError as error:
        raise EntryError(f"{section}.{error.option}: {error}") from None
    for name, option in allowed.items():
        if option.default is option.empty and name not in options:
            raise EntryError(f"{section}.{name}: missing")
    typed = {name: _validate(allowed[name].annotation, value, section, name) for name, value in options.items()}
    return {name: value for name, value in typed.items() if value != allowed[name].default}


def _method_options(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the method's options that are not at their defaults. Raises EntryError."""
    changed = _changed_options("method_options", method, options, method_options(method))
    try:
        make_method(method, changed)
    except ValueError as error:
        raise EntryError(f"method_options: {error}") from None
    return changed


def _validate(kind: Any, value: Any, *keys: str) -> Any:
    """Return a value as its type has it. keys: lead to the value in the entry. Raises EntryError."""
    try:
        return _adapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        raise EntryError(*(describe(item, *keys) for item in error.errors())) from None


@cache
def _adapter(kind: Any) -> TypeAdapter:
    config = None if kind is TrainSettings else ConfigDict(strict=True, allow_inf_nan=False)  # it has its own
    return TypeAdapter(kind, config=config)


def _refuse_ignored(settings: dict[str, Any], ignored: dict[str, str]) -> list[str]:
    """Return a line for each of the settings that is ignored, except `train.ramp_epochs: 0`, which means no ramp."""
    refused = [key for key, value in settings.items() if key in ignored and (key, value) != ("train.ramp_epochs", 0)]
    return [f"{key}: found {shorten(settings[key])}, allowed: nothing, for {ignored[key]}" for key in refused]


def _ignored_by_all(
    sweep: SweepFile, content: dict[str, Any], trial: TrialConfig, ignored_by_trial: list[dict[str, str]]
) -> list[str]:
    """Return a line for each setting of the file that no trial uses.

    trial: any of them, since all are evaluated alike. Of evaluation settings null and false count as absent, so that a
    profile can take back what it does not use.
    """
    recipe = {f"train.{name}": value for name, value in content.get("train", {}).items()}
    shared = {k: reason for k, reason in ignored_by_trial[0].items() if all(k in each for each in ignored_by_trial)}
    evaluation = {f"evaluation.{name}": value for name, value in content.get("evaluation", {}).items() if value}
    lines = [f"{line}; no other trial uses it" for line in _refuse_ignored(recipe, shared)]
    lines += _refuse_ignored(evaluation, ignored_evaluation(trial))
    if "width" in content and all(entry.width is not None for entry in sweep.trials):
        lines.append(f"width: found {shorten(content['width'])}, allowed: nothing, for each of trials has its own")
    return lines
