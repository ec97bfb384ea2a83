"""Whether a program is the function that its module computes: both are run on the same inputs, call by call."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cerdeq.bounds.batch_sizes import refuse_mixed_examples
from cerdeq.bounds.ibp import values_of
from cerdeq.boxes import Box
from cerdeq.errors import UnsupportedOperator, explained_errors
from cerdeq.operators.backward import nested_items
from cerdeq.operators.interval import Context, Interval
from cerdeq.precision import counted_rounding
from cerdeq.tracing.precisions import same
from cerdeq.tracing.program import Program, positional
from cerdeq.tracing.trace import trace_lock, user_line

_SHAPES = (Tensor.size, Tensor.dim, *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")))
_SOLVED = {torch.float32: 1e-3, torch.float64: 1e-6}  # of outputs behind an equilibrium, relative to 1 + the largest
_ULPS = 8  # of an output that torch computes by a curve, such as sigmoid

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class _Value:
    """A result of a call, in a later call's arguments. call: 0 for the input, else 1 more than the call's number."""

    call: int
    position: int


class _Calls(TorchFunctionMode):
    """The calls, in the block, of functions and of a program's leaf modules with arguments that depend on the input.

    A call reads the input where a `_Value` stands in its arguments. Reading a shape is no call.

    x: the input. expected: the calls that should be made, to compare with; None to record them, with copies of all
    tensors that do not depend on the input.
    """

    def __init__(self, x: Tensor, expected: "list[Call] | None" = None):
        super().__init__()
        self.expected, self.calls = expected, list[Call]()
        self.values = {id(x): (_Value(0, 0), x)}  # tensors are kept, so that no other gets the same id
        self.leaves_entered = 0
        self.error: UnsupportedOperator | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.leaves_entered or func in _SHAPES or not self._depends_on_input(args, kwargs):
            return func(*args, **kwargs)
        self._add(func, args, kwargs)
        result = func(*args, **kwargs)
        self._hold(result)
        return result

    @contextmanager
    def with_leaves(self, program: Program) -> Iterator[None]:
        """Take a call of a leaf module of the program in the block as one call, and leave out those that it makes."""
        leaves = {step.target for step in program.steps if isinstance(step.target, nn.Module)}
        with ExitStack() as hooks:
            for leaf in leaves:
                before = leaf.register_forward_pre_hook(self._enter, with_kwargs=True)
                after = leaf.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            yield

    def output_of(self, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        """Return the output of `function`, run in this mode, and add it as a last call."""
        try:
            with self:
                output = function(x)
            self._add("output", (output,), {})
        except Exception:
            if self.error is None:
                raise
        if self.error is not None:  # torch's operators, or the function, may have replaced it or gone on
            raise self.error from None
        return output

    def _enter(self, leaf: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.leaves_entered and self._depends_on_input(args, kwargs):
            self._add(leaf, args, kwargs)
        self.leaves_entered += 1

    def _leave(self, leaf: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self.leaves_entered -= 1
        if not self.leaves_entered and self._depends_on_input(args, kwargs):
            self._hold(result)

    def _depends_on_input(self, args: Any, kwargs: Any) -> bool:
        return any(id(value) in self.values for value in nested_items([args, list(kwargs.values())]))

    def _hold(self, result: Any) -> None:
        for position, value in enumerate(nested_items([result])):
            if isinstance(value, Tensor):
                self.values[id(value)] = _Value(len(self.calls), position), value

    def _add(self, target: Any, args: Any, kwargs: Any) -> None:
        """Add a call; raise UnsupportedOperator if it is not the expected one."""
        args, kwargs = positional(self._named(args), self._named(kwargs))
        number, call = len(self.calls), (target, args, kwargs)
        self.calls.append(call)
        if self.expected is None or self.error is not None or same([call], self.expected[number : number + 1]):
            return
        name = target if isinstance(target, str) else f"call of '{getattr(target, '__name__', type(target).__name__)}'"
        self.error = UnsupportedOperator(
            f"torch.fx misreads the model: {name} number {number + 1}{user_line()} is not that of the trace; allowed: "
            "a forward that does the same with tensors as with torch.fx's proxies, each time, for batches of any size, "
            "with gradients or without"
        )
        raise self.error

    def _named(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) in self.values:
                return self.values[id(value)][0]
            return value.detach().clone() if self.expected is None else value
        if isinstance(value, list | tuple):
            return tuple(self._named(item) for item in value)
        return {name: self._named(item) for name, item in value.items()} if isinstance(value, dict) else value


@torch.no_grad()
def refuse_another_function(model: nn.Module, program: Program, region: Box | Interval) -> torch.Size | None:
    """Return the shape of one example's output, None for a region without finite points.

    Raises UnsupportedOperator if the program and the model differ at points of the region [B, ...].

    The module makes the same calls as the program: Python code that tests a value's type, such as
    `isinstance(x, Tensor)`, takes another branch under torch.fx. And the bounds of single points contain the outputs,
    up to rounding, of one example alone, first and last of several: code of a leaf may be another than its rule's.

    Raises ValueError for inputs of a shape that the model does not take.
    """
    x = points_of(region)
    if not len(x):
        return None
    with counted_rounding(x.device.type):
        outputs = refuse_other_calls(model, program, x)
        ctx, steps = Context(sound=True), {step.name: step for step in program.steps}
        with explained_errors("no bound rule", lambda: steps[ctx.step].where):
            values = values_of(program, Interval(x, torch.zeros_like(x)), ctx)
    refuse_mixed_examples(program, values)
    box = values[program.output].box
    if box.center.dtype not in _SOLVED:
        raise UnsupportedOperator(
            f"the model cannot be bounded: its outputs are {box.center.dtype}; use float32 or float64"
        )
    # A step that solves an equation computes a few digits less in its module.
    solved = any(step.record is not None and step.record.refine is not None for step in program.steps)
    for output in (*outputs, outputs[-1][-1:]):
        if output.shape != box.center[: len(output)].shape or not _is_inside(output, box, solved):
            raise UnsupportedOperator(
                "the model cannot be bounded: its output depends on other images in the batch, or its place there, "
                "or its torch.fx trace gives other outputs; allowed: examples computed one by one, and layers that "
                "compute what torch's do"
            )
    return box.center.shape[1:]


def refuse_other_calls(model: nn.Module, program: Program, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the model's outputs of x[:1], computed with gradients and without, and of x [B, ...], without.

    Raises UnsupportedOperator if the model makes other calls than the program.
    """
    with trace_lock:
        tensors = [x, *model.parameters(), *model.buffers()]
        has_gradients = not torch.is_inference_mode_enabled() and not any(tensor.is_inference() for tensor in tensors)
        alone = _calls_of(program, x[:1])
        with torch.set_grad_enabled(has_gradients):
            one = _output(model, program, x[:1].detach().requires_grad_(has_gradients), alone)
        return one.detach(), _output(model, program, x[:1], alone), _output(model, program, x, _calls_of(program, x))


def _calls_of(program: Program, x: Tensor) -> list[Call]:
    """Return the calls that the program makes for x [B, ...]."""
    copy = x.clone()
    calls = _Calls(copy)
    with calls.with_leaves(program):
        calls.output_of(partial(_run, program, _failure(x)), copy)
    return calls.calls


def _output(model: nn.Module, program: Program, x: Tensor, expected: list[Call]) -> Tensor:
    """Return the model's output of x [B, ...]. Raises UnsupportedOperator if its calls are not the expected ones."""
    copy = x.clone()
    calls = _Calls(copy, expected)
    try:
        with calls.with_leaves(program):
            return calls.output_of(model, copy)
    except UnsupportedOperator:
        raise
    except Exception:
        _run(program, _failure(x), x.clone())  # raises the error of the step, if it is one
        raise


def _failure(x: Tensor) -> tuple[str, type[Exception]]:
    """Return the message and type of the error if the program cannot be run for x [B, ...]."""
    if x.requires_grad:
        return "torch cannot compute the model where gradients are recorded", UnsupportedOperator
    if len(x) > 1:
        return f"the model takes an example alone, but not {list(x.shape)}", UnsupportedOperator
    return f"the model does not take {list(x.shape)}, {x.dtype}, the first example of the region [B, ...]", ValueError


def _run(program: Program, failure: tuple[str, type[Exception]], x: Tensor) -> Tensor:
    """Return what the program computes of x [B, ...], by the operators themselves; some change x in place."""
    message, kind = failure
    values: list[Any] = [x]
    for step in program.steps:
        with explained_errors(message, lambda step=step: step.where, kind):  # type: ignore[misc]
            values.append(step.run(values))
    return values[program.output]


def points_of(region: Box | Interval) -> Tensor:
    """Return up to four finite points, the first and the last the same.

    They are of one finite example any point and the centre, of a second one the lowest corner, and the first again. The
    first is also computed alone: numbers that are alike, as at many centres, would hide that some are exchanged.
    """
    inside = torch.rand(region.radius[:1].shape, generator=torch.Generator().manual_seed(0)).to(region.radius) * 2 - 1
    finite = (region.center - region.radius).flatten(1).isfinite().all(1).nonzero()[:2, 0]
    center, radius = region.center[finite], region.radius[finite]
    x = torch.cat([center[:1] + inside * radius[:1], center[:1], (center - radius)[-1:]])
    return torch.cat([x, x[:1]])


def _is_inside(output: Tensor, box: Box, solved: bool) -> bool:
    """Return whether outputs lie in the first boxes, rounding of both counted, where both are finite.

    Boxes of curves are computed in float64, the curves themselves in the output's type.
    """
    center, radius = box.center[: len(output)], box.radius[: len(output)]
    both = output.isfinite() & center.isfinite()
    allowed = 2 * radius + _ULPS * torch.finfo(output.dtype).eps * center.abs()
    if solved:
        allowed = allowed + _SOLVED[output.dtype] * (1 + torch.where(both, center, 0).abs().max())
    return bool((~both | ~((output - center).abs() > allowed)).all())
