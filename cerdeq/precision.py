"""Switches of torch's arithmetic: sound bounds count its rounding; parts of training must not run under autocast."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from cerdeq.exact_products import InexactProductsError, check_products, check_worker_threads

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def uncompiled(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a function that counts rounding errors, so that `torch.compile` leaves it and what it calls as they are.

    Compiled code may round otherwise. `torch.compiler.disable` alone would import the compiler, which takes a second.
    """

    @wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return run


@contextmanager
def counted_rounding(device: str) -> Iterator[None]:
    """Compute products in the tensors' own precision in the block, so that bounds can count every rounding error.

    This turns off autocast, TF32, bfloat16 in place of float32, flush-to-zero, and the libraries that may choose
    Winograd or FFT convolutions: NNPACK on a CPU and cuDNN on CUDA. Matrix products take their place. Most of these
    switches belong to the process: they stay off until the last thread has left.

    Raises InexactProductsError if products are still computed in reduced precision, or if a change of a switch is
    detected.
    """
    with _switches.turned_off(), _without_flush_to_zero(), torch.autocast(device, enabled=False):
        check_worker_threads()
        check_products(device)
        yield


@contextmanager
def uncounted_rounding() -> Iterator[None]:
    """Allow cuDNN in the block, also within `counted_rounding`: for searches, which prove nothing.

    Without it CUDA convolves image by image. cuDNN stays off while another thread is within `counted_rounding`.
    """
    with _switches.cudnn_allowed():
        yield


@contextmanager
def _without_flush_to_zero() -> Iterator[None]:
    """Turn flush-to-zero off for this thread in the block, and restore it after.

    Raises InexactProductsError if it is on at the end.
    """
    was_on = _flushes_to_zero()
    if was_on:
        torch.set_flush_denormal(False)
    try:
        yield
        if _flushes_to_zero():
            raise InexactProductsError(
                "subnormal numbers were flushed to zero while a bound was computed: do not call "
                "torch.set_flush_denormal(True) until then"
            )
    finally:
        if was_on:
            torch.set_flush_denormal(True)


def _flushes_to_zero() -> bool:
    """Return whether this thread flushes subnormal numbers to zero."""
    half = 0.5  # a variable, so that Python does not compute the product when it compiles
    return sys.float_info.min * half == 0


class _Switches:
    """Torch's switches of the process.

    blocks: how many blocks of `counted_rounding` need them off, of all threads. own: `blocks` of this thread.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks = 0
        self.own = threading.local()
        self.restore = ExitStack()

    @contextmanager
    def turned_off(self) -> Iterator[None]:
        """Turn all switches off in the block. The last block to end, in any thread, restores them.

        Raises InexactProductsError if a precision differs when a further block begins, or if a switch differs when a
        block ends.
        """
        with self.lock:
            if self.blocks:
                _refuse_changes()
            else:
                self._save_and_turn_off()
            was_searching = torch.backends.cudnn.enabled
            torch.backends.cudnn.enabled = False
            self._count(1)
        try:
            yield
            _refuse_changes()
            if torch.backends.cudnn.enabled:
                raise InexactProductsError(
                    "torch.backends.cudnn.enabled was set while a bound was computed; do not change it until then"
                )
        finally:
            with self.lock:
                self._count(-1)
                if not self.blocks:
                    self.restore.close()
                elif was_searching and self._is_alone():
                    torch.backends.cudnn.enabled = True

    @contextmanager
    def cudnn_allowed(self) -> Iterator[None]:
        """Turn cuDNN on in a block within `counted_rounding`, if no other thread is within it."""
        with self.lock:
            before = torch.backends.cudnn.enabled
            if self._is_alone():
                torch.backends.cudnn.enabled = True
        try:
            yield
        finally:
            with self.lock:
                if self._is_alone():
                    torch.backends.cudnn.enabled = before

    def _save_and_turn_off(self) -> None:
        self.restore.enter_context(torch.backends.nnpack.flags(enabled=False))
        self.restore.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
        torch.backends.cudnn.enabled = False
        for operator in _OPERATORS.values():
            self.restore.callback(setattr, operator, "fp32_precision", operator.fp32_precision)
            operator.fp32_precision = "ieee"

    def _count(self, step: int) -> None:
        self.blocks += step
        self.own.blocks = getattr(self.own, "blocks", 0) + step

    def _is_alone(self) -> bool:
        """Return whether this thread is within `counted_rounding`, and no other one is."""
        return 0 < getattr(self.own, "blocks", 0) == self.blocks


_switches = _Switches()

_OPERATORS: dict[str, Any] = {  # torch refuses to read wider switches once two of these differ
    "cuda.matmul": torch.backends.cuda.matmul,
    "cudnn.conv": torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    "mkldnn.conv": torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
    "mkldnn.matmul": torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
}
"""Operators with an `fp32_precision`, a setting of the whole process, by their names in `torch.backends`."""


def _refuse_changes() -> None:
    """Raise InexactProductsError if an operator may compute float32 products in reduced precision."""
    for name, operator in _OPERATORS.items():
        if (precision := operator.fp32_precision) != "ieee":
            raise InexactProductsError(
                f"torch.backends.{name}.fp32_precision was set to {precision!r} while a bound was computed; "
                "do not change it until then"
            )


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Compute products in the block in the precision of their factors, even if training runs in bfloat16."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
