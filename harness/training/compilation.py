"""torch's compiler: whether this machine has what it needs, and compiled losses."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from harness.machine.environment import cache_directory

_LIMIT = 64  # of variants of one function: a network, a method and a count of iterations are one each


@cache
def compiler_problem(device_type: str) -> str | None:
    """Return what torch's compiler lacks for a kind of device on this machine, None if nothing. A process asks once."""
    if device_type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "Triton, which compiles them, cannot be used here"
        has_compiler = "CC" in os.environ or any(map(shutil.which, ("gcc", "clang")))  # as Triton looks for it
        return None if has_compiler else "there is no C compiler here (gcc, clang, or what CC names)"
    from torch._inductor.cpp_builder import get_cpp_compiler  # here, since it takes seconds
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler here (g++, or what CXX names)"
    return None


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
