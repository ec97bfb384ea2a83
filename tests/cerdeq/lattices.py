"""Provides lattices, minima of pairs as layers with ReLUs, and sums of ReLUs whose remainders fractions check."""

from fractions import Fraction
from itertools import product

import numpy as np
import torch
from torch import nn

GADGET = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])


def pairs(count, sign):
    """Return layers that take the smaller (sign -1) or the larger (1) of each two of `count` values."""
    before, after = nn.Linear(count, 2 * count), nn.Linear(2 * count, count // 2)
    before.weight.data = torch.block_diag(*[GADGET] * (count // 2))
    after.weight.data = torch.block_diag(*[torch.tensor([[0.5, -0.5, 0.5 * sign, 0.5 * sign]])] * (count // 2))
    before.bias.data.zero_(), after.bias.data.zero_()
    return before, nn.ReLU(), after


@torch.no_grad()
def lattice(seed, functions=16, least=None):
    """Return the largest of smallest values of affine functions of two inputs.

    least: its minimum over a fine grid of [-1, 1]^2, if it is given.
    """
    torch.manual_seed(seed)
    layers, count = [nn.Linear(2, functions)], functions
    while count > 1:
        layers += pairs(count, -1 if count > 4 else 1)
        count //= 2
    model = nn.Sequential(*layers).double().eval().requires_grad_(False)
    if least is not None:
        ends = torch.linspace(-1, 1, 801, dtype=torch.float64)
        model[-1].bias -= model(torch.cartesian_prod(ends, ends)).amin() - least
    return model


def sums_of_relus(scale, offset, distance):
    """Yield V, c, W of W relu(V x + c), points [3, 4] of x, and by which shares boxes of units are wider than needed.

    Three sums of four units; each unit reads two values, and most have their opposite. offset: of x, whose sums are
    small. distance: of p from 0; if it is large, units have one sign, and rounding is all that sums miss.
    """
    random = np.random.default_rng(1)
    for is_even in (True, False, False):
        v, w = np.zeros((12, 4)), np.zeros((3, 12))
        for unit in range(0, 12, 2):
            v[unit, random.permutation(4)[:2]] = random.normal(size=2)
            v[unit + 1] = -v[unit]
        v[3, 0] += 1  # no opposite, nor has unit 7
        for row in range(3):
            w[row, 4 * row : 4 * row + 4] = random.normal(size=4)
        w[2, 8:10] = 0.5, -0.5  # a sum that is its p
        points = scale * random.normal(size=(3, 4)) + offset * scale * random.normal(size=4)
        c = scale * (random.normal(size=12) + distance) - (v @ points[0]) * bool(offset)  # all but rounding is gone
        c[1::2] = -c[::2]
        c[7] += scale
        yield v, c, w, points, np.zeros(12) if is_even else random.uniform(size=12)


def assert_remainder_holds(layers, points, remainder, lines, allowed):
    """Check that W relu(V x + c) is within `allowed` of the lines, for x off from its own lines by its remainder.

    At every combination of ends. layers: V, c, W. points, lines: of x and of the sums, [3, n].
    """
    exact = [[[Fraction(value) for value in row] for row in np.atleast_2d(part)] for part in (*layers, points, lines)]
    v, (c,), w, starts, ends = exact
    for share, *signs in product((-1, 0, 1), *[(-1, 1)] * 4):
        on_line, at = ([a + share * (b - a + d - a) for a, b, d in zip(*rows, strict=True)] for rows in (ends, starts))
        at = [a + sign * Fraction(remainder) for a, sign in zip(at, signs, strict=True)]
        active = [max(sum(map(Fraction.__mul__, row, at), b), Fraction(0)) for row, b in zip(v, c, strict=True)]
        for row, line, most in zip(w, on_line, allowed, strict=True):
            assert abs(sum(map(Fraction.__mul__, row, active)) - line) <= Fraction(float(most))
