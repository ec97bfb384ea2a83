"""Provides strongly monotone layers, and exact minima of networks with one by all sign patterns, without cerdeq."""

import itertools
from fractions import Fraction

import numpy as np
import torch
from oracles import exact
from scipy.optimize import linprog
from torch import nn

from cerdeq.equilibrium import FixedPoint, PeacemanRachford


def random_monotone(rng, units, modulus=0.5, size=1.0):
    """Return W = (1 - m) I - A^T A + B - B^T, [N, N]; rho(|W|) is mostly above 1."""
    a, b = rng.normal(size=(2, units, units)) * size
    return (1 - modulus) * np.eye(units) - a.T @ a / units**0.5 + b - b.T


def network(weight, u, b, c, offset):
    """Return the network x -> C z + c with z = relu(W z + U x + b), in float64."""
    tensors = [torch.as_tensor(np.asarray(value), dtype=torch.float64) for value in (weight, u, b, c, offset)]
    first, last = nn.Linear(u.shape[1], len(weight)).double(), nn.Linear(len(weight), len(c)).double()
    with torch.no_grad():
        first.weight.copy_(tensors[1]), first.bias.copy_(tensors[2])
        last.weight.copy_(tensors[3]), last.bias.copy_(tensors[4])
    return nn.Sequential(first, FixedPoint(tensors[0], PeacemanRachford()), last).eval()


def exact_minimum(weight, u, b, row, offset, low, high):
    """Return the least row . z + offset over x in [low, high], by a linear program for each sign pattern."""
    units, best = len(weight), np.inf
    for signs in itertools.product((0.0, 1.0), repeat=units):
        active = np.array(signs)
        equal = np.hstack([weight * active - np.eye(units), u])  # of p and x: p = W z + U x + b
        bounds = [(0, None) if on else (None, 0) for on in signs] + list(zip(low, high, strict=True))
        cost = np.concatenate([row * active, np.zeros(len(low))])
        result = linprog(cost, A_eq=equal, b_eq=-b, bounds=bounds, method="highs")
        if result.status == 0:
            best = min(best, result.fun + offset)
    return best


def exact_minima(weight, u, b, rows, low, high):
    """Return the least value of each row . z over x in [low, high], at the vertices of all sign patterns' polytopes.

    Within a pattern z is affine in x, so that the minimum is at a vertex: where as many constraints as inputs hold
    with equality. A pattern's constraints are the box and the signs of p = W z + U x + b. For few inputs.
    """
    units, inputs = u.shape
    best = np.full(len(rows), np.inf)
    box = np.vstack([np.eye(inputs), -np.eye(inputs)])
    corners = np.array(list(itertools.combinations(range(units + 2 * inputs), inputs)))
    for signs in np.split(np.array(list(itertools.product((0.0, 1.0), repeat=units))), max(1, 2**units // 256)):
        active = signs[:, :, None]
        inverse = np.linalg.inv(np.eye(units) - weight * signs[:, None, :])  # p = W (active p) + U x + b
        p_of_x, p_offset = inverse @ u, inverse @ b
        way = 2 * active - 1  # constraint: way * p >= 0
        normals = np.concatenate([way * p_of_x, np.broadcast_to(box, (len(signs), *box.shape))], axis=1)
        levels = np.concatenate(
            [-way[..., 0] * p_offset, np.broadcast_to(np.concatenate([low, -high]), (len(signs), 2 * inputs))], axis=1
        )
        size = np.linalg.norm(normals, axis=2)
        unit = normals / np.maximum(size, 1e-200)[..., None]
        systems, right = unit[:, corners], (levels / np.maximum(size, 1e-200))[:, corners]
        regular = np.abs(np.linalg.det(systems)) > 1e-12
        systems[~regular] = np.eye(inputs)
        x = np.linalg.solve(systems, right[..., None])[..., 0]
        scale = 1 + np.abs(levels)[:, None] + size[:, None]
        held = np.einsum("pci,pni->pcn", x, normals) >= levels[:, None] - 1e-11 * scale
        z = signs[:, None] * (np.einsum("pni,pci->pcn", p_of_x, x) + p_offset[:, None])
        values = np.where((regular & held.all(2))[..., None], z @ rows.T, np.inf)
        best = np.minimum(best, values.min((0, 1)))
    return best


def exact_bound(weight, inject, x, low, high, e, a, beta, row, offset):
    """Return what multipliers a [N] prove of e . q + beta (row . z + offset) in a leaf low <= q <= high, in fractions.

    q = (W z - w z + h) / (1 - w), w the diagonal of W, z = relu(q), h = inject(x) up to its error, x in a box.
    """
    w, u, b, error = (exact(v) for v in (weight, inject.matrix, inject.offset, inject.error))
    low, high, e, a, row, center, radius = (exact(v) for v in (low, high, e, a, row, x.center, x.radius))
    loops, beta = w.diagonal(), Fraction(float(beta))
    of_z, of_q = beta * row + a @ (w - np.diag(loops)), e - (1 - loops) * a
    total = beta * Fraction(float(offset)) + a @ b - abs(a) @ error + a @ u @ center - abs(a @ u) @ radius
    for i in range(len(a)):
        corners = [(max(low[i], 0), low[i]), (max(high[i], 0), high[i])] + [(0, 0)] * (low[i] < 0 < high[i])
        total += min(of_z[i] * z + of_q[i] * q for z, q in corners)
    return total


def equilibria(weight, h):
    """Return the equilibria of the rows of h [B, N], by forward-backward splitting to convergence."""
    gap = np.eye(len(weight)) - weight
    step = np.linalg.eigvalsh((gap + gap.T) / 2)[0] / np.linalg.norm(gap, 2) ** 2
    z = np.maximum(h, 0)
    for _ in range(200_000):
        following = np.maximum(z - step * (z @ gap.T - h), 0)
        if np.abs(following - z).max() <= 1e-15 * (1 + np.abs(z).max()):
            return following
        z = following
    raise AssertionError("the oracle did not converge")
