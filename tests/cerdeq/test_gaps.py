"""Bounds of equilibrium networks against exact optima, for every method and for adjoints cut short."""

import gaps
import pandas as pd
import pytest
from equilibria import spectral_radius
from oracles import dense_operator

from cerdeq.bounds import BOUNDS

ROUNDING = 1e-9  # of the networks' values by numpy
SLOW = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(
    scope="module", params=[(1, 4, (0.9,)), pytest.param((3, 10, gaps.RHOS), marks=SLOW)], ids=["tiny", "full"]
)
def grid(request):
    return gaps.problems(*request.param)


def test_no_method_is_beyond_the_exact_optimum_and_each_is_at_least_as_tight_as_those_before(grid):
    rows = pd.concat(gaps.measured(problem, method) for problem in grid for method in BOUNDS)
    assert rows.violation.max() <= ROUNDING
    by_method = rows.pivot(index=["kind", "W", "rho", "seed", "eps"], columns="method", values="gap")[list(BOUNDS)]
    assert (by_method.diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)
    assert by_method.mean().is_monotonic_decreasing and by_method["alpha-crown"].mean() < by_method["ibp"].mean() / 5


def test_an_adjoint_cut_short_is_sound_and_tighter_the_longer_it_ran(grid):
    """Tighter in the mean: the residual need not fall at each step."""
    rows = pd.concat(gaps.truncated(problem, count) for problem in grid for count in gaps.STEPS)
    assert rows.violation.max() <= ROUNDING
    assert (gaps.relative_gaps(rows, ["steps"]).diff().iloc[1:] < 0).all()


@pytest.mark.parametrize(
    ("count", "method"),
    [(0, "crown"), (8, "crown"), *(pytest.param(n, "alpha-crown", marks=SLOW) for n in (0, 2, 8))],
)
def test_no_method_is_unsound_with_an_adjoint_cut_short(method, count, grid):
    assert max(gaps.truncated(problem, count, method).violation.max() for problem in grid) <= ROUNDING


@pytest.mark.parametrize("kind", gaps.KINDS)
def test_the_networks_are_what_the_table_says(kind):
    problem = gaps.solved(kind, "non-negative", 0.9, seed=0, units=9)
    weight = problem.network.nodes[3].apply.weight.detach()
    assert (weight >= 0).all() and (problem.least < problem.most).all()
    channels = weight if weight.dim() == 2 else weight.sum((2, 3))
    assert spectral_radius(channels) == pytest.approx(0.9)
    shape = (9,) if kind == "dense" else (gaps.KINDS[kind], 3, 3)
    assert spectral_radius(dense_operator(weight, shape)) <= 0.9 + 1e-12
