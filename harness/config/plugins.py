"""User code: modules that a sweep file names by `plugins:`, which register what they have when they are imported.

Only `load`, `load_for` and `add_factory` import them; each import is reported on standard error.
"""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Collection
from functools import cache
from pathlib import Path
from types import ModuleType

from baselines.registry import import_networks, network_names, register
from harness.common.errors import InputError, SettingError, error_line, located, require
from harness.common.terminal import say
from harness.config.plugin_sources import digest, source_files
from harness.config.training import Training

MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


def digests(names: Collection[str], model: str = "") -> dict[str, str]:
    """Return the digest of each plugin's source: of its module, and of what that imports from folders of the user.

    model: a network, whose module counts, too, if it is `module:function` below a plugin. Raises
    SettingError for a module that Python does not find.
    """
    module = model.partition(":")[0]
    for name in names:
        source_of(name)
    return {name: digest(name, module if module.startswith(f"{name}.") else "") for name in names}


def load(names: Collection[str]) -> None:
    """Import plugins, once a process. Raises SettingError where one cannot be imported."""
    digests(names)  # checks all names before anything is imported
    for name in names:
        _import(name)


def load_for(training: Training) -> None:
    """Import a network's plugins, before it is trained or evaluated.

    Raises InputError where one cannot be imported, or its source is not what the trial was made with.
    """
    allowed = "the digest of the source that this network was made with; put that back, or train anew"
    with located(f"{training.label}: "):
        today = digests(training.plugins, training.model)
        for name, digest in training.plugins.items():
            require(f"plugins.{name}", today[name], today[name] == digest, f"{digest}, {allowed}")
        load(training.plugins)
        add_factory(training.model, training.plugins)


def add_factory(model: str, plugins: Collection[str]) -> None:
    """Register the function that `model` names as module:function; do nothing for other names.

    Raises SettingError where the module is neither a plugin nor below one, or has no such function.
    """
    module, colon, function = model.partition(":")
    if not colon:
        return
    is_plugin = any(f"{module}.".startswith(f"{plugin}.") for plugin in plugins)
    allowed = f"module:function, the module one of `plugins` or below one: {', '.join(plugins) or 'there are none'}"
    require("model", model, is_plugin and MODULE.fullmatch(module) is not None, allowed)
    factory = getattr(_import(module), function, None)
    if not callable(factory):
        raise InputError(f"model: module {module} has no function {function!r}")
    if model not in network_names():
        register(model)(factory)  # type: ignore[arg-type]


@cache
def _import(name: str) -> ModuleType:
    import_networks()  # first: a plugin cannot take their names
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        cause = f"{error_line(error)}{line_in([name], error)}"
        raise SettingError(
            "plugins", name, f"a module that can be imported; importing it ended with {cause}"
        ) from error
    say(f"plugin {name}: imported from {module.__file__}", file=sys.stderr)
    return module


def source_of(name: str) -> Path:
    """Return the file of a module's outermost package, or of a module without package. Nothing is imported.

    Raises SettingError for a module that Python does not find.
    """
    require("plugins", name, MODULE.fullmatch(name) is not None, "the name of a module, such as my_package.nets")
    spec = importlib.util.find_spec(name.partition(".")[0])
    root = Path(spec.origin) if spec and spec.origin else None
    if root is None or root.suffix != ".py":
        allowed = "a module that Python finds (on PYTHONPATH, or installed), its package with an __init__.py"
        raise SettingError("plugins", name, allowed)
    return root


def trust(modules: list[str], directories: list[Path]) -> None:
    """Import the modules that --plugin names, none from the working directory unless PYTHONPATH names it.

    directories: of results. Raises SettingError for a module that cannot be imported, or that lies in one of them.
    """
    if sys.path and Path(sys.path[0]).resolve() == Path.cwd():
        del sys.path[0]  # which `python -m` puts first
    for name in modules:
        file = source_of(name)
        is_outside = not any(file.resolve().is_relative_to(directory.resolve()) for directory in directories)
        require("--plugin", f"{name} ({file})", is_outside, "a module that does not lie in the results")
    load(modules)


def require_trusted(training: Training, trusted: Collection[str]) -> None:
    """Raise InputError for a network with a plugin that --plugin does not name: results may be someone else's."""
    for name in {**training.plugins, **(training.teacher.plugins if training.teacher else {})}:
        if name not in trusted:
            raise InputError(f"{training.label}: it names the plugin {name}; if you trust that, add --plugin {name}")


def line_in(names: Collection[str], error: BaseException | None) -> str:
    """Return where in the source of plugins an error was raised, as the end of a message; empty if it was elsewhere."""
    files = {str(path) for path in source_files(*names).values()}
    while error is not None:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename in files:
                return f" ({frame.filename}, line {frame.lineno})"
        error = error.__cause__ or error.__context__
    return ""
