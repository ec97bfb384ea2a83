"""Provides exact minima of small networks over boxes by mixed-integer programming, without cerdeq.

A network is a `Graph`. `Encoding` goes through its nodes as its forward does. It writes every value as an affine
expression matrix @ variables + offset; affine nodes are read off at basis vectors, the others add variables. Bounds for
big-M come from interval arithmetic on these expressions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from oracles import dense_affine, dense_operator
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn


@dataclass(frozen=True)
class Node:
    """apply: a module or a function of the values at `sources` (0 is the input, i + 1 node i). slope: of a leaky ReLU,
    "max" of a max pooling, "equilibrium" of z = relu(W z + h), its `weight` dense or a convolution, two limits of a
    clamp, None of an affine node."""

    apply: Callable[..., Tensor]
    sources: tuple[int, ...]
    slope: float | str | tuple[float, float] | None = None


class Graph(nn.Module):
    """A network by its nodes; the last is the output."""

    def __init__(self, nodes: list[Node]):
        super().__init__()
        self.nodes = nodes
        self.layers = nn.ModuleList(list(dict.fromkeys(n.apply for n in nodes if isinstance(n.apply, nn.Module))))

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for node in self.nodes:
            values.append(node.apply(*[values[source] for source in node.sources]))
        return values[-1]


class Encoding:
    """The variables and constraints of a Graph over the box of one example."""

    def __init__(self, graph: Graph, low: Tensor, high: Tensor):
        self.low, self.high = low.flatten().double().numpy(), high.flatten().double().numpy()
        self.integer = np.zeros(self.low.size)
        self.rows: list[tuple[np.ndarray, float]] = []  # row @ variables <= number
        self.inputs = self.low.size
        shapes = [low.shape]
        values = [(np.eye(self.inputs), np.zeros(self.inputs))]
        for node in graph.nodes:
            sizes = [int(np.prod(shapes[s])) for s in node.sources]

            def apply(flat, node=node, sizes=sizes):
                parts = flat.flatten(1).split(sizes, dim=1)
                return node.apply(*[part.reshape(-1, *shapes[s]) for part, s in zip(parts, node.sources, strict=True)])

            sources = [values[s] for s in node.sources]
            p = np.concatenate([self._wide(m) for m, _ in sources]), np.concatenate([b for _, b in sources])
            ends = self._ends(*p)
            with torch.no_grad():
                shapes.append(apply(torch.zeros(1, sum(sizes), dtype=torch.float64)).shape[1:])
            if node.slope is None:
                matrix, offset = (part.numpy() for part in dense_affine(apply, (sum(sizes),)))
                values.append((matrix @ p[0], matrix @ p[1] + offset))
            elif node.slope == "max":
                values.append(self._max(p, *ends, windows_of(apply, sum(sizes))))
            elif node.slope == "equilibrium":
                weight = node.apply.weight.detach().double()
                values.append(self._equilibrium(p, dense_operator(weight, shapes[node.sources[0]])))
            elif isinstance(node.slope, tuple):
                values.append(self._clamp(p, *node.slope))
            else:
                values.append(self._leaky(p, *ends, node.slope))
        self.output = values[-1]

    def minimum(self, spec: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the minimum of spec . output, and the input where it lies."""
        matrix, offset = self._wide(self.output[0]), self.output[1]
        rows = np.array([self._wide(row[None])[0] for row, _ in self.rows]).reshape(len(self.rows), self.low.size)
        ends = np.array([end for _, end in self.rows])
        result = milp(
            spec @ matrix,
            constraints=LinearConstraint(rows, ub=ends) if len(ends) else (),
            integrality=self.integer,
            bounds=Bounds(self.low, self.high),
            options={"mip_rel_gap": 0},
        )
        assert result.success, result.message
        point = result.x[: self.inputs].clip(self.low[: self.inputs], self.high[: self.inputs])
        return float(result.fun + spec @ offset), point

    def _wide(self, matrix: np.ndarray) -> np.ndarray:
        return np.pad(matrix, ((0, 0), (0, self.low.size - matrix.shape[1])))

    def _ends(self, matrix: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        matrix = self._wide(matrix)
        positive, negative = matrix.clip(min=0), matrix.clip(max=0)
        low = positive @ self.low + negative @ self.high + offset
        return low - 1e-9, positive @ self.high + negative @ self.low + offset + 1e-9

    def _variables(self, low: list[float], high: list[float], integer: bool = False) -> list[int]:
        start = self.low.size
        self.low, self.high = np.append(self.low, low), np.append(self.high, high)
        self.integer = np.append(self.integer, [integer] * len(low))
        return list(range(start, self.low.size))

    def _unit(self, *entries: tuple[int, float]) -> np.ndarray:
        row = np.zeros(self.low.size)
        for column, value in entries:
            row[column] += value
        return row

    def _at_most(self, row: np.ndarray, end: float) -> None:
        self.rows.append((row, end))

    def _leaky(self, p, low, high, slope: float):
        """p = up - down, both at least 0, one of them 0; leaky(p) = up - slope down."""
        matrix, offset = [], []
        for row, b, lo, hi in zip(*p, low, high, strict=True):
            if lo >= -1e-8 or hi <= 1e-8:
                factor = 1 if lo >= -1e-8 else slope
                matrix.append(factor * row)
                offset.append(factor * b)
                continue
            up, down = self._variables([0, 0], [hi, -lo])
            wide = self._wide(row[None])[0]
            self._at_most(wide - self._unit((up, 1), (down, -1)), -b)
            self._at_most(self._unit((up, 1), (down, -1)) - wide, b)
            (on,) = self._variables([0], [1], integer=True)
            self._at_most(self._unit((up, 1), (on, -hi)), 0)
            self._at_most(self._unit((down, 1), (on, -lo)), -lo)
            matrix.append(self._unit((up, 1), (down, -slope)))
            offset.append(0.0)
        return np.concatenate([self._wide(row[None]) for row in matrix]), np.array(offset)

    def _clamp(self, p, low: float, high: float):
        """high - relu(high - low - relu(p - low))."""
        above = p[0], p[1] - low
        rest = self._leaky(above, *self._ends(*above), 0.0)
        below = -rest[0], high - low - rest[1]
        matrix, offset = self._leaky(below, *self._ends(*below), 0.0)
        return -matrix, high - offset

    def _max(self, p, low, high, windows: list[np.ndarray]):
        matrix, offset = p
        outputs = []
        for window in windows:
            top = high[window].max()
            (y,) = self._variables([low[window].max()], [top])
            on = self._variables([0] * len(window), [1] * len(window), integer=True)
            for number, i in enumerate(window):
                row = self._wide(matrix[i : i + 1])[0]
                self._at_most(row - self._unit((y, 1)), -offset[i])
                reach = top - low[i]
                self._at_most(self._unit((y, 1), (on[number], reach)) - row, offset[i] + reach)
            self._at_most(self._unit(*[(column, -1) for column in on]), -1)
            outputs.append(self._unit((y, 1)))
        return np.concatenate([self._wide(row[None]) for row in outputs]), np.zeros(len(windows))

    def _equilibrium(self, p, weight: np.ndarray):
        """z = relu(W z + h). Its largest values: (I - |W|)^-1 max(h, 0), which any rho(|W|) < 1 allows.

        If I - W is strongly monotone: modulus |z|^2 <= z . (I - W) z = z . h <= |z| |max(h, 0)|.
        """
        size, largest_h = len(weight), self._ends(*p)[1].clip(min=0)
        if np.abs(np.linalg.eigvals(np.abs(weight))).max() < 1:
            top = np.linalg.solve(np.eye(size) - np.abs(weight), largest_h) + 1e-9
        else:
            modulus = 1 - np.linalg.eigvalsh((weight + weight.T) / 2).max()
            assert modulus > 0
            top = np.full(size, np.linalg.norm(largest_h) / modulus + 1e-9)
        z = self._variables([0] * size, list(top))
        on = self._variables([0] * size, [1] * size, integer=True)
        low, high = self._ends(*p)
        low, high = low - np.abs(weight) @ top, high + np.abs(weight) @ top
        for i in range(size):
            before = self._wide(p[0][i : i + 1])[0] + self._unit(*zip(z, weight[i], strict=True))
            self._at_most(before - self._unit((z[i], 1)), -p[1][i])
            self._at_most(self._unit((z[i], 1), (on[i], -low[i])) - before, p[1][i] - low[i])
            self._at_most(self._unit((z[i], 1), (on[i], -max(high[i], 1e-9))), 0)
        return np.eye(self.low.size)[z], np.zeros(size)


def windows_of(pool: Callable[[Tensor], Tensor], size: int) -> list[np.ndarray]:
    """Which inputs each output of a max pooling can equal: raising them raises it."""
    with torch.no_grad():
        raised = pool(torch.eye(size, dtype=torch.float64)).flatten(1) > 0.5
    return [np.flatnonzero(column) for column in raised.T.numpy()]
