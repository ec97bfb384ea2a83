"""The names of networks and training methods, and of their options, looked up without importing torch.

names.json lists them; `docs/reference.py` writes it. A name that is not listed, but stands in the sources, is new:
then torch is imported and the registry is asked.
"""

import json
import re
import sys
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from baselines import UnknownNameError, network_names, options_of, suggestion, unknown_network

Kind = Literal["network", "training method"]

LIST = Path(__file__).with_name("names.json")
_SOURCES = {"network": "baselines/*.py", "training method": "harness/methods/*.py"}


def registered(kind: Kind) -> dict[str, list[str]]:
    """Return all names in a registry with their options. Imports torch."""
    if kind == "network":
        return {name: list(options_of(name)) for name in network_names()}
    from harness.methods import METHODS, method_options

    return {name: list(method_options(name)) for name in METHODS}


def check_name(kind: Kind, name: str) -> str:
    """Return the name of a network or a training method. Raises UnknownNameError."""
    if name not in (_listed()[kind] if _is_listed(kind, [name]) else _registered_names(kind)):
        options = _listed()[kind] if _is_listed(kind, [name]) else registered(kind)
        raise unknown_network(name, options) if kind == "network" else UnknownNameError(kind, name, list(options))
    return name


def describe_unknown_option(kind: Kind, name: str, option: str) -> str:
    """Return what is wrong with an option of a network or training method that exists, "" if it has this option."""
    is_listed = _is_listed(kind, [name, option])
    options = _listed()[kind][name] if is_listed else _registered_options(kind, name)
    if option in options:
        return ""
    all_options = _listed()[kind] if is_listed else registered(kind)
    owners = [other for other in all_options if option in all_options[other]]
    allowed = f"allowed: {', '.join(options)}" if options else f"{name} has no options"
    key = "model" if kind == "network" else "method"
    hint = suggestion(option, list(options)) or (f"; `{key}: {owners[0]}` has {option}" if owners else "")
    return f"unknown option of {name}; {allowed}{hint}"


def _registered_names(kind: Kind) -> Iterable[str]:
    if kind == "network":
        return network_names()
    from harness.methods import METHODS

    return METHODS


def _registered_options(kind: Kind, name: str) -> Collection[str]:
    if kind == "network":
        return options_of(name)
    from harness.methods import method_options

    return method_options(name)


def _is_listed(kind: Kind, texts: Iterable[str]) -> bool:
    """Return whether the list answers: torch is not imported, and what the list does not have is in no source."""
    if "torch" in sys.modules:
        return False
    known = {text for name, options in _listed()[kind].items() for text in (name, *options)}
    new = [re.escape(text) for text in texts if text not in known]
    return not any(re.search(rf"[\"']{text}[\"']|\b{text}\s*[:=]", _source(kind)) for text in new)


@cache
def _listed() -> dict[Kind, dict[str, list[str]]]:
    listed: dict[Kind, dict[str, list[str]]] = json.loads(LIST.read_text())
    return listed


@cache
def _source(kind: Kind) -> str:
    """Return the sources that register names."""
    return "\n".join(path.read_text() for path in sorted(Path(__file__).parents[2].glob(_SOURCES[kind])))
