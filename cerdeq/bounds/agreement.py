"""Whether a program is the function that its module computes: both are run at points of the region."""

from typing import Any

import torch
from torch import Tensor, nn

from cerdeq.bounds.batch_sizes import refuse_mixed_examples
from cerdeq.bounds.calls import Calls
from cerdeq.bounds.ibp import values_of
from cerdeq.boxes import Box
from cerdeq.errors import UnsupportedOperator, explained_errors
from cerdeq.operators.interval import Context, Interval
from cerdeq.precision import counted_rounding
from cerdeq.tracing.program import Program
from cerdeq.tracing.refusals import unchanged

_POINTS = 8
_ALLOWED = {torch.float32: 1e-4, torch.float64: 1e-9}  # differences of an output, relative to its largest size
_SOLVED = {torch.float32: 1e-3, torch.float64: 1e-6}  # of outputs behind an equilibrium, relative to 1 + the largest
_ULPS = 8  # of an output that torch computes by a curve, such as sigmoid


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
        _run(program, x[:1].clone())  # names the step that does not take the input
        ctx, steps = Context(sound=True), {step.name: step for step in program.steps}
        with explained_errors("no bound rule", lambda: steps[ctx.step].where):
            values = values_of(program, Interval(x, torch.zeros_like(x)), ctx)
        refuse_mixed_examples(program, values)
        outputs = _agreeing_outputs(model, program, x)
    box = values[program.output].box
    allowed = 2 * box.radius + _ULPS * torch.finfo(box.center.dtype).eps * box.center.abs()
    allowed = allowed + _of_solvers(program, box.center)
    _refuse_differences([(output, box.center[: len(output)], allowed[: len(output)]) for output in outputs])
    return box.center.shape[1:]


@torch.no_grad()
def refuse_other_outputs(model: nn.Module, program: Program, x: Tensor) -> None:
    """Raise UnsupportedOperator if the outputs of model and program differ at x [B, ...], of `points_of`.

    The model's outputs of one point alone, with gradients and without, and of all, must be what the program computes,
    and the model must not read values of its input.
    """
    _run(program, x[:1].clone())  # names the step that does not take the input
    _agreeing_outputs(model, program, x)


def _agreeing_outputs(model: nn.Module, program: Program, x: Tensor) -> list[Tensor]:
    """Return the model's outputs: of the first point, with gradients and without, of all, and of the last one."""
    calls, tensors = Calls(program), [x, *model.parameters(), *model.buffers()]
    has_gradients = not torch.is_inference_mode_enabled() and not any(tensor.is_inference() for tensor in tensors)
    with unchanged(model):
        with torch.set_grad_enabled(has_gradients):
            one = _outputs(model, program, calls, x[:1].clone().requires_grad_(has_gradients))
        results = [[end.detach() for end in one]]
        results += [[*_outputs(model, program, calls, part)] for part in (x[:1], x)]
    expected, together = results[-1]
    allowed = _ALLOWED[expected.dtype] * expected.abs().nan_to_num(0, 0, 0).amax(0) + _of_solvers(program, expected)
    # of the same batch, since terms that cancel are summed in another order in another one
    _refuse_differences([(output, right, allowed.expand_as(right)) for right, output in results])
    return [*[output for _, output in results], together[-1:]]


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


def _outputs(model: nn.Module, program: Program, calls: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of program and model, of x [B, ...]. Raises UnsupportedOperator if they call other things."""
    for_program, for_model = x.clone(), x.clone()  # either may change its own in place
    with calls.noted(for_program):
        expected = _run(program, for_program)
    _refuse_other_form(expected, x)
    with calls.compared(for_model):
        output = model(for_model)
    if not isinstance(output, Tensor):
        raise UnsupportedOperator(f"torch.fx misreads the model: it returns a {type(output).__name__}, not a tensor")
    return expected, output


def _run(program: Program, x: Tensor) -> Tensor:
    """Return what the program computes of x [B, ...], by the operators themselves, which may change x in place."""
    kind: type[Exception] = UnsupportedOperator
    if x.requires_grad:
        message = "torch cannot compute the model where gradients are recorded"
    elif len(x) > 1:
        message = f"the model takes an example alone, but not {list(x.shape)}"
    else:
        message = f"the model does not take {list(x.shape)}, {x.dtype}, the first example of the region [B, ...]"
        kind = ValueError
    values: list[Any] = [x]
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


def _refuse_differences(compared: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Raise UnsupportedOperator unless each output is the expected one, up to an allowed difference.

    Where not both are finite, neither may be, unless any difference is allowed.
    """
    agreed = list[Tensor]()
    for output, right, size in compared:
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
