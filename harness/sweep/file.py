"""Read a sweep file under each of its profiles and check its keys, before torch is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baselines import UnknownNameError
from harness.common.errors import InputError, SettingError
from harness.settings import Radius, fit_to_epochs
from harness.sweep import plugins
from harness.sweep.schema import FIXED, Resources, SweepFile, validate
from harness.sweep.search_settings import Searched, SearchSettings
from harness.sweep.text import merge, parse_assignments, read
from harness.sweep.trial_config import FULL_PROFILE, TrialConfig

CPU_PROFILE = "cpu"
ASSIGNED = "--set"
"""The location that error messages name if `--set` is wrong."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file under one profile, checked and expanded.

    changed: the settings of `--set` as text, or "". Trials that `--set` changed have it in their profile.
    search: how settings are searched; None without a search.
    searched: the entries of `trials` whose settings are searched; empty without a search.
    checkpoints: the files of networks trained elsewhere, by their SHA-256.
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
    checkpoints: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckedFile:
    """A sweep file whose keys are right; entries of `trials` are not checked yet: that needs the networks.

    contents, keys: the content under each profile, and the same checked; `full` is first.
    profile: the one that is asked for, if any. note: on included files, for messages.
    changes: of `--set`, which fit one profile at least that may be asked for.
    """

    path: Path
    note: str
    contents: dict[str, dict[str, Any]]
    keys: dict[str, SweepFile]
    profile: str | None
    assignments: Sequence[str]
    changes: dict[str, Any]

    def with_location(self, error: InputError, profile: str) -> InputError:
        """Return an error of the file or of `--set`, each line with both before it, and the profile after it."""
        location = " ".join([str(self.path), *(f"--set {assignment}" for assignment in self.assignments)])
        return with_location(error, profile, location, "")


def check_keys(path: Path, profile: str | None, assignments: Sequence[str] = ()) -> CheckedFile:
    """Read a sweep file and check its keys under each profile, then those of `--set`. Imports the file's plugins.

    profile: the one that is asked for, if any. assignments: of `--set`, KEY=VALUE each, applied after the profile.
    Raises InputError.
    """
    content, included = read(path)
    try:
        plugins.load(content.get("plugins", []))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    note = "".join(f", includes {file}" for file in included)
    contents, keys = {FULL_PROFILE: content}, {FULL_PROFILE: parse_keys(content, FULL_PROFILE, path, note)}
    for name, changes in (keys[FULL_PROFILE].profiles or {}).items():
        if name == FULL_PROFILE:
            raise InputError(f"{path}: profiles.{FULL_PROFILE}: the name of the file without a profile; choose another")
        if fixed := [key for key in changes if key in FIXED]:
            raise InputError(f"{path}: profiles.{name}.{fixed[0]}: a profile cannot change this")
        contents[name] = merge(content, changes)
    keys |= {name: parse_keys(content, name, path, note) for name, content in contents.items() if name not in keys}
    if profile is not None and profile not in contents:
        allowed = UnknownNameError("profile", profile, list(contents)).allowed
        raise InputError(f"{path}: {SettingError('--profile', profile, allowed)}")
    changes = parse_assignments(assignments, SweepFile.model_fields.keys() - FIXED)
    selectable = [profile] if profile else [name for name in (CPU_PROFILE, FULL_PROFILE) if name in contents]
    problems = []
    for name in selectable:  # which of two it is depends on the machine: what one of them allows may be right
        try:
            parse_keys(merge(contents[name], changes), name, ASSIGNED, note)
        except InputError as error:
            problems.append(error)
    if len(problems) == len(selectable):
        raise problems[0]
    return CheckedFile(path, note, contents, keys, profile, assignments, changes)


def parse_keys(content: dict[str, Any], profile: str, location: Path | str, note: str) -> SweepFile:
    """Return the checked keys of a sweep file. Raises InputError, as `with_location` returns it."""
    try:
        recipe = {"train": fit_to_epochs(content["train"])} if "train" in content else {}
        return validate(SweepFile, content | recipe)
    except InputError as error:
        raise with_location(error, profile, location, note) from None


def with_location(error: InputError, profile: str, location: Path | str, note: str) -> InputError:
    """Return the error, each line with its location (the file or `--set`) before it, and profile and note after it."""
    return InputError("\n".join(f"{location}: {line} (profile {profile}{note})" for line in str(error).splitlines()))
