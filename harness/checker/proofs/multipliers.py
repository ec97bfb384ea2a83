"""Bounds of a monotone equilibrium's units and rows from multipliers, whatever they are.

With w = diag(W) < 1, q = (W z - w z + h) / (1 - w) and z = relu(q). For l <= q <= u the pair (z_i, q_i) lies in the
hull of (relu(l_i), l_i), (relu(u_i), u_i) and, if 0 lies between, (0, 0). V is W without its diagonal. For any a,

    c . z + e . q + o  >=  sum_i min over corners [(c + V^T a)_i z_i + (e_i - (1 - w_i) a_i) q_i] + min a . h(x) + o.
"""

import numpy as np

from harness.checker.bounds.boxes import SLACK, TINY, Array, Box, U, add, between, intersect, magnitude
from harness.checker.bounds.monotone import AffineMap, Proof, exact, first_box, multiply

_REPEATS, _MOVED = 10, 0.02  # a step's multipliers are applied again while the boxes shrink by this share


class EquilibriumBounds:
    """A proved equilibrium over a box x [d] of inputs; z: a box [N] that contains it."""

    def __init__(self, proof: Proof, inject: AffineMap, x: Box, z: Box):
        self.loops, self.inject, self.x = proof.weight.diagonal().copy(), inject, x
        self.off_diagonal = proof.weight - np.diag(self.loops)
        self.divisor = 1 - self.loops
        self.z = intersect(first_box(proof, inject, x), z)
        terms = len(self.loops) + len(x.center)
        self.relative = SLACK * (terms + 8) * U
        self.h_size = np.abs(inject.matrix) @ magnitude(x) + np.abs(inject.offset) + terms * TINY
        self.underflow = TINY * SLACK * (terms + 8) ** 2 * (1 + magnitude(x).sum())

    def first_leaf(self) -> tuple[Array, Array]:
        """Return low and high [N] of q, by intervals."""
        h = add(multiply(exact(self.inject.matrix), self.x), Box(self.inject.offset, self.inject.error))
        total = add(multiply(exact(self.off_diagonal), self.z), h)
        ends = np.stack([total.lower, total.upper]) / self.divisor
        quotient = between(*ends)
        q = Box(quotient.center, quotient.radius + SLACK * U * np.abs(ends).max(0) + TINY)
        low = np.where(self.z.lower > 0, np.maximum(q.lower, self.z.lower), q.lower)
        return low, np.minimum(q.upper, np.maximum(self.z.upper, 0))

    def lower_bounds(
        self, low: Array, high: Array, e: Array, a: Array, betas: Array, row: Array, offset: float
    ) -> Array:
        """Return bounds [R] of e . q + beta (row . z + offset) in the leaf; -inf where they are not finite.

        e, a: [R, N]. betas: [R], at least 0. row: [N].
        """
        of_z, of_q = betas[:, None] * row + a @ self.off_diagonal, e - a * self.divisor
        z_low, z_high = np.maximum(low, 0), np.maximum(high, 0)
        least = np.minimum(of_z * z_low + of_q * low, of_z * z_high + of_q * high)
        least = np.where((low < 0) & (high > 0), np.minimum(least, 0), least)
        of_x = a @ self.inject.matrix
        h = a @ self.inject.offset + of_x @ self.x.center - np.abs(of_x) @ self.x.radius
        total = least.sum(1) + h + betas * offset
        size, q_size = np.abs(a), np.maximum(np.abs(low), np.abs(high))
        sizes = (betas[:, None] * np.abs(row) + size @ np.abs(self.off_diagonal)) @ z_high
        sizes = sizes + (np.abs(e) + size * self.divisor) @ q_size
        sizes = sizes + size @ self.h_size  # the assumed row's offset has the last term, or cancels what is counted
        lost = self.relative * sizes + size @ self.inject.error * (1 + self.relative)
        lost = lost + self.underflow * (1 + z_high.sum() + q_size.sum())
        bound = total - lost - SLACK * U * (np.abs(total) + lost)
        return np.where(np.isfinite(bound), bound, -np.inf)

    def apply(self, leaf: tuple[Array, Array], step: dict[str, Array], row: Array, offset: float) -> bool:
        """Tighten a leaf low, high in place by a step of multipliers. Return whether that refutes it.

        step: units, signs, multipliers (1 - w) a, betas. With sign 0 a row of the step is the assumed one itself.
        """
        low, high = leaf
        units, signs = step["units"], step["signs"]
        e = np.zeros_like(step["multipliers"])
        e[np.arange(len(units)), units] = signs
        a = step["multipliers"] / self.divisor
        for _ in range(_REPEATS):
            bound = self.lower_bounds(low, high, e, a, step["betas"], row, offset)
            if (bound[signs == 0] > 0).any():
                return True
            before = (high - low).sum()
            np.maximum.at(low, units[signs > 0], bound[signs > 0])
            np.minimum.at(high, units[signs < 0], -bound[signs < 0])
            if (low > high).any():
                return True
            if not (high - low).sum() < (1 - _MOVED) * before:
                return False
        return False
