"""Whether a trial's steps are compiled: on a GPU, and where training takes long enough to gain time by it."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from harness.machine.environment import cache_directory

WORTH_COMPILING = 300.0  # s of eager steps: compiling takes about 60 s on a CPU and saves a third to a half of them
_LIMIT = 64  # of variants of one function: a network, a method and a count of iterations are one each


def choose_compilation(
    mode: str, device: torch.device, before: bool | None, eager_seconds: Callable[[], float]
) -> tuple[bool, str]:
    """Return whether to compile a trial's steps, and the reason. Where that fails, the first step gives it up.

    Args:
        mode: the setting `compile`.
        before: True if the trial's earlier epochs were compiled, False if not, None if there are none.
        eager_seconds: estimates the seconds that all eager steps of the trial take. It is called only if the
            decision depends on it: for `auto`, on a CPU, before the first epoch.
    """
    if mode == "never":
        return False, "as `compile: never` says"
    if before is not None:
        return before, "as in the epochs before"
    if mode == "always":
        return True, "as `compile: always` says"
    if device.type != "cpu":
        return True, "on a GPU"
    seconds = eager_seconds()
    reason = f"all eager steps would take about {seconds:.3g} s; compiling pays above {WORTH_COMPILING:.0f} s"
    return seconds > WORTH_COMPILING, reason


def reset_compiler() -> None:
    """Remove from memory what was compiled for other trials of this process; the cache's files stay."""
    directory = cache_directory() / "compiled"
    with suppress(OSError):  # torch then has a directory of its own
        directory.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(directory))
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = _LIMIT


def compiled_loss(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the loss, which is compiled at its first call, without choosing kernels by timing.

    The option goes with each function, since Dynamo resets global options before it compiles the backward pass.
    """
    return torch.compile(loss, fullgraph=True, dynamic=False, options={"deterministic": True})
