"""Boxes of hidden units, tightened by branch and bound, against exact minima by mixed-integer programming."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from graphs import network
from milp import Encoding, Graph
from oracles import random_box
from test_verify import problem_of as problem_with

from cerdeq import verify
from cerdeq.bounds import trace
from cerdeq.bounds.float32 import cast_to_float32
from cerdeq.branch.decision import Budget
from cerdeq.branch.hidden import HiddenBounds
from cerdeq.branch.leaves import Problem

pytestmark = pytest.mark.usefixtures("leaves_alone")


def exact_ends(graph, region, number):
    """The smallest and the largest values of the units of a value."""
    encoding = Encoding(Graph(graph.nodes[:number]), region.lower[0], region.upper[0])
    signs = np.eye(len(encoding.output[1]))
    low, high = ([encoding.minimum(sign * unit)[0] for unit in signs] for sign in (1, -1))
    return torch.tensor(low, dtype=torch.float64), -torch.tensor(high, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(2))
@torch.no_grad()
def test_hidden_boxes_contain_the_exact_ones_and_approach_them(seed):
    graph, shape = network("deep", seed)
    graph, region = graph.double().eval(), random_box(1, *shape, scale=0.7)
    problem = problem_with(graph, region, torch.eye(2, dtype=torch.float64))
    hidden = HiddenBounds(problem, problem, 16, 2**28)
    gaps = {}
    for leaves in (1, 64):
        tight, _ = hidden.tighten(leaves, Budget())
        for number in hidden.numbers:
            low, high = exact_ends(graph, region, number)
            box = tight.values[number].box
            assert (box.lower[0] <= low + 1e-7).all() and (box.upper[0] >= high - 1e-7).all()
            gap = 2 * box.radius[0] - (high - low)
            gaps[number, leaves] = float(gap[(low < 0) & (high > 0)].sum())  # others are done once their sign is known
    assert hidden.numbers
    for number in hidden.numbers:
        assert gaps[number, 64] <= gaps[number, 1] + 1e-9
    assert sum(gaps[number, 64] for number in hidden.numbers) < 0.1


@torch.no_grad()
def test_a_search_in_float32_proves_boxes_in_float64():
    graph, shape = network("deep", 0)
    graph, region = graph.float().double().eval(), random_box(1, *shape, scale=0.7)
    problem = problem_with(graph, region, torch.eye(2, dtype=torch.float64))
    program = trace(network("deep", 0)[0].float().eval(), linear=True)
    fast = Problem(program, cast_to_float32(program, problem.values), problem.spec.float())
    hidden = HiddenBounds(problem, fast, 16, 2**28)
    exact, fast = hidden.tighten(8, Budget())
    for number in hidden.numbers:
        low, high = exact_ends(graph, region, number)
        box = exact.values[number].box
        assert (box.lower[0] <= low + 1e-7).all() and (box.upper[0] >= high - 1e-7).all()
        assert fast.values[number].center.dtype == torch.float32


@torch.no_grad()
def test_a_search_that_ends_early_leaves_boxes_as_they_are():
    graph, shape = network("deep", 0)
    problem = problem_with(graph.double().eval(), random_box(1, *shape, scale=0.7), torch.eye(2, dtype=torch.float64))
    hidden = HiddenBounds(problem, problem, 16, 2**28)
    tight, _ = hidden.tighten(8, Budget(0))
    assert not hidden.certificate()
    for number in hidden.numbers:
        assert torch.equal(tight.values[number].center, problem.values[number].center)


@pytest.mark.parametrize("offset", [0.02, -0.02])
def test_verdicts_over_hidden_boxes_are_right(offset):
    graph, shape = network("deep", 1)
    graph, region = graph.double().eval(), random_box(1, *shape, scale=0.7)
    spec = torch.tensor([[[1.0, 1.0]]], dtype=torch.float64)
    minimum, _ = Encoding(graph, region.lower[0], region.upper[0]).minimum(spec[0, 0].numpy())
    with torch.no_grad():
        graph.nodes[-1].apply.bias += (offset - minimum) / 2
    with patch("cerdeq.branch.decide._FIRST_TURN", 1e-3):  # hidden boxes at once
        result = verify(graph, region, spec, seconds=60)
    assert result.status == ["certified" if offset > 0 else "falsified"]
    assert float(result.lower) <= offset + 1e-7
