"""Expand a sweep file to its trials, each checked to the last key."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import Parameter
from os.path import abspath
from pathlib import Path
from typing import Any

from baselines import options_of
from harness.common.errors import InputError, require, shorten
from harness.methods import method_options
from harness.own_data import MeasuredData
from harness.settings import TrainSettings
from harness.sweep import plugins
from harness.sweep.buildable import check_buildable, ignored_evaluation, ignored_settings
from harness.sweep.file import ASSIGNED, CPU_PROFILE, CheckedFile, Sweep, check_keys, parse_keys, with_location
from harness.sweep.grid import LARGEST, expand, names_in
from harness.sweep.imported_network import TRAINED_ELSEWHERE, Checkpoint, digest_of, read_file
from harness.sweep.imported_weights import read_weights
from harness.sweep.schema import SweepFile, TrialEntry, options_model, validate
from harness.sweep.search_settings import check_search, make_searched
from harness.sweep.text import merge, nest, profile_mark
from harness.sweep.trial_config import FULL_PROFILE, TrialConfig, identity


def load_sweep(path: Path, profile: str | None, has_gpu: bool, assignments: Sequence[str] = ()) -> Sweep:
    """Read a sweep file on registered data, check it under each of its profiles, and expand it under one.

    profile, assignments: as in `check_keys`. has_gpu: as in `expand_file`. Raises InputError.
    """
    return expand_file(check_keys(path, profile, assignments), has_gpu)


def expand_file(file: CheckedFile, has_gpu: bool, own_data: MeasuredData | None = None) -> Sweep:
    """Expand a sweep file under each of its profiles, and return its sweep under one, changed as `--set` says.

    has_gpu: without, the profile is `cpu` if the file has it and no other one is asked for. own_data: that of the
    file, measured. Raises InputError, with a line for each problem: the file or `--set`, the key, what was found, what
    is allowed.
    """
    sweeps = expand_profiles(file, own_data)
    profile = file.profile or (CPU_PROFILE if CPU_PROFILE in sweeps and not has_gpu else FULL_PROFILE)
    if not file.assignments:
        return sweeps[profile]
    content = merge(file.contents[profile], file.changes)
    changed = _expand(file, profile, parse_keys(content, profile, ASSIGNED, file.note), content, ASSIGNED, own_data)
    return _mark_changed(changed, sweeps[profile].trials, profile_mark(file.changes))


def expand_profiles(file: CheckedFile, own_data: MeasuredData | None = None) -> dict[str, Sweep]:
    """Return a file's sweep under each of its profiles, by name, without `--set`. Raises as `expand_file` does."""
    return {
        profile: _expand(file, profile, file.keys[profile], content, file.path, own_data)
        for profile, content in file.contents.items()
    }


def _mark_changed(sweep: Sweep, unchanged: list[TrialConfig], mark: str) -> Sweep:
    """Return the sweep with a mark in the profile of each trial that `unchanged` has under no seed.

    The profile is part of keys and stands over tables, so no changed trial is mistaken for the file's.
    """
    originals = {identity(trial) for trial in unchanged}

    def marked(trial: TrialConfig) -> TrialConfig:
        is_original = identity(trial) in originals
        return trial if is_original else replace(trial, profile=f"{trial.profile} {mark}")

    trials = [marked(trial) for trial in sweep.trials]
    searched = tuple(replace(entry, base=marked(entry.base)) for entry in sweep.searched)
    return replace(sweep, trials=trials, searched=searched, changed=mark)


def _expand(
    file: CheckedFile,
    profile: str,
    keys: SweepFile,
    content: dict[str, Any],
    location: Path | str,
    own_data: MeasuredData | None,
) -> Sweep:
    """Return the sweep that a content describes. Raises InputError, whose lines begin with `location`.

    keys: the content, checked.
    """
    resolver = _Resolver(profile, keys, file.path.parent, own_data)
    try:
        expanded = resolver.expand_entries()
        _refuse(_ignored_by_all(keys, content, expanded))
        trials, searched = [], []
        for trial, ignored, entry in expanded:
            seeds = keys.seeds[:1] if trial.is_trained_elsewhere else keys.seeds
            trials += [replace(trial, seed=seed) for seed in seeds]
            if keys.search is not None:
                searched.append(make_searched(keys.search, trial, ignored, partial(resolver.candidate, entry)))
        if keys.search is not None:
            check_search(keys.search, keys.validation_images, searched)
    except InputError as error:
        raise with_location(error, profile, location, file.note) from None
    checkpoints = {
        trial.checkpoint.sha256: resolver.checkpoint_path(entry.checkpoint)
        for trial, _, entry in expanded
        if trial.checkpoint is not None and entry.checkpoint is not None
    }
    return Sweep(
        name=keys.name,
        profile=profile,
        dataset=_name_of(keys),
        eps=keys.eps,
        resources=keys.resources,
        trials=trials,
        search=keys.search,
        searched=tuple(searched),
        checkpoints=checkpoints,
    )


Expanded = tuple[TrialConfig, dict[str, str], TrialEntry]
"""A trial under seed 0, the settings that it ignores, with reasons, and its entry without lists."""


@dataclass(frozen=True)
class _Resolver:
    """Makes trials of the entries of a sweep file.

    keys: of the file under a profile, checked. directory: of the file, to which checkpoints are relative. own_data:
    measured, if the file names no registered data.
    """

    profile: str
    keys: SweepFile
    directory: Path
    own_data: MeasuredData | None

    def expand_entries(self) -> list[Expanded]:
        """Return all that `trials` stand for. Raises InputError with the first wrong trial of each entry."""
        expanded: list[Expanded] = []
        first: dict[str, str] = {}
        problems, total = [], 0
        for number, lists in enumerate(self.keys.trials):
            choice = ""
            try:
                for name in names_in(lists, "model"):
                    plugins.add_factory(name, self.keys.plugins)
                choices = expand(lists)
                total += len(choices) * len(self.keys.seeds)
                if total > LARGEST:
                    break
                for content, values in choices:
                    choice = f" (with {', '.join(f'{key} {value}' for key, value in values.items())})" if values else ""
                    entry = validate(TrialEntry, content)
                    trial, ignored = self.resolve(entry)
                    same = first.get(identity(trial), "")
                    require("model", entry.model, not same, f"a trial that differs from {same}")
                    first[identity(trial)] = f"trials.{number}{choice}"
                    expanded.append((trial, ignored, entry))
            except InputError as error:
                problems += [f"trials.{number}.{problem}{choice}" for problem in str(error).splitlines()]
        require("trials", f"{total:,} trials or more with all seeds", total <= LARGEST, f"at most {LARGEST:,}")
        _refuse(problems)
        return expanded

    def resolve(self, entry: TrialEntry) -> tuple[TrialConfig, dict[str, str]]:
        """Return the entry's trial under seed 0, and the settings that it ignores, with reasons. Raises InputError.

        The weights of a network trained elsewhere are checked.
        """
        entry.check_keys()
        keys, checkpoint = self.keys, entry.checkpoint
        is_alone = keys.search is None or checkpoint is None
        require("model", entry.model, is_alone, "networks without a checkpoint beside `search`, which trains")
        parts: dict[str, Callable[[], Any]] = {
            "train": lambda: validate(TrainSettings, asdict(keys.train) | entry.train, "train"),
            "options": lambda: _changed_options("options", entry.options, options_of(entry.model)),
            "method_options": lambda: _changed_options(
                "method_options", entry.method_options, method_options(entry.method)
            ),
            "plugins": lambda: plugins.digests(keys.plugins),
        }
        if checkpoint is not None:
            del parts["train"], parts["method_options"]
        trial = TrialConfig(
            sweep=keys.name,
            profile=self.profile,
            dataset=_name_of(keys),
            own_data=self.own_data,
            eps=keys.eps,
            seed=0,
            model=entry.model,
            method=entry.method if checkpoint is None else TRAINED_ELSEWHERE,
            width=entry.width or keys.width,
            train_images=keys.train_images if checkpoint is None else None,
            validation_images=keys.validation_images,
            evaluation=keys.evaluation,
            source=entry.source,
            **_all_or_none(**parts),
        )
        network = check_buildable(trial)
        if checkpoint is not None:
            path = self.checkpoint_path(checkpoint)
            digest = digest_of(read_file(path, checkpoint))
            trial = replace(trial, checkpoint=replace(checkpoint, file=path.name, sha256=digest))
            read_weights(path, trial)
        ignored = ignored_settings(trial, network)
        sections = ("train", "options", "method_options")
        own = {f"{section}.{name}": value for section in sections for name, value in getattr(entry, section).items()}
        _refuse(_describe_ignored(own, ignored))
        return trial, ignored

    def candidate(self, entry: TrialEntry, settings: dict[str, Any]) -> TrialConfig:
        """Return the entry's trial under seed 0 with these settings, by their keys in it. Raises InputError."""
        content = entry.model_dump()
        for key, value in settings.items():
            content = merge(content, nest(key.split("."), value))
        return self.resolve(validate(TrialEntry, content))[0]

    def checkpoint_path(self, checkpoint: Checkpoint) -> Path:
        """Return the path of a checkpoint's file."""
        return Path(abspath(self.directory / checkpoint.file))


def _name_of(keys: SweepFile) -> str:
    """Return the name of the file's data set."""
    return keys.dataset if isinstance(keys.dataset, str) else keys.dataset.title


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


def _changed_options(section: str, options: dict[str, Any], allowed: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the options that are not at their defaults, in their own types, so that 1 and 1.0 name one trial.

    Raises InputError.
    """
    return validate(options_model(allowed), options, section).model_dump(exclude_defaults=True)


def _describe_ignored(settings: dict[str, Any], ignored: dict[str, str]) -> list[str]:
    """Return a line for each of the settings that is ignored, except `train.ramp_epochs: 0`, which means no ramp."""
    refused = [key for key, value in settings.items() if key in ignored and (key, value) != ("train.ramp_epochs", 0)]
    return [f"{key}: found {shorten(settings[key])}, allowed: nothing, for {ignored[key]}" for key in refused]


def _ignored_by_all(keys: SweepFile, content: dict[str, Any], expanded: list[Expanded]) -> list[str]:
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
        if len(keys.seeds) > 1:
            lines.append(f"seeds: found {shorten(keys.seeds)}, allowed: one seed, {allowed}")
    if "width" in content and all(entry.width is not None for _, _, entry in expanded):
        lines.append(f"width: found {shorten(content['width'])}, allowed: nothing, for each of trials has its own")
    return lines
