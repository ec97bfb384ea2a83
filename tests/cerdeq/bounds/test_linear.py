"""Linear bounds (crown-ibp, crown, alpha-crown) against exact optima, the LP relaxation, each other and attacks."""

import copy

import pytest
import torch
from graphs import NETWORKS, evaluated, network, optima, specs
from oracles import assert_contains, points_of, random_box

from cerdeq import bound
from cerdeq.bounds import BOUNDS, Interval, lower_bounds, trace
from cerdeq.operators.table import TABLE

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same'"),  # with even kernels
    pytest.mark.usefixtures("short_searches", "slow_float64"),
]

SCALES = [1e-3, 0.7, 1e3]
SCALED = [  # by default each network at one scale
    pytest.param(name, scale, marks=() if scale == SCALES[number % 3] else pytest.mark.slow)
    for number, name in enumerate(NETWORKS)
    for scale in SCALES
]


# ---------------------------------------------------------------------------------------------------------------------
# Exact optima


def check_exact(graph, shape, box):
    """Check that every method's bounds enclose the exact optima, each method at least as tight as those before it."""
    spec = specs(graph, box, rows=1)
    minima, maxima, points = optima(graph, box, spec)
    values = evaluated(graph, spec, points, shape)
    # The oracle itself: the optimum is a value of the network.
    torch.testing.assert_close((values.amin(0), values.amax(0)), (minima, maxima), rtol=1e-5, atol=1e-5)
    tolerance = 1e-6 * (1 + torch.maximum(minima.abs(), maxima.abs()))
    previous = None
    for method in BOUNDS:
        lower, upper = bound(graph, box, method, spec)
        assert (lower <= minima + tolerance).all() and (maxima - tolerance <= upper).all(), method
        assert_contains(lower, upper, values)
        below, above = previous or (lower, upper)
        rounding = 1e-6 * tolerance
        assert (below <= lower + rounding).all() and (upper <= above + rounding).all(), method
        previous = lower, upper


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_enclose_the_exact_optima(name, seed):
    graph, shape = network(name, seed)
    check_exact(graph, shape, random_box(1, *shape))


def test_every_operator_is_in_a_network():
    """All but curves and steps, which mixed-integer programming does not know: points test these."""
    programs = [trace(network(name)[0], linear=True) for name in NETWORKS]
    operators = {step.record.name for program in programs for step in program.steps if step.record}
    assert operators >= {record.name for record in TABLE} - {"sigmoid", "tanh", "sign", "hardsigmoid", "hardswish"}


# ---------------------------------------------------------------------------------------------------------------------
# Order


def test_a_target_stops_the_search_but_not_the_proof():
    graph, shape = network("deep", 1)
    box = random_box(4, *shape)
    spec = specs(graph, box, rows=2)
    program, x = trace(graph, linear=True), Interval(box.center, box.radius)
    by_ibp_boxes, crown = (lower_bounds(program, x, spec, method) for method in ("crown-ibp", "crown"))
    full = lower_bounds(program, x, spec, "alpha-crown")
    minima, _, _ = optima(graph, box, spec)
    for target in (-1e9, full.median().item(), 1e9):
        lower = lower_bounds(program, x, spec, "alpha-crown", target)
        assert (by_ibp_boxes.clamp(max=target) <= lower).all() and (lower <= minima + 1e-6).all()
        proved = (lower > target).all(1)
        assert (crown[~proved].clamp(max=target) <= lower[~proved] + 1e-12).all()  # sums of other numbers of rows
        assert (proved >= (full > target).all(1)).all()
    torch.testing.assert_close(lower, full)
    ibp = lower_bounds(program, x, spec, "ibp")
    torch.testing.assert_close(lower_bounds(program, x, spec, "alpha-crown", -1e9), ibp, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Points


@pytest.mark.parametrize(("name", "scale"), SCALED)
def test_no_point_beats_a_bound(name, scale):
    """In float32 without a spec; each method is at least as tight as those before it, without tolerance."""
    graph, shape = network(name, seed=7, dtype=torch.float32)
    box, float64 = random_box(2, *shape, scale=scale, dtype=torch.float32), copy.deepcopy(graph).double()
    exact = box.double()
    with torch.no_grad():
        outputs = graph(box.center.clone())
    spec = torch.eye(outputs[0].numel(), dtype=torch.float64).expand(2, -1, -1)
    values = evaluated(float64, spec, points_of(exact, 60).transpose(0, 1), shape)
    previous = None
    for method in BOUNDS:
        lower, upper = bound(graph, box, method)
        assert lower.shape == upper.shape == outputs.shape and (upper - lower).isfinite().all()
        assert_contains(lower.double().flatten(1), upper.double().flatten(1), values)
        assert previous is None or ((previous[0] <= lower).all() and (upper <= previous[1]).all()), method
        previous = lower, upper
