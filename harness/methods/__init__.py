"""Training methods: each is one loss. A sweep names them by `method:`, and their options by `method_options:`."""

import inspect
from typing import Any

from baselines import refuse_unknown_options
from harness.common.method_names import METHODS, check_method, register
from harness.methods import adversarial, certified, distilling, expressive, taps  # noqa: F401  each registers methods
from harness.methods.distilling import make_teacher
from harness.methods.method import Method
from harness.methods.passes import Adversary, Batch, Losses, cross_entropies, cross_entropy

__all__ = [
    "METHODS", "Adversary", "Batch", "Losses", "Method", "cross_entropies", "cross_entropy", "make_method",
    "make_teacher", "method_options", "register",
]  # fmt: skip


def method_options(name: str) -> dict[str, inspect.Parameter]:
    """Return the options of a method by name, with their types and defaults."""
    return dict(inspect.signature(METHODS[name]).parameters)


def make_method(name: str, options: dict[str, Any]) -> Method:
    """Return the method `name` with its options.

    Raises:
        ValueError: the method is unknown, or an option is out of range.
        TypeError: the method has no such option.
    """
    check_method(name)
    refuse_unknown_options(name, options, method_options(name))
    return METHODS[name](**options)
