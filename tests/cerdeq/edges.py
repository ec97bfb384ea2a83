"""Provides networks whose smallest value over a box is near 0, and the problems that searches decide about them."""

import torch
from gaps import EPS
from graphs import evaluated, network, optima
from milp import Graph, Node
from oracles import random_box

from cerdeq import Box, bound
from cerdeq.bounds import Context, Interval, trace, values_of
from cerdeq.branch.leaves import SearchQuery
from cerdeq.branch.search import Problem

FRACTIONS = (-0.5, -0.02, 0.02, 0.5)  # of alpha-CROWN's gap: how far the least value is moved from 0
NEAREST = (-0.02, 0.02)
ONE = torch.ones(1, 1, 1, dtype=torch.float64)


def shift_outputs(graph, shift):
    """The graph with a number taken from its outputs."""
    return Graph([*graph.nodes, Node(lambda y: y - shift, (len(graph.nodes),))]).double().eval()


def near_the_edge(graph, region, spec, minimum, fractions=FRACTIONS):
    """Yield (the least value of spec . graph, the graph moved so that it is that, whether alpha-CROWN certifies it)."""
    gap = float(minimum - bound(graph, region, "alpha-crown", spec)[0])
    gap = gap if gap > 1e-6 else 1e-3 * (1 + abs(float(minimum)))
    assert float(spec.sum()) != 0, "moving all outputs moves the row"
    for fraction in fractions:
        shifted = shift_outputs(graph, (float(minimum) - fraction * gap) / float(spec.sum()))
        yield fraction * gap, shifted, bool(bound(shifted, region, "alpha-crown", spec)[0] > 0)


def cases_of(problem):
    for number in range(len(EPS)):
        one = slice(number, number + 1)
        yield problem.network, Box(problem.regions.center[one], problem.regions.radius[one]), problem.minimum[number]


def graph_case(name, seed):
    graph, shape = network(name, seed)
    region = random_box(1, *shape, scale=0.7)
    with torch.no_grad():
        outputs = graph(region.center.clone()).flatten(1).shape[1]
    spec = torch.randn(1, 1, outputs, dtype=torch.float64)
    _, _, points = optima(graph, region, spec)
    return graph, region, spec, evaluated(graph, spec, points, shape).amin()  # a value of the network


def query_of(model, region, spec):
    program = trace(model, linear=True)
    box = Interval(region.center.double(), region.radius.double())
    return SearchQuery(program, values_of(program, box, Context(sound=True)), spec)


def problem_of(query, fast=None, memory=2**28, certificates=False):
    """Return the problem of a query of which nothing is proved."""
    lower = torch.full((len(query.spec),), -torch.inf, dtype=torch.float64)
    return Problem(query, fast or query, lower, memory, certificates)
