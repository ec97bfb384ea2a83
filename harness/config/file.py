"""Read a sweep file: its mappings, those of its includes, a profile and `--set` are merged, then checked."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baselines import UnknownNameError
from harness.common.errors import InputError, SettingError, located
from harness.common.models import validate
from harness.config import plugins
from harness.config.search import Searched, SearchSettings
from harness.config.sweep import FIXED, Resources, Sweep
from harness.config.text import merge, parse_assignments, read
from harness.config.trial import FULL_PROFILE, Trial, flatten
from harness.settings import Radius

CPU_PROFILE = "cpu"


@dataclass(frozen=True)
class ExpandedSweep:
    """A sweep file under one profile, checked and expanded.

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
    search: SearchSettings | None = None
    searched: tuple[Searched, ...] = ()
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepFile:
    """A sweep file under a profile.

    content: its merged mappings. changes: those of `--set`. sweep: both, checked. start, end: of messages about it.
    """

    path: Path
    profile: str
    content: dict[str, Any]
    changes: dict[str, Any]
    sweep: Sweep
    start: str
    end: str

    def located(self) -> AbstractContextManager[None]:
        """Within, the lines of an InputError name the file, what was assigned to it, the profile and included files."""
        return located(self.start, self.end)


def read_file(
    path: Path, profile: str | None, has_gpu: Callable[[], bool], assignments: Sequence[str] = ()
) -> SweepFile:
    """Read a sweep file, check its keys and import its plugins. Raises InputError.

    profile: the one that is asked for; else it is `cpu` without a GPU, if the file has it. has_gpu: takes seconds, so
    the file is checked before. assignments: of `--set`, KEY=VALUE each, applied after the profile.
    """
    content, included = read(path)
    with located(f"{path}: "):
        profiles = validate(dict[str, dict[str, Any]] | None, content.get("profiles"), "profiles") or {}
        if FULL_PROFILE in profiles:
            raise InputError(f"profiles.{FULL_PROFILE}: the name of the file without a profile; choose another")
        if profile not in (None, FULL_PROFILE, *profiles):
            allowed = UnknownNameError("profile", profile, [FULL_PROFILE, *profiles]).allowed
            raise SettingError("--profile", profile, allowed)
    changes = parse_assignments(assignments, Sweep.model_fields.keys() - FIXED)
    start = f"{' '.join([str(path), *(f'--set {each}' for each in assignments)])}: "

    def under(profile: str) -> SweepFile:
        end = f" ({', '.join([f'profile {profile}', *(f'includes {each}' for each in included)])})"
        with located(start, end):
            own = profiles.get(profile, {})
            if fixed := [key for key in own if key in FIXED]:
                raise InputError(f"profiles.{profile}.{fixed[0]}: a profile cannot change this")
            merged = merge(content, own)
            sweep = validate(Sweep, merge(merged, changes))
        return SweepFile(path, profile, merged, changes, sweep, start, end)

    file = under(profile or FULL_PROFILE)
    if profile is None and CPU_PROFILE in profiles and not has_gpu():
        file = under(CPU_PROFILE)
    with file.located():
        plugins.load(file.sweep.plugins)
    return file


def profile_mark(changes: dict[str, Any]) -> str:
    """Return the changes that change trials, in one spelling; '' for none."""
    settings = flatten({key: value for key, value in changes.items() if key not in ("seeds", "resources", "search")})
    texts = []
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
        texts.append("--set trials" if key == "trials" else f"--set {key}={text}")  # rows say what their trials are
    return " ".join(sorted(texts))
