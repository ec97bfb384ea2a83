"""Cutting planes: on sums of absolute values whose minimum is known, with values at points in exact fractions."""

from fractions import Fraction

import pytest
import torch
from edges import query_of
from oracles import fractions
from torch import nn

from cerdeq import Box, verify
from cerdeq.branch.attack import first_attack
from cerdeq.branch.cutting_planes import descend_by_planes

SEEDS = range(4)
DEPTH = 2.0**-12


@torch.no_grad()
def valley(seed, minimum, edge=0.9):
    """Return sum_i |a_i . (x - p)| + minimum as a network, a box of three inputs, and a function: exact values.

    edge: the first coordinate of p, in radii of the box from its center. Every number of the network is exact.
    """
    torch.manual_seed(seed)
    region = Box(torch.tensor([[2.0, -1.0, 0.0]]).double(), torch.tensor([[0.5, 0.25, 1.0]]).double())
    shares = torch.tensor([edge, *(2 * torch.rand(2) - 1).tolist()]).double()
    lowest = ((region.center[0] + region.radius[0] * shares) * 2**10).round() / 2**10
    rows = ((torch.randn(3, 3) * torch.tensor([4.0, 1.0, 0.25])) * 2**8).round().double() / 2**8
    first, last = nn.Linear(3, 6).double(), nn.Linear(6, 1).double()
    first.weight.copy_(torch.cat([rows, -rows]))
    first.bias.copy_(-first.weight @ lowest)
    last.weight.fill_(1)
    last.bias.fill_(minimum)
    distances = fractions(rows), fractions(lowest)

    def value(point):
        moved = [x - p for x, p in zip(fractions(point.flatten()), distances[1], strict=True)]
        return sum(abs(sum(a * m for a, m in zip(row, moved, strict=True))) for row in distances[0]) + Fraction(minimum)

    return nn.Sequential(first, nn.ReLU(), last).eval().requires_grad_(False), region, value


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_narrow_counterexamples_that_gradient_steps_miss_are_found(seed):
    network, region, value = valley(seed, -DEPTH)
    problem = query_of(network, region, torch.ones(1, 1).double())
    points, is_falsified = first_attack(problem, problem, torch.tensor([0]))
    assert not is_falsified and min(map(value, points)) > 0
    point = descend_by_planes(problem, points, torch.arange(3))
    assert value(point) < 0 and torch.equal(point, descend_by_planes(problem, points, torch.arange(3)))
    result = verify(network, region, torch.ones(1, 1, 1).double(), branches=1)
    assert result.status == ["falsified"] and value(result.counterexample) < 0


@pytest.mark.parametrize("minimum", [DEPTH, 0.0])
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_nothing_is_found_where_no_value_is_negative(seed, minimum):
    network, region, _ = valley(seed, minimum)
    problem = query_of(network, region, torch.ones(1, 1).double())
    starts = region.center + region.radius * (2 * torch.rand(8, 3) - 1)
    assert descend_by_planes(problem, starts, torch.arange(3)) is None


@pytest.mark.parametrize("edge", [-1.0, 1.0, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_points_lie_in_the_box_and_other_inputs_stay(seed, edge):
    network, region, _ = valley(seed, -DEPTH, edge)
    network[2].bias -= 4 * network[0].weight[:3, 0].abs().sum() * (edge == 3)  # negative in the box, too
    problem = query_of(network, region, torch.ones(1, 1).double())
    results, corners = [], torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)
    for start in region.center + region.radius * corners:
        for inputs in ([0, 1, 2], [0, 2]):
            point = descend_by_planes(problem, start[None], torch.tensor(inputs))
            results.append(point is not None)
            if point is None:
                continue
            for x, center, radius in zip(*map(fractions, (point[0], region.center[0], region.radius[0])), strict=True):
                assert abs(x - center) <= radius
            if len(inputs) == 2:
                assert point[0, 1] == pytest.approx(start[1].item(), abs=1e-6)
    assert any(results)
