"""The section `verifier`: what `verify` decides of small networks whose exact minimum lies near the edge of robustness.

The exact smallest output over a box is found by mixed-integer programming, which shares nothing with the verifier. A
solver's tolerances are far smaller than the distance from the edge.
"""

import argparse
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import nn

from cerdeq import Box, LinfBall, verify
from cerdeq.equilibrium import FixedPoint

_DEPTHS, _DISTANCES = range(2, 9), (0.1, -0.1, 0.05, -0.05)  # hidden layers; distances in `edge_case`
_SECONDS = 60.0
_INPUTS, _UNITS, _RADIUS = 5, 8, 0.2
_RHO = 0.7  # the spectral radius of |W| of equilibria
_SPARE = 1e-6  # added to bounds that a solver computes


@torch.no_grad()
def measure_verifier(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each kind of network: how many of them are decided, and in how many seconds.

    wrong: verdicts against the exact minimum; it must be 0. The first options.images networks, the kinds in turn.
    """
    cases = [
        (f"{depth} layers, {'equilibrium' if has_equilibrium else 'explicit'}", depth, has_equilibrium, number)
        for number in range(options.images)
        for depth in _DEPTHS
        for has_equilibrium in (False, True)
    ][: options.images]
    rows = dict[str, dict[str, Any]]()
    for label, depth, has_equilibrium, number in cases:
        case = edge_case(depth, has_equilibrium, number, _DISTANCES[(number + depth) % len(_DISTANCES)])
        start = time.monotonic()
        (status,) = verify(case.model, case.region, torch.ones(1, 1, 1, dtype=torch.float64), _SECONDS).status
        seconds = time.monotonic() - start
        expected = "certified" if case.minimum > 0 else "falsified"
        empty = {"network": label, "networks": 0, "decided": 0, "wrong": 0, "s in sum": 0.0, "s at most": 0.0}
        row = rows.setdefault(label, empty)
        row["networks"] += 1
        row["decided"] += status == expected
        row["wrong"] += status in {"certified", "falsified"} - {expected}
        row["s in sum"] += seconds
        row["s at most"] = max(row["s at most"], seconds)
    return list(rows.values())


@dataclass(frozen=True)
class EdgeCase:
    """A network with one output, a ball [1, 5], and the exact minimum of the output over it."""

    model: nn.Module
    region: Box
    minimum: float


def edge_case(depth: int, has_equilibrium: bool, seed: int, distance: float) -> EdgeCase:
    """Return a random network of `depth` hidden layers, the last of which may be an equilibrium.

    distance: the minimum, as a share of how far it lies below the output at the centre.
    """
    generator = torch.Generator().manual_seed(1000 * depth + seed)
    sizes = [_INPUTS, *[_UNITS] * depth, 1]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        layer.weight.data = torch.randn(outputs, inputs, dtype=torch.float64, generator=generator) * (2 / inputs) ** 0.5
        layer.bias.data = 0.1 * torch.randn(outputs, dtype=torch.float64, generator=generator)
        layers += [layer, nn.ReLU()]
    layers.pop()
    if has_equilibrium:
        weight = torch.randn(_UNITS, _UNITS, dtype=torch.float64, generator=generator)
        layers[-2] = FixedPoint(weight * (_RHO / float(torch.linalg.eigvals(weight.abs()).abs().max())))
    model = nn.Sequential(*layers).double().eval().requires_grad_(False)
    region = LinfBall(torch.rand(1, _INPUTS, dtype=torch.float64, generator=generator), _RADIUS)
    minimum = exact_minimum(model, region)
    drop = float(model(region.center)) - minimum
    model[-1].get_parameter("bias").add_(distance * drop - minimum)
    return EdgeCase(model, region, distance * drop)


def exact_minimum(model: nn.Sequential, region: Box) -> float:
    """Return the smallest output, up to a solver's tolerances, over the box [1, N].

    model: linear layers, ReLUs and equilibria.
    """
    program = _Program(region.lower[0].numpy(), region.upper[0].numpy())
    matrix, offset = np.eye(len(program.low)), np.zeros(len(program.low))
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight = layer.weight.numpy()
            matrix, offset = weight @ matrix, weight @ offset + layer.bias.numpy()
        else:
            weight = layer.weight.detach().numpy() if isinstance(layer, FixedPoint) else np.zeros((len(matrix),) * 2)
            matrix, offset = program.add_activation(matrix, offset, weight), np.zeros(len(matrix))
    return program.minimum(matrix[0]) + float(offset[0])


@dataclass
class _Program:
    """Variables from low to high, some of them integer, with rows @ variables <= ends."""

    low: np.ndarray
    high: np.ndarray
    rows: list[np.ndarray] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.integer = np.zeros(len(self.low))

    def add_activation(self, matrix: np.ndarray, offset: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Add variables z = relu(weight z + h), h = matrix @ variables + offset; return the matrix that reads z."""
        low = np.array([self._relaxed(row) - _SPARE for row in matrix]) + offset
        high = np.array([_SPARE - self._relaxed(-row) for row in matrix]) + offset
        top = np.linalg.solve(np.eye(len(low)) - np.abs(weight), np.maximum(high, 0)) + _SPARE
        low, high = low - np.abs(weight) @ top, np.maximum(high + np.abs(weight) @ top, _SPARE)
        count, before = len(low), len(self.low)
        self.low = np.concatenate([self.low, np.zeros(2 * count)])
        self.high = np.concatenate([self.high, top, np.ones(count)])
        self.integer = np.concatenate([self.integer, np.zeros(count), np.ones(count)])
        z, on = np.eye(len(self.low))[before : before + count], np.eye(len(self.low))[before + count :]
        p = self._wide(matrix) + weight @ z
        self._at_most(p - z, -offset)
        self._at_most(z - np.maximum(high, 0)[:, None] * on, np.zeros(count))
        self._at_most(z - p - np.minimum(low, 0)[:, None] * on, offset - np.minimum(low, 0))
        return z

    def minimum(self, objective: np.ndarray) -> float:
        """Return the smallest objective @ variables. Raises RuntimeError if the solver fails."""
        constraints = LinearConstraint(self._wide(np.array(self.rows, dtype=object)), ub=np.array(self.ends))
        result = milp(self._wide(objective[None])[0], constraints=constraints, integrality=self.integer,
                      bounds=Bounds(self.low, self.high), options={"mip_rel_gap": 0})  # fmt: skip
        if not result.success:
            raise RuntimeError(f"the solver failed: {result.message}")
        return float(result.fun)

    def _relaxed(self, objective: np.ndarray) -> float:
        """Return the smallest objective @ variables of the linear relaxation."""
        rows = self._wide(np.array(self.rows, dtype=object)) if self.rows else None
        limits = np.stack([self.low, self.high], axis=1)
        result = linprog(self._wide(objective[None])[0], A_ub=rows, b_ub=self.ends or None, bounds=limits)
        if not result.success:
            raise RuntimeError(f"the solver failed: {result.message}")
        return float(result.fun)

    def _at_most(self, rows: np.ndarray, ends: np.ndarray) -> None:
        self.rows += list(rows)
        self.ends += ends.tolist()

    def _wide(self, matrix: np.ndarray) -> np.ndarray:
        """Return a matrix, or a ragged array of rows, with a column for each variable."""
        return np.array([np.pad(np.asarray(row, dtype=float), (0, len(self.low) - len(row))) for row in matrix])
