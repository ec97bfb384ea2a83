"""Branch and bound against exact minima by mixed-integer programming, and against points inside leaves."""

import copy
import functools
import itertools
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from edges import FRACTIONS, NEAREST, ONE, cases_of, graph_case, near_the_edge, query_of
from equilibria import RHOS, exact_outputs, folded_network
from gaps import problems, solved
from graphs import deep
from oracles import points_of, random_box
from torch import nn

from cerdeq import Box, LinfBall, margin_spec, verify
from cerdeq.branch.leaves import Leaves, root_leaves

SECONDS = 60  # ample: cases here take a few
EXPLICIT = [
    "deep", "convolution padded", "residual", "dense", "shared", "broadcast", "leaky 0.1", "leaky 1.5", "leaky -0.5",
    "moved", "absolute", "parts",
]  # fmt: skip


def check_decided(graph, region, spec, minimum, fractions=FRACTIONS):
    """Check that cases near the edge are decided right. Return how many alpha-CROWN certifies, and of how many."""
    cheap = total = 0
    for value, shifted, easy in near_the_edge(graph, region, spec, minimum, fractions):
        result = verify(shifted, region, spec, seconds=SECONDS)
        assert result.status == ["certified" if value > 0 else "falsified"], (value, result)
        assert result.lower.item() <= value + 1e-12
        if value < 0:
            point = result.counterexample
            assert (point >= region.center - region.radius).all() and (point <= region.center + region.radius).all()
        cheap, total = cheap + easy, total + 1
    return cheap, total


@pytest.mark.parametrize("name", ["deep", "convolution padded", "dense", "absolute", "parts"])
def test_what_lies_near_the_edge_is_decided(name):
    check_decided(*graph_case(name, 0), NEAREST)


@pytest.mark.parametrize(("kind", "w", "rho"), [("dense", "signed", 0.97), ("1 channel", "non-negative", 0.3)])
def test_equilibria_near_the_edge_are_decided(kind, w, rho):
    graph, region, minimum = list(cases_of(solved(kind, w, rho, seed=0, units=4)))[1]
    check_decided(graph, region, ONE, minimum, NEAREST)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["explicit", "equilibria"])
def test_hundreds_of_cases_are_decided(kind):
    cases = (graph_case(name, seed) for name in EXPLICIT for seed in range(8))
    if kind == "equilibria":
        networks = itertools.chain.from_iterable(cases_of(problem) for problem in problems(2, 6, RHOS))
        cases = ((graph, region, ONE, minimum) for graph, region, minimum in networks)
    counts = [check_decided(*case) for case in cases]
    cheap, total = (sum(part) for part in zip(*counts, strict=True))
    assert total >= 250 and cheap < 0.5 * total, (cheap, total)


def random_leaves(layout, root, count):
    """Leaves of random signs with random choices, multipliers of all sizes among them."""
    signs = torch.randint(-1, 2, (count, root.signs.shape[1]), dtype=torch.int8)
    choices = torch.rand(count, root.choices.shape[1], dtype=torch.float64)
    large = layout.largest(choices).isinf()
    choices[:, large] *= 10 ** (3 * torch.rand(count, 1, dtype=torch.float64) - 2)
    row = torch.arange(count) % len(root.row)
    return Leaves(root.row[row], signs, choices, torch.full((count,), -torch.inf, dtype=torch.float64))


def units_at(problem, layout, points):
    """The pre-activations [S, units] at points."""
    _, preactivations = problem.at(points)
    return torch.cat([preactivations[c.name].flatten(1)[:, c.elements] for c in layout.units], dim=1)


def check_leaves(model, region, spec, exact, count=60):
    """Every leaf's bound is below the values at all points that lie in the leaf; some leaves must have points."""
    problem = query_of(model, region, spec)
    layout, root = root_leaves(problem, problem, torch.arange(len(spec)))
    points = points_of(region, 4000)[:, 0]
    with torch.no_grad():
        values = exact(points).flatten(1) @ spec.T
        preactivations = units_at(problem, layout, points)
        leaves = random_leaves(layout, root, count)
        signs = torch.where(torch.rand(count, 1) < 0.5, preactivations[:count].sign().to(torch.int8), leaves.signs)
        leaves = replace(leaves, signs=signs * (torch.rand(signs.shape) < 0.6))
        lower = problem.lower(leaves, layout, sound=True)
    nonempty = 0
    for leaf in range(count):
        inside = (preactivations * leaves.signs[leaf] >= 0).all(1)
        nonempty += int(inside.any())
        assert (lower[leaf] <= values[inside, leaves.row[leaf]] + 1e-12).all()
    assert nonempty > count / 4


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


def hard(seed=1):
    """Return a network, two images of one class, and margins that linear bounds leave open.

    All of the values seen are above 0, the least one by 0.1.
    """
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 12), nn.ReLU(inplace=True), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)]
    model = nn.Sequential(*layers).double().eval()
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, 0, (2 / layer.weight.shape[1]) ** 0.5)
    region = LinfBall(torch.rand(2, 4, dtype=torch.float64), 0.3)
    spec = margin_spec(torch.tensor([1, 1]), 3).double()
    with torch.no_grad():
        values = torch.einsum("bkn,sbn->sbk", spec, model(points_of(region, 20000)))
        model[4].bias[1] += 0.1 - values.amin()
    return model, region, spec


@functools.cache
def answer():
    """Return the verification of the hard question, with certificates."""
    return verify(*hard(), certificates=True)


def test_an_answer_depends_neither_on_the_neighbours_nor_on_inference_mode():
    model, region, spec = hard()
    with torch.inference_mode():
        alone = verify(model, Box(region.center[1:].clone(), region.radius[1:].clone()), spec[1:].clone())
    assert alone.status == answer().status[1:] and torch.equal(alone.branches, answer().branches[1:])


def test_a_budget_ends_the_search_and_says_so():
    model, region, spec = hard()
    for limits in ({"seconds": 0.0}, {"seconds": None, "branches": 1}):
        result = verify(model, region, spec, **limits)
        assert "timeout" in result.status
        assert not result.lower[[s == "timeout" for s in result.status]].gt(0).all(1).any()
    with pytest.raises(ValueError, match="seconds, branches or both"):
        verify(model, region, spec, seconds=None)
    with pytest.raises(ValueError, match="spec has no rows"):
        verify(model, region, spec[:, :0])


def test_memory_ends_the_search_and_says_so():
    model, region, spec = hard()
    with patch("cerdeq.branch.verify.default_memory", lambda device: 1000):
        assert "out of memory" in verify(model, Box(region.center[:1], region.radius[:1]), spec[:1]).status
    with patch("cerdeq.branch.verify.decide", side_effect=torch.OutOfMemoryError):
        assert "out of memory" in verify(model, region, spec).status


def test_an_answer_does_not_depend_on_whether_its_certificate_fits_into_memory():
    model, region, spec = hard()
    with patch("cerdeq.branch.verify.default_memory", lambda device: 4000):
        alone, with_certificates = (verify(model, region, spec, certificates=c) for c in (False, True))
    assert alone.status == with_certificates.status and "certified" in alone.status
    assert {} in with_certificates.certificates


@pytest.mark.parametrize(("name", "seed"), [("max pool overlapping", 1), ("clamp", 0)])
def test_networks_that_cannot_be_split_further_are_unknown_and_nothing_else(name, seed):
    """Of the relaxation of a max pool or a clamp nothing is split."""
    graph, region, spec, minimum = graph_case(name, seed)
    statuses = set()
    for value, shifted, easy in near_the_edge(graph, region, spec, minimum):
        (status,) = verify(shifted, region, spec, seconds=SECONDS).status
        assert status in (("certified", "unknown") if value > 0 else ("falsified", "unknown"))
        assert not easy or status == "certified"
        statuses.add(status)
    assert "unknown" in statuses


def test_float32_networks_are_proved_in_float64():
    model, region, spec = hard()
    small, box = copy.deepcopy(model).float(), Box(region.center[:1].float(), region.radius[:1].float())
    result = verify(small, box, spec[:1].float())
    assert result.lower.dtype == result.counterexample.dtype == torch.float64
    assert result.status == verify(small.double(), box.double(), spec[:1]).status


def test_counterexamples_are_returned_where_falsified_and_nowhere_else():
    model, region, spec = hard()
    with torch.no_grad():
        model[4].bias[1] -= 0.2
    result = verify(model, region, spec)
    broken = torch.tensor([status == "falsified" for status in result.status])
    assert broken.any()
    assert torch.equal(broken, result.counterexample.isfinite().all(1))
    with torch.no_grad():
        assert (torch.einsum("bkn,bn->bk", spec, model(result.counterexample))[broken].amin(1) < 0).all()


def test_a_certificate_keeps_what_was_proved():
    """The leaves rebuilt from eight bits have the very bounds above 0."""
    (model, region, spec), result = hard(), answer()
    assert "certified" in result.status and any(result.certificates)
    for example, tensors in enumerate(result.certificates):
        if not tensors:
            continue
        one = slice(example, example + 1)
        problem = query_of(model, Box(region.center[one], region.radius[one]), spec[example])
        layout, _ = root_leaves(problem, problem, torch.arange(len(spec[example])))
        assert set(tensors["row"].tolist()) <= set(range(spec.shape[1]))
        for columns in layout.units:
            assert tensors[f"{columns.name}/slopes"].dtype == torch.uint8
            assert tensors[f"{columns.name}/signs"].shape == (
                len(tensors["row"]),
                len(tensors[f"{columns.name}/neurons"]),
            )
        own = [name for name in tensors if name.endswith("/signs") and not name.startswith("hidden/")]
        signs = torch.cat([tensors[name] for name in own], dim=1)
        for row in tensors["row"].unique():
            volume = (0.5 ** (signs[tensors["row"] == row] != 0).sum(1)).sum()
            assert volume == 1  # of the cube of signs: with no two leaves alike, a cover


def test_what_is_not_finite_is_not_certified():
    model, region, spec = hard()
    radius = region.radius.clone()
    radius[0, 0] = torch.inf
    assert verify(model, Box(region.center, radius), spec, seconds=1).status[0] != "certified"
    spec = spec.clone()
    spec[1, 0, 0] = torch.nan
    assert verify(model, region, spec, seconds=1).status[1] != "certified"
