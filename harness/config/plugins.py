"""User code: modules that a sweep file names by `plugins:`, which register what they have as they are imported.

Nothing but `load`, `load_for` and `add_factory` imports them, and each that is imported is said on standard error.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

from baselines.registry import network_names, register
from harness.config.trial import PLUGIN, TrialConfig
from harness.errors import InputError, SettingError, require


def digests(names: Iterable[str]) -> dict[str, str]:
    """Of each plugin, the digest of its source. Raises SettingError for a name that is none, or that Python has not."""
    return {name: _digest(name) for name in names}


def load(names: Iterable[str]) -> None:
    """Import plugins, once a process. Raises SettingError where one cannot be imported, whatever it raises."""
    for name in names:
        _imported(name)


def load_for(config: TrialConfig) -> None:
    """Import a trial's plugins, for who trains or judges it.

    Raises InputError where one cannot be imported, or its source is not what the trial was made with.
    """
    allowed = "the digest of the source that this trial was made with; put that back, or train anew"
    try:
        for name, made_with in config.plugins.items():
            found = _digest(name)
            require(f"plugins.{name}", found, found == made_with, f"{made_with}, {allowed}")
        load(config.plugins)
        add_factory(config.model, config.plugins)
    except SettingError as error:
        raise InputError(f"{config.label}: {error}") from error


def add_factory(model: str, plugins: Collection[str]) -> None:
    """Make the function that `model` names as module:function a network of that name; other names are left alone.

    Raises SettingError where the module is none of the plugins and below none, or has no such function.
    """
    module, colon, function = model.partition(":")
    if not colon:
        return
    owned = any(f"{module}.".startswith(f"{plugin}.") for plugin in plugins)
    allowed = f"module:function, the module one of `plugins` or below one: {', '.join(plugins) or 'there are none'}"
    require("model", model, owned and PLUGIN.fullmatch(module) is not None, allowed)
    found = getattr(_imported(module), function, None)
    if not callable(found):
        raise SettingError("model", model, f"a function of {module}, which has no such one")
    if model not in network_names():
        register(model)(found)


@cache
def _imported(name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # it is foreign code, and may raise anything
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingError("plugins", name, f"a module that can be imported; importing it ended with {told}") from error
    print(f"plugin {name}: imported from {module.__file__}", file=sys.stderr, flush=True)
    return module


@cache
def _digest(name: str) -> str:
    """Sixteen hex digits of a module's source: of each Python file of its outermost package, or of the module alone.

    Nothing is imported for it. What has been imported does not change with its files: hence a process asks once.
    """
    require("plugins", name, PLUGIN.fullmatch(name) is not None, "the name of a module, such as my_package.nets")
    root = _root(name)
    inside = root.name == "__init__.py"
    files = sorted(path for path in root.parent.rglob("*.py") if path.is_file()) if inside else [root]
    content = hashlib.sha256()
    for path in files:
        source = path.read_bytes()
        content.update(f"{path.relative_to(root.parent).as_posix()} {len(source)}\n".encode() + source)
    return content.hexdigest()[:16]


def _root(name: str) -> Path:
    """The file of the outermost package of a module, or of the module itself where it is in none."""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except ValueError:  # of a module that was not imported as one
        spec = None
    path = Path(spec.origin) if spec and spec.origin else None
    allowed = "a module that Python finds (on PYTHONPATH, or installed), its package with an __init__.py"
    if path is None or path.suffix != ".py":
        raise SettingError("plugins", name, allowed)
    return path
