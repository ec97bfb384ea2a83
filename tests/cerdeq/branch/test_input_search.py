"""The search over parts of the input box: against exact minima, points of the parts, and its own splits."""

import pytest
import torch
from edges import NEAREST, ONE, cases_of, graph_case, near_the_edge, problem_of, query_of
from gaps import solved
from graphs import deep
from oracles import points_of
from torch import nn

from cerdeq import Box
from cerdeq.branch.input_search import SPLITS, InputSearch, is_searched_by_parts
from cerdeq.branch.search import CERTIFIED, FALSIFIED, TIMEOUT, Budget

SLOW = pytest.mark.slow  # other searches decide the same network in test_verify.py


def search_of(model, region, spec=ONE):
    return InputSearch(problem_of(query_of(model, region, spec[0]), certificates=True))


@torch.no_grad()
def check_decided(graph, region, spec, minimum):
    """Check that the search alone decides cases near the edge, and that its bounds and points are right."""
    for value, shifted, _ in near_the_edge(graph, region, spec, minimum, NEAREST):
        decision = search_of(shifted, region, spec).advance(Budget())
        assert decision.status == (CERTIFIED if value > 0 else FALSIFIED), (value, decision)
        if value > 0:
            assert 0 < decision.lower.item() <= value + 1e-12
        else:
            assert ((decision.point - region.center).abs() <= region.radius).all()
            assert (spec[0] @ shifted(decision.point).flatten()).item() < 0


@pytest.mark.parametrize(
    "name", ["deep", "residual", "leaky -0.5", *(pytest.param(n, marks=SLOW) for n in ("convolution padded", "dense"))]
)
def test_networks_near_the_edge_are_decided(name):
    check_decided(*graph_case(name, 0))


@pytest.mark.parametrize(
    ("kind", "w", "rho"), [pytest.param("dense", "signed", 0.97, marks=SLOW), ("1 channel", "non-negative", 0.3)]
)
def test_equilibria_near_the_edge_are_decided(kind, w, rho):
    graph, region, minimum = list(cases_of(solved(kind, w, rho, seed=0, units=4)))[1]
    check_decided(graph, region, ONE, minimum)


def recorded_run(search, budget):
    """Run the search; return the decision, and by number the ends and the bounds of every part."""
    parts, bound = {}, search._bound

    def record(batch, sound=True):
        bounds = bound(batch, sound)
        if not sound:
            return bounds
        for number, *part in zip(batch.number.tolist(), batch.low, batch.high, bounds.lower, strict=True):
            assert number not in parts, "a part is bounded twice"
            parts[number] = part
        return bounds

    search._bound = record
    with torch.no_grad():
        return search.advance(budget), parts


@torch.no_grad()
def case_with_many_parts(seed):
    """Return a network whose first output is just above 0 over the box, the box, and the spec."""
    torch.manual_seed(seed)
    model = nn.Sequential(deep(), nn.ReLU(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    for parameter in model.parameters():
        parameter.mul_(2).requires_grad_(False)
    region = Box(torch.randn(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    values = model(points_of(region, 50000)[:, 0])[:, 0]
    model[-1].bias[0] += 0.01 * values.std() - values.min()
    return model, region, torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)


@pytest.mark.parametrize("seed", [1, 2, 6])
def test_bounds_hold_at_points_of_parts_and_parts_cover_the_box(seed):
    model, region, spec = case_with_many_parts(seed)
    search = search_of(model, region, spec)
    decision, parts = recorded_run(search, Budget(10**5))
    assert decision.status == CERTIFIED and len(parts) > 8
    for low, high, lower in parts.values():
        points = low + torch.rand(200, 3, dtype=torch.float64) * (high - low)
        points[:8] = torch.where(torch.cartesian_prod(*[torch.tensor([True, False])] * 3), low, high)
        assert (model(points)[:, 0] >= lower).all()
    assert (parts[0][0] <= region.lower).all() and (parts[0][1] >= region.upper).all()
    for split, (number, halved) in enumerate(decision.certificate[SPLITS].tolist()):
        (low, high, _), (below, above) = parts[number], (parts[2 * split + 1], parts[2 * split + 2])
        others = torch.arange(3) != halved
        for half in (below, above):
            assert torch.equal(half[0][others], low[others]) and torch.equal(half[1][others], high[others])
        assert below[0][halved] == low[halved] and above[1][halved] == high[halved]
        assert below[1][halved] == above[0][halved]


@torch.no_grad()
def test_a_part_is_proved_if_all_of_its_rows_are():
    model, region, _ = case_with_many_parts(1)
    model[-1].bias[1] += 100  # the second row is proved at once
    search = InputSearch(problem_of(query_of(model, region, torch.eye(2).double())))
    decision = search.advance(Budget(10**5))
    assert decision.status == CERTIFIED and (decision.lower > 0).all()


@torch.no_grad()
def test_a_limit_ends_the_search_which_goes_on_where_it_was():
    case, budget, other = case_with_many_parts(0), Budget(10**6), Budget(10**6)
    search, at_once = search_of(*case), search_of(*case)
    assert search.advance(budget.turn(10)).status == TIMEOUT and 10 <= budget.used < 30
    decision, expected = search.advance(budget.turn()), at_once.advance(other)
    assert decision.status == expected.status == CERTIFIED and other.used == budget.used
    assert torch.equal(decision.certificate[SPLITS], expected.certificate[SPLITS])


def test_it_is_used_for_few_inputs_that_are_not_fixed():
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1)).double().eval().requires_grad_(False)
    few, many = torch.full((1, 12), 1e-17, dtype=torch.float64), torch.ones(1, 12).double()
    few[:, :3] = 1  # the others are fixed at numbers that float64 rounds
    for radius, expected in ((few, True), (many, False)):
        region = Box(torch.full((1, 12), 0.1, dtype=torch.float64), radius)
        assert is_searched_by_parts(query_of(model, region, ONE[0])) == expected


@pytest.mark.parametrize("center", [1e16, 1e-150])
def test_parts_of_large_and_tiny_numbers_hold_their_ends(center):
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval().requires_grad_(False)
    for parameter, value in zip(model.parameters(), (1.0, 0.0, 1.0, 0.0), strict=True):
        parameter.fill_(value)
    search = search_of(model, Box(*torch.tensor([[[center]], [[center / 3]]], dtype=torch.float64)))
    _, parts = recorded_run(search, Budget(1))
    for low, high, lower in parts.values():
        assert lower <= low and low <= center <= high
