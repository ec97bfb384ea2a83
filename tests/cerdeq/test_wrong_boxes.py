"""A solver that stops early or returns garbage costs tightness only: bounds of networks stay sound by every method."""

import itertools

import gaps
import pytest
import torch
from equilibria import GARBAGE, exact_outputs, folded_network
from oracles import assert_contains, points_of

from cerdeq import Box, LinfBall, bound
from cerdeq.bounds import BOUNDS
from cerdeq.equilibrium import certificate, contraction, verify_inclusion

ROUNDING = 1e-9  # of the networks' values by numpy


WRONG = ["one step", "zeros", "not a number", "noise", "shrunk", "negative radius"]


@pytest.fixture
def accepted(request, monkeypatch):
    """Break the solver. Return a list that grows by whether the check accepted its result, for each box and example."""
    solve, verdicts = certificate.interval_equilibrium, []

    def broken(weight, h):
        box = GARBAGE.get(request.param, lambda box: box)(solve(weight, h))
        verdicts.extend(verify_inclusion(weight, h, box, contraction(weight).v).tolist())
        return box

    monkeypatch.setattr(certificate, "interval_equilibrium", broken)
    if request.param == "one step":
        monkeypatch.setattr(certificate, "_SOLVER_LIMIT", 1)
    return verdicts


@pytest.fixture(scope="module")
def problems():
    kinds = [("dense", "signed", 0.9), ("dense", "non-negative", 0.97), ("2 channels", "signed", 0.9)]
    return [gaps.solved(*kind, seed=1, units=6) for kind in kinds]


FAST = {
    (method, wrong) for n, method in enumerate(BOUNDS) for m, wrong in enumerate(WRONG) if (n + m) % len(BOUNDS) == 0
}


@pytest.mark.parametrize(
    ("method", "accepted"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in itertools.product(BOUNDS, WRONG)],
    indirect=["accepted"],
)
def test_no_bound_is_beyond_the_exact_optimum(method, accepted, problems):
    for problem in problems:
        rows = gaps.measured(problem, method)
        assert rows.violation.max() <= ROUNDING and rows.gap.max() < torch.inf
    assert accepted and not any(accepted)


@pytest.mark.parametrize(
    ("network", "method", "accepted"),
    [
        pytest.param(((None, torch.float64), (3, torch.float32))[n % 2], [*BOUNDS][n % len(BOUNDS)], wrong)
        for n, wrong in enumerate(WRONG)
    ],
    indirect=["accepted"],
)
def test_two_equilibria_contain_what_they_compute(network, method, accepted):
    kernel, dtype = network
    model = folded_network(kernel, 2, dtype)
    region = LinfBall(torch.rand(2, *((3,) if kernel is None else (1, 3, 3)), dtype=dtype), 0.1)
    wide = Box(region.center.double(), region.radius.double())
    values = exact_outputs(model, points_of(wide, 16))
    assert_contains(*(end.detach().double() for end in bound(model, region, method)), values)
    assert accepted and not all(accepted)  # where all units are dead, a box may be right by chance
