"""Provides strongly monotone layers, and exact minima of networks with one by all sign patterns, without cerdeq."""

import itertools

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn

from cerdeq.equilibrium import FixedPoint


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
    return nn.Sequential(first, FixedPoint(tensors[0], solver="peaceman-rachford"), last).eval()


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
