"""Intermediate boxes by CROWN itself, layer by layer, of the neurons that need them (Zhang et al. 2018)."""

from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.backward import chunked_lower_bound
from cerdeq.bounds.forward import values_of
from cerdeq.bounds.graph import Program
from cerdeq.bounds.interval import Context, Interval
from cerdeq.bounds.patches import Coefficients, one_hot
from cerdeq.boxes import Box, outward_ends


def tightened_values(program: Program, x: Interval, memory: int) -> list[Any]:
    """A sound forward pass in which every relaxation's input box is first intersected with its CROWN bounds.

    Only where the operator says that it matters, for ReLU where the box contains 0 inside.
    """
    done = {0}

    def tighten(number: int, values: list[Any]) -> None:
        step = program.steps[number - 1]
        if step.record is None or step.record.unsettled is None:
            return
        _, options = step.call(values)
        for source in set(step.sources) - done:
            unsettled = step.record.unsettled(values[source].box, **options)
            values[source] = _tightened(program, values, source, unsettled, memory)
            done.add(source)

    return values_of(program, x, Context(sound=True), tighten)


def _tightened(program: Program, values: list[Any], at: int, unsettled: Tensor, memory: int) -> Interval:
    """Value number `at` with its box tightened where `unsettled`, a mask of its shape."""
    x = values[at]
    chosen = unsettled.flatten(1).int()
    count = int(chosen.sum(1).max())
    if count == 0:
        return x
    # Examples have different numbers of such neurons; those with fewer fill up with others, which does no harm.
    index = chosen.argsort(dim=1, descending=True, stable=True)[:, :count]

    def rows(start: int, stop: int) -> Coefficients:
        """Rows 2 k and 2 k + 1: the k-th neuron and its negative."""
        place = index.repeat_interleave(2, dim=1)[:, start:stop]
        sign = torch.tensor([1.0, -1.0]).to(x.center).repeat(count)[start:stop].expand(place.shape)
        return one_hot(place, sign, x.center.shape[1:])

    found = chunked_lower_bound(program, values, rows, 2 * count, at, memory).to(x.center)
    found = found - torch.finfo(found.dtype).eps * found.abs()  # down, from float64
    low, high = (end.flatten(1) for end in outward_ends(x.box))
    low = low.scatter(1, index, torch.maximum(low.gather(1, index), found[:, ::2]))
    high = high.scatter(1, index, torch.minimum(high.gather(1, index), -found[:, 1::2]))
    return _tighter(x, low.view_as(x.center), high.view_as(x.center))


def _tighter(x: Interval, low: Tensor, high: Tensor) -> Interval:
    """x, its box replaced by [low, high] where that is smaller."""
    new = Box((low + high) / 2, (high - low) / 2)
    limits = torch.finfo(low.dtype)
    radius = new.radius.clamp(min=0) + 4 * limits.eps * (low.abs() + high.abs()) + limits.tiny
    smaller = radius < x.radius
    return Interval(torch.where(smaller, new.center, x.center), torch.where(smaller, radius, x.radius), x.clean)
