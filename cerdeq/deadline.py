"""A deadline for what a thread computes: long computations call `check` between their steps."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_deadline = ContextVar("deadline", default=math.inf)  # of time.monotonic


class DeadlineError(Exception):
    """The deadline has passed."""


@contextmanager
def stop_at(deadline: float) -> Iterator[None]:
    """Let `check` raise in the block, in this thread, from this time of `time.monotonic` on, or from an earlier one."""
    token = _deadline.set(min(deadline, _deadline.get()))
    try:
        yield
    finally:
        _deadline.reset(token)


def current_deadline() -> float:
    """Return the deadline of this thread, infinity if there is none."""
    return _deadline.get()


def seconds_left() -> float:
    """Return how long it is until the deadline of this thread."""
    return _deadline.get() - time.monotonic()


def check(value: Any = None) -> None:
    """Raise DeadlineError if the deadline has passed; of a tensor also when a gradient reaches it later."""
    if torch.compiler.is_compiling() or (deadline := _deadline.get()) == math.inf:
        return
    if time.monotonic() >= deadline:
        raise DeadlineError
    if isinstance(value, Tensor) and value.requires_grad:
        value.register_hook(lambda gradient: check())
