"""Networks whose only nonlinear step is one equilibrium: as h = U x + b, z = relu(W z + h) and outputs C z + c."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.crown_pass import Functional, pull_back
from cerdeq.bounds.patches import dense
from cerdeq.boxes import Box, outward_ends, smaller_box
from cerdeq.equilibrium.layer import FixedPoint
from cerdeq.equilibrium.monotone.box import AffineMap, first_box
from cerdeq.equilibrium.monotone.enclosure import Enclosure, rounded_up, sum_rounded_up
from cerdeq.equilibrium.monotone.proof import Monotonicity
from cerdeq.operators.backward import Backward
from cerdeq.operators.interval import Interval
from cerdeq.tracing.program import Program

_MOST_UNITS = 4000  # of a W that is made dense
_AFFINE = 1e-6  # largest error of an affine map, in units of its values: more is no rounding


@dataclass(frozen=True)
class EquilibriumNetwork:
    """One equilibrium between affine maps, over one box of inputs; all float64.

    proof: of W's strong monotonicity. box: of the inputs, flat [d]. inject: x -> h. rows: z -> the rows of a spec,
    over the box z [N], which is proved.
    """

    proof: Monotonicity
    box: Box
    inject: AffineMap
    rows: AffineMap
    z: Box

    @property
    def row_offsets(self) -> Tensor:
        """Offsets [K] with which `rows.matrix` bounds the rows from below.

        The error counts twice: the second time for the rounding of this difference, since it is above 4 eps |offset|.
        """
        return self.rows.offset - 2 * self.rows.error


@torch.no_grad()
def equilibrium_network(program: Program, values: list[Any], spec: Tensor) -> EquilibriumNetwork | None:
    """Return the network of a program, with rows of `spec` [K, N] of the outputs; None if it is of another kind.

    Its W is not proved to be a contraction, but is strongly monotone. Others have faster bounds.

    values: of a sound pass over one example in float64. Call it within `counted_rounding`.
    """
    numbers = [i for i, step in enumerate(program.steps, start=1) if isinstance(step.target, FixedPoint)]
    if len(numbers) != 1:
        return None
    number, (source,) = numbers[0], program.steps[numbers[0] - 1].sources
    layer, shape = program.steps[number - 1].target, values[source].center.shape[1:]
    if layer.contraction(layer.weight).rate < 1 or shape.numel() > _MOST_UNITS:
        return None
    units = torch.eye(shape.numel()).to(spec)
    inject = affine_map(program, values, units, source, 0)
    rows = affine_map(program, values, spec, program.output, number)
    proof, x = layer.monotonicity(layer.weight, shape), _flat(values[0])
    if inject is None or rows is None or not proof.is_proved:
        return None
    before = _flat(values[number])  # rows are affine over this box
    return EquilibriumNetwork(proof, x, inject, rows, smaller_box(before, *outward_ends(first_box(proof, inject, x))))


def _flat(value: Interval) -> Box:
    return Box(value.center.flatten(), value.radius.flatten())


def affine_map(program: Program, values: list[Any], rows: Tensor, at: int, source: int) -> AffineMap | None:
    """Return rows [K, N] of value number `at` as an affine map of value number `source`, None if they are no such map.

    Linear bounds from below and from above enclose the map. They are equal up to rounding if every step between is
    affine, or is a nonlinear step that is affine over the box.
    """
    below = _pull_rows(program, values, rows, at, source)
    above = _pull_rows(program, values, -rows, at, source)
    if below is None or above is None:
        return None
    matrix, size = below[0], rounded_up(values[source].center.flatten().abs() + values[source].radius.flatten(), 2)
    other = Enclosure.exact(matrix) + Enclosure.exact(above[0])  # about 0
    slack = sum_rounded_up(other.magnitude * size)
    middle, half = (below[1] - above[1]) / 2, (-above[1] - below[1]).abs() / 2
    error = rounded_up(half + slack + 4 * torch.finfo(middle.dtype).eps * (below[1].abs() + above[1].abs()), 8)
    scale = matrix.abs() @ size + middle.abs() + torch.finfo(middle.dtype).tiny
    return AffineMap(matrix, middle, error) if bool((error <= _AFFINE * scale + 1e-300).all()) else None


def _pull_rows(program: Program, values: list[Any], rows: Tensor, at: int, source: int) -> tuple[Tensor, Tensor] | None:
    """Return coefficients [K, M] and constants [K] with rows . v >= coefficients . u + constants, rounding counted.

    v is value number `at`, u value number `source`. None if v also depends on earlier values.
    """
    functional: Functional = {at: rows.view(1, len(rows), *values[at].center.shape[1:])}
    pending, constants = pull_back(program, values, functional, Backward(sound=True), source)
    if pending.keys() != {source}:
        return None
    underflow = 0.0  # what products of coefficients that underflow could change, in units of the smallest normal number
    for step, value in zip(program.steps[source:at], values[source + 1 : at + 1], strict=True):
        if step.record is not None:
            inputs = sum(float((values[i].center.abs() + values[i].radius).sum()) for i in step.sources)
            underflow += value.center[0].numel() * (1 + inputs)
    terms = torch.stack([rows.new_zeros(len(rows)), *[constant[0].double() for constant in constants]])
    limits = torch.finfo(torch.float64)
    lost = 2 * (len(terms) + 2) * limits.eps * terms.abs().sum(0) + 8 * underflow * limits.tiny
    return dense(pending[source])[0].flatten(1), terms.sum(0) - lost
