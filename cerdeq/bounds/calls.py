"""What a module and its program do to values that depend on their input, compared call by call.

Outputs at a few points do not show a condition that none of them meets. So the module's calls must be those of its
program, in their order, whatever the values are: then the module can neither read values nor compute other functions of
them than torch.fx has seen.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cerdeq.errors import UnsupportedOperator
from cerdeq.operators.backward import nested_items
from cerdeq.tracing.program import Program
from cerdeq.tracing.trace import WAY_OUT, user_line

_QUERIES = {  # their answers are the same for all values
    "__get__", "__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous", "is_floating_point",
    "ndimension", "nelement", "numel", "size", "stride",
}  # fmt: skip


class Calls:
    """The calls on values that depend on an input, outside of a program's layers, in one thread.

    These are torch's operators, but for views, and whatever makes other things of tensors than tensors. Layers may
    read values, as solvers do: their rules say what they compute.
    """

    def __init__(self, program: Program):
        self._layers = {step.target for step in program.steps if isinstance(step.target, nn.Module)}
        self._values: dict[Any, Tensor] = {}  # held, so that no other tensor gets the same keys
        self._names: list[str] = []
        self._expected: list[str] | None = None
        self._refusal: UnsupportedOperator | None = None
        self._thread = threading.get_ident()
        self._depth = 0  # of layers

    @contextmanager
    def noted(self, x: Tensor) -> Iterator[None]:
        """Note the calls in the block on x, and on what is computed from it."""
        self._names, self._expected = [], None
        with self._watched(x):
            yield

    @contextmanager
    def compared(self, x: Tensor) -> Iterator[None]:
        """Raise UnsupportedOperator, also if the block catches it, unless the calls in the block are those noted."""
        self._names, self._expected = [], self._names
        try:
            with self._watched(x):
                yield
        finally:
            if self._refusal is not None:
                raise self._refusal
        if len(self._names) < len(self._expected):
            name = self._expected[len(self._names)]
            raise UnsupportedOperator(f"torch.fx misreads the model: it does not call {name} with tensors; {WAY_OUT}")

    @contextmanager
    def _watched(self, x: Tensor) -> Iterator[None]:
        self._add([x])
        hooks = [layer.register_forward_pre_hook(self._enter) for layer in self._layers]
        hooks += [layer.register_forward_hook(self._leave, always_call=True) for layer in self._layers]
        try:
            with _Operators(self), _Functions(self):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, *_: Any) -> None:
        self._depth += threading.get_ident() == self._thread

    def _leave(self, layer: nn.Module, arguments: Any, result: Any) -> None:
        if threading.get_ident() == self._thread:
            self._depth -= 1
            self._add([result])

    def note(self, call: Any, name: str, args: Any, kwargs: Any, is_compared: Any) -> Any:
        """Return the result of a call; note it if values are among its arguments, and its result as further values.

        is_compared: whether such a call with this result must be the program's, too.
        """
        kwargs = kwargs or {}
        depends = not self._depth and any(map(self._is_value, nested_items([args, list(kwargs.values())])))
        result = call(*args, **kwargs)
        if depends:
            self._add(nested_items([result]))
            if is_compared(result):
                self._compare(name)
        return result

    def _compare(self, name: str) -> None:
        self._names.append(name)
        number = len(self._names)
        if self._expected is not None and self._expected[number - 1 : number] != [name]:
            self._refusal = UnsupportedOperator(
                "the model reads values of its input, or computes from them what torch.fx does not see, "
                f"by {name}{user_line()}; {WAY_OUT}"
            )
            raise self._refusal

    def _is_value(self, item: Any) -> bool:
        return isinstance(item, Tensor) and any(key in self._values for key in _keys(item))

    def _add(self, items: list[Any]) -> None:
        self._values.update({key: item for item in items if isinstance(item, Tensor) for key in _keys(item)})


def _keys(tensor: Tensor) -> list[Any]:
    """Return what tells a tensor, and all that share its memory, from others."""
    try:
        return [id(tensor), ("memory", tensor.untyped_storage().data_ptr())][: 2 if tensor.numel() else 1]
    except NotImplementedError:  # sparse tensors and those of torch.func have no memory of their own
        return [id(tensor)]


class _Functions(TorchFunctionMode):
    """Notes what makes other things of tensors than tensors, some of which is no operator, such as `numpy`."""

    def __init__(self, calls: Calls):
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))

        def is_compared(result: Any) -> bool:
            is_tensors = all(item is None or isinstance(item, Tensor) for item in nested_items([result]))
            return not is_tensors and name not in _QUERIES

        return self.calls.note(func, name, args, kwargs, is_compared)


class _Operators(TorchDispatchMode):
    """Notes operators of torch, however they are called."""

    def __init__(self, calls: Calls):
        super().__init__()
        self.calls = calls

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch would import its compiler, which takes seconds

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        return self.calls.note(func, name, args, kwargs, lambda result: not func.is_view)
