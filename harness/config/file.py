"""Read a sweep file: its mappings, those of its includes, a profile and `--set` are merged, then checked."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from baselines import UnknownNameError
from harness.common.errors import InputError, SettingError, collect_problems, located
from harness.common.models import MOST_PROBLEMS, Model, unknown_key, validate
from harness.config import plugins
from harness.config.search import SearchedRow, SearchSettings
from harness.config.sweep import FIXED, Resources, Sweep, SweepEntry
from harness.config.text import merge, parse_assignments, read
from harness.config.trial import FULL_PROFILE, Trial, flatten
from harness.settings import Radius, Recipe

CPU_PROFILE = "cpu"


@dataclass(frozen=True)
class ExpandedSweep:
    """A sweep file under one profile, checked and expanded.

    search: how settings are searched; None without a search.
    searched: the rows of `trials` if their settings are searched; empty without a search.
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
    searched: tuple[SearchedRow, ...] = ()
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
        notes = [] if profile == FULL_PROFILE else [f"profile {profile}"]
        notes += [f"includes {each}" for each in included]
        end = f" ({', '.join(notes)})" if notes else ""
        with located(start, end):
            own = profiles.get(profile, {})
            if fixed := [key for key in own if key in FIXED]:
                raise InputError(f"profiles.{profile}.{fixed[0]}: a profile cannot change this")
            merged = merge(content, own)
            sweep = _validate(merge(merged, changes))
        return SweepFile(path, profile, merged, changes, sweep, start, end)

    file = under(profile or FULL_PROFILE)
    if profile is None and CPU_PROFILE in profiles and not has_gpu():
        file = under(CPU_PROFILE)
    with file.located():
        plugins.load(file.sweep.plugins)
    return file


def _validate(content: dict[str, Any]) -> Sweep:
    """Return a sweep; the keys of its entries are checked here, too. Raises InputError with all unknown keys.

    What entries say is checked once torch is imported, which takes seconds: `expansion`.
    """
    with collect_problems() as at:
        with at(""):
            sweep: Sweep = validate(Sweep, content)
        entries = content.get("trials")
        numbered = enumerate(entries if isinstance(entries, list) else [])
        lines = chain.from_iterable(_unknown_keys(f"trials.{n}.", entry, SweepEntry) for n, entry in numbered)
        with at(""):
            if unknown := list(islice(lines, MOST_PROBLEMS)):
                raise InputError("\n".join(unknown))
    return sweep


def _unknown_keys(start: str, content: Any, model: type[Model]) -> Iterator[str]:
    """Yield a line for each key of a mapping, or of a list of mappings to choose from, that a model has not."""
    for choice in content if isinstance(content, list) else [content]:
        for key, value in choice.items() if isinstance(choice, dict) else ():
            if key not in model.model_fields:
                yield unknown_key(f"{start}{key}", list(model.model_fields))
            elif key == "train":
                yield from _unknown_keys(f"{start}{key}.", value, Recipe)


def profile_mark(changes: dict[str, Any]) -> str:
    """Return the changes that change trials, in one spelling; '' for none."""
    settings = flatten({key: value for key, value in changes.items() if key not in ("seeds", "resources", "search")})
    texts = []
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
        texts.append("--set trials" if key == "trials" else f"--set {key}={text}")  # rows say what their trials are
    return " ".join(sorted(texts))
