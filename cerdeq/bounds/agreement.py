"""Whether a program is the function that its module computes: both are run at points of the region."""

import sys
from contextlib import nullcontext
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
from cerdeq.tracing.program import Program
from cerdeq.tracing.trace import WAY_OUT, user_line

_POINTS = 8
_ALLOWED = {torch.float32: 1e-4, torch.float64: 1e-9}  # differences of an output, relative to its largest size
_SOLVED = {torch.float32: 1e-3, torch.float64: 1e-6}  # of outputs behind an equilibrium, relative to 1 + the largest
_ULPS = 8  # of an output that torch computes by a curve, such as sigmoid
_READS = {
    "__bool__", "__float__", "__int__", "__index__", "__array__", "__contains__", "allclose", "equal", "is_nonzero",
    "item", "numpy", "tolist",
}  # fmt: skip


@torch.no_grad()
def refuse_another_function(model: nn.Module, program: Program, region: Box | Interval) -> torch.Size | None:
    """Return the shape of one example's output, None for a region without finite points.

    Raises UnsupportedOperator if the program and the model differ at eight points of the region [B, ...]: if their
    outputs do, as `refuse_other_outputs` says, or if the bounds of the points do not contain the model's outputs. The
    code of a layer may be another than its rule's.

    Raises ValueError for inputs of a shape that the model does not take.
    """
    x = points_of(region)
    if not len(x):
        return None
    with counted_rounding(x.device.type):
        _run(program, x[:1])  # names the step that does not take the input
        ctx, steps = Context(sound=True), {step.name: step for step in program.steps}
        with explained_errors("no bound rule", lambda: steps[ctx.step].where):
            values = values_of(program, Interval(x, torch.zeros_like(x)), ctx)
        refuse_mixed_examples(program, values)
        outputs = _agreeing_outputs(model, program, x)
    box = values[program.output].box
    allowed = 2 * box.radius + _ULPS * torch.finfo(box.center.dtype).eps * box.center.abs()
    allowed = allowed + _of_solvers(program, box.center)
    _refuse_differences(outputs, box.center, allowed)
    return box.center.shape[1:]


@torch.no_grad()
def refuse_other_outputs(model: nn.Module, program: Program, x: Tensor) -> None:
    """Raise UnsupportedOperator if the outputs of model and program differ at x [B, ...], of `points_of`.

    The model's outputs of one point alone, with gradients and without, and of all, must be what the program computes,
    and the model must not read values of its input.
    """
    _run(program, x[:1])  # names the step that does not take the input
    _agreeing_outputs(model, program, x)


def _agreeing_outputs(model: nn.Module, program: Program, x: Tensor) -> list[Tensor]:
    """Return the model's outputs: of the first point, with gradients and without, of all, and of the last one."""
    expected = _run(program, x)
    _refuse_other_form(expected, x)
    tensors = [x, *model.parameters(), *model.buffers()]
    has_gradients = not torch.is_inference_mode_enabled() and not any(tensor.is_inference() for tensor in tensors)
    with torch.set_grad_enabled(has_gradients):
        one = _output(model, program, x[:1].clone().requires_grad_(has_gradients)).detach()
    together = _output(model, program, x)
    outputs = [one, _output(model, program, x[:1], watched=True), together, together[-1:]]
    sizes = expected.abs().nan_to_num(0, 0, 0).amax(0, keepdim=True).expand_as(expected)
    allowed = _ALLOWED[sizes.dtype] * sizes + _of_solvers(program, expected)
    _refuse_differences(outputs, expected, allowed)
    return outputs


def points_of(region: Box | Interval) -> Tensor:
    """Return eight finite points of up to seven examples, or none; the last is the first again.

    The first lies anywhere in its box, the second is the lowest corner of its own, the third the highest. Numbers that
    are alike, as at many centres, would hide that some are exchanged. An infinite box has points near its centre.
    """
    finite = region.center.flatten(1).isfinite().all(1).nonzero()[:, 0]
    if not len(finite):
        return region.center[:0]
    examples = finite[torch.arange(_POINTS - 1) % len(finite)]
    center, radius = region.center[examples], region.radius[examples]
    radius = torch.where((center.abs() + radius).isfinite(), radius, 1 + center.abs())
    shares = torch.rand(radius.shape, generator=torch.Generator().manual_seed(0)).to(radius) * 2 - 1
    shares[1], shares[2] = -1, 1
    x = center + shares * radius
    return torch.cat([x, x[:1]])


class _Watch(TorchFunctionMode):
    """Refuses, in its block, reads of the values of x and of what is computed of it, outside of a program's layers.

    Code that first asks whether its input is a Tensor shows them to torch.fx on no path.
    """

    def __init__(self, program: Program, x: Tensor):
        super().__init__()
        self.values = {id(x): x}  # kept, so that no other tensor gets the same id
        self.layers = {id(step.target) for step in program.steps if isinstance(step.target, nn.Module)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        depends = any(id(value) in self.values for value in nested_items([args, list(kwargs.values())]))
        if depends and getattr(func, "__name__", "") in _READS and not self._is_in_a_layer():
            raise UnsupportedOperator(f"the model reads values of its input{user_line()}; {WAY_OUT}")
        result = func(*args, **kwargs)
        if depends:
            self.values.update({id(value): value for value in nested_items([result]) if isinstance(value, Tensor)})
        return result

    def _is_in_a_layer(self) -> bool:
        frame = sys._getframe()
        while frame is not None and id(frame.f_locals.get("self")) not in self.layers:
            frame = frame.f_back  # type: ignore[assignment]
        return frame is not None


def _output(model: nn.Module, program: Program, x: Tensor, watched: bool = False) -> Tensor:
    """Return the model's output of x [B, ...]."""
    x = x.clone()
    try:
        with _Watch(program, x) if watched else nullcontext():
            output = model(x)
    except UnsupportedOperator:
        raise
    except Exception:
        _run(program, x)  # raises the error of the step, if it is one
        raise
    if not isinstance(output, Tensor):
        raise UnsupportedOperator(f"torch.fx misreads the model: it returns a {type(output).__name__}, not a tensor")
    return output


def _run(program: Program, x: Tensor) -> Tensor:
    """Return what the program computes of x [B, ...], by the operators themselves; some change x in place."""
    kind: type[Exception] = UnsupportedOperator
    if x.requires_grad:
        message = "torch cannot compute the model where gradients are recorded"
    elif len(x) > 1:
        message = f"the model takes an example alone, but not {list(x.shape)}"
    else:
        message = f"the model does not take {list(x.shape)}, {x.dtype}, the first example of the region [B, ...]"
        kind = ValueError
    values: list[Any] = [x.clone()]
    for step in program.steps:
        with explained_errors(message, lambda step=step: step.where, kind):  # type: ignore[misc]
            values.append(step.run(values))
    return values[program.output]


def _refuse_other_form(output: Tensor, x: Tensor) -> None:
    """Raise UnsupportedOperator for outputs of other precisions, and if dimension 0 is not the batch."""
    if output.dtype not in _ALLOWED:
        kind = output.dtype
        raise UnsupportedOperator(f"the model cannot be bounded: its outputs are {kind}; use float32 or float64")
    if output.shape[:1] != x.shape[:1]:
        raise UnsupportedOperator(
            f"the model mixes a batch's examples: {len(x)} examples give {list(output.shape)}; "
            "dimension 0 must stay the batch"
        )


def _of_solvers(program: Program, outputs: Tensor) -> Tensor | float:
    """Return the difference that is allowed behind a step that solves an equation; 0 without one."""
    if not any(step.record is not None and step.record.refine is not None for step in program.steps):
        return 0.0
    return _SOLVED[outputs.dtype] * (1 + outputs.abs().nan_to_num(0, 0, 0).max())


def _refuse_differences(outputs: list[Tensor], expected: Tensor, allowed: Tensor) -> None:
    """Raise UnsupportedOperator if an output is not one of the first expected [B, ...].

    Where not both are finite, neither may be, unless any difference is allowed.
    """
    agreed = list[Tensor]()
    for output in outputs:
        right, size = expected[: len(output)], allowed[: len(output)]
        if output.shape != right.shape:
            agreed.append(output.new_zeros((), dtype=torch.bool))
            continue
        alike = (output.isfinite() == right.isfinite()) | ~size.isfinite()
        agreed.append((alike & ~((output - right).abs() > size)).all())
    if not bool(torch.stack(agreed).all()):  # at once: each reading makes a GPU's host wait
        raise UnsupportedOperator(
            "torch.fx misreads the model, or its output depends on other images in the batch, or its place there; "
            "allowed: a forward that does the same with tensors as with torch.fx's proxies, each time, for batches of "
            "any size, with gradients or without, and layers that compute what torch's do"
        )
