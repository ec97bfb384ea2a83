"""Counterexamples by an integer program, against linear programs over all sign patterns of two coupled layers."""

import itertools
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from cerdeq import Box, verify
from cerdeq.bounds import trace
from cerdeq.bounds.ibp import values_of
from cerdeq.branch import leaf_search
from cerdeq.branch.attack import prove_point
from cerdeq.branch.integer_program import solve_integer_program
from cerdeq.branch.leaves import SearchQuery
from cerdeq.equilibrium import FixedPoint
from cerdeq.operators.interval import Context, Interval

INPUTS, STEM, UNITS = 2, 3, 3


def network(seed, kind):
    """Return x -> C z + c with v = relu(A x + a), z = relu(W z + M v + b), W = 0 for a ReLU, and these arrays."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((UNITS, UNITS))
    if kind == "contraction":
        weight = rng.normal(size=(UNITS, UNITS))
        weight *= 0.7 / np.abs(weight).sum(1).max()
    arrays = [rng.normal(size=shape) for shape in ((STEM, INPUTS), STEM, (UNITS, STEM), UNITS, (1, UNITS), 1)]
    for array in (arrays[1], arrays[2][0], arrays[3]):
        np.abs(array, out=array)  # so that some units are on
    layers = [nn.Linear(INPUTS, STEM), nn.Linear(STEM, UNITS), nn.Linear(UNITS, 1)]
    for layer, matrix, bias in zip(layers, arrays[::2], arrays[1::2], strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(matrix), torch.tensor(bias)
    activation = FixedPoint(torch.tensor(weight)) if kind == "contraction" else nn.ReLU()
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], activation, layers[2]).eval(), weight, arrays


def exact_minimum(weight, arrays):
    """Return the least output over x in [-1, 1]^d."""
    a, a0, m, b, c, c0 = arrays
    best = np.inf
    for signs in itertools.product((0.0, 1.0), repeat=STEM + UNITS):
        first, second = np.array(signs[:STEM]), np.array(signs[STEM:])
        # variables: the pre-activations of both layers, and x
        equal = np.block([
            [np.eye(STEM), np.zeros((STEM, UNITS)), -a],
            [-m * first, np.eye(UNITS) - weight * second, np.zeros((UNITS, INPUTS))],
        ])  # fmt: skip
        bounds = [(0, None) if on else (None, 0) for on in signs] + [(-1, 1)] * INPUTS
        cost = np.concatenate([np.zeros(STEM), c[0] * second, np.zeros(INPUTS)])
        result = linprog(cost, A_eq=equal, b_eq=np.concatenate([a0, b]), bounds=bounds, method="highs")
        best = min(best, result.fun + c0[0]) if result.status == 0 else best
    return best


def box():
    return Box(torch.zeros(1, INPUTS, dtype=torch.float64), torch.ones(1, INPUTS, dtype=torch.float64))


def query_of(model):
    program = trace(model, linear=True)
    values = values_of(program, Interval(box().center, box().radius), Context(sound=True))
    return SearchQuery(program, values, torch.ones(1, 1, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["relu", "contraction"])
@pytest.mark.parametrize("seed", range(8))
def test_a_point_is_found_if_and_only_if_the_minimum_is_negative(seed, kind):
    model, weight, arrays = network(seed, kind)
    minimum = exact_minimum(weight, arrays)
    for shift in (-1e-3, 1e-3):
        model[-1].bias.data = torch.tensor(arrays[5] - minimum + shift)
        with torch.no_grad():
            query = query_of(model)
            x = solve_integer_program(query, torch.tensor([0]))
            assert (x is not None) == (shift < 0)
            assert x is None or prove_point(query, x) is not None


def test_verify_falsifies_by_the_program(monkeypatch):
    model, weight, arrays = network(3, "contraction")
    model[-1].bias.data = torch.tensor(arrays[5] - exact_minimum(weight, arrays) - 1e-4)
    points = []

    def counted(query, rows):
        points.append(solve_integer_program(query, rows))
        return points[-1]

    verifying = sys.modules["cerdeq.branch.verify"]
    monkeypatch.setattr(verifying, "first_attack", lambda exact, fast, rows: (exact.values[0].center, False))
    monkeypatch.setattr(leaf_search, "find_counterexample", lambda *_: None)
    monkeypatch.setattr(leaf_search, "is_searched_by_parts", lambda _: False)
    monkeypatch.setattr(leaf_search, "_PROGRAM_AFTER", 1)
    monkeypatch.setattr(leaf_search, "solve_integer_program", counted)
    result = verify(model, box(), torch.ones(1, 1, 1, dtype=torch.float64), seconds=60)
    assert result.status == ["falsified"] and points and model(result.counterexample).item() < 0


def test_other_networks_have_no_program():
    model = nn.Sequential(nn.Linear(INPUTS, STEM), nn.Sigmoid(), nn.Linear(STEM, 1)).double().eval()
    with torch.no_grad():
        assert solve_integer_program(query_of(model), torch.tensor([0])) is None
