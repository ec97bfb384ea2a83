"""Boxes of all values by affine forms of the inputs, for wide networks of few inputs.

A form is an affine function L of the inputs x and a remainder: each element of a value lies within `remainder` of L(x).
L is stored by its values at n + 1 points: the centre of the box of x, and for each of n inputs the centre moved by the
radius along it. An affine operator takes the points to points. A ReLU is L itself where its input is not below 0, 0
where it is not above 0, else slope L + shift with a larger remainder, as in DeepZ (Singh et al. 2018). Remainders do
not cancel, except in sums of ReLUs of sparse layers (`relu_sums.py`).

Each point takes one more pass through the layers. CROWN's boxes take a backward pass for each hidden unit; here only
the units of each ReLU that are furthest from having one sign get one, where the remainder is a large part of the box.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.crown import tighten_box
from cerdeq.bounds.query import examples_of
from cerdeq.bounds.relu_sums import ReluSums
from cerdeq.boxes import smaller_box
from cerdeq.deadline import check
from cerdeq.operators.interval import Context, Interval
from cerdeq.operators.relu import relu_interval
from cerdeq.tracing.program import Program, Step

_MOST_TIGHTENED = 8  # units of each ReLU
_ALIKE = 4  # examples that are tightened together
_LEAST_REMAINDER = 0.25  # in radii of the unit's box
_LEAST_CROSSING = 1e-6  # by a unit's box over 0, in units of the layer's largest radius: less costs next to nothing


@dataclass(frozen=True)
class _Form:
    """points: [n + 1, D, *shape], of L, the centre first. remainder: [D, *shape].

    rounding: [D, *shape], what rounding of the last step alone may have moved L by; the remainder includes it.
    """

    points: Tensor
    remainder: Tensor
    rounding: Tensor

    @property
    def box(self) -> Interval:
        """The box of all its values, rounded outwards."""
        center, moved, limits = self.points[0], self.points[1:], torch.finfo(self.points.dtype)
        size = self.remainder + self.points.abs().sum(0) + len(moved) * center.abs()
        rounding = (len(self.points) + 8) * limits.eps * size + limits.tiny
        return Interval(center, (moved - center).abs().sum(0) + self.remainder + rounding)


def has_forms(program: Program) -> bool:
    """Return whether the program has affine operators and ReLUs alone."""
    records = [step.record for step in program.steps if step.record is not None]
    return all(record.affine is not None or record.interval is relu_interval for record in records)


def values_by_forms(
    program: Program, x: Interval, inputs: Tensor, memory: int, sums: dict[int, ReluSums]
) -> list[Any]:  # fmt: skip
    """Return a sound forward pass as `values_of` does: an Interval of each value that depends on the input.

    Call it within `counted_rounding`, for a program that `has_forms`.

    x: [D, ...], in float64. inputs: [n], flat numbers of the inputs that forms depend on; the others stay boxes.
    memory: about how many bytes backward passes may take. sums: of the program; what they read is not tightened.
    """
    summed = {of.preactivation for of in sums.values()}
    ctx, forms, values = Context(sound=True), {0: _input_form(x, inputs)}, list[Any]([x])
    for number, step in enumerate(program.steps, start=1):
        check()
        ctx.step = step.name
        arguments, options = step.call(values)
        if step.record is None:
            values.append(step.target(*arguments, **options))
            continue
        if step.record.interval is relu_interval:
            source = step.sources[0]
            if source not in summed:
                values[source] = _tightened(program, values, source, forms[source], memory)
            values.append(relu_interval(ctx, values[source]))
            forms[number] = _relu(forms[source], values[source])
            continue
        box = step.record.interval(ctx, *arguments, **options)
        forms[number] = _affine(ctx, step, values, forms)
        if number in sums:
            forms[number] = _of_sums(sums[number], forms, values, forms[number])
        ends = forms[number].box
        smaller = smaller_box(box.box, ends.center - ends.radius, ends.center + ends.radius)
        values.append(Interval(smaller.center, smaller.radius))
    return values


def _tightened(program: Program, values: list[Any], number: int, form: _Form, memory: int) -> Interval:
    """Return the box of a value; linear bounds tighten the elements that reach furthest on both sides of 0.

    They hardly tighten those whose form has a small remainder.
    """
    x = values[number]
    crossing = torch.minimum(x.center + x.radius, x.radius - x.center).flatten(1)
    furthest = crossing.topk(min(_MOST_TIGHTENED, crossing.shape[1])).values[:, -1:]
    largest = x.radius.flatten(1).amax(1, keepdim=True)
    mask = (crossing >= furthest) & (crossing > _LEAST_CROSSING * largest)
    mask = mask.view_as(x.center) & (form.remainder > _LEAST_REMAINDER * x.radius)
    counts, center, radius = mask.flatten(1).sum(1), x.center.clone(), x.radius.clone()
    for alike in counts.argsort().split(_ALIKE):  # all get as many rows as the one with most
        if not bool(counts[alike].any()):
            continue
        boxes = examples_of(program, values, alike)
        box = tighten_box(
            program, boxes, number, boxes[number].box, mask[alike], lambda rows: {number: rows}, memory, are_units=True
        )
        center[alike], radius[alike] = box.center, box.radius
    return Interval(center, radius)


def _input_form(x: Interval, inputs: Tensor) -> _Form:
    center, radius = x.center.flatten(1), x.radius.flatten(1)
    points = center.repeat(len(inputs) + 1, 1, 1)
    for number, column in enumerate(inputs.tolist(), start=1):
        points[number, :, column] += radius[:, column]
    remainder = radius.clone()
    remainder[:, inputs] = 2 * torch.finfo(center.dtype).eps * (center.abs() + radius)[:, inputs]
    return _Form(points.view(-1, *x.center.shape), remainder.view_as(x.center), torch.zeros_like(x.center))


def _affine(ctx: Context, step: Step, values: list[Any], forms: dict[int, _Form]) -> _Form:
    """Return the form after an affine operator.

    From points of radius 0 its rule returns their rounding errors, e. At x = centre + sum t_k (point_k - centre), with
    |t_k| <= 1, they move L by at most (1 + n) e_0 + sum e_k. From the remainder as a radius it returns at least |W| r.
    """
    sources = {source: forms[source] for source in step.sources}
    first = next(iter(sources.values()))
    count = len(first.points)

    def result(of: dict[int, Interval]) -> Interval:
        arguments, options = step.call([of.get(number, value) for number, value in enumerate(values)])
        return step.record.interval(ctx, *arguments, **options)  # type: ignore[union-attr]  # it has a form

    def at_point(number: int) -> Interval:
        zero = {source: torch.zeros_like(form.remainder) for source, form in sources.items()}
        return result({source: Interval(form.points[number], zero[source]) for source, form in sources.items()})

    around = result({source: Interval(form.points[0], form.remainder) for source, form in sources.items()})
    points = [at_point(number) for number in range(count)]
    errors = torch.stack([point.radius for point in points])
    upwards = 1 + (count + 4) * torch.finfo(errors.dtype).eps
    rounding = (count * errors[0] + errors[1:].sum(0)) * upwards
    return _Form(torch.stack([point.center for point in points]), (around.radius + rounding) * upwards, rounding)


def _of_sums(sums: ReluSums, forms: dict[int, _Form], values: list[Any], form: _Form) -> _Form:
    """Return the form of sums of ReLUs, `form` with a smaller remainder: one for all steps from x to the sums."""
    x, p, z = (forms[number] for number in (sums.source, sums.preactivation, sums.relu))
    low, high, slope, shift = _lines(values[sums.preactivation])
    rounding = slope * p.rounding + z.rounding
    remainder = sums.remainder(x.remainder, slope, shift, torch.maximum(-low, high), rounding) + form.rounding
    remainder = remainder * (1 + 2 * torch.finfo(remainder.dtype).eps)
    return _Form(form.points, torch.minimum(form.remainder, remainder), form.rounding)


def _relu(form: _Form, x: Interval) -> _Form:
    """Return the form after a ReLU of values in the box x."""
    limits = torch.finfo(x.center.dtype)
    low, high, slope, shift = _lines(x)
    points = slope * form.points + shift
    size = 4 * limits.eps * (points.abs().sum(0) + len(points) * (points[0].abs() + shift)) + limits.tiny
    rounding = torch.where((low < 0) & (high > 0), size, 0)
    return _Form(points, (slope * form.remainder + shift + rounding) * (1 + 4 * limits.eps), rounding)


def _lines(x: Interval) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ends of the box x, a slope and a shift: relu(v) lies within `shift` of slope v + shift for each v of it.

    On [low, high] with 0 inside, relu(v) - slope v lies between 0 and the larger of -slope low and (1 - slope) high.
    """
    limits = torch.finfo(x.center.dtype)
    slack = 4 * limits.eps * (x.center.abs() + x.radius)
    low, high = x.center - x.radius - slack, x.center + x.radius + slack
    slope = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, high / (high - low)))
    excess = torch.maximum(-slope * low, (1 - slope) * high) * (1 + 8 * limits.eps) + limits.tiny
    return low, high, slope, torch.where((low < 0) & (high > 0), excess / 2, 0)
