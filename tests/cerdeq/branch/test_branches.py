"""Parts of branch and bound: the first attack, boxes of hidden units, passes of the search."""

import time
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from edges import NEAREST, graph_case, near_the_edge, problem_of, query_of
from equilibria import folded_network
from graphs import network
from milp import Encoding, Graph
from oracles import random_box
from torch import nn

from cerdeq import Box, verify
from cerdeq.bounds import Context, Interval, trace, values_of
from cerdeq.bounds.alpha_crown import optimise_slopes
from cerdeq.bounds.crown_pass import linear_lower_bound
from cerdeq.bounds.float32 import cast_to_float32, in_float32
from cerdeq.branch import attack
from cerdeq.branch.ascent import Steps, ascend_leaves
from cerdeq.branch.attack import first_attack
from cerdeq.branch.hidden_boxes import HiddenBounds
from cerdeq.branch.leaf_search import _ROOT_STEPS, LeafSearch
from cerdeq.branch.leaves import SearchQuery, root_leaves
from cerdeq.branch.program_search import ProgramSearch
from cerdeq.branch.schedule import _FEWEST_LEAVES
from cerdeq.branch.search import FALSIFIED, TIMEOUT, UNKNOWN, Budget, Decision
from cerdeq.equilibrium import Equilibrium, fold
from cerdeq.operators.backward import Backward


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
    problem = query_of(network, region, torch.ones(1, 1).double())
    with torch.no_grad():
        point = first_attack(problem, problem, torch.tensor([0]))
        assert point is not None and abs(float(point) - 0.3) < 0.025 and network(point) < 0
    result = verify(network, region, torch.ones(1, 1, 1).double(), branches=1)
    assert result.status == ["falsified"] and result.branches.tolist() == [0]


@pytest.mark.parametrize("name", ["deep", "convolution padded"])
def test_it_finds_counterexamples_and_nothing_where_there_are_none(name):
    graph, region, spec, minimum = graph_case(name, 0)
    for value, shifted, _ in near_the_edge(graph, region, spec, minimum, NEAREST):
        problem = query_of(shifted, region, spec[0])
        with torch.no_grad():
            point = first_attack(problem, problem, torch.tensor([0]))
        assert point is None or value <= 0
        if point is not None:
            assert (problem.at(point)[0] < 0).any()
            assert ((point - region.center).abs() <= region.radius).all()
        x = Interval(region.center, region.radius)
        alone = attack.attack(problem.program, in_float32(shifted, linear=True), x, spec[0])
        assert (alone is not None) == (value < 0), "it has more starts"
        if alone is not None:
            assert (problem.at(alone)[0] < 0).any() and ((alone - region.center).abs() <= region.radius).all()


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
    problem = query_of(graph, region, torch.eye(2, dtype=torch.float64))
    hidden = HiddenBounds(problem_of(problem))
    gaps = {}
    for leaves in (1, 64):
        tight = hidden.tighten(leaves, Budget()).exact
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
    problem = query_of(graph, region, torch.eye(2, dtype=torch.float64))
    program = trace(network("deep", 0)[0].float().eval(), linear=True)
    fast = SearchQuery(program, cast_to_float32(program, problem.values), problem.spec.float())
    hidden = HiddenBounds(problem_of(problem, fast))
    tight = hidden.tighten(8, Budget())
    exact, fast = tight.exact, tight.fast
    for number in hidden.numbers:
        low, high = exact_ends(graph, region, number)
        box = exact.values[number].box
        assert (box.lower[0] <= low + 1e-7).all() and (box.upper[0] >= high - 1e-7).all()
        assert fast.values[number].center.dtype == torch.float32


@torch.no_grad()
def test_a_search_that_ends_early_leaves_boxes_as_they_are():
    graph, shape = network("deep", 0)
    problem = query_of(graph.double().eval(), random_box(1, *shape, scale=0.7), torch.eye(2, dtype=torch.float64))
    hidden = HiddenBounds(problem_of(problem))
    tight = hidden.tighten(8, Budget(0)).exact
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
    at_once = patch.multiple("cerdeq.branch.schedule", _FIRST_TURN=1e-3, _FEWEST_LEAVES=1)  # hidden boxes
    timeout = Decision(TIMEOUT, torch.full((1,), -torch.inf).double())
    with at_once, patch("cerdeq.branch.schedule._ProgramTurns.run", return_value=timeout):
        result = verify(graph, region, spec, seconds=60)
    assert result.status == ["certified" if offset > 0 else "falsified"]
    assert float(result.lower) <= offset + 1e-7


def small_problem(kind):
    """Return a question in float64 about a small network, with 3 rows."""
    torch.manual_seed(1)
    graph, shape = (folded_network(None, 1), (3,)) if kind == "equilibrium" else network(kind, 1)
    graph, region = graph.double().eval(), random_box(1, *shape, scale=2.0)
    program = trace(graph, linear=True)
    values = values_of(program, Interval(region.center, region.radius), Context(sound=True))
    spec = torch.randn(3, values[program.output].center[0].numel(), dtype=torch.float64)
    return SearchQuery(program, values, spec)


@pytest.mark.parametrize("is_explicit", [True, False])
@torch.no_grad()
def test_the_root_is_bounded_as_tightly_as_by_alpha_crown(is_explicit):
    """What alpha-CROWN certifies has a certificate then, which comes from a search."""
    torch.manual_seed(0)
    inject, settings = nn.Linear(60, 40), {"kernel_size": None, "parametrisation": "monotone", "gain": None}
    middle = nn.Sequential(inject, nn.ReLU()) if is_explicit else Equilibrium(40, inject, margin=0.5, **settings)
    graph = nn.Sequential(nn.Linear(10, 60), nn.ReLU(), middle, nn.Linear(40, 8)).double().eval()
    fold(graph)
    program, zeros = trace(graph, linear=True), torch.zeros(1, 10, dtype=torch.float64)
    region, spec = Interval(zeros, torch.ones_like(zeros)), torch.eye(8, dtype=torch.float64)
    problem = SearchQuery(program, values_of(program, region, Context(sound=True)), spec)
    layout, root = root_leaves(problem, problem, torch.arange(8))
    lower = ascend_leaves(problem, layout, root, _ROOT_STEPS).leaves.lower
    context = Backward(sound=False, slopes=optimise_slopes(program, problem.values, spec[None], target=None))
    alpha_crown = linear_lower_bound(program, problem.values, spec[None], program.output, context)[0]
    assert (alpha_crown > root.lower + 0.1).all() and (lower >= alpha_crown - 1e-9).all()


@pytest.mark.parametrize("kind", ["deep", "convolution padded", "equilibrium"])
@torch.no_grad()
def test_threads_change_no_number(kind):
    problem, before, results = small_problem(kind), torch.get_num_threads(), []
    _, root = root_leaves(problem, problem, torch.arange(3))
    leaves = root.of(torch.arange(90) % 3)
    signs = torch.randint(-1, 2, leaves.signs.shape, dtype=torch.int8)
    search = LeafSearch(problem_of(problem, memory=2**30))
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with patch("cerdeq.bounds.batch_sizes._MOST_LEAVES", 16):
                results.append(search._bound_leaves(replace(leaves, signs=signs), Steps(3)))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert len(results[0]) == len(results[1]) == 6
    for one, several in zip(*results, strict=True):
        torch.testing.assert_close(one.leaves.lower, several.leaves.lower, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.points, several.points, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_programs_are_made_of_a_network_with_a_layer_whose_units_are_all_inactive():
    layers = [nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)]
    model = nn.Sequential(*layers).double().eval().requires_grad_(False)
    model[2].bias -= 100
    model[4].bias.fill_(-1.0)
    region = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    problem = query_of(model, region, torch.ones(1, 1).double())
    decision = ProgramSearch(problem_of(problem)).advance(Budget(100))
    assert decision.status == FALSIFIED and model(decision.point) == -1


def test_limited_branches_do_not_depend_on_the_clock():
    torch.manual_seed(1)
    layers = nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 1)
    model = nn.Sequential(*layers).double().eval().requires_grad_(False)
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, 0, (2 / layer.in_features) ** 0.5)
    center = torch.zeros(1, 12).double()
    model[-1].bias += 2 - model(0.8 * torch.rand(20000, 12).double() - 0.4).min()
    results = set()
    for rate in (0.01, 100.0):
        clock = SimpleNamespace(monotonic=lambda rate=rate: rate * time.monotonic())
        with patch("cerdeq.branch.schedule.time", clock):
            result = verify(model, Box(center, center + 0.4), torch.ones(1, 1, 1).double(), None, 2000)
        results.add((result.status[0], int(result.branches[0])))
    (one,) = results
    assert one[0] == "certified" and one[1] > 2 * _FEWEST_LEAVES


@torch.no_grad()
def test_programs_end_at_a_leaf_that_they_cannot_prove():
    """The sum of |a . x| is 0 where x is 0, in every leaf: after one of them no other changes the result."""
    torch.manual_seed(0)
    first, last = nn.Linear(4, 24, bias=False), nn.Linear(24, 1, bias=False)
    first.weight[12:] = -first.weight[:12]
    last.weight.fill_(1.0)
    model = nn.Sequential(first, nn.ReLU(), last).double().eval().requires_grad_(False)
    region = Box(torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64))
    problem, budget = query_of(model, region, torch.ones(1, 1).double()), Budget()
    programs = ProgramSearch(problem_of(problem))
    assert programs.advance(budget).status == UNKNOWN
    assert budget.used <= 64 and programs.open_share > 0.5
