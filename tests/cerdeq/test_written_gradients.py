"""Backward passes written by hand, against autograd on the textbook formula."""

import pytest
import torch

from cerdeq import Box
from cerdeq.bounds.interval import Context, relu_box
from cerdeq.bounds.linear import Backward
from cerdeq.bounds.relaxation import lines, through
from harness.training.objective import balance


def _gradients(function, *inputs):
    leaves = [value.clone().requires_grad_() for value in inputs]
    results = function(*leaves)
    torch.manual_seed(1)
    total = sum((result * torch.randn_like(result)).sum() for result in results)
    return [result.detach() for result in results], torch.autograd.grad(total, leaves)


def _compare(mine, textbook, *inputs):
    for ours, expected in zip(_gradients(mine, *inputs), _gradients(textbook, *inputs), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("shrinkage", [1.0, 0.7])
def test_the_relu_of_a_box(shrinkage):
    center, radius = torch.randn(4, 3, 5, 5).double(), torch.rand(4, 3, 5, 5).double()

    def textbook(c, r):
        half = shrinkage / 2 * torch.relu(c + r)
        return torch.where(c >= r, c, half), torch.where(c >= r, r, half)

    _compare(lambda c, r: relu_box(Context(sound=False, relu_shrinkage=shrinkage), c, r), textbook, center, radius)


@pytest.mark.parametrize("radius", [0.0, 1e-8])
def test_the_relu_of_a_point_is_that_of_its_centre(radius):
    center, tiny = torch.randn(4, 6), torch.full((4, 6), radius)
    _, (of_center, of_radius) = _gradients(lambda c, r: relu_box(Context(sound=False), c, r), center, tiny)
    dead = center < 0
    assert (of_center[dead] == 0).all() and (of_radius[dead] == 0).all() and (of_center[~dead] != 0).all()


@pytest.mark.parametrize("negative_slope", [0.0, 0.1, 1.7])
def test_linear_functionals_through_lines(negative_slope):
    box = Box(torch.randn(2, 3, 4).double(), torch.rand(2, 3, 4).double())
    coefficients = torch.randn(2, 5, 3, 4).double()

    def mine(a, c, r):
        return through(ctx, lines(ctx, Box(c, r), negative_slope), a)

    def textbook(a, c, r):
        low, high = c - r, c + r
        crossing = (low < 0) & (high > 0)
        exact = torch.where(low < 0, negative_slope, torch.ones_like(low))
        slope = torch.where(crossing, (high - negative_slope * low) / torch.where(crossing, high - low, 1), exact)
        offset = torch.where(crossing, (1 - slope) * high, 0)
        steep = torch.where(high > -low, 1.0, negative_slope)
        free = torch.where(crossing, steep, exact)
        positive, negative = a.clamp(min=0), a.clamp(max=0)
        below, above = (positive, negative) if negative_slope <= 1 else (negative, positive)
        return below * free[:, None] + above * slope[:, None], (above * offset[:, None]).flatten(2).sum(2)

    ctx = Backward(sound=False)
    _compare(mine, textbook, coefficients, box.center, box.radius)


def test_the_statistics_of_the_regulariser():
    center, radius = torch.randn(4, 3, 5, 5).double() + 0.8, torch.rand(4, 3, 5, 5).double() * 0.2

    def q(a, b):
        return torch.minimum(a / b, b / a)

    def textbook(c, r):
        active, inactive = (c > r).double(), (c < -r).double()
        spread = (c - c.mean()).square()
        first = q((c * active).mean(), -(c * inactive).mean())
        second = q((spread * active).sum(), (spread * inactive).sum())
        return [(torch.relu(0.5 - first) + torch.relu(0.5 - second)) / 0.5 + 0 * r.sum()]

    _compare(lambda c, r: [balance([Box(c, r)]) + 0 * r.sum()], textbook, center, radius)
