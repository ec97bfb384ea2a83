"""Signs that follow from others: units of linear layers that compute one function but for its sign and an offset.

Rows of linear layers that read the same values may be equal or opposite. Then p_i = d_i (q - t_i) with one q, d_i = 1
or -1, and q >= t_i implies q >= t_j for every t_j <= t_i. A search that knows this neither splits units whose sign is
known nor bounds leaves that no input has. Rows are compared number by number and nothing is rounded.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cerdeq.operators import linear, relu
from cerdeq.tracing.program import Program


@dataclass(frozen=True)
class ParallelUnits:
    """M units that are not alone in their group; p = direction * (q - threshold), where q belongs to the group.

    columns: [M], of a leaf's signs. groups: [M], numbers from 0 on. directions: int8 [M], 1 or -1.
    thresholds: float64 [M].
    """

    columns: Tensor
    groups: Tensor
    directions: Tensor
    thresholds: Tensor

    def complete(self, signs: Tensor) -> Tensor:
        """Return signs int8 [D, units] and those that follow from them."""
        if not len(self.columns):
            return signs
        known, groups, t = signs[:, self.columns], self.groups.expand(len(signs), -1), self.thresholds
        sides, ends = known * self.directions, t.new_full((len(signs), int(self.groups[-1]) + 1), torch.inf)
        low = (-ends).scatter_reduce(1, groups, torch.where(sides > 0, t, -torch.inf), "amax").gather(1, groups)
        high = ends.scatter_reduce(1, groups, torch.where(sides < 0, t, torch.inf), "amin").gather(1, groups)
        follows = ((low >= t).to(signs) - (high <= t).to(signs)) * self.directions
        return signs.index_copy(1, self.columns, torch.where(known == 0, follows, known))


def parallel_units(program: Program, values: list[Any], elements: dict[str, Tensor]) -> ParallelUnits:
    """Return the units that are not alone in their group.

    values: of the program, its constants among them. elements: of each activation whose units may be split, by the
    step's name: their flat indices into its pre-activation. Their columns follow one another in this order.
    """
    inputs, layers = activation_inputs(program), _linear_layers(program, values)
    equal = _first_equals(program, layers)
    groups, column = defaultdict[Any, list[tuple[int, int, float]]](list), 0
    for name, numbers in zip(elements, _to_host(list(elements.values())), strict=True):
        layer = layers.get(inputs[name]) if name in inputs else None
        for element in numbers.tolist():
            if layer is not None:
                source, weight, bias = layer
                row, offset = weight[element % len(weight)], float(bias[element % len(weight)])
                direction = -1 if row[row != 0][:1].sum() < 0 else 1
                row = direction * row + 0.0  # no -0.0, whose bytes are others
                key = equal[source], element // len(weight), row.numpy().tobytes()
                groups[key].append((column, direction, -direction * offset))
            elif name in inputs:
                groups[equal[inputs[name]], element].append((column, 1, 0.0))
            column += 1
    shared = [units for units in groups.values() if len(units) > 1]
    members = [(group, *unit) for group, units in enumerate(shared) for unit in units]
    device = values[0].center.device
    packed = torch.empty(0, 4, dtype=torch.float64, device=device)
    if members:
        packed = torch.tensor(members, dtype=torch.float64).to(device)
    numbers, columns, directions, thresholds = packed.T
    return ParallelUnits(columns.long(), numbers.long(), directions.to(torch.int8), thresholds)


def activation_inputs(program: Program) -> dict[str, int]:
    """Return the number of the value whose sign each activation depends on, by the step's name."""
    records = ((step, step.record) for step in program.steps if step.record is not None)
    return {
        step.name: step.sources[0]
        for step, record in records
        if record.needs_tighter_box is not None and record.preactivation and record.refine is None
    }


def _first_equals(program: Program, layers: dict[int, tuple[int, Tensor, Tensor]]) -> list[int]:
    """Return of each value the first one that is computed by equal linear layers and ReLUs from the same value."""
    equal, firsts, relus = [0], list[tuple[int, int, Tensor, Tensor]](), dict[int, int]()
    for number, step in enumerate(program.steps, start=1):
        equal.append(number)
        if step.record is not None and step.record.interval is relu.relu_interval:
            equal[number] = relus.setdefault(equal[step.sources[0]], number)
        elif number in layers:
            source, weight, bias = equal[layers[number][0]], *layers[number][1:]
            for first, s, w, b in firsts:
                if s == source and torch.equal(w, weight) and torch.equal(b, bias):
                    equal[number] = first
            firsts.append((equal[number], source, weight, bias))
    return equal


def _linear_layers(program: Program, values: list[Any]) -> dict[int, tuple[int, Tensor, Tensor]]:
    """Return the source, the weight [N, M] and the bias [N] of each value that a linear layer computes, by its number.

    The tensors are on the host, in float64.
    """
    sources, tensors = dict[int, int](), list[Tensor]()
    for number, step in enumerate(program.steps, start=1):
        if step.record is None or step.record.interval not in (linear.linear_interval, linear.matmul_interval):
            continue
        arguments, options = step.call(values)
        names = ("weight", "bias") if step.record.interval is linear.linear_interval else ("other",)
        given = dict(zip(names, arguments[1:], strict=False)) | options
        weight = given["other"].T if "other" in given else given["weight"]
        bias = given.get("bias")
        sources[number] = step.sources[0]
        tensors += [weight.double(), (weight.new_zeros(len(weight)) if bias is None else bias).double()]
    parts = iter(_to_host(tensors))
    return {number: (source, next(parts), next(parts)) for number, source in sources.items()}


def _to_host(tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors on the host, copied together: each copy makes a GPU's host wait."""
    if not tensors:
        return []
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
