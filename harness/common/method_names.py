"""Training methods by name, apart from `harness.methods`, which imports torch: names are checked without it."""

from typing import Any, TypeVar

from baselines import UnknownNameError

Kind = TypeVar("Kind", bound=type)

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
METHODS: dict[str, Any] = {}
"""All training methods, each a `Method`, by name, once `harness.methods` is imported."""


def register(kind: Kind) -> Kind:
    """Register a method under its name, as a class decorator. Raises ValueError if the name exists."""
    name: str = kind.name  # type: ignore[attr-defined]
    if name in METHODS:
        raise ValueError(f"training method {name!r} is registered twice")
    METHODS[name] = kind
    return kind


def method_names() -> list[str]:
    """Return the names of all training methods, those that a plugin has registered last."""
    return list(dict.fromkeys([*_NAMES, *METHODS]))


def check_method(name: str) -> None:
    """Raise UnknownNameError for a name that no training method has."""
    if name not in method_names():
        raise UnknownNameError("training method", name, method_names())
