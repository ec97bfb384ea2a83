"""Sweep files: read, checked to the last key, and expanded to a list of trials."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from inspect import Parameter
from os.path import abspath
from pathlib import Path
from typing import Any

from baselines import options_of
from harness.common.errors import InputError, require, shorten
from harness.methods import method_options
from harness.settings import TrainSettings
from harness.sweep import plugins
from harness.sweep.buildable import check_buildable, ignored_evaluation, ignored_settings
from harness.sweep.checkpoint_settings import TRAINED_ELSEWHERE, digest_of, read_file
from harness.sweep.checkpoint_weights import read_weights
from harness.sweep.grid import LARGEST, expand, names_in
from harness.sweep.profiles import (
    ASSIGNED,
    CPU_PROFILE,
    CheckedFile,
    Sweep,
    check_keys,
    name_source,
    parse_keys,
)
from harness.sweep.schema import SweepFile, TrialEntry, options_model, validate
from harness.sweep.search import check_search, make_searched
from harness.sweep.text import merge, nest, profile_mark
from harness.sweep.trial_config import FULL_PROFILE, TrialConfig, identity


def load_profiles(path: Path) -> dict[str, Sweep]:
    """Return a file's sweep under each of its profiles, by name. Raises InputError as `load_sweep` does."""
    return _expand_profiles(check_keys(path, None))


def load_sweep(path: Path, profile: str | None, has_gpu: bool, assignments: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, check it under each of its profiles, and expand it under one.

    profile, assignments: as in `check_keys`. has_gpu: as in `expand_file`. Raises InputError.
    """
    return expand_file(check_keys(path, profile, assignments), has_gpu)


def expand_file(file: CheckedFile, has_gpu: bool) -> Sweep:
    """Expand a sweep file under each of its profiles, and return its sweep under one, changed as `--set` says.

    has_gpu: without, the profile is `cpu` if the file has it and no other one is asked for. Raises InputError, with a
    line for each problem: the file or `--set`, the key, what was found, what is allowed.
    """
    sweeps = _expand_profiles(file)
    selected = file.profile or (CPU_PROFILE if CPU_PROFILE in sweeps and not has_gpu else FULL_PROFILE)
    if not file.assignments:
        return sweeps[selected]
    content = merge(file.contents[selected], file.changes)
    keys = parse_keys(content, selected, ASSIGNED, file.note)
    return _expand(keys, content, selected, file, ASSIGNED, sweeps[selected], profile_mark(file.changes))


def _expand_profiles(file: CheckedFile) -> dict[str, Sweep]:
    return {name: _expand(file.keys[name], content, name, file, file.path) for name, content in file.contents.items()}


def _expand(
    sweep: SweepFile,
    content: dict[str, Any],
    profile: str,
    file: CheckedFile,
    source: Path | str,
    original: Sweep | None = None,
    mark: str = "",
) -> Sweep:
    """Return the sweep that a file's content describes. Raises InputError, whose lines begin with `source`.

    sweep: the content, with checked keys. original: the sweep without `--set`. Trials that it has under no seed have
    the mark in their profile, which is part of keys and stands over tables, so that no changed trial is mistaken for
    the file's.
    """
    directory = file.path.parent  # to which checkpoints are relative
    try:
        expanded = _expand_entries(sweep, profile, directory)
        _refuse(_ignored_by_all(sweep, content, expanded))
        unmarked = {identity(trial) for trial in original.trials} if original else set()
        trials, searched = [], []
        for trial, ignored, entry in expanded:
            if original and identity(trial) not in unmarked:
                trial = replace(trial, profile=f"{profile} {mark}")
            seeds = sweep.seeds[:1] if trial.is_trained_elsewhere else sweep.seeds
            trials += [replace(trial, seed=seed) for seed in seeds]
            if sweep.search is not None:
                resolve = partial(_candidate, profile, sweep, entry, directory)
                searched.append(make_searched(sweep.search, trial, ignored, resolve))
        if sweep.search is not None:
            check_search(sweep.search, sweep.validation_images, searched)
    except InputError as error:
        raise name_source(error, profile, source, file.note) from None
    checkpoints = {
        trial.checkpoint.sha256: _checkpoint_file(directory, entry.checkpoint.file)
        for trial, _, entry in expanded
        if trial.checkpoint is not None and entry.checkpoint is not None
    }
    return Sweep(
        sweep.name,
        profile,
        sweep.dataset,
        sweep.eps,
        sweep.resources,
        trials,
        mark,
        sweep.search,
        tuple(searched),
        checkpoints,
    )


Expanded = tuple[TrialConfig, dict[str, str], TrialEntry]
"""A trial under seed 0, the settings that it ignores, with reasons, and its entry without lists."""


def _expand_entries(sweep: SweepFile, profile: str, directory: Path) -> list[Expanded]:
    """Return all that the sweep's `trials` stand for. Raises InputError with the first wrong trial of each entry.

    directory: of the sweep file.
    """
    expanded: list[Expanded] = []
    first: dict[str, str] = {}
    problems, total = [], 0
    for number, lists in enumerate(sweep.trials):
        choice = ""
        try:
            for name in names_in(lists, "model"):
                plugins.add_factory(name, sweep.plugins)
            choices = expand(lists)
            total += len(choices) * len(sweep.seeds)
            if total > LARGEST:
                break
            for content, values in choices:
                choice = f" (with {', '.join(f'{key} {value}' for key, value in values.items())})" if values else ""
                entry = validate(TrialEntry, content)
                trial, ignored = _resolve(profile, sweep, entry, directory)
                same = first.get(identity(trial), "")
                require("model", entry.model, not same, f"a trial that differs from {same}")
                first[identity(trial)] = f"trials.{number}{choice}"
                expanded.append((trial, ignored, entry))
        except InputError as error:
            problems += [f"trials.{number}.{problem}{choice}" for problem in str(error).splitlines()]
    require("trials", f"{total:,} trials or more with all seeds", total <= LARGEST, f"at most {LARGEST:,}")
    _refuse(problems)
    return expanded


def _refuse(problems: list[str]) -> None:
    """Raise InputError if there are problems."""
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def _resolve(profile: str, sweep: SweepFile, entry: TrialEntry, directory: Path) -> tuple[TrialConfig, dict[str, str]]:
    """Return the entry's trial under seed 0, and the settings that it ignores, with reasons. Raises InputError.

    directory: of the sweep file. The weights of a network trained elsewhere are checked.
    """
    entry.check_keys()
    checkpoint, is_alone = entry.checkpoint, sweep.search is None or entry.checkpoint is None
    require("model", entry.model, is_alone, "networks without a checkpoint beside `search`, which trains")
    parts: dict[str, Callable[[], Any]] = {
        "train": lambda: validate(TrainSettings, asdict(sweep.train) | entry.train, "train"),
        "options": lambda: _changed_options("options", entry.options, options_of(entry.model)),
        "method_options": lambda: _changed_options(
            "method_options", entry.method_options, method_options(entry.method)
        ),
        "plugins": lambda: plugins.digests(sweep.plugins),
    }
    settings = dict(sweep) | dict(entry)
    settings |= {"sweep": sweep.name, "profile": profile, "seed": 0, "width": entry.width or sweep.width}
    if checkpoint is not None:
        settings |= {"method": TRAINED_ELSEWHERE, "train_images": None, "train": TrainSettings(), "checkpoint": None}
        del parts["train"], parts["method_options"]
    settings |= _all_or_none(**parts)
    trial = TrialConfig(**{field.name: settings[field.name] for field in fields(TrialConfig)})
    network = check_buildable(trial)
    if checkpoint is not None:
        path = _checkpoint_file(directory, checkpoint.file)
        digest = digest_of(read_file(path, checkpoint))
        trial = replace(trial, checkpoint=replace(checkpoint, file=path.name, sha256=digest))
        read_weights(path, trial)
    ignored = ignored_settings(trial, network)
    sections = ("train", "options", "method_options")
    own = {f"{section}.{name}": value for section in sections for name, value in getattr(entry, section).items()}
    _refuse(_describe_ignored(own, ignored))
    return trial, ignored


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


def _checkpoint_file(directory: Path, file: str) -> Path:
    """Return the path of a checkpoint's file. directory: of the sweep file."""
    return Path(abspath(directory / file))


def _candidate(
    profile: str, sweep: SweepFile, entry: TrialEntry, directory: Path, settings: dict[str, Any]
) -> TrialConfig:
    """Return the entry's trial under seed 0 with these settings, by their keys in the entry. Raises InputError."""
    content = entry.model_dump()
    for key, value in settings.items():
        content = merge(content, nest(key.split("."), value))
    return _resolve(profile, sweep, validate(TrialEntry, content), directory)[0]


def _changed_options(section: str, options: dict[str, Any], allowed: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the options that are not at their defaults, in their own types, so that 1 and 1.0 name one trial.

    Raises InputError.
    """
    return validate(options_model(allowed), options, section).model_dump(exclude_defaults=True)


def _describe_ignored(settings: dict[str, Any], ignored: dict[str, str]) -> list[str]:
    """Return a line for each of the settings that is ignored, except `train.ramp_epochs: 0`, which means no ramp."""
    refused = [key for key, value in settings.items() if key in ignored and (key, value) != ("train.ramp_epochs", 0)]
    return [f"{key}: found {shorten(settings[key])}, allowed: nothing, for {ignored[key]}" for key in refused]


def _ignored_by_all(sweep: SweepFile, content: dict[str, Any], expanded: list[Expanded]) -> list[str]:
    """Return a line for each setting of the file that no trial uses.

    All trials are evaluated alike. Of evaluation settings null and false count as absent, so that a profile can take
    back what it does not use.
    """
    recipe = {f"train.{name}": value for name, value in content.get("train", {}).items()}
    (trial, first, _), *_ = expanded
    shared = {name: reason for name, reason in first.items() if all(name in ignored for _, ignored, _ in expanded)}
    evaluation = {f"evaluation.{name}": value for name, value in content.get("evaluation", {}).items() if value}
    lines = [f"{line}; no other trial uses it" for line in _describe_ignored(recipe, shared)]
    lines += _describe_ignored(evaluation, ignored_evaluation(trial))
    if all(trial.is_trained_elsewhere for trial, _, _ in expanded):
        allowed = "for no entry of trials is trained"
        if content.get("train_images") is not None:
            lines.append(f"train_images: found {shorten(content['train_images'])}, allowed: nothing, {allowed}")
        if len(sweep.seeds) > 1:
            lines.append(f"seeds: found {shorten(sweep.seeds)}, allowed: one seed, {allowed}")
    if "width" in content and all(entry.width is not None for _, _, entry in expanded):
        lines.append(f"width: found {shorten(content['width'])}, allowed: nothing, for each of trials has its own")
    return lines
