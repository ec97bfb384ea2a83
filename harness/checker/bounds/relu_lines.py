"""The lines around ReLUs, and the cost of rounding in linear bounds.

If p lies in [l, u], free * p <= relu(p) <= chord * p + offset for every free slope in [0, 1]. If 0 is not inside, or if
a leaf of branch and bound splits the neuron, both lines are the ReLU itself.
"""

from dataclasses import dataclass

import numpy as np

from harness.checker.bounds.boxes import SLACK, TINY, Array, Box, U

LARGEST = 1e100


@dataclass(frozen=True)
class Leaves:
    """The choices of K leaves at one activation of *shape; any numbers are sound.

    slopes: [K, *shape], free slopes, NaN for the default. signs: [K, *shape], the leaf is where signs * p >= 0.
    multipliers: [K, *shape], at least 0. line_shares: [K, *shape], of an equilibrium's multiplier iteration.
    """

    slopes: Array
    signs: Array
    multipliers: Array
    line_shares: Array

    @property
    def split_terms(self) -> Array:
        """Multipliers times signs: the coefficients of p that a functional loses in a leaf."""
        return self.multipliers * self.signs

    def are_empty(self, p: Box) -> Array:
        """Return which leaves have no input, bool [K]: the box of a split neuron lies on the other side of 0."""
        largest: Array = np.maximum(self.signs * p.lower, self.signs * p.upper)
        return np.any((largest < 0).reshape(len(largest), -1), axis=1)


@dataclass(frozen=True)
class Lines:
    """The lines of one activation, all [1 or K, *shape]. The offset is rounded up for exactly these slopes."""

    free: Array
    chord: Array
    offset: Array

    def bound_from_below(self, a: Array) -> tuple[Array, Array]:
        """Return coefficients [K, *shape] and constants [K] with a . relu(p) >= coefficients . p + constant."""
        return a * np.where(a > 0, self.free, self.chord), dot(np.minimum(a, 0), self.offset)


def lines(p: Box, leaves: Leaves | None) -> Lines:
    """Return the lines around ReLU over the box [1, *shape], in each leaf."""
    low, high = p.lower, p.upper
    crossing, exact = (low < 0) & (high > 0), (high > 0).astype(float)
    chord = np.where(crossing, np.clip(high / np.where(crossing, high - low, 1), 0, 1), exact)
    ends = np.maximum((1 - chord) * high, -chord * low) * (1 + SLACK * U) + TINY
    offset = np.where(crossing, ends, 0)
    free = np.where(crossing, (high > -low).astype(float), exact)
    if leaves is None:
        return Lines(free, chord, offset)
    split, on = leaves.signs != 0, (leaves.signs > 0).astype(float)
    free_in_leaf = np.where(crossing & ~np.isnan(leaves.slopes), np.clip(leaves.slopes, 0, 1), free)
    return Lines(np.where(split, on, free_in_leaf), np.where(split, on, chord), np.where(split, 0, offset))


def dot(a: Array, values: Array) -> Array:
    """Return the sums [K] of a [K, *shape] times values, which are [K, *shape] or broadcast to *shape."""
    if values.shape == a.shape:
        return np.einsum("kn,kn->k", a.reshape(len(a), -1), values.reshape(len(a), -1))
    return a.reshape(len(a), -1) @ np.broadcast_to(values, (1, *a.shape[1:])).ravel()


def rounding_loss(a: Array, size: Array) -> Array:
    """Return at least the cost [K] of rounding in functionals a . v, a [K, *shape], where |v| <= size [1, *shape].

    It covers sums over the elements of a, in any order, of products with values up to `size`: gamma_n of Higham (2002),
    section 3.1, twice, for its own rounding and for that of `size`. Each product may take six more roundings. It also
    covers underflow in all of them for sizes up to LARGEST, and is infinite for larger a.
    """
    sizes, count = np.abs(a), a[0].size
    if sizes.max() > LARGEST:
        return np.full(len(a), np.inf)
    return (SLACK + 2 * count) * U * dot(sizes, size) + count / LARGEST
