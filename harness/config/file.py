"""Read a sweep file and check what can be checked before torch is imported: its keys, and the names in it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baselines import UnknownNameError
from harness.common.errors import InputError, SettingError
from harness.common.models import MOST_PROBLEMS, unknown_key, validate
from harness.config import plugins
from harness.config.grid import names_in
from harness.config.names import Kind, check_name, describe_unknown_option
from harness.config.search import Searched, SearchSettings
from harness.config.sweep import FIXED, Resources, Sweep, TrialEntry
from harness.config.text import merge, parse_assignments, read
from harness.config.trial import FULL_PROFILE, Trial, flatten
from harness.settings import Radius

CPU_PROFILE = "cpu"
ASSIGNED = "--set"
"""The location that error messages name if `--set` is wrong."""
_NAMED: tuple[tuple[Kind, str, str], ...] = (
    ("network", "model", "options"),
    ("training method", "method", "method_options"),
)
"""What entries name, under which key, and where the options are."""


@dataclass(frozen=True)
class ExpandedSweep:
    """A sweep file under one profile, checked and expanded.

    changed: the settings of `--set` as text, or "". Trials that `--set` changed have it in their profile.
    search: how settings are searched; None without a search.
    searched: the entries of `trials` whose settings are searched; empty without a search.
    checkpoints: the files of networks trained elsewhere, by their SHA-256.
    warnings: a line on settings without effect, if there are any.
    """

    name: str
    profile: str
    dataset: str
    eps: Radius
    resources: Resources
    trials: list[Trial]
    changed: str = ""
    search: SearchSettings | None = None
    searched: tuple[Searched, ...] = ()
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckedFile:
    """A sweep file whose keys are right under one profile at least that may be run.

    content: of the file and those that it includes. note: on included files, for messages.
    profile: the one that is asked for, if any. assignments, changes: of `--set`, as typed and as a profile.
    """

    path: Path
    note: str
    content: dict[str, Any]
    profile: str | None
    assignments: Sequence[str]
    changes: dict[str, Any]

    def profile_here(self, has_gpu: bool) -> str:
        """Return the profile to run: `cpu` without a GPU, if the file has it and no other one is asked for."""
        has_cpu_profile = CPU_PROFILE in (self.content.get("profiles") or {})
        return self.profile or (CPU_PROFILE if has_cpu_profile and not has_gpu else FULL_PROFILE)

    def sweep(self, profile: str, is_changed: bool) -> Sweep:
        """Return the keys under a profile, checked. is_changed: by `--set`. Raises InputError, with its location."""
        content = self.content
        try:
            if profile != FULL_PROFILE:
                changes = content["profiles"][profile]
                if fixed := [key for key in changes if key in FIXED]:
                    raise InputError(f"profiles.{profile}.{fixed[0]}: a profile cannot change this")
                content = merge(content, changes)
            sweep: Sweep = validate(Sweep, merge(content, self.changes) if is_changed else content)
            if problems := _wrong_names(sweep):
                raise InputError("\n".join(problems))
        except InputError as error:
            raise self.located(error, profile, is_changed) from None
        return sweep

    def located(self, error: InputError, profile: str, is_changed: bool) -> InputError:
        """Return an error of the file, or of `--set`, each line with it before and the profile after it."""
        location, end = ASSIGNED if is_changed else self.path, f"(profile {profile}{self.note})"
        return InputError("\n".join(f"{location}: {line} {end}" for line in str(error).splitlines()))

    def with_location(self, error: InputError, profile: str) -> InputError:
        """Return an error of the file or of `--set`, each line with both before it, and the profile after it."""
        location = " ".join([str(self.path), *(f"--set {assignment}" for assignment in self.assignments)])
        return InputError("\n".join(f"{location}: {line} (profile {profile})" for line in str(error).splitlines()))


def check_keys(path: Path, profile: str | None, assignments: Sequence[str] = ()) -> CheckedFile:
    """Read a sweep file and check its keys and names, then those of `--set`. Imports the file's plugins.

    profile: the one that is asked for, if any. assignments: of `--set`, KEY=VALUE each, applied after the profile.
    Raises InputError.
    """
    content, included = read(path)
    try:
        plugins.load(content.get("plugins", []))
        profiles = validate(dict[str, dict[str, Any]] | None, content.get("profiles"), "profiles") or {}
        if FULL_PROFILE in profiles:
            raise InputError(f"profiles.{FULL_PROFILE}: the name of the file without a profile; choose another")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if profile not in (None, FULL_PROFILE, *profiles):
        allowed = UnknownNameError("profile", profile, [FULL_PROFILE, *profiles]).allowed
        raise InputError(f"{path}: {SettingError('--profile', profile, allowed)}")
    changes = parse_assignments(assignments, Sweep.model_fields.keys() - FIXED)
    file = CheckedFile(path, "".join(f", includes {each}" for each in included), content, profile, assignments, changes)
    # Without --profile, the machine decides: then what is right under one of two may be right.
    runnable = (
        [profile] if profile else [name for name in (FULL_PROFILE, CPU_PROFILE) if name in (FULL_PROFILE, *profiles)]
    )
    for is_changed in (False, True) if changes else (False,):
        errors = []
        for name in runnable:
            try:
                file.sweep(name, is_changed)
            except InputError as error:
                errors.append(error)
        if len(errors) == len(runnable):
            raise errors[0]
    return file


def _wrong_names(sweep: Sweep) -> list[str]:
    """Return a line for each unknown key, network, method and option of the entries, as far as torch is not needed."""
    problems = []
    for number, entry in enumerate(sweep.trials):
        where, keys = f"trials.{number}", list(TrialEntry.model_fields)
        problems += [unknown_key(f"{where}.{key}", keys) for key in entry if key not in keys]
        for kind, key, section in _NAMED:
            for name in names_in(entry, key):
                if ":" in name:  # a function of a plugin
                    continue
                choice = f" (with {key} {name})" if isinstance(entry[key], list) else ""
                try:
                    check_name(kind, name)
                except UnknownNameError as error:
                    problems.append(str(SettingError(f"{where}.{key}", name, error.allowed)) + choice)
                    continue
                options = entry.get(section)
                few = list(options)[:MOST_PROBLEMS] if isinstance(options, dict) and not choice else []
                for option in few:
                    if problem := describe_unknown_option(kind, name, option):
                        problems.append(f"{where}.{section}.{option}: {problem}")
    return problems


def profile_mark(changes: dict[str, Any]) -> str:
    """Return the changes that change trials, in one spelling; '' for none."""
    settings = flatten({key: value for key, value in changes.items() if key not in ("seeds", "resources", "search")})
    texts = []
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
        texts.append("--set trials" if key == "trials" else f"--set {key}={text}")  # rows say what their trials are
    return " ".join(sorted(texts))
