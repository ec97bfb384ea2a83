"""The first attack of `verify`: what it finds is a counterexample, and it finds narrow ones that corners miss."""

import time
from unittest.mock import patch

import pytest
import torch
from test_verify import graph_case, near_the_edge, problem_of
from torch import nn

from cerdeq import Box, verify
from cerdeq.branch import attack
from cerdeq.branch.attack import first_attack
from cerdeq.deadline import DeadlineError, stop_at


def tent():
    """A network that is 1 - relu(1 - 4 |x - 0.3|): positive but for a narrow dent inside of the box [-1, 1]."""
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    first, second, third = network[0], network[2], network[4]
    first.weight.data, first.bias.data = torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([-0.3, 0.3]).double()
    second.weight.data, second.bias.data = torch.full((1, 2), -4.0).double(), torch.ones(1).double()
    third.weight.data, third.bias.data = torch.tensor([[-1.0]]).double(), torch.tensor([0.9]).double()
    return network, Box(torch.zeros(1, 1).double(), torch.ones(1, 1).double())


def test_a_dent_between_the_corners_is_found():
    network, region = tent()
    problem = problem_of(network, region, torch.ones(1, 1).double())
    with torch.no_grad():
        point, is_falsified = first_attack(problem, problem, torch.tensor([0]))
        assert is_falsified and abs(float(point) - 0.3) < 0.025 and network(point) < 0
    result = verify(network, region, torch.ones(1, 1, 1).double(), branches=1)
    assert result.status == ["falsified"] and result.branches.tolist() == [0]


@pytest.mark.parametrize("name", ["deep", "convolution padded"])
def test_it_finds_counterexamples_and_nothing_where_there_are_none(name):
    graph, region, spec, minimum = graph_case(name, 0)
    for value, shifted, _ in near_the_edge(graph, region, spec, minimum):
        problem = problem_of(shifted, region, spec[0])
        with torch.no_grad():
            point, is_falsified = first_attack(problem, problem, torch.tensor([0]))
        assert not (is_falsified and value > 0)
        if is_falsified:
            assert (problem.at(point)[0] < 0).any()
            assert ((point - region.center).abs() <= region.radius).all()


def test_only_the_given_rows_are_attacked_and_late_attacks_end():
    network, region = tent()
    problem = problem_of(network, region, torch.tensor([[1.0], [0.0]]).double())
    with torch.no_grad(), patch.object(attack, "signed_step", wraps=attack.signed_step) as step:
        with stop_at(time.monotonic()), pytest.raises(DeadlineError):
            first_attack(problem, problem, torch.tensor([1]))
        assert step.call_count == 1
        first_attack(problem, problem, torch.tensor([1]))
    assert step.call_args.args[2][:, 0].eq(0).all() and step.call_args.args[2][:, 1].eq(1).all()


def test_the_points_after_the_last_step_are_tried():
    """One start, near 0; one step of 0.5 along a line that is negative below -0.25."""
    network, region = nn.Linear(1, 1).double().eval(), Box(torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    network.weight.data, network.bias.data = torch.ones(1, 1).double(), torch.tensor([0.25]).double()
    problem = problem_of(network, region, torch.ones(1, 1).double())
    with torch.no_grad(), patch.multiple(attack, _MOST=1, _FEWEST=1, _DIVERSIFYING=0, _DESCENDING=1):
        point, is_falsified = first_attack(problem, problem, torch.tensor([0]))
    assert is_falsified and network(point) < 0
