"""Whether a trial's steps are compiled: where compiling works, and training takes long enough to gain time by it."""

import functools
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from cerdeq.bounds.memory import is_out_of_memory
from harness.environment import cache_directory
from harness.errors import first_words

WORTH_COMPILING = 300.0  # s of eager steps: compiling takes about 60 s on a CPU and saves a third to a half of them
_LIMIT = 64  # of variants of one function: a network, a method and a count of iterations are one each


@dataclass(frozen=True)
class Decision:
    """How to train.

    compiled: True for compiled steps. why: the reason, in a line. failed: True if compiling does not work here.
    """

    compiled: bool
    why: str
    failed: bool = False


def decide(mode: str, device: torch.device, before: bool | None, eager_seconds: Callable[[], float]) -> Decision:
    """Return whether to compile a trial's steps.

    Args:
        mode: the setting `compile`.
        before: True if the trial's earlier epochs were compiled, False if not, None if there are none.
        eager_seconds: estimates the seconds that all eager steps of the trial take. It is called only if the
            decision depends on it: for `auto`, on a CPU, before the first epoch.
    """
    if mode == "never":
        return Decision(False, "eager steps, as `compile: never` says")
    if before is False:
        return Decision(False, "eager steps, as in the epochs before")
    if before:
        reason = "as in the epochs before"
    elif mode == "always":
        reason = "as `compile: always` says"
    elif device.type != "cpu":
        reason = "on a GPU"
    else:
        seconds = eager_seconds()
        reason = f"all eager steps would take about {seconds:.3g} s"
        if seconds <= WORTH_COMPILING:
            return Decision(False, f"eager steps: {reason}; compiling pays above {WORTH_COMPILING:.0f} s")
    if (problem := compiler_problem(device.type)) is not None:
        return Decision(False, f"eager steps, since compiling does not work here: {problem}", failed=True)
    return Decision(True, f"compiled steps: {reason}")


def prepare() -> None:
    """Remove from memory what was compiled for other trials of this process; the cache's files stay."""
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = _LIMIT


def compiled_loss(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the loss, which is compiled at its first call, without choosing kernels by timing.

    The option goes with each function, since Dynamo resets global options before it compiles the backward pass.
    """
    return torch.compile(loss, fullgraph=True, dynamic=False, options={"deterministic": True})


@functools.cache
def compiler_problem(device: str) -> str | None:
    """Return why torch cannot compile for a type of device here, in a line, or None if it can."""
    directory = cache_directory() / "compiled"
    with suppress(OSError):  # torch then has a directory of its own
        directory.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(directory))
    try:
        torch.compile(lambda x: torch.relu(x) + 1)(torch.ones(2, device=device))
    except Exception as error:  # whatever a compiler, its headers and its cache may do
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {first_words(error)}"
    return None
