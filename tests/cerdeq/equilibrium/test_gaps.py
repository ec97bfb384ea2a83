"""Bounds of equilibrium networks against exact optima: by every method, and with adjoints cut short."""

import gaps
import pytest
import torch

from cerdeq.bounds import BOUNDS

ROUNDING = 1e-9  # of the networks' values by numpy
SLOW = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = (0, 2, 32)


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
    ("count", "method"), [(0, "crown"), *(pytest.param(n, "alpha-crown", marks=SLOW) for n in (0, 2, 8))]
)
def test_no_method_is_unsound_with_an_adjoint_cut_short(method, count, problems):
    with gaps.adjoint_steps(count):
        assert min(gaps.gaps(problem, method).min() for problem in problems) >= -ROUNDING
