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

from cerdeq.bounds.graph import Program
from cerdeq.rules import activations, interval


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
    inputs, equal = activation_inputs(program), _first_equals(program, values)
    groups, column = defaultdict[Any, list[tuple[int, int, float]]](list), 0
    for name, numbers in elements.items():
        layer = _layer(program, values, inputs[name]) if name in inputs else None
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
    number, columns, directions, thresholds = zip(*members, strict=True) if members else ((), (), (), ())
    device = values[0].center.device
    return ParallelUnits(
        torch.tensor(columns, dtype=torch.long, device=device),
        torch.tensor(number, dtype=torch.long, device=device),
        torch.tensor(directions, dtype=torch.int8, device=device),
        torch.tensor(thresholds, dtype=torch.float64, device=device),
    )


def activation_inputs(program: Program) -> dict[str, int]:
    """Return the number of the value whose sign each activation depends on, by the step's name."""
    records = ((step, step.record) for step in program.steps)
    return {
        step.name: step.sources[0]
        for step, record in records
        if record is not None and record.unsettled is not None and record.preactivation and record.refine is None
    }


def _first_equals(program: Program, values: list[Any]) -> list[int]:
    """Return of each value the first one that is computed by equal linear layers and ReLUs from the same value."""
    equal, layers, relus = [0], list[tuple[int, int, Tensor, Tensor]](), dict[int, int]()
    for number, step in enumerate(program.steps, start=1):
        equal.append(number)
        if step.record is not None and step.record.interval is activations.relu:
            equal[number] = relus.setdefault(equal[step.sources[0]], number)
        elif (layer := _layer(program, values, number)) is not None:
            source, weight, bias = equal[layer[0]], *layer[1:]
            for first, s, w, b in layers:
                if s == source and torch.equal(w, weight) and torch.equal(b, bias):
                    equal[number] = first
            layers.append((equal[number], source, weight, bias))
    return equal


def _layer(program: Program, values: list[Any], number: int) -> tuple[int, Tensor, Tensor] | None:
    """Return the source, the weight [N, M] and the bias [N] of a value that a linear layer computes, else None."""
    step = program.steps[number - 1] if number else None
    if step is None or step.record is None or step.record.interval not in (interval.linear, interval.matmul):
        return None
    arguments, options = step.call(values)
    names = ("weight", "bias") if step.record.interval is interval.linear else ("other",)
    given = dict(zip(names, arguments[1:], strict=False)) | options
    weight, bias = (given["other"].T, None) if "other" in given else (given["weight"], given.get("bias"))
    weight = weight.detach().double().cpu()
    return step.sources[0], weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().double().cpu()
