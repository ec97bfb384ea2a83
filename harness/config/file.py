"""Read a sweep file under a profile, with what it includes and what `--set` changes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baselines import UnknownNameError
from harness.common.errors import InputError, SettingError
from harness.common.models import validate
from harness.config import plugins
from harness.config.search import Searched, SearchSettings
from harness.config.sweep import FIXED, Resources, Sweep
from harness.config.text import merge, parse_assignments, read
from harness.config.trial import FULL_PROFILE, Trial, flatten
from harness.settings import Radius

CPU_PROFILE = "cpu"
ASSIGNED = "--set"
"""The location that error messages name if `--set` is wrong."""


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
class SweepFile:
    """A sweep file under a profile.

    sweep: its keys. changed: its keys with those of `--set`, None without. changes: those. assignments: as typed.
    included: the files that it includes.
    """

    path: Path
    included: list[Path]
    profile: str
    assignments: Sequence[str]
    changes: dict[str, Any]
    sweep: Sweep
    changed: Sweep | None

    def with_location(self, error: InputError) -> InputError:
        """Return an error of the file or of `--set`, each line with both before it, and the profile after it."""
        location = " ".join([str(self.path), *(f"--set {assignment}" for assignment in self.assignments)])
        return locate(error, location, self.profile)


def read_file(path: Path, profile: str | None, has_gpu: bool, assignments: Sequence[str] = ()) -> SweepFile:
    """Read a sweep file and check its keys, then those of `--set`. Imports the file's plugins. Raises InputError.

    profile: the one that is asked for; else it is `cpu` without a GPU, if the file has it. assignments: of `--set`,
    KEY=VALUE each, applied after the profile.
    """
    content, included = read(path)
    try:
        plugins.load(content.get("plugins", []))
        profiles = validate(dict[str, dict[str, Any]] | None, content.get("profiles"), "profiles") or {}
        if FULL_PROFILE in profiles:
            raise InputError(f"profiles.{FULL_PROFILE}: the name of the file without a profile; choose another")
        if profile not in (None, FULL_PROFILE, *profiles):
            allowed = UnknownNameError("profile", profile, [FULL_PROFILE, *profiles]).allowed
            raise SettingError("--profile", profile, allowed)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    profile = profile or (CPU_PROFILE if CPU_PROFILE in profiles and not has_gpu else FULL_PROFILE)
    changes = parse_assignments(assignments, Sweep.model_fields.keys() - FIXED)
    location = path
    try:
        own = profiles.get(profile, {})
        if fixed := [key for key in own if key in FIXED]:
            raise InputError(f"profiles.{profile}.{fixed[0]}: a profile cannot change this")
        content = merge(content, own)
        sweep = validate(Sweep, content)
        location = Path(ASSIGNED)
        changed = validate(Sweep, merge(content, changes)) if changes else None
    except InputError as error:
        raise locate(error, location, profile, included) from None
    return SweepFile(path, included, profile, assignments, changes, sweep, changed)


def locate(error: InputError, location: str | Path, profile: str, included: Sequence[Path] = ()) -> InputError:
    """Return an error with a location before each line, and the profile and included files after it."""
    end = "".join([f"(profile {profile}", *(f", includes {each}" for each in included), ")"])
    return InputError("\n".join(f"{location}: {line} {end}" for line in str(error).splitlines()))


def profile_mark(changes: dict[str, Any]) -> str:
    """Return the changes that change trials, in one spelling; '' for none."""
    settings = flatten({key: value for key, value in changes.items() if key not in ("seeds", "resources", "search")})
    texts = []
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
        texts.append("--set trials" if key == "trials" else f"--set {key}={text}")  # rows say what their trials are
    return " ".join(sorted(texts))
