"""Training methods: each is one loss. A sweep names them by `method:`, and their options by `method_options:`."""

import inspect
from typing import Any

from harness.training.methods.adversarial import PGD, Plain
from harness.training.methods.certified import IBP, CrownIBP
from harness.training.methods.expressive import MTLIBP, SABR
from harness.training.methods.method import Method
from harness.training.methods.passes import Batch, Losses, cross_entropy

METHODS: dict[str, type[Method]] = {kind.name: kind for kind in (IBP, CrownIBP, SABR, MTLIBP, PGD, Plain)}

__all__ = ["METHODS", "Batch", "Losses", "Method", "cross_entropy", "make_method", "method_options"]


def method_options(name: str) -> dict[str, inspect.Parameter]:
    """The options a method takes, by name, with their types and defaults."""
    return dict(inspect.signature(METHODS[name]).parameters)


def make_method(name: str, options: dict[str, Any]) -> Method:
    """The method `name` with its options.

    Raises ValueError for an unknown method or an option out of range, TypeError for an option that it does not have.
    """
    if name not in METHODS:
        raise ValueError(f"unknown training method {name!r}; known: {', '.join(METHODS)}")
    known = method_options(name)
    for option in options:
        if option not in known:
            raise TypeError(f"{name} has no option {option!r}; it has: {', '.join(known) or 'none'}")
    return METHODS[name](**options)
