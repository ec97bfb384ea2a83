"""Trees of linear programs: certificates that the checker confirms, beside exact minima by integer programs."""

import itertools
from unittest.mock import patch

import pytest
import torch
from searches import checked, searched
from torch import nn

from cerdeq import Box
from cerdeq.branch.leaf_search import LeafSearch
from cerdeq.branch.search import TIMEOUT, Decision
from cerdeq.equilibrium import FixedPoint
from harness.bench.verifier import edge_case, exact_minimum
from harness.checker.proofs.example import CERTIFICATE

# sizes, whether hidden layers are equilibria, radius, seed, the smallest margin before the shift, and after it
HARD = [
    pytest.param((10, 24, 24, 4), False, 0.6, 0, -1.94641034, 0.156, marks=pytest.mark.slow),
    pytest.param((8, 12, 12, 12, 12, 3), False, 1.0, 2, -7.34040032, 0.307, marks=pytest.mark.slow),
    pytest.param((8, 14, 12, 3), True, 0.3, 1, -0.9552849047, 0.023, marks=pytest.mark.slow),
]
DISTANCES = (0.05, -0.05, 0.01, -0.01)


def chain(sizes, has_equilibria, seed):
    """Return a random network with margins of its first output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.Linear(inputs, outputs).double()
        layer.weight.data, layer.bias.data = normal(outputs, inputs) * (2 / inputs) ** 0.5, 0.1 * normal(outputs)
        layers.append(layer)
        if has_equilibria and outputs != sizes[-1]:
            weight = normal(outputs, outputs)
            layers.append(FixedPoint(weight * (0.6 / float(torch.linalg.eigvals(weight.abs()).abs().max()))))
        else:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def least_margin(model, region):
    """Return the smallest margin of the first output, by integer programs."""
    *hidden, last = model
    margins = []
    for other in range(1, last.out_features):
        row = nn.Linear(last.in_features, 1).double().requires_grad_(False)
        row.weight.data, row.bias.data = (part[:1] - part[other : other + 1] for part in (last.weight, last.bias))
        margins.append(exact_minimum(nn.Sequential(*hidden, row), region))
    return min(margins)


def decide(model, region, seconds):
    """Return what `verify` decides of the first output's margins, and whether the checker confirms its certificate."""
    count = model[-1].out_features
    spec = torch.cat([torch.ones(count - 1, 1), -torch.eye(count - 1)], dim=1)
    result, tensors = searched(model, region, spec, seconds)
    return result, bool(tensors) and checked(model, region, tensors, spec.numpy()).proved_by == CERTIFICATE


@pytest.mark.parametrize(("sizes", "has_equilibria", "radius", "seed", "least", "margin"), HARD)
def test_hard_networks_are_certified(sizes, has_equilibria, radius, seed, least, margin):
    model = chain(sizes, has_equilibria, seed)
    region = Box(torch.zeros(1, sizes[0]).double(), torch.full((1, sizes[0]), radius).double())
    model[-1].bias[0] += margin - least
    result, is_confirmed = decide(model, region, seconds=60)
    assert result.status == ["certified"] and is_confirmed
    assert 0 < float(result.lower.min()) <= margin


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "has_equilibria", "radius", "seed", "least", "margin"), HARD)
def test_the_margins_of_hard_networks_are_those_of_integer_programs(
    sizes, has_equilibria, radius, seed, least, margin
):  # fmt: skip
    region = Box(torch.zeros(1, sizes[0]).double(), torch.full((1, sizes[0]), radius).double())
    assert least_margin(chain(sizes, has_equilibria, seed), region) == pytest.approx(least, abs=1e-5)


def check_small_networks(numbers):
    """Decide networks near the edge by linear programs alone; all verdicts are right, all certificates confirmed."""
    ended = 0
    for number in numbers:
        depth, has_equilibrium = 2 + number % 4, number % 2 == 1
        case = edge_case(depth, has_equilibrium, number, DISTANCES[number // 2 % len(DISTANCES)])
        model = nn.Sequential(*case.model, nn.Linear(1, 2)).double().requires_grad_(False)
        model[-1].weight.data, model[-1].bias.data = torch.tensor([[1.0], [0.0]]).double(), torch.zeros(2).double()
        model.eval()
        with (
            patch.object(LeafSearch, "advance", lambda search, budget: Decision(TIMEOUT, search._problem.lower)),
            patch("cerdeq.branch.verify.first_attack", lambda exact, fast, rows: None),
        ):
            result, is_confirmed = decide(model, case.region, seconds=60)
        expected = "certified" if case.minimum > 0 else "falsified"
        assert result.status == [expected], (number, case.minimum, result)
        assert float(result.lower.min()) <= case.minimum + 1e-6  # the solver's tolerance
        if result.branches and expected == "certified":
            assert is_confirmed, number
            ended += 1
        if expected == "falsified":
            assert float(case.model(result.counterexample)) < 0
    assert ended > len(numbers) // 8, "few networks needed a search"


def test_small_networks_are_decided_right():
    """Two that are certified, one with an equilibrium, and one that is falsified."""
    check_small_networks((0, 1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_a_thousand_small_networks_are_decided_right(part):
    check_small_networks(range(50 * part, 50 * part + 50))
