"""Branch and bound against exact minima by mixed-integer programming, and against points inside leaves."""

import copy
import functools
import itertools
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from equilibria import RHOS, exact_outputs, folded_network, solutions
from gaps import EPS, problems, solved
from graphs import contractive, deep, evaluated, network, optima
from milp import Encoding, Graph, Node
from oracles import points_of, random_box
from torch import nn

from cerdeq import Box, LinfBall, bound, margin_spec, verify
from cerdeq.bounds import Context, Interval, trace, values_of
from cerdeq.branch.leaves import Leaves, Side, certificate, rooted
from cerdeq.branch.split import _cases
from cerdeq.equilibrium import FixedPoint

SECONDS = 60  # ample: cases here take a few
FRACTIONS = (-0.5, -0.02, 0.02, 0.5)  # of alpha-CROWN's gap: how far the least value is moved from 0
NEAREST = (-0.02, 0.02)
EXPLICIT = [
    "deep", "convolution padded", "residual", "dense", "shared", "broadcast", "leaky 0.1", "leaky 1.5", "leaky -0.5",
]  # fmt: skip
ONE = torch.ones(1, 1, 1, dtype=torch.float64)


def moved(graph, shift):
    """The graph with a number taken from its outputs."""
    return Graph([*graph.nodes, Node(lambda y: y - shift, (len(graph.nodes),))]).double().eval()


def near_the_edge(graph, region, spec, least, fractions=FRACTIONS):
    """(how far the least value of spec . graph is from 0, the graph so moved, whether alpha-CROWN certifies it)."""
    gap = float(least - bound(graph, region, "alpha-crown", spec)[0])
    gap = gap if gap > 1e-6 else 1e-3 * (1 + abs(float(least)))
    assert float(spec.sum()) != 0, "moving all outputs moves the row"
    for fraction in fractions:
        shifted = moved(graph, (float(least) - fraction * gap) / float(spec.sum()))
        yield fraction * gap, shifted, bool(bound(shifted, region, "alpha-crown", spec)[0] > 0)


def check_decided(graph, region, spec, least, fractions=FRACTIONS):
    """Whatever lies near the edge is decided as it is; how many of how many alpha-CROWN alone certifies."""
    cheap = total = 0
    for value, shifted, known in near_the_edge(graph, region, spec, least, fractions):
        found = verify(shifted, region, spec, seconds=SECONDS)
        assert found.status == ["certified" if value > 0 else "attacked"], (value, found)
        assert found.lower.item() <= value + 1e-12
        if value < 0:
            point = found.counterexample
            assert (point >= region.center - region.radius).all() and (point <= region.center + region.radius).all()
        cheap, total = cheap + known, total + 1
    return cheap, total


def cases_of(problem):
    for number in range(len(EPS)):
        one = slice(number, number + 1)
        yield problem.network, Box(problem.regions.center[one], problem.regions.radius[one]), problem.least[number]


def graph_case(name, seed):
    graph, shape = network(name, seed)
    region = random_box(1, *shape, scale=0.7)
    with torch.no_grad():
        outputs = graph(region.center.clone()).flatten(1).shape[1]
    spec = torch.randn(1, 1, outputs, dtype=torch.float64)
    _, _, places = optima(graph, region, spec)
    return graph, region, spec, evaluated(graph, spec, places, shape).amin()  # a value of the network


@pytest.mark.parametrize("name", EXPLICIT)
def test_what_lies_near_the_edge_is_decided(name):
    check_decided(*graph_case(name, 0), NEAREST)


@pytest.mark.parametrize("rho", [0.3, 0.97])
@pytest.mark.parametrize(("kind", "w"), [("dense", "signed"), ("1 channel", "non-negative")])
def test_equilibria_near_the_edge_are_decided(kind, w, rho):
    graph, region, least = list(cases_of(solved(kind, w, rho, seed=0, units=4)))[1]
    check_decided(graph, region, ONE, least, NEAREST)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hundreds_of_explicit_cases_are_decided():
    counts = [check_decided(*graph_case(name, seed)) for name in EXPLICIT for seed in range(8)]
    cheap, total = (sum(part) for part in zip(*counts, strict=True))
    assert total >= 250 and cheap < 0.5 * total, (cheap, total)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hundreds_of_equilibria_are_decided():
    cases = itertools.chain.from_iterable(cases_of(problem) for problem in problems(2, 6, RHOS))
    counts = [check_decided(graph, region, ONE, least) for graph, region, least in cases]
    cheap, total = (sum(part) for part in zip(*counts, strict=True))
    assert total >= 400 and cheap < 0.5 * total, (cheap, total)


def side_of(model, region, spec):
    program = trace(model, linear=True)
    box = Interval(region.center.double(), region.radius.double())
    return Side(program, values_of(program, box, Context(sound=True)), spec)


def random_leaves(layout, root, count):
    """Leaves of random signs with random choices, multipliers of all sizes among them."""
    signs = torch.randint(-1, 2, (count, root.signs.shape[1]), dtype=torch.int8)
    choices = torch.rand(count, root.choices.shape[1], dtype=torch.float64)
    large = layout.largest(choices).isinf()
    choices[:, large] *= 10 ** (3 * torch.rand(count, 1, dtype=torch.float64) - 2)
    row = torch.arange(count) % len(root.row)
    return Leaves(root.row[row], signs, choices, torch.full((count,), -torch.inf, dtype=torch.float64))


def units_at(side, layout, points):
    """The pre-activations [S, units] at points."""
    _, preactivations = side.at(points)
    return torch.cat([preactivations[c.name].flatten(1)[:, c.elements] for c in layout.units], dim=1)


def check_leaves(model, region, spec, exact, count=60):
    """Every leaf's bound is below the values at all points that lie in the leaf; some leaves must have points."""
    side = side_of(model, region, spec)
    layout, root = rooted(side, torch.arange(len(spec)))
    points = points_of(region, 4000)[:, 0]
    with torch.no_grad():
        values = exact(points).flatten(1) @ spec.T
        preactivations = units_at(side, layout, points)
        leaves = random_leaves(layout, root, count)
        signs = torch.where(torch.rand(count, 1) < 0.5, preactivations[:count].sign().to(torch.int8), leaves.signs)
        leaves = replace(leaves, signs=signs * (torch.rand(signs.shape) < 0.6))
        lower = side.lower(leaves, layout, sound=True)
    met = 0
    for leaf in range(count):
        inside = (preactivations * leaves.signs[leaf] >= 0).all(1)
        met += int(inside.any())
        assert (lower[leaf] <= values[inside, leaves.row[leaf]] + 1e-12).all()
    assert met > count / 4


def test_leaves_of_explicit_networks_are_bounded_whatever_is_chosen():
    for seed in range(4):
        torch.manual_seed(seed)
        check_leaves(*((model := deep()), random_box(1, 3), torch.randn(2, 2).double(), model))


@pytest.mark.parametrize(("kernel", "count"), [(None, 1), (None, 2), (3, 1)])
def test_leaves_of_equilibria_are_bounded_whatever_is_chosen(kernel, count):
    torch.manual_seed(count)
    model = folded_network(kernel, count)
    region = LinfBall(torch.rand(1, *((3,) if kernel is None else (1, 3, 3)), dtype=torch.float64), 0.3)
    spec = margin_spec(torch.tensor([1]), 3)[0].double()
    check_leaves(model, region, spec, lambda points: exact_outputs(model, points[:, None])[:, 0])


def test_cases_of_units_are_all_of_them_once():
    leaves = Leaves(torch.arange(2), torch.zeros(2, 4, dtype=torch.int8), torch.rand(2, 3), torch.zeros(2))
    cases = _cases(leaves, torch.tensor([[0, 2, 3], [1, -1, -1]]))
    found = [(int(row), tuple(signs.tolist())) for row, signs in zip(cases.row, cases.signs, strict=True)]
    assert sorted(found) == sorted(
        [(0, (a, 0, b, c)) for a, b, c in itertools.product((-1, 1), repeat=3)] + [(1, (0, a, 0, 0)) for a in (-1, 1)]
    )
    assert all(torch.equal(cases.choices[n], leaves.choices[row]) for n, (row, _) in enumerate(found))


def hard(seed=1):
    """A network, two images of one class, and margins that linear bounds leave open: all of the values seen are above
    0, the least one by 0.1."""
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)]
    model = nn.Sequential(*layers).double().eval()
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, 0, (2 / layer.weight.shape[1]) ** 0.5)
    region = LinfBall(torch.rand(2, 4, dtype=torch.float64), 0.3)
    spec = margin_spec(torch.tensor([1, 1]), 3).double()
    with torch.no_grad():
        values = torch.einsum("bkn,sbn->sbk", spec, torch.stack([model(x) for x in points_of(region, 20000)]))
        model[4].bias[1] += 0.1 - values.amin()
    return model, region, spec


@functools.cache
def answer():
    """What is found of the hard question, with certificates."""
    return verify(*hard(), certificates=True)


def test_a_budget_ends_the_search_and_says_so():
    model, region, spec = hard()
    for limits in ({"seconds": 0.0}, {"seconds": None, "branches": 1}):
        found = verify(model, region, spec, **limits)
        assert "timeout" in found.status
        assert not found.lower[[s == "timeout" for s in found.status]].gt(0).all(1).any()
    with pytest.raises(ValueError, match="seconds, branches or both"):
        verify(model, region, spec, seconds=None)


def test_memory_ends_the_search_and_says_so():
    model, region, spec = hard()
    with patch("cerdeq.branch.verify.default_memory", lambda device: 2000):
        assert "out of memory" in verify(model, region, spec).status
    with patch("cerdeq.branch.verify.decide", side_effect=torch.OutOfMemoryError):
        assert "out of memory" in verify(model, region, spec).status


def test_the_same_question_has_the_same_answer():
    model, region, spec = hard()
    first, second = (verify(model, region, spec, seconds=None, branches=30) for _ in range(2))
    assert first.status == second.status
    assert torch.equal(first.lower, second.lower) and torch.equal(first.branches, second.branches)


def test_an_example_s_answer_does_not_depend_on_its_neighbours():
    (model, region, spec), together = hard(), answer()
    for example in range(2):
        one = slice(example, example + 1)
        alone = verify(model, Box(region.center[one], region.radius[one]), spec[one])
        assert alone.status == together.status[one] and torch.equal(alone.branches, together.branches[one])


def test_networks_that_cannot_be_split_further_are_unknown_and_nothing_else():
    """Of a max pool's relaxation nothing is split."""
    graph, region, spec, least = graph_case("max pool overlapping", 1)
    statuses = set()
    for value, shifted, known in near_the_edge(graph, region, spec, least):
        (status,) = verify(shifted, region, spec, seconds=SECONDS).status
        assert status in (("certified", "unknown") if value > 0 else ("attacked", "unknown"))
        assert not known or status == "certified"
        statuses.add(status)
    assert "unknown" in statuses


def test_float32_networks_are_proved_in_float64():
    model, region, spec = hard()
    small, box = copy.deepcopy(model).float(), Box(region.center.float(), region.radius.float())
    found = verify(small, box, spec.float())
    assert found.lower.dtype == found.counterexample.dtype == torch.float64
    assert found.status == verify(small.double(), box.double(), spec).status


def test_counterexamples_are_given_where_attacked_and_nowhere_else():
    model, region, spec = hard()
    with torch.no_grad():
        model[4].bias[1] -= 0.2
    found = verify(model, region, spec)
    broken = torch.tensor([status == "attacked" for status in found.status])
    assert broken.any()
    assert torch.equal(broken, found.counterexample.isfinite().all(1))
    with torch.no_grad():
        assert (torch.einsum("bkn,bn->bk", spec, model(found.counterexample))[broken].amin(1) < 0).all()


def test_a_certificate_keeps_what_was_proved():
    """The leaves rebuilt from eight bits have the very bounds above 0."""
    (model, region, spec), found = hard(), answer()
    assert "certified" in found.status and any(found.certificates)
    for example, known in enumerate(found.certificates):
        if not known:
            continue
        one = slice(example, example + 1)
        side = side_of(model, Box(region.center[one], region.radius[one]), spec[example])
        layout, _ = rooted(side, torch.arange(len(spec[example])))
        assert set(known["row"].tolist()) <= set(range(spec.shape[1]))
        for columns in layout.units:
            assert known[f"{columns.name}/slopes"].dtype == torch.uint8
            assert known[f"{columns.name}/signs"].shape == (len(known["row"]), len(known[f"{columns.name}/neurons"]))
        signs = torch.cat([known[name] for name in known if name.endswith("/signs")], dim=1)
        for row in known["row"].unique():
            volume = (0.5 ** (signs[known["row"] == row] != 0).sum(1)).sum()
            assert volume == 1  # of the cube of signs: with no two leaves alike, a cover


def test_certificates_store_choices_exactly():
    model, region, spec = hard()
    side = side_of(model, Box(region.center[:1], region.radius[:1]), spec[0])
    layout, root = rooted(side, torch.arange(2))
    stored = layout.stored(random_leaves(layout, root, 20))
    known = certificate(layout, stored)
    for columns in layout.choices:
        own = stored.choices[:, columns.start : columns.stop]
        name = columns.name if "/" in columns.name else f"{columns.name}/slopes"
        written = known[name.replace("/split", "/multipliers")].double()
        torch.testing.assert_close(own, written / (255 if "slopes" in name else 1), rtol=0, atol=1e-16)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_an_equilibrium_may_be_the_output(seed):
    torch.manual_seed(seed)
    inject, weight = nn.Linear(3, 4), contractive(4, 0.9).weight
    nodes = [Node(inject, (0,)), Node(FixedPoint(weight.detach(), 30, 30), (1,), "equilibrium")]
    graph, region = Graph(nodes).double().eval(), random_box(1, 3)
    spec = torch.randn(1, 1, 4, dtype=torch.float64)
    (least, place), low = Encoding(graph, region.lower[0], region.upper[0]).minimum(spec[0, 0].numpy()), region.lower
    with torch.no_grad():
        h = inject(torch.from_numpy(place).view_as(low))
        least = (solutions(weight, h) @ spec[0].T).squeeze()
    check_decided(graph, region, spec, least, NEAREST)


def in_place():
    torch.manual_seed(0)
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)).double().eval()


def test_models_that_work_in_place_are_verified_as_others():
    model, region = in_place(), random_box(4, 3)
    spec = margin_spec(torch.tensor([0, 1, 0, 1]), 2).double()
    other = copy.deepcopy(model)
    other[0], other[2] = nn.ReLU().eval(), nn.ReLU().eval()
    found, before = verify(model, region, spec), region.center.clone()
    assert found.status == verify(other, region, spec).status and "unknown" not in found.status
    assert torch.equal(region.center, before)


def test_inference_mode_is_no_obstacle():
    (model, region, spec), elsewhere = hard(), answer()
    with torch.inference_mode():
        made_there = Box(region.center.clone(), region.radius.clone())
        assert verify(model, made_there, spec.clone()).status == elsewhere.status


def test_networks_without_activations_are_decided():
    torch.manual_seed(0)
    model, region = nn.Sequential(nn.Linear(3, 2)).double().eval(), random_box(6, 3)
    found = verify(model, region, margin_spec(torch.tensor([0, 1] * 3), 2).double())
    assert {"certified", "attacked"} == set(found.status)


def test_what_is_not_finite_is_not_certified():
    model, region, spec = hard()
    radius = region.radius.clone()
    radius[0, 0] = torch.inf
    assert verify(model, Box(region.center, radius), spec, seconds=5).status[0] != "certified"
    spec = spec.clone()
    spec[1, 0, 0] = torch.nan
    assert verify(model, region, spec, seconds=5).status[1] != "certified"
