"""The linear program of a leaf, and the choices with which `SearchQuery.lower` proves its value."""

from dataclasses import dataclass

import numpy as np

from cerdeq.branch.network_rows import Network
from cerdeq.linear_program import LinearProgram


@dataclass(frozen=True)
class LeafSolution:
    """The solution of a leaf's program; nothing is proved.

    value: the smallest value of the row over the leaf's relaxation, infinity if it is empty. x: where it is, [d].
    The rest is [units]. violation: how far each unit is from its ReLU there. is_active: whether its p is above 0 there.
    arriving, pulled: coefficients of a linear bound on each unit's activation, and on its p.
    """

    value: float
    x: np.ndarray
    violation: np.ndarray
    is_active: np.ndarray
    arriving: np.ndarray
    pulled: np.ndarray

    @property
    def is_empty(self) -> bool:
        """True if the leaf has no inputs."""
        return self.value == np.inf


class LeafProgram:
    """The linear programs of the leaves of a network, each solved from the one before."""

    def __init__(self, network: Network):
        self._network = network
        self._program = LinearProgram(network.rows, network.low, network.high, network.ends)
        self._row, self._signs = -1, np.zeros(len(network.z), np.int8)

    def solve(self, row: int, signs: np.ndarray, parent: LeafSolution | None) -> LeafSolution | None:
        """Return the solution of the leaf of a row with these signs, int8 [units]; None if the solver fails.

        parent: the solution of a leaf that contains it. If the leaf is empty, the multipliers that show it are added to
        the parent's, so many times that the parent's value becomes positive.
        """
        network = self._network
        if row != self._row:
            self._program.set_cost(network.costs[row])
            self._row = row
        for sign, columns in ((-1, network.z), (1, network.n)):
            moved = np.flatnonzero((signs == sign) != (self._signs == sign))
            if len(moved):
                high = np.where(signs[moved] == sign, 0.0, np.inf)
                self._program.set_ends(columns[moved], np.zeros(len(moved)), high)
        self._signs = signs
        solution = self._program.solve()
        if solution is None:
            return None
        z, n = solution.x[network.z], solution.x[network.n]
        pulled = solution.multipliers[network.equations]
        chords = solution.multipliers[network.chords] * network.weights
        arriving = solution.slopes[network.z] + pulled + chords
        if solution.is_empty and parent is not None:
            factor = 2 * (abs(parent.value) + 1) / solution.ray
            arriving, pulled = parent.arriving + factor * arriving, parent.pulled + factor * pulled
        value = solution.value + network.offsets[row]
        return LeafSolution(value, solution.x[: network.inputs], np.minimum(z, n), z > n, arriving, pulled)

    def choices(self, signs: np.ndarray, solution: LeafSolution) -> tuple[np.ndarray, np.ndarray]:
        """Return the slopes [units] of free lines, 0 to 1, and the multipliers [units] of splits."""
        a, arriving, pulled = self._network.slopes, solution.arriving, solution.pulled
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.nan_to_num((pulled / arriving - a) / (1 - a), nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1)
        multipliers = np.where(signs > 0, arriving - pulled, np.where(signs < 0, pulled - a * arriving, 0.0))
        return slopes, multipliers.clip(min=0)
