"""The lines around ReLUs, and what rounding costs linear bounds of them.

Where p lies in [l, u], free p <= relu(p) <= chord p + offset for every free slope in [0, 1]; where 0 is not inside, and
where a leaf of branch and bound splits the neuron, both lines are ReLU itself.
"""

from dataclasses import dataclass

import numpy as np

from harness.checker.boxes import SLACK, TINY, Array, Box, U

LARGEST = 1e100


@dataclass(frozen=True)
class Leaves:
    """What K leaves choose at one activation of *shape; every choice of numbers is sound.

    slopes: [K, *shape] free slopes, not a number for the default. signs: [K, *shape], each leaf is where signs p >= 0.
    multipliers: [K, *shape], at least 0. kept: [K, *shape], factors of the multiplier iteration of an equilibrium.
    """

    slopes: Array
    signs: Array
    multipliers: Array
    kept: Array

    @property
    def pushed(self) -> Array:
        """What a functional that is bounded over a leaf loses at p: multipliers times signs."""
        return self.multipliers * self.signs


@dataclass(frozen=True)
class Lines:
    """All [1 or K, *shape]; slopes are taken as they are, and the offset is rounded up."""

    free: Array
    chord: Array
    offset: Array

    def under(self, a: Array) -> tuple[Array, Array]:
        """Coefficients [K, *shape] on p, and their constant [K], with a . relu(p) >= coefficients . p + constant."""
        return a * np.where(a > 0, self.free, self.chord), dot(np.minimum(a, 0), self.offset)


def lines(p: Box, leaves: Leaves | None) -> Lines:
    """The lines around ReLU over the box [1, *shape], in each leaf."""
    low, high = p.lower, p.upper
    crossing, exact = (low < 0) & (high > 0), (high > 0).astype(float)
    chord = np.where(crossing, np.clip(high / np.where(crossing, high - low, 1), 0, 1), exact)
    ends = np.maximum((1 - chord) * high, -chord * low) * (1 + SLACK * U) + TINY
    offset = np.where(crossing, ends, 0)
    free = np.where(crossing, (high > -low).astype(float), exact)
    if leaves is None:
        return Lines(free, chord, offset)
    split, on = leaves.signs != 0, (leaves.signs > 0).astype(float)
    chosen = np.where(crossing & ~np.isnan(leaves.slopes), np.clip(leaves.slopes, 0, 1), free)
    return Lines(np.where(split, on, chosen), np.where(split, on, chord), np.where(split, 0, offset))


def dot(a: Array, values: Array) -> Array:
    """Sums [K] of a [K, *shape] times values, [K, *shape] or what broadcasts to *shape."""
    if values.shape == a.shape:
        return np.einsum("kn,kn->k", a.reshape(len(a), -1), values.reshape(len(a), -1))
    return a.reshape(len(a), -1) @ np.broadcast_to(values, (1, *a.shape[1:])).ravel()


def lost(a: Array, size: Array, roundings: int) -> Array:
    """At least what rounding costs, [K], rows a [K, *shape] of a functional a . v where |v| <= size [1, *shape].

    It covers elements that are off by `roundings` of sums of magnitudes a, and sums of products of a with anything up
    to `size`, in any order: gamma_n of Higham (2002), section 3.1, twice, for its own rounding and for that of `size`;
    and underflow in all of that, where sizes are at most LARGEST. Infinite where a is larger than that.
    """
    sizes, count = np.abs(a), a[0].size
    if sizes.max() > LARGEST:
        return np.full(len(a), np.inf)
    relative = (SLACK * (roundings + 1) + 2 * count) * U
    return relative * dot(sizes, size) + (roundings + count) / LARGEST
