"""A training step captured in a CUDA graph, and the trial steps before it.

Whole steps are captured, since `torch.compile(mode="reduce-overhead")` captures losses alone: it leaves 57 launches a
step instead of 8, hundreds with an attack that is not compiled, and needs a compiler (docs/gpu-cost.md).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from harness.common.errors import first_words

_WARM_UP_STEPS = 3  # before a capture, as torch asks for


class CapturedStep:
    """A step as one CUDA graph on fixed buffers.

    step: changes nothing but tensors, and returns a tensor.
    choices: the arguments of the first step; the shapes of all others are the same.

    Raises RuntimeError with the first cause: where a step fails, the end of the capture fails too, and hides it.
    """

    def __init__(
        self, step: Callable[[tuple[Tensor, ...]], Tensor], choices: tuple[Tensor, ...], stream: torch.cuda.Stream
    ):
        self.choices = tuple(choice.clone() for choice in choices)
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph, stream=stream):
                self.report = step(self.choices)
        except RuntimeError as error:
            raise RuntimeError(f"a step cannot be captured as a CUDA graph: {_describe_cause(error)}") from error

    def __call__(self, choices: tuple[Tensor, ...]) -> Tensor:
        """Take one step and return what the captured function returns."""
        for buffer, value in zip(self.choices, choices, strict=True):
            buffer.copy_(value)
        self.graph.replay()
        return self.report.clone()


def _describe_cause(error: BaseException) -> str:
    """Return the first of the errors that led to one, as a line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {first_words(error)}"


def warm_up(step: Callable[[], object]) -> torch.cuda.Stream:
    """Take steps on a new stream, as a capture needs, and return the stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    return stream


@contextmanager
def restore_afterwards(tensors: list[Tensor]) -> Iterator[None]:
    """Restore the values of tensors, and the random generators, at the end of the block."""
    with torch.no_grad():  # a clone with gradients would hold nodes of the stream that it was made on
        saved = [tensor.clone() for tensor in tensors]
    devices = [tensor.device for tensor in tensors[:1] if tensor.device.type == "cuda"]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, saved, strict=True):
                    tensor.copy_(value)
