"""Sums of ReLUs between sparse layers, y = W relu(V x + c): one error for all steps from x to y.

Minima of pairs are such sums. Let relu(p) = slope p + shift + e with |e| <= shift. If x is off by up to r, then y is
off by up to |W slope V| r + |W e|. Two units with opposite inputs, q = -p, share an error: relu(q) = relu(p) - p, so
e of q is e of p plus (slope of p + slope of q - 1) p + shift of p - shift of q.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from harness.checker.bounds.boxes import SLACK, TINY, Array, U
from harness.checker.bounds.maps import Product
from harness.checker.bounds.network import Network, ReluStep

_MOST = 8  # numbers in a row of W or V that are not 0


@dataclass(frozen=True)
class ReluSums:
    """N sums of up to K units p, which read up to C elements of x. x, p, relu: the numbers of these values.

    units: [N, K], and weights, those of W. columns: [N, C], elements of x, and inner [N, K, C], those of V. Missing
    ones are 0. firsts: [N, K], the unit that shares its error, or the unit itself. shares: [N, K], the errors' weights.
    """

    x: int
    p: int
    relu: int
    units: Array
    weights: Array
    columns: Array
    inner: Array
    firsts: Array
    shares: Array

    def error(self, r: Array, slope: Array, shift: Array, size: Array, rounding: Array) -> Array:
        """Return how far sums may be from those of the lines, [1, N].

        r: [1, M], how far x may be off. slope, shift, size >= |p|, rounding: [1, L], of units; the last one is added.
        """
        s, t = slope[0, self.units], shift[0, self.units]
        first_slope, first_shift = slope[0, self.firsts], shift[0, self.firsts]
        weights, relative = np.abs(self.weights), SLACK * (s.shape[1] + 2) * U
        through = np.abs(np.einsum("nk,nkc->nc", self.weights * s, self.inner))
        through += relative * np.einsum("nk,nkc->nc", weights, np.abs(self.inner))
        apart = (np.abs(s + first_slope - 1) + SLACK * U) * size[0, self.units]
        apart += np.abs(t - first_shift) + SLACK * U * (t + first_shift)
        apart = np.where(self.firsts == self.units, 0, apart) + rounding[0, self.units]
        total = (through * r[0, self.columns]).sum(1) + (np.abs(self.shares) * t + weights * apart).sum(1)
        terms = through.shape[1] + 2 * s.shape[1]
        result: Array = total[None] * (1 + SLACK * (terms + 2) * U) + SLACK * (terms + 2) * s.shape[1] * TINY
        return result


def relu_sums(network: Network) -> dict[int, ReluSums]:
    """Return the sums of ReLUs between sparse layers, by the numbers of their values."""
    steps, found = network.steps, dict[int, ReluSums]()
    for number, step in enumerate(steps, start=1):
        relu = step.sources[0]
        p = steps[relu - 1].sources[0] if relu else 0
        if not p:
            continue
        outer, activation, inner = step.operation, steps[relu - 1].operation, steps[p - 1].operation
        is_relu = isinstance(activation, ReluStep) and activation.weight is None
        if is_relu and isinstance(outer, Product) and isinstance(inner, Product) and _is_sparse(outer, inner):
            found[number] = _sums(steps[p - 1].sources[0], p, relu, outer.weight, inner)
    return found


def _is_sparse(*layers: Product) -> bool:
    return all(((layer.weight != 0).sum(1) <= _MOST).all() for layer in layers)


def _sums(x: int, p: int, relu: int, outer: Array, inner: Product) -> ReluSums:
    units = [np.flatnonzero(row) for row in outer]
    columns = [np.flatnonzero(inner.weight[of].any(0)) for of in units]
    count, most, reads = len(outer), max(map(len, units)), max(map(len, columns))
    numbers, weights, shares = np.zeros((count, most), int), np.zeros((count, most)), np.zeros((count, most))
    read, matrices = np.zeros((count, reads), int), np.zeros((count, most, reads))
    firsts = numbers.copy()
    for row, (of, at) in enumerate(zip(units, columns, strict=True)):
        numbers[row, : len(of)], read[row, : len(at)] = of, at
        matrices[row, : len(of), : len(at)] = inner.weight[np.ix_(of, at)]
        weights[row, : len(of)] = shares[row, : len(of)] = outer[row, of]
        firsts[row, : len(of)] = of
        for a, b in combinations(range(len(of)), 2):
            is_opposite = (matrices[row, a] == -matrices[row, b]).all() and inner.bias[of[a]] == -inner.bias[of[b]]
            if is_opposite and firsts[row, a] == of[a] and firsts[row, b] == of[b]:
                firsts[row, b] = of[a]
                shares[row, a] += shares[row, b]
                shares[row, b] = 0
    return ReluSums(x, p, relu, numbers, weights, read, matrices, firsts, shares)
