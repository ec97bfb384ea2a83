"""Passes of the search: over unstable units alone, and in several threads, against the passes of proofs."""

from dataclasses import replace

import pytest
import torch
from equilibria import folded_network
from graphs import network
from oracles import random_box
from torch import nn

from cerdeq.bounds import Context, Interval, trace, values_of
from cerdeq.bounds.alpha_crown import optimise_slopes
from cerdeq.bounds.backward import linear_lower_bound
from cerdeq.branch import threads
from cerdeq.branch.ascent import Steps, ascend_leaves
from cerdeq.branch.decide import _ROOT_STEPS, _bound_leaves
from cerdeq.branch.leaves import Problem, root_leaves
from cerdeq.equilibrium import Equilibrium, fold
from cerdeq.operators.backward import Backward

KINDS = ["deep", "convolution padded", "residual", "leaky 0.1", "leaky 1.5", "leaky -0.5"]


def problem_of(kind):
    """Return a question in float64 about a small network, with 3 rows."""
    torch.manual_seed(1)
    graph, shape = (folded_network(None, 1), (3,)) if kind == "equilibrium" else network(kind, 1)
    graph, region = graph.double().eval(), random_box(1, *shape, scale=2.0)
    program = trace(graph, linear=True)
    values = values_of(program, Interval(region.center, region.radius), Context(sound=True))
    spec = torch.randn(3, values[program.output].center[0].numel(), dtype=torch.float64)
    return Problem(program, values, spec)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_searchs_bound_is_the_proofs_but_for_rounding(kind):
    problem = problem_of(kind)
    layout, root = root_leaves(problem, problem, torch.arange(3))
    leaves = root.of(torch.arange(60) % 3)
    signs = torch.randint(-1, 2, leaves.signs.shape, dtype=torch.int8)
    choices = torch.rand(leaves.choices.shape, dtype=torch.float64)
    leaves = replace(leaves, signs=signs, choices=choices)
    search, proof = (problem.lower(leaves, layout, sound=sound) for sound in (False, True))
    assert root.signs.shape[1] >= 2
    torch.testing.assert_close(search, proof, rtol=1e-9, atol=1e-9)


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
    problem = Problem(program, values_of(program, region, Context(sound=True)), spec)
    layout, root = root_leaves(problem, problem, torch.arange(8))
    lower = ascend_leaves(problem, layout, root, _ROOT_STEPS).leaves.lower
    context = Backward(sound=False, slopes=optimise_slopes(program, problem.values, spec[None], target=None))
    alpha_crown = linear_lower_bound(program, problem.values, spec[None], program.output, context)[0]
    assert (alpha_crown > root.lower + 0.1).all() and (lower >= alpha_crown - 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_searchs_gradient_is_that_of_differences(kind):
    problem = problem_of(kind)
    layout, root = root_leaves(problem, problem, torch.arange(3))
    signs = torch.randint(-1, 2, root.signs.shape, dtype=torch.int8)
    choices = (0.2 + 0.6 * torch.rand(root.choices.shape, dtype=torch.float64)).requires_grad_()
    leaves = replace(root, signs=signs, choices=choices)
    (gradient,) = torch.autograd.grad(problem.lower(leaves, layout, sound=False).sum(), choices)
    direction = torch.randn_like(choices)
    with torch.no_grad():
        ends = [
            problem.lower(replace(leaves, choices=choices + step * direction), layout, sound=False).sum()
            for step in (1e-6, -1e-6)
        ]
    assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]).item() / 2e-6, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["deep", "convolution padded", "equilibrium"])
@torch.no_grad()
def test_threads_change_no_number(kind):
    problem, before, results = problem_of(kind), torch.get_num_threads(), []
    layout, root = root_leaves(problem, problem, torch.arange(3))
    leaves = root.of(torch.arange(90) % 3)
    signs = torch.randint(-1, 2, leaves.signs.shape, dtype=torch.int8)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            limits = layout, replace(leaves, signs=signs), Steps(3), 16
            results.append(_bound_leaves(problem, problem, *limits))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert len(results[0]) == len(results[1]) == 6
    for one, several in zip(*results, strict=True):
        torch.testing.assert_close(one.leaves.lower, several.leaves.lower, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.points, several.points, rtol=1e-12, atol=1e-12)


def test_parts_cover_all_leaves_in_order():
    for count in (1, 7, 64, 100, 129, 1000):
        parts = threads.slices(count, 128)
        assert [n for part in parts for n in range(count)[part]] == list(range(count))
        assert all(len(range(count)[part]) <= 128 for part in parts)
    assert len(threads.slices(128, 128)) > 1
