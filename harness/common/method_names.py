"""Names of training methods, apart from `harness.methods`: sweep files are checked without importing torch."""

from typing import Any, TypeVar

from baselines import UnknownNameError

Kind = TypeVar("Kind", bound=type)

_EXPRESSIVE = ("sabr", "mtl-ibp", "cc-ibp", "exp-ibp", "ad-cert", "cc-dist")
_NAMES = ("plain", "pgd", "ibp", "crown-ibp", *_EXPRESSIVE, "taps", "staps")
"""Those of harness.methods, in their order there."""
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


def check_method(name: str) -> str:
    """Return the name of a training method. Raises UnknownNameError for any other name."""
    if name not in method_names():
        raise UnknownNameError("training method", name, method_names())
    return name
