"""The linear program of a leaf: triangles around unstable ReLUs, one case of each split one.

A unit's pre-activation is p = z - n with z, n >= 0, and its activation z - a n, a the slope below 0. If the unit is
unstable on [l, u], then z / u - n / l <= 1, the triangle around the activation. A split sets n or z to 0. So only ends
of columns differ between leaves. Units of an equilibrium are coupled by W.

The multipliers of p's equations are the coefficients of a linear bound on p. They give the slopes and the multipliers
of splits with which `SearchQuery.lower` proves the program's value, if no bound on p itself is used.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cerdeq.bounds.crown_pass import in_chunks, linear_lower_bound, pull_back
from cerdeq.bounds.patches import dense
from cerdeq.boxes import outward_ends
from cerdeq.branch.leaves import Layout, SearchQuery
from cerdeq.equilibrium.layer import FixedPoint
from cerdeq.equilibrium.recurrence import dense_weight
from cerdeq.operators.backward import Backward

_AFFINE = 1e-6  # largest difference of an affine map's two bounds, in units of its coefficients
_ZERO = 1e-12  # coefficients below are none, in units of the largest
_MOST_NONZEROS = 5 * 10**5
_CHUNK = 2**24  # coefficients that are pulled back at a time


@dataclass(frozen=True)
class _Activation:
    """Units of an activation: columns of z and n among the program's, -1 where the unit has none.

    slope: a. number: of its value. source: of the value that it reads.
    """

    number: int
    source: int
    slope: float
    low: np.ndarray
    high: np.ndarray
    z: np.ndarray
    n: np.ndarray

    @property
    def elements(self) -> np.ndarray:
        """The units with a column."""
        return np.flatnonzero((self.z >= 0) | (self.n >= 0))


@dataclass(frozen=True)
class Network:
    """A network's rows: low <= rows . columns <= high; the spec's rows are costs . columns + offsets.

    ends: of the columns. z, n, equations, chords: [units] of the layout: columns, and numbers of rows. slopes: their a.
    weights: of z in chords. inputs: number of the first columns, the network's inputs.
    """

    rows: Any
    low: np.ndarray
    high: np.ndarray
    ends: tuple[np.ndarray, np.ndarray]
    costs: np.ndarray
    offsets: np.ndarray
    z: np.ndarray
    n: np.ndarray
    equations: np.ndarray
    chords: np.ndarray
    slopes: np.ndarray
    weights: np.ndarray
    inputs: int


@dataclass(frozen=True)
class _Columns:
    """The columns of a program, `count`: of the input, then of z and n of each activation, by number of its value."""

    query: SearchQuery
    activations: dict[int, _Activation]
    count: int

    def of_value(self, number: int) -> Any:
        """Return the input, or an activation's value, as rows of columns: sparse [elements, columns]."""
        if number == 0:
            inputs = np.arange(self.query.values[0].center.numel())
            return _at_columns([(1.0, inputs)], self.count)
        activation = self.activations[number]
        return _at_columns([(1.0, activation.z), (-activation.slope, activation.n)], self.count)

    def affine(self, at: int, rows: Tensor) -> tuple[Any, np.ndarray] | None:
        """Return rows [K, N] of a value as rows of columns and offsets [K]; None if they are no affine map."""
        parts = _affine_parts(self.query, rows, at, self.activations.keys())
        if parts is None:
            return None
        return sum(matrix @ self.of_value(source) for source, matrix in parts[0].items()), parts[1]


def network_rows(query: SearchQuery, layout: Layout) -> Network | None:
    """Return the rows of a query in float64.

    None if the network has other nonlinear steps, has a box that is not finite, or is too large.
    """
    from scipy import sparse

    if (columns_and_ends := _columns(query)) is None:
        return None
    columns, ends = columns_and_ends
    if (equations := _equations(columns)) is None:
        return None
    blocks, offsets, numbers = equations
    if (result := columns.affine(query.program.output, query.spec)) is None:
        return None
    row_count = sum(block.shape[0] for block in blocks)
    by_unit = [np.zeros((6, 0))]  # z, n, equation, slope, weights of z and n
    number_of = {step.name: number for number, step in enumerate(query.program.steps, start=1)}
    for units in layout.units:
        activation, elements = columns.activations[number_of[units.name]], units.elements.cpu().numpy()
        low, high = activation.low[elements], activation.high[elements]
        largest, slope = np.maximum(high, -low), np.full(len(elements), activation.slope)
        of_columns = activation.z[elements], activation.n[elements], numbers[activation.number][elements]
        by_unit.append(np.stack([*of_columns, slope, -low / largest, high / largest]))
        offsets.append(-low * high / largest)
    packed = np.concatenate(by_unit, axis=1)
    z, n, at = packed[:3].astype(np.int32)
    slopes, weights, of_n = packed[3:]
    units_of = np.arange(len(z))
    entry = np.concatenate([units_of, units_of]), np.concatenate([z, n])
    chords = sparse.csr_matrix((np.concatenate([weights, of_n]), entry), (len(z), columns.count))
    high = np.concatenate([np.zeros(0), *offsets])
    low = np.where(np.arange(len(high)) < row_count, high, -np.inf)
    return Network(
        sparse.vstack([*blocks, chords], format="csr"), low, high, ends, result[0].toarray(), result[1],
        z, n, at, row_count + units_of, slopes, weights, query.values[0].center.numel(),
    )  # fmt: skip


def _columns(query: SearchQuery) -> tuple[_Columns, tuple[np.ndarray, np.ndarray]] | None:
    """Return the columns of a query's program and their ends; None if a box is not finite."""
    program, relaxations = query.program, dict[str, Any]()
    first = torch.zeros(1, dtype=torch.long, device=query.spec.device)
    pass_back = Backward(True, relaxations=relaxations)
    linear_lower_bound(program, query.values, query.rows(first), program.output, pass_back)
    low, high = (end.flatten().cpu().numpy() for end in outward_ends(query.values[0].box))
    ends, count, activations = [(low, high)], len(low), dict[int, _Activation]()
    for number, step in enumerate(program.steps, start=1):
        if step.name not in relaxations:
            continue
        _, relaxation = relaxations[step.name]
        low, high = (end[0].flatten().cpu().numpy() for end in (relaxation.low, relaxation.high))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        is_unstable, slope = (low < 0) & (high > 0), relaxation.negative_slope
        columns = list[np.ndarray]()
        for has in (high > 0, is_unstable | ((high <= 0) & (slope != 0))):  # z, n
            columns.append(np.where(has, np.cumsum(has) - 1 + count, -1))
            count += int(has.sum())
            least = np.where(is_unstable[has], 0.0, -np.inf)
            ends.append((least, np.full(len(least), np.inf)))
        activations[number] = _Activation(number, step.sources[0], slope, low, high, *columns)
    least, most = (np.concatenate(end) for end in zip(*ends, strict=True))
    return _Columns(query, activations, count), (least, most)


def _equations(columns: _Columns) -> tuple[list[Any], list[np.ndarray], dict[int, np.ndarray]] | None:
    """Return rows and offsets of the equations p = z - n, and the number of each unit's row by number of its value.

    None if a pre-activation is no affine map of the activations before it, or if there are too many coefficients.
    """
    from scipy import sparse

    blocks, offsets, numbers = list[Any](), list[np.ndarray](), dict[int, np.ndarray]()
    row_count = nonzeros = 0
    device = columns.query.spec.device
    for number, activation in columns.activations.items():
        elements, size = activation.elements, len(activation.low)
        parts = list[Any]()
        for start, stop in in_chunks(len(elements), _CHUNK // size):
            chunk = torch.from_numpy(elements[start:stop]).to(device)
            part = columns.affine(activation.source, torch.eye(size, dtype=torch.float64, device=device)[chunk])
            if part is None:
                return None
            parts.append(part[0])
            offsets.append(part[1])
            nonzeros += part[0].nnz
            if nonzeros > _MOST_NONZEROS:
                return None
        numbers[number] = np.full(size, -1)
        if not len(elements):
            continue
        matrix, weight = sparse.vstack(parts), _weight(columns.query, number)
        if weight is not None:
            matrix = matrix + sparse.csr_matrix(weight[elements]) @ columns.of_value(number)
        z_less_n = [(1.0, activation.z[elements]), (-1.0, activation.n[elements])]
        blocks.append(_at_columns(z_less_n, columns.count) - matrix)
        numbers[number][elements] = row_count + np.arange(len(elements))
        row_count += len(elements)
    return blocks, offsets, numbers


def _at_columns(parts: list[tuple[float, np.ndarray]], count: int) -> Any:
    """Return a sparse matrix [K, count] of these factors, each at its columns [K]; none where a column is -1."""
    from scipy import sparse

    parts = [(factor, columns) for factor, columns in parts if factor]
    rows = [np.flatnonzero(columns >= 0) for _, columns in parts]
    data = [np.full(len(row), factor) for row, (factor, _) in zip(rows, parts, strict=True)]
    at = [columns[row] for row, (_, columns) in zip(rows, parts, strict=True)]
    entries = np.concatenate(data), (np.concatenate(rows), np.concatenate(at))
    return sparse.csr_matrix(entries, (len(parts[0][1]), count))


def _weight(query: SearchQuery, number: int) -> np.ndarray | None:
    """Return W of an equilibrium, None of another activation."""
    layer = query.program.steps[number - 1].target
    if not isinstance(layer, FixedPoint):
        return None
    return dense_weight(layer.weight.detach(), query.values[number].center.shape[1:]).double().cpu().numpy()


def _affine_parts(
    query: SearchQuery, rows: Tensor, at: int, stops: Collection[int]
) -> tuple[dict[int, Any], np.ndarray] | None:  # fmt: skip
    """Return rows [K, N] of value number `at` as sparse matrices by number of a value, and offsets [K].

    None if they are no affine map of the input and the values `stops`: then its bounds from both sides differ.
    """
    from scipy import sparse

    functional = rows.view(1, len(rows), *query.values[at].center.shape[1:])
    below, above = (
        pull_back(query.program, query.values, {at: sign * functional}, Backward(False), stops=stops)
        for sign in (1.0, -1.0)
    )
    matrices = dict[int, Any]()
    for number, coefficients in below[0].items():
        matrix, other = (dense(part)[0].flatten(1) for part in (coefficients, above[0][number]))
        largest = matrix.abs().amax() if matrix.numel() else 0.0
        if (matrix + other).abs().amax() > _AFFINE * largest:
            return None
        matrices[number] = sparse.csr_matrix(torch.where(matrix.abs() > _ZERO * largest, matrix, 0).cpu().numpy())
    offsets, others = (
        torch.stack([rows.new_zeros(len(rows)), *[constant[0] for constant in part[1] if constant.dim()]]).sum(0)
        for part in (below, above)
    )
    if ((offsets + others).abs() > _AFFINE * (1 + offsets.abs())).any():
        return None
    return matrices, offsets.cpu().numpy()
