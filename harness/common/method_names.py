"""Training methods by name, apart from `harness.methods`, which imports torch: names are checked without it."""

from typing import TYPE_CHECKING

from baselines import UnknownNameError

if TYPE_CHECKING:
    from harness.methods.method import Method

_NAMES = (
    "plain",
    "pgd",
    "ibp",
    "crown-ibp",
    "sabr",
    "mtl-ibp",
    "cc-ibp",
    "exp-ibp",
    "taps",
    "staps",
    "cc-dist",
    "ad-cert",
)  # of harness.methods
METHODS: dict[str, "type[Method]"] = {}
"""All training methods by name, once `harness.methods` is imported."""


def register(kind: "type[Method]") -> "type[Method]":
    """Register a method under its name, as a class decorator. Raises ValueError if the name exists."""
    if kind.name in METHODS:
        raise ValueError(f"training method {kind.name!r} is registered twice")
    METHODS[kind.name] = kind
    return kind


def method_names() -> list[str]:
    """Return the names of all training methods, those that a plugin has registered last."""
    return list(dict.fromkeys([*_NAMES, *METHODS]))


def check_method(name: str) -> None:
    """Raise UnknownNameError for a name that no training method has."""
    if name not in method_names():
        raise UnknownNameError("training method", name, method_names())
