"""Provides small networks and properties: random ones, with what is exactly true of them, and texts of given ones."""

import functools
import itertools
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn

from harness.checker.properties import NotConfirmedError, confirm_unsat
from harness.common.errors import InputError
from harness.vnnlib.brackets import parse
from harness.vnnlib.properties import MOST_TOGETHER, Case, Constraint
from harness.vnnlib.solve import solve
from harness.vnnlib.version1 import property_of

INPUTS, HIDDEN, OUTPUTS = 2, 6, 3
SECONDS = 60
TINY = Fraction(1, 10**6)


def declared(inputs=INPUTS, outputs=OUTPUTS):
    return "".join(
        f"(declare-const {kind}_{n} Real)\n" for kind, k in (("X", inputs), ("Y", outputs)) for n in range(k)
    )


def text_of(constraint, low, high, inputs=2, outputs=2):
    """Return the text of a property: inputs from low to high, and a constraint."""
    box = "".join(f"(assert (>= X_{n} {low}))(assert (<= X_{n} {high}))\n" for n in range(inputs))
    return f"{declared(inputs, outputs)}{box}(assert {constraint})"


def with_weights(network, *weights):
    """Return a network with these weights of its linear layers, and no biases; its inputs are those of the first."""
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data, layer.bias.data = weight, torch.zeros(len(weight))
    network.input_shape = (layers[0].in_features,)
    return network.eval()


def network_of(seed):
    """Return a network whose numbers are eighths, and its weights in NumPy."""
    random = np.random.default_rng(seed)
    weights = [random.integers(-8, 9, shape) / 8 for shape in [(HIDDEN, INPUTS), HIDDEN, (OUTPUTS, HIDDEN), OUTPUTS]]
    layers = [nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUTPUTS)]
    for layer, weight, bias in zip(layers[::2], weights[::2], weights[1::2], strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(weight).float(), torch.tensor(bias).float()
    network = nn.Sequential(*layers).eval()
    network.input_shape = (INPUTS,)
    return network, weights


def run(network, points):
    with torch.no_grad():
        return network(torch.from_numpy(points)).numpy()


def property_text(random):
    """Return a property of random boxes and constraints, all numbers tenths: two boxes, conjunctions of up to four."""
    lines = [declared()]
    for n in range(INPUTS):
        low, high = sorted(random.integers(-12, 13, 2))
        lines += [f"(assert (>= X_{n} {low / 10}))", f"(assert (<= X_{n} {high / 10}))"]
    lines.append(f"(assert (or (<= X_0 {random.integers(-12, 13) / 10}) (>= X_0 {random.integers(-12, 13) / 10})))")
    cases = []
    for _ in range(random.integers(1, 4)):
        constraints = []
        for _ in range(random.integers(1, 5)):
            a, b = random.permutation(OUTPUTS)[:2]
            right = [f"Y_{b}", f"(+ (* {random.integers(-9, 10) / 10} Y_{b}) {random.integers(-9, 10) / 10})"]
            constraints.append(f"({random.choice(['<=', '>='])} Y_{a} {right[random.integers(2)]})")
        cases.append(f"(and {' '.join(constraints)})")
    return "\n".join([*lines, f"(assert (or {' '.join(cases)}))"])


def property_of_seed(seed):
    """Return a property of `property_text`; None if its boxes are empty."""
    try:
        return property_of(parse(property_text(np.random.default_rng(seed))))
    except InputError:
        return None


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


@functools.cache
def solved(seed, together=MOST_TOGETHER):
    """Return a network, its weights, a property, its result and the exact smallest violation; None for empty boxes.

    together: the number of constraints of a group of cases, which the caller has set.
    """
    network, weights = network_of(seed)
    property_ = property_of_seed(seed)
    if property_ is None:
        return None
    violation = min(smallest_violation(weights, case) for case in property_.cases)
    return network, weights, property_, solve_small(property_, network), violation


def solve_small(property_, network):
    return solve(property_, network, partial(run, network), SECONDS, certificates=True)


def tensors_of(result):
    return {name: tensor.numpy() for name, tensor in result.certificate.items()}


def proved_by(network, property_, tensors):
    """Return what proves that no input satisfies the property; "" if nothing does."""
    try:
        return confirm_unsat(property_, network, partial(run, network), tensors)
    except NotConfirmedError:
        return ""


def with_bounds_raised(property_, by):
    """Return the property with all bounds of constraints raised: every violation is smaller by as much."""
    cases = tuple(
        Case(case.box, tuple(Constraint(c.coefficients, c.bound + by) for c in case.constraints))
        for case in property_.cases
    )
    return replace(property_, cases=cases)


@functools.cache
def certified_result(seed):
    """Return network, property, tensors and exact smallest violation of a result that needs leaves.

    Bounds are moved until the smallest violation is about 0.01.
    """
    network, _, property_, _, violation = solved(seed)
    by = Fraction(round(violation, 6)).limit_denominator(10**6) - Fraction(1, 100)
    property_ = with_bounds_raised(property_, by)
    tensors = tensors_of(solve_small(property_, network))
    assert any(name.endswith("/signs") and tensor.any() for name, tensor in tensors.items())
    assert not proved_by(network, property_, {}) and proved_by(network, property_, tensors) == "certificate"
    return network, property_, tensors, violation - float(by)


def certified_results():
    return [certified_result(seed) for seed in (0, 1, 4, 5, 8)]  # others need no leaves
