"""Errors that mean that memory ran out."""

import pytest
import torch

from cerdeq.errors import is_out_of_memory


def wrapped_error():
    """As if a capture, or the compiler, ends on an error of its own."""
    error = RuntimeError("capture failed")
    error.__context__ = torch.OutOfMemoryError()
    return error


@pytest.mark.parametrize(
    "error",
    [
        wrapped_error(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_ran_out_outside_the_allocator_counts(error):
    """CUDA and its libraries raise no OutOfMemoryError if a graph, a context or a workspace does not fit."""
    assert is_out_of_memory(error)
