"""The linear program of a leaf: triangles around unstable ReLUs, one case of each split one.

A unit's pre-activation is p = z - n with z, n >= 0, and its activation z - a n, a the slope below 0. If the unit is
unstable on [l, u], then z / u - n / l <= 1, the triangle around the activation. A split sets n or z to 0. So only ends
of columns differ between leaves. Units of an equilibrium are coupled by W.

The multipliers of p's equations are the coefficients of a linear bound on p. They give the slopes and the multipliers
of splits with which `SearchQuery.lower` proves the program's value, if no bound on p itself is used.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cerdeq.bounds.backward import in_chunks, linear_lower_bound, pull_back
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


def network_rows(query: SearchQuery, layout: Layout) -> Network | None:
    """Return the rows of a query in float64.

    None if the network has other nonlinear steps, has a box that is not finite, or is too large.
    """
    from scipy import sparse

    program, values = query.program, query.values
    relaxations: dict[str, Any] = {}
    first = torch.zeros(1, dtype=torch.long, device=query.spec.device)
    linear_lower_bound(program, values, query.rows(first), program.output, Backward(True, relaxations=relaxations))
    low, high = (end.flatten().cpu().numpy() for end in outward_ends(values[0].box))
    ends, count, activations = [(low, high)], len(low), list[_Activation]()
    for number, step in enumerate(program.steps, start=1):
        if step.name not in relaxations:
            continue
        _, relaxation = relaxations[step.name]
        low, high = (end[0].flatten().cpu().numpy() for end in (relaxation.low, relaxation.high))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        is_unstable, slope = (low < 0) & (high > 0), relaxation.negative_slope
        has_z, has_n = high > 0, is_unstable | ((high <= 0) & (slope != 0))
        z, n = (np.where(has, np.cumsum(has) - 1, -1) for has in (has_z, has_n))
        z, n = np.where(has_z, z + count, -1), np.where(has_n, n + count + has_z.sum(), -1)
        count += int(has_z.sum() + has_n.sum())
        for has in (has_z, has_n):
            least = np.where(is_unstable[has], 0.0, -np.inf)
            ends.append((least, np.full(len(least), np.inf)))
        activations.append(_Activation(number, step.sources[0], slope, low, high, z, n))

    def columns_of(number: int) -> Any:
        """Return the value as rows of columns: sparse [elements, columns]."""
        if number == 0:
            return sparse.eye(values[0].center.numel(), count, format="csr")
        (activation,) = (a for a in activations if a.number == number)
        parts = [(1.0, activation.z), (-activation.slope, activation.n)]
        entries = [(np.full((c >= 0).sum(), f), np.flatnonzero(c >= 0), c[c >= 0]) for f, c in parts if f]
        data, i, j = (np.concatenate(part) for part in zip(*entries, strict=True))
        return sparse.csr_matrix((data, (i, j)), (len(activation.z), count))

    stops = {activation.number for activation in activations}

    def affine(at: int, rows: Tensor) -> tuple[Any, np.ndarray] | None:
        """Return rows [K, N] of a value as rows of columns and offsets [K]."""
        parts = _affine_parts(query, rows, at, stops)
        if parts is None:
            return None
        return sum(matrix @ columns_of(source) for source, matrix in parts[0].items()), parts[1]

    blocks, offsets, equations = list[Any](), list[np.ndarray](), dict[int, np.ndarray]()
    row_count = nonzeros = 0
    for activation in activations:
        elements, size = activation.elements, len(activation.low)
        weight, before, total = _weight(query, activation.number), list[Any](), list[np.ndarray]()
        for start, stop in in_chunks(len(elements), _CHUNK // size):
            chunk = torch.from_numpy(elements[start:stop]).to(query.spec.device)
            part = affine(activation.source, torch.eye(size, dtype=torch.float64, device=query.spec.device)[chunk])
            if part is None:
                return None
            before.append(part[0])
            total.append(part[1])
            nonzeros += part[0].nnz
            if nonzeros > _MOST_NONZEROS:
                return None
        if not len(elements):
            continue
        matrix = sparse.vstack(before)
        if weight is not None:
            matrix = matrix + sparse.csr_matrix(weight[elements]) @ columns_of(activation.number)
        places = [(1.0, activation.z[elements]), (-1.0, activation.n[elements])]
        entries = [(np.full((c >= 0).sum(), f), np.flatnonzero(c >= 0), c[c >= 0]) for f, c in places]
        data, i, j = (np.concatenate(part) for part in zip(*entries, strict=True))
        blocks.append(sparse.csr_matrix((data, (i, j)), (len(elements), count)) - matrix)
        offsets.append(np.concatenate(total))
        numbers = np.full(size, -1)
        numbers[elements] = row_count + np.arange(len(elements))
        equations[activation.number] = numbers
        row_count += len(elements)
    result = affine(program.output, query.spec)
    if result is None:
        return None
    columns_by_unit = [np.zeros((6, 0))]  # z, n, equation, slope, weights of z and n
    number_of = {step.name: number for number, step in enumerate(program.steps, start=1)}
    for columns in layout.units:
        (activation,) = (a for a in activations if a.number == number_of[columns.name])
        elements = columns.elements.cpu().numpy()
        low, high = activation.low[elements], activation.high[elements]
        largest = np.maximum(high, -low)
        of_columns = [activation.z[elements], activation.n[elements], equations[activation.number][elements]]
        columns_by_unit.append(
            np.stack([*of_columns, np.full(len(elements), activation.slope), -low / largest, high / largest])
        )
        offsets.append(-low * high / largest)
    packed = np.concatenate(columns_by_unit, axis=1)
    z, n, at = packed[:3].astype(np.int32)
    slopes, weights, of_n = packed[3:]
    units = np.arange(len(z))
    entry = np.concatenate([units, units]), np.concatenate([z, n])
    chords = sparse.csr_matrix((np.concatenate([weights, of_n]), entry), (len(z), count))
    ends_high = np.concatenate([np.zeros(0), *offsets])
    ends_low = ends_high.copy()
    ends_low[row_count:] = -np.inf
    least, most = (np.concatenate(end) for end in zip(*ends, strict=True))
    return Network(
        sparse.vstack([*blocks, chords], format="csr"), ends_low, ends_high, (least, most), result[0].toarray(),
        result[1], z, n, at, row_count + units, slopes, weights, values[0].center.numel(),
    )  # fmt: skip


def _weight(query: SearchQuery, number: int) -> np.ndarray | None:
    """Return W of an equilibrium, None of another activation."""
    layer = query.program.steps[number - 1].target
    if not isinstance(layer, FixedPoint):
        return None
    return dense_weight(layer.weight.detach(), query.values[number].center.shape[1:]).double().cpu().numpy()


def _affine_parts(
    query: SearchQuery, rows: Tensor, at: int, stops: set[int]
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
