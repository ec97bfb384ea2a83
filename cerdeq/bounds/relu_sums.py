"""Sums of ReLUs between sparse layers, W relu(V x + c): lattices of minima and maxima of pairs are made of them.

min(a, b) = (relu(a + b) - relu(-a - b) - relu(a - b) - relu(b - a)) / 2. Let relu(p) = slope p + shift + e with
|e| <= shift. If x is off by up to r, then the sums are off by up to |W slope V| r + |W e|; step by step it would be
|W| slope |V| r + |W| shift. Two ReLUs of opposite inputs, relu(-p) = relu(p) - p, share their e, so that it may cancel.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from cerdeq.bounds.sparse_layers import sparse_weights
from cerdeq.operators.relu import relu_interval
from cerdeq.tracing.program import Program

_MOST_PRODUCTS = 2**23  # of all sums together, with those that are 0


@dataclass(frozen=True)
class ReluSums:
    """N sums of K ReLUs each, of M elements of x.

    source, preactivation, relu: the numbers of the values x, p = V x + c and relu(p).
    units: [K, N], elements of p. weights: [K, N], of W.
    columns: [M, N], elements of x. products: [M, K, N], W V at these. sizes: [M, N], sums of their terms' magnitudes.
    partners: [K, N], the unit whose p is the opposite of this one's, else the unit itself; then is_paired is False.
    shared: [K, N], the weight of a unit's distance from its line: with those of its partners, which have 0.
    """

    source: int
    preactivation: int
    relu: int
    units: Tensor
    weights: Tensor
    columns: Tensor
    products: Tensor
    sizes: Tensor
    partners: Tensor
    is_paired: Tensor
    shared: Tensor

    def remainder(self, x: Tensor, slope: Tensor, shift: Tensor, largest: Tensor, rounding: Tensor) -> Tensor:
        """Return the distance of the sums from W (slope (V L + c) + shift), [D, N], rounded up.

        x: [D, ...], the distance of x from L. The rest is of the units, [D, ...]: relu(p) lies within `shift` of
        slope p + shift, |p| is at most `largest`, and `rounding` is added.
        """
        limits, (count, terms, _) = torch.finfo(x.dtype), self.products.shape
        # Products may underflow, each by at most `tiny`, before large numbers multiply them.
        total, underflow = torch.zeros_like(x[..., :1]), 16 * (terms + 1) * limits.tiny
        slopes = [slope.index_select(-1, units) for units in self.units]
        for products, columns, sizes in zip(self.products, self.columns, self.sizes, strict=True):
            pairs = zip(products, slopes, strict=True)
            factor = sum((product * each for product, each in pairs), torch.zeros_like(x[..., :1])).abs()
            error = (2 * terms + count + 8) * limits.eps * sizes + underflow
            total = total + (factor + error) * x.index_select(-1, columns)
        for k, units in enumerate(self.units):
            shifts, partner = shift.index_select(-1, units), self.partners[k]
            shift_of_partner = shift.index_select(-1, partner)
            apart = (slopes[k] + slope.index_select(-1, partner) - 1).abs() + 4 * limits.eps
            apart = apart * largest.index_select(-1, units) + (shifts - shift_of_partner).abs()
            apart = apart + 4 * limits.eps * (shifts + shift_of_partner)
            missed = torch.where(self.is_paired[k], apart, 0) + rounding.index_select(-1, units) + limits.tiny
            total = total + self.shared[k].abs() * shifts + self.weights[k].abs() * missed
        return total * (1 + (4 * terms + 2 * count + 16) * limits.eps) + (count + 4) * (terms + 4) * limits.tiny


def relu_sums(program: Program) -> dict[int, ReluSums]:
    """Return the sums of ReLUs between sparse layers, by the numbers of their values."""
    found = {number: _relu_sums(program, number) for number in range(1, len(program.steps) + 1)}
    return {number: sums for number, sums in found.items() if sums is not None}


def _relu_sums(program: Program, number: int) -> ReluSums | None:
    """Return the sums that are value `number`, None if it is something else."""
    steps = program.steps
    if (outer := sparse_weights(steps[number - 1])) is None or (relu := steps[number - 1].sources[0]) == 0:
        return None
    record, preactivation = steps[relu - 1].record, steps[relu - 1].sources[0]
    if record is None or record.interval is not relu_interval or preactivation == 0:
        return None
    if (inner := sparse_weights(steps[preactivation - 1])) is None:
        return None
    source, units, weights = steps[preactivation - 1].sources[0], outer.columns.T, outer.numbers.T
    numbers = inner.numbers[units]  # [K, N, J]
    columns = torch.where(numbers != 0, inner.columns[units], inner.columns[units[:1], 0][..., None])
    different = columns.movedim(1, 0).flatten(1).sort(1).values
    is_first = torch.ones_like(different, dtype=torch.bool)
    is_first[:, 1:] = different[:, 1:] != different[:, :-1]
    count = int(is_first.sum(1).max())
    if count * numbers.numel() > _MOST_PRODUCTS:
        return None
    # Rows with fewer columns have one of them again, with products 0.
    columns_of_sums = different.gather(1, is_first.byte().topk(count, dim=1).indices)
    is_again = torch.zeros_like(columns_of_sums, dtype=torch.bool)
    for m in range(1, count):
        is_again[:, m] = (columns_of_sums[:, :m] == columns_of_sums[:, m : m + 1]).any(1)
    matches = (columns == columns_of_sums.T[:, None, :, None]) & ~is_again.T[:, None, :, None]  # [M, K, N, J]
    at_columns = torch.where(matches, numbers, 0)
    terms = at_columns * weights[..., None]
    products, sizes = terms.sum(3), terms.abs().sum((1, 3))
    partners, shared, is_paired = units.clone(), weights.clone(), torch.zeros_like(units, dtype=torch.bool)
    rows, biases = at_columns.sum(3), inner.bias[units]
    for first, second in combinations(range(len(units)), 2):
        is_opposite = (rows[:, first] == -rows[:, second]).all(0) & (biases[first] == -biases[second])
        is_opposite &= (units[first] != units[second]) & ~is_paired[first] & ~is_paired[second]
        is_paired[second] |= is_opposite
        partners[second] = torch.where(is_opposite, units[first], partners[second])
        shared[first] = torch.where(is_opposite, shared[first] + shared[second], shared[first])
        shared[second] = torch.where(is_opposite, 0, shared[second])
    return ReluSums(
        source, preactivation, relu, units, weights, columns_of_sums.T, products, sizes, partners, is_paired, shared
    )
