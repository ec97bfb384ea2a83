"""`verify` of strongly monotone layers against exact enumeration of all sign patterns."""

import time

import numpy as np
import pytest
import torch
from monotone import equilibria, exact_minima, exact_minimum, network, random_monotone
from torch import nn

from cerdeq import Box, verify
from cerdeq.deadline import seconds_left
from cerdeq.equilibrium import NotConvergedError, layer
from cerdeq.equilibrium.monotone.proof import monotonicity
from cerdeq.equilibrium.monotone.splitting import Splitting

CLOSE = 1e-6


def case(rng, units, inputs, kind):
    """Return W, U, b of a random layer; kind: what is odd about it."""
    weight, u, b = (
        random_monotone(rng, units, rng.uniform(0.05, 2)),
        rng.normal(size=(units, inputs)),
        rng.normal(size=units),
    )
    if kind == "zeros":
        u[0], b[0], b[-1] = 0, 0, 0
        weight[0, 1:] = weight[1:, 0] = 0
    elif kind == "ties":
        weight, u, b = np.round(2 * weight) / 2, np.round(2 * u) / 2, np.round(b)
        weight -= (max(0, np.linalg.eigvalsh(weight + weight.T)[-1] / 2 - 0.5) // 0.5 + 1) * 0.5 * np.eye(units)
        u[-1], b[-1], weight[-1], weight[:, -1] = u[0], b[0], weight[0], weight[:, 0]
        weight[-1, -1] = weight[0, 0] = -2.0
        weight[0, -1], weight[-1, 0] = 0.5, 0.5
        weight -= (max(0, np.linalg.eigvalsh(weight + weight.T)[-1] / 2 - 0.5) // 0.5 + 1) * 0.5 * np.eye(units)
    elif kind == "subnormal":
        u[0] *= 2.0**-1070
        weight[0, 1:] *= 2.0**-1070
        weight[1:, 0] *= 2.0**-1070
        b[0] = 2.0**-1072
    return weight, u, b


class WithBranches(nn.Module):
    """A network with a second linear layer beside each of its two: the same function."""

    def __init__(self, model):
        super().__init__()
        self.first, self.equilibrium, self.last = model
        self.beside, self.after = (nn.Linear(*layer.weight.shape[::-1]).double() for layer in (self.first, self.last))
        with torch.no_grad():
            for layer, branch in ((self.first, self.beside), (self.last, self.after)):
                layer.weight -= branch.weight
                layer.bias -= branch.bias

    def forward(self, x):
        z = self.equilibrium(self.first(x) + self.beside(x))
        return self.last(z) + self.after(z)


def check(seed, units, inputs, kind, change=lambda model: model):
    rng = np.random.default_rng(seed)
    weight, u, b = case(rng, units, inputs, kind)
    rows, center, radius = rng.normal(size=(2, units)), rng.normal(size=inputs), rng.uniform(0, 1.5, size=inputs)
    minima = exact_minima(weight, u, b, rows, center - radius, center + radius)
    assert np.isfinite(minima).all()
    offset = -minima + rng.choice([0.01, 0.05, -0.01, 0.5, -0.5]) * np.array([1, 1.5])
    model = change(network(weight, u, b, rows, offset))
    minima = minima + offset
    box = Box(torch.tensor(center)[None], torch.tensor(radius)[None])
    result = verify(model, box, torch.eye(2, dtype=torch.float64)[None], seconds=30)
    assert (result.lower[0].numpy() <= minima + 1e-9).all()
    if minima.min() < -CLOSE:
        assert result.status == ["falsified"], (minima, result)
        point = result.counterexample
        assert (abs(point[0].numpy() - center) <= radius).all() and model(point).min() < 0
    elif minima.min() > CLOSE:
        assert result.status == ["certified"], (minima, result)


@pytest.mark.parametrize("kind", ["plain", "zeros", "ties", "subnormal"])
def test_vertices_have_the_minima_of_linear_programs(kind):
    for seed in range(3):
        rng, units, inputs = np.random.default_rng(seed), 2 + seed, 1 + seed
        weight, u, b = case(rng, units, inputs, kind)
        rows, low, high = rng.normal(size=(2, units)), -rng.uniform(size=inputs), np.zeros(inputs)
        expected = [exact_minimum(weight, u, b, row, 0, low, high) for row in rows]
        np.testing.assert_allclose(exact_minima(weight, u, b, rows, low, high), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["plain", "zeros", "ties", "subnormal"])
@pytest.mark.parametrize("seed", range(4))
def test_verdicts_equal_enumeration(kind, seed):
    check(seed, units=2 + seed % 4, inputs=1 + seed % 3, kind=kind)


@pytest.mark.parametrize("seed", range(10, 16))
def test_verdicts_with_affine_branches_equal_enumeration(seed):
    check(seed, units=2 + seed % 4, inputs=1 + seed % 3, kind="plain", change=lambda model: WithBranches(model).eval())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "zeros", "ties", "subnormal"])
@pytest.mark.parametrize("seed", range(100, 350))
def test_many_verdicts_equal_enumeration(kind, seed):
    check(seed, units=2 + seed % 6, inputs=1 + seed % 3, kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_verdicts_of_larger_layers_equal_enumeration(seed):
    check(seed, units=8 + seed % 5, inputs=2, kind="plain")


@pytest.mark.parametrize(("seed", "kind"), [(167, "plain"), (173, "zeros"), (173, "subnormal")])
def test_the_solver_goes_on_while_z_stays_at_0(seed, kind):
    weight, _, b = case(np.random.default_rng(seed), 2 + seed % 6, 1 + seed % 3, kind)
    h = torch.tensor(b)[None]
    solution = Splitting(torch.tensor(weight)).solve(h)
    assert bool(solution.converged.all()) and int(solution.iterations[0]) > 1
    assert np.allclose(solution.value.numpy(), equilibria(weight, h.numpy()), atol=1e-10)


def test_a_row_whose_minimum_is_0_is_neither_certified_nor_falsified():
    # z = relu(-z + x) = x / 2 on [0, 2], and relu(x) / 2 is 0 at the left end
    weight, one = np.array([[-1.0]]), np.array([[1.0]])
    model = network(weight, one, np.zeros(1), one, np.zeros(1))
    box = Box(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    assert model[1].contraction(model[1].weight).rate >= 1
    result = verify(model, box, torch.ones(1, 1, 1, dtype=torch.float64), seconds=20)
    assert result.status[0] not in ("certified", "falsified")


@pytest.mark.parametrize("rows", [[[2.0, -2]], [[0.0, 0], [2, -2]]])
def test_a_leaf_or_row_whose_minimum_is_0_does_not_hide_a_counterexample_of_another(rows):
    """The attack starts where all units are inactive, so that its gradient is 0."""
    weight, u, b = np.array([[-1.0, -1], [1, -3]]), np.array([[2.0], [-1]]), np.array([-1.9, -0.9])
    model = network(weight, u, b, np.array(rows), np.zeros(len(rows)))
    box = Box(torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    result = verify(model, box, torch.eye(len(rows)).double()[None], seconds=60)
    assert result.status == ["falsified"] and model(result.counterexample).min() < 0


def test_a_timeout_ends_and_is_named():
    rng = np.random.default_rng(0)
    model = network(random_monotone(rng, 12), rng.normal(size=(12, 5)), rng.normal(size=12), np.eye(1, 12), np.zeros(1))
    box = Box(torch.zeros(1, 5, dtype=torch.float64), torch.ones(1, 5, dtype=torch.float64))
    result = verify(model, box, torch.ones(1, 1, 1, dtype=torch.float64), seconds=0.0)
    assert result.status == ["timeout"] and not (result.lower > 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_short_limits_are_kept_by_layers_of_1500_units(dtype):
    rng, units = np.random.default_rng(0), 1500
    model = network(random_monotone(rng, units), rng.normal(size=(units, 5)), np.ones(units), np.eye(1, units), [0.0])
    model, began = model.to(dtype), time.monotonic()
    box = Box(torch.zeros(1, 5, dtype=dtype), torch.ones(1, 5, dtype=dtype))
    result = verify(model, box, torch.ones(1, 1, 1, dtype=dtype), seconds=1)
    assert result.status == ["timeout"] and time.monotonic() - began < 10


def test_the_proof_is_computed_once_for_a_module_and_its_copies(monkeypatch):
    rng, count = np.random.default_rng(0), 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return monotonicity(*arguments)

    monkeypatch.setattr(layer, "monotonicity", counted)
    model = network(random_monotone(rng, 6), rng.normal(size=(6, 2)), rng.normal(size=6), np.eye(1, 6), [0.1]).float()
    box = Box(torch.zeros(1, 2), torch.full((1, 2), 0.1))
    for _ in range(2):
        verify(model, box, torch.ones(1, 1, 1), seconds=5)
    assert count == 1
    with torch.no_grad():
        model[1].weight[0, 0] -= 1
    verify(model, box, torch.ones(1, 1, 1), seconds=5)
    assert count == 2


@pytest.mark.parametrize("modulus", [1e-6, 1e-9])
def test_equilibria_that_do_not_converge_leave_all_unknown(modulus):
    rng = np.random.default_rng(0)
    skew = 1e3 * rng.normal(size=(12, 12))
    weight = (1 - modulus) * np.eye(12) + skew - skew.T
    model = network(weight, rng.normal(size=(12, 3)), rng.normal(size=12), rng.normal(size=(2, 12)), np.zeros(2))
    box = Box(torch.zeros(2, 3, dtype=torch.float64), torch.full((2, 3), 0.1, dtype=torch.float64))
    with pytest.raises(NotConvergedError):
        model(box.center)
    result = verify(model, box, torch.eye(2, dtype=torch.float64).expand(2, -1, -1), seconds=20)
    assert result.status == ["unknown"] * 2 and not (result.lower > 0).any()


def queries_with_minimum(value, units):
    """Yield arguments of `verify`: random layers, the box [-1, 1]^3 and one row, whose minimum has this value."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        weight, u, b = random_monotone(rng, units), rng.normal(size=(units, 3)), rng.normal(size=units)
        row = rng.normal(size=(1, units))
        (minimum,) = exact_minima(weight, u, b, row, -np.ones(3), np.ones(3))
        box = Box(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
        model = network(weight, u, b, row, np.array([value - minimum]))
        yield model, box, torch.ones(1, 1, 1, dtype=torch.float64)


def test_a_spent_budget_is_a_timeout_as_in_other_searches():
    for query in queries_with_minimum(1e-3, units=8):
        result = verify(*query, branches=0)
        assert result.status[0] in ("certified", "timeout")
        if result.status == ["timeout"]:
            return
    raise AssertionError("no case needs a split")


def test_a_linear_program_that_ran_out_of_time_is_a_timeout(monkeypatch):
    calls = []

    def stopped(*args, **options):
        calls.append(args)
        time.sleep(max(seconds_left(), 0))

    monkeypatch.setattr("cerdeq.branch.monotone_search.minimise", stopped)
    for query in queries_with_minimum(1e-6, units=4):
        result = verify(*query, seconds=2)
        if calls:
            assert result.status == ["timeout"]
            return
    raise AssertionError("no case needs a linear program")
