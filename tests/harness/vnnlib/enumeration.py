"""Provides exact answers about networks with one hidden layer: a linear program for each pattern of its ReLUs."""

import itertools

import numpy as np
from scipy.optimize import linprog


def smallest_violation(weights, case):
    """Return the minimum over the case's box of the largest violation of its constraints; at most 0 if it is satisfied.

    weights: (W, b, V, c) of the outputs V relu(W x + b) + c.
    """
    hidden, bias, out, offset = weights
    low, high = ([float(end) for end in ends] for ends in (case.box.lower, case.box.upper))
    matrix = np.array([[float(c.coefficients.get(n, 0)) for n in range(len(out))] for c in case.constraints])
    bounds = np.array([float(c.bound) for c in case.constraints])
    center, radius = bias + hidden @ np.add(low, high) / 2, abs(hidden) @ np.subtract(high, low) / 2
    possible = np.stack([radius - center, radius + center], 1) > -1e-6  # off and on, by interval arithmetic
    violations = []
    for pattern in itertools.product(*(np.flatnonzero(states) for states in possible)):
        active = np.array(pattern)
        slopes = matrix @ out @ (active[:, None] * hidden)
        constants = matrix @ (out @ (active * bias) + offset) - bounds
        sides = (1 - 2 * active)[:, None] * hidden
        rows = np.vstack([np.c_[slopes, -np.ones(len(slopes))], np.c_[sides, np.zeros(len(sides))]])
        ends = np.r_[-constants, -(1 - 2 * active) * bias]
        limits = [*zip(low, high, strict=True), (None, None)]
        result = linprog(np.eye(len(low) + 1)[-1], A_ub=rows, b_ub=ends, bounds=limits, method="highs")
        if result.status == 0:
            violations.append(result.fun)
    return min(violations)
