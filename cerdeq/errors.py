"""Errors of networks, and what errors of torch mean: arguments that do not fit, or memory that ran out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_OF_ARGUMENTS = (ValueError, TypeError, IndexError, OverflowError, RuntimeError, NotImplementedError)
_OUT_OF_MEMORY = (
    *("out of memory", "error_out_of_memory", "not enough memory", "can't allocate memory"),
    *("_status_alloc_failed", "allocation_failed", "bad_alloc"),
)


class UnsupportedOperator(TypeError):  # noqa: N818
    """An operation of the model has no bound rule; the message names its node and the user's line of code."""


class OnnxError(ValueError):
    """An ONNX file that cannot be read, or a network that cannot be written as one; the message says what is wrong."""


@contextmanager
def explained_errors(
    message: str, where: Callable[[], str], kind: type[Exception] = UnsupportedOperator
) -> Iterator[None]:
    """Raise errors about arguments in the block as `kind`: the message, where they were raised, and torch's words.

    Errors of subclasses, such as those of this package, and of memory that ran out are left as they are.
    """
    try:
        yield
    except _OF_ARGUMENTS as error:
        if type(error) not in _OF_ARGUMENTS or is_out_of_memory(error):
            raise
        raise kind(f"{message}: {where()}: {error}") from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, says that memory ran out: a compilation may wrap it.

    Only torch's allocator for CUDA has a type of its own. CUDA itself, its libraries and CPUs say it in words.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
