"""Bounds of equilibrium networks against exact optima: by every method, with adjoints cut short, by broken solvers."""

import itertools

import gaps
import pytest
import torch
from equilibria import GARBAGE, exact_outputs, folded_network
from oracles import assert_contains, points_of

from cerdeq import LinfBall, bound
from cerdeq.bounds import BOUNDS
from cerdeq.equilibrium import certificate, contraction, verify_inclusion

ROUNDING = 1e-9  # of the networks' values by numpy
SLOW = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = (0, 1, 2, 4, 8, 32)


@pytest.fixture(
    scope="module", params=[(1, 4, (0.9,)), pytest.param((3, 10, gaps.RHOS), marks=SLOW)], ids=["tiny", "full"]
)
def problems(request):
    return gaps.problems(*request.param)


def test_no_method_is_beyond_the_exact_optimum_and_each_is_at_least_as_tight_as_those_before(problems):
    by_method = torch.stack([torch.stack([gaps.gaps(problem, method) for problem in problems]) for method in BOUNDS])
    assert by_method.amin() >= -ROUNDING
    assert (by_method.diff(dim=0).amax((1, 2, 3)) <= 1e-12).all()
    means = dict(zip(BOUNDS, by_method.mean((1, 2, 3)).tolist(), strict=True))
    assert means["alpha-crown"] < means["ibp"] / 5


def test_an_adjoint_cut_short_is_sound_and_tighter_the_longer_it_ran(problems):
    """Tighter in the mean: the residual need not fall at each step."""
    means = []
    for count in STEPS:
        with gaps.adjoint_steps(count):
            result = torch.stack([gaps.gaps(problem, "crown-ibp") for problem in problems])
        assert result.amin() >= -ROUNDING
        means.append(result.mean().item())
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(
    ("count", "method"),
    [(0, "crown"), (8, "crown"), *(pytest.param(n, "alpha-crown", marks=SLOW) for n in (0, 2, 8))],
)
def test_no_method_is_unsound_with_an_adjoint_cut_short(method, count, problems):
    with gaps.adjoint_steps(count):
        assert min(gaps.gaps(problem, method).min() for problem in problems) >= -ROUNDING


WRONG = ["one step", "zeros", "not a number", "noise", "shrunk", "negative radius"]


@pytest.fixture
def verdicts(request, monkeypatch):
    """Break the solver. Return a list that grows by whether the check accepts its result, for each box and example."""
    solve, accepted = certificate.interval_equilibrium, []

    def broken(weight, h):
        box = GARBAGE.get(request.param, lambda box: box)(solve(weight, h))
        accepted.extend(verify_inclusion(weight, h, box, contraction(weight).v).tolist())
        return box

    monkeypatch.setattr(certificate, "interval_equilibrium", broken)
    if request.param == "one step":
        monkeypatch.setattr(certificate, "_SOLVER_LIMIT", 1)
    return accepted


FAST = {
    (method, wrong) for n, method in enumerate(BOUNDS) for m, wrong in enumerate(WRONG) if (n + m) % len(BOUNDS) == 0
}


@pytest.mark.parametrize(
    ("method", "verdicts"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in itertools.product(BOUNDS, WRONG)],
    indirect=["verdicts"],
)
def test_a_broken_solver_costs_tightness_only(method, verdicts):
    for kind in (("dense", "signed", 0.9), ("2 channels", "signed", 0.9)):
        result = gaps.gaps(gaps.solved(*kind, seed=1, units=6), method)
        assert result.amin() >= -ROUNDING and result.isfinite().all()
    assert verdicts and not any(verdicts)


@pytest.mark.parametrize(
    ("network", "method", "verdicts"),
    [
        pytest.param(((None, torch.float64), (3, torch.float32))[n % 2], [*BOUNDS][n % len(BOUNDS)], wrong)
        for n, wrong in enumerate(WRONG)
    ],
    indirect=["verdicts"],
)
def test_two_equilibria_with_a_broken_solver_are_bounded(network, method, verdicts):
    kernel, dtype = network
    model = folded_network(kernel, 2, dtype)
    region = LinfBall(torch.rand(2, *((3,) if kernel is None else (1, 3, 3)), dtype=dtype), 0.1)
    values = exact_outputs(model, points_of(region.double(), 16))
    assert_contains(*(end.detach().double() for end in bound(model, region, method)), values)
    assert verdicts and not all(verdicts)  # where all units are dead, a box may be right by chance
