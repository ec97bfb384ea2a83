"""Read a sweep file under each of its profiles and check its keys, without torch, so that wrong keys fail at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baselines import UnknownNameError
from harness.common.errors import InputError, SettingError
from harness.settings import Radius, fit_to_epochs
from harness.sweep import plugins
from harness.sweep.keys import FIXED, Resources, SweepFile, validate
from harness.sweep.search import Searched, SearchSettings
from harness.sweep.text import merge, parse_assignments, read
from harness.sweep.trial import FULL_PROFILE, TrialConfig

CPU_PROFILE = "cpu"
ASSIGNED = "--set"
"""The source that error messages name if `--set` is wrong."""


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


def read_profiles(path: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the content of a sweep file under each of its profiles, `full` first, and a note on included files.

    Imports the plugins that the file names. Raises InputError.
    """
    content, included = read(path)
    try:
        plugins.load(content.get("plugins", []))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    note = "".join(f", includes {file}" for file in included)
    profiles = parse_keys(content, FULL_PROFILE, path, note).profiles or {}
    if FULL_PROFILE in profiles:
        raise InputError(f"{path}: profiles.{FULL_PROFILE}: the name of the file without a profile; choose another")
    contents = {FULL_PROFILE: content}
    for name, changes in profiles.items():
        if fixed := [key for key in changes if key in FIXED]:
            raise InputError(f"{path}: profiles.{name}.{fixed[0]}: a profile cannot change this")
        contents[name] = merge(content, changes)
    return contents, note


def check_keys(path: Path, profile: str | None, assignments: Sequence[str] = ()) -> SweepFile:
    """Check the keys of a sweep file under each profile, then those of `--set`; return the file without a profile.

    Entries of `trials` are not checked: that needs the networks. Raises InputError as `load_sweep` does.
    """
    contents, note = read_profiles(path)
    checked = [parse_keys(content, name, path, note) for name, content in contents.items()]
    if profile is not None:
        require_profile(path, profile, list(contents))
    if assignments:
        changes = changes_of(assignments)
        problems = list[InputError]()
        selectable = [profile] if profile else [name for name in (CPU_PROFILE, FULL_PROFILE) if name in contents]
        for name in selectable:  # which of two it is depends on the machine: what one of them allows may be right
            try:
                parse_keys(merge(contents[name], changes), name, ASSIGNED, note)
            except InputError as error:
                problems.append(error)
        if len(problems) == len(selectable):
            raise problems[0]
    return checked[0]


def parse_keys(content: dict[str, Any], profile: str, source: Path | str, note: str) -> SweepFile:
    """Return the checked keys of a sweep file. Raises InputError, as `name_source` returns it."""
    try:
        recipe = {"train": fit_to_epochs(content["train"])} if "train" in content else {}
        return validate(SweepFile, content | recipe)
    except InputError as error:
        raise name_source(error, profile, source, note) from None


def name_source(error: InputError, profile: str, source: Path | str, note: str) -> InputError:
    """Return the error, each line with its source (the file or `--set`) before it, and profile and note after it."""
    return InputError("\n".join(f"{source}: {line} (profile {profile}{note})" for line in str(error).splitlines()))


def describe_source(path: Path, assignments: Sequence[str]) -> str:
    """Return the file and `--set` as an error names them that may be in either."""
    return " ".join([str(path), *(f"--set {assignment}" for assignment in assignments)])


def changes_of(assignments: Sequence[str]) -> dict[str, Any]:
    """Return what `--set` changes of a sweep file. Raises SettingError."""
    return parse_assignments(assignments, SweepFile.model_fields.keys() - FIXED)


def require_profile(path: Path, profile: str, allowed: list[str]) -> None:
    """Raise InputError unless the sweep file has the profile."""
    if profile not in allowed:
        error = SettingError("--profile", profile, UnknownNameError("profile", profile, allowed).allowed)
        raise InputError(f"{path}: {error}")
