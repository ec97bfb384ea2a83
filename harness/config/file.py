"""Read a sweep file: its mappings, those of its includes, a profile and `--set` are merged, then checked."""

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines import UnknownNameError, suggestion
from harness.common.errors import InputError, SettingError, located, require
from harness.common.models import validate
from harness.config.sweep import FIXED, Ran, Sweep
from harness.config.training import FULL_PROFILE, flatten
from harness.config.yaml_text import MOST_CHARACTERS, merge, nest, parse_yaml

CPU_PROFILE = "cpu"
CHANGED = " --set "
"""What stands in a profile before each change of trainings."""


@dataclass(frozen=True)
class SweepFile:
    """A sweep file under a profile.

    profile: its name and what `--set` changed of trainings, such as 'cpu --set train.epochs=5'.
    content: the merged mappings: of the file, its includes, the profile and `--set`. sweep: the same, checked.
    start, end: of messages about it.
    """

    path: Path
    profile: str
    content: dict[str, Any]
    sweep: Sweep
    start: str
    end: str

    def located(self) -> AbstractContextManager[None]:
        """Within, the lines of an InputError name the file, what was assigned to it, the profile and included files."""
        return located(self.start, self.end)


def read_file(
    path: Path, profile: str | None, has_gpu: Callable[[], bool], assignments: Sequence[str] = ()
) -> SweepFile:
    """Read a sweep file, import its plugins and check what needs no torch. Raises InputError with all that is wrong.

    profile: the one that is asked for; else it is `cpu` without a GPU, if the file has it. has_gpu: takes seconds, so
    the file is checked before. assignments: of `--set`, KEY=VALUE each, applied after the profile.
    """
    content, included = read(path)
    with located(f"{path}: "):
        profiles = validate(dict[str, dict[str, Any]] | None, content.pop("profiles", None), "profiles") or {}
        if FULL_PROFILE in profiles:
            raise InputError(f"profiles.{FULL_PROFILE}: the name of the file without a profile; choose another")
        ran = validate(Ran | None, content.get("ran"), "ran")
        whole, *earlier = ran.profile.split(CHANGED) if ran else [FULL_PROFILE]
        if profile not in (None, whole, *profiles):
            allowed = UnknownNameError("profile", profile, [whole, *profiles]).allowed
            raise SettingError("--profile", profile, allowed)
    changes = _parse_assignments(assignments, Sweep.model_fields.keys() - FIXED)
    all_changes = merge(_parse_assignments(earlier, Sweep.model_fields), changes)
    start = f"{' '.join([str(path), *(f'--set {each}' for each in assignments)])}: "

    def under(profile: str) -> SweepFile:
        notes = [] if profile == FULL_PROFILE else [f"profile {profile}"]
        notes += [f"includes {each}" for each in included]
        end = f" ({', '.join(notes)})" if notes else ""
        with located(start, end):
            own = profiles.get(profile, {})
            if fixed := [key for key in own if key in FIXED]:
                raise InputError(f"profiles.{profile}.{fixed[0]}: a profile cannot change this")
            merged = _merge(_merge(content, own), changes)
            sweep = validate(Sweep, merged)
        return SweepFile(path, _describe_profile(profile, all_changes), merged, sweep, start, end)

    file = under(profile or whole)
    if profile is None and CPU_PROFILE in profiles:
        on_cpu = under(CPU_PROFILE)
        return file if has_gpu() else on_cpu
    return file


def _describe_profile(name: str, changes: dict[str, Any]) -> str:
    """Return a profile's name and the changes of trainings, in one spelling. Rows say what changed trials are."""
    others = ("trials", "seeds", "resources", "search", "evaluation")
    texts = []
    for key, value in flatten({key: value for key, value in changes.items() if key not in others}).items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
        texts.append(f"{CHANGED}{key}={text}")
    return "".join([name, *sorted(texts)])


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a sweep file with changes, of which `evaluation` may be a mapping or a list of them.

    Changes that are a mapping change each evaluation of a list; a list takes from a mapping what its members lack.
    """
    merged, key = merge(base, changes), "evaluation"
    before, after = base.get(key), changes.get(key)
    if isinstance(before, list) and isinstance(after, dict):
        merged[key] = [merge(each, after) if isinstance(each, dict) else each for each in before]
    elif isinstance(before, dict) and isinstance(after, list):
        merged[key] = [merge(before, each) if isinstance(each, dict) else each for each in after]
    return merged


def read(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """Return the content of a sweep file merged over the files that it includes, and those files.

    Raises InputError, also for an included file outside of the directory of `path`: who wrote a file reads no others.
    """
    content, files = _read_mapping(path), {path.resolve(): path}
    last = path
    while "include" in content:
        name = content.pop("include")
        included = last.parent / str(name)
        allowed = f"the relative path of another file in {path.parent} or below, that does not include this one"
        try:
            target = included.resolve()
        except RuntimeError:  # links in a circle
            raise SettingError(f"{last}: include", name, allowed) from None
        is_other = isinstance(name, str) and target not in files and target.is_relative_to(path.parent.resolve())
        require(f"{last}: include", name, is_other, allowed)
        with located(f"{last}: include: "):
            content = _merge(_read_mapping(included), content)
        last = files[target] = included
    return content, list(files.values())[1:]


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        with open(path, "rb") as file:
            text = file.read(4 * MOST_CHARACTERS).decode()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{path}: is not YAML: {error}") from None
    if not isinstance(content, dict):  # what it holds is not shown: it may be no sweep file
        found = {list: "a list", type(None): "nothing", str: "a text"}.get(type(content), "a number")
        raise InputError(f"{path}: found {found}, allowed: a mapping with name, dataset, eps, seeds, trials")
    return content


def _parse_assignments(assignments: Sequence[str], changeable: Collection[str]) -> dict[str, Any]:
    """Return what `--set KEY=VALUE ...` says, as a profile: dots lead into mappings, values are YAML, later ones win.

    changeable: the keys that may be set. Raises SettingError.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        keys = key.split(".")
        allowed = f"KEY=VALUE, KEY one of {', '.join(sorted(changeable))} or in one, such as train.kappa=0.5"
        hint = suggestion(keys[0], sorted(changeable)) if keys[0] not in changeable else ""
        require("--set", text, equals == "=" and keys[0] in changeable, allowed + hint)
        try:
            changes = merge(changes, nest(keys, parse_yaml(value)))
        except ValueError as error:
            raise SettingError("--set", text, f"a value in YAML: {error}") from None
    return changes
