"""Points that meet a constraint with equality: decided in exact arithmetic, without branches."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from small_properties import run, text_of
from torch import nn

from cerdeq import Box, verify
from harness.attacks.exact import exact_outputs_at
from harness.checker.properties import confirm_sat
from harness.vnnlib.brackets import parse
from harness.vnnlib.solve import solve
from harness.vnnlib.version1 import property_of


def network_of(kind):
    """A network of two inputs and two outputs: 0.5 for X_0 = X_1 = 0, or all outputs 0 everywhere."""
    torch.manual_seed(0)
    hidden, last = nn.Linear(2, 6), nn.Linear(6, 2)
    with torch.no_grad():
        hidden.bias.zero_()
        last.bias.fill_(0.5 if kind == "fixed" else 0)
        if kind == "zero":
            last.weight.zero_()
    network = nn.Sequential(hidden, nn.ReLU(), last).eval()
    network.input_shape = (2,)
    return network


CASES = [("fixed", "0.0", "(>= Y_0 0.5)"), ("fixed", "0.0", "(<= Y_1 0.5)"), ("zero", "1.0", "(>= Y_0 Y_1)")]


@pytest.mark.parametrize(("kind", "radius", "constraint"), CASES)
def test_equality_is_sat_at_once_and_is_confirmed_again(kind, radius, constraint):
    network, property_ = network_of(kind), property_of(parse(text_of(constraint, f"-{radius}", radius)))
    ran = partial(run, network)
    answer = solve(property_, network, ran, seconds=60)
    assert answer.status == "sat" and answer.branches < 100
    confirm_sat(property_, network, ran, answer.counterexample.to_text())
    if kind == "fixed":
        stricter = constraint.replace("0.5", "0.500001" if ">=" in constraint else "0.499999")
        property_ = property_of(parse(text_of(stricter, f"-{radius}", radius)))
        assert solve(property_, network, ran, seconds=60).status == "unsat"


@pytest.mark.parametrize("radius", [0.0, 1.0])
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_a_margin_of_zero_is_unknown_without_halving_the_box(radius, shift):
    """The network is affine over the box, its smallest value 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double().eval()
    corners = radius * torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)], dtype=torch.float64)
    with torch.no_grad():
        model[0].bias += shift
        if shift == 0:
            model[0].weight.zero_()
        model[2].bias -= model(corners).amin()
    region = Box(torch.zeros(1, 2).double(), torch.full((1, 2), radius).double())
    result = verify(model, region, torch.ones(1, 1, 1).double(), seconds=60)
    assert result.status == ["unknown"] and int(result.branches) < 10
    assert float(model(result.closest).detach().abs()) < 1e-12


def test_exact_outputs_are_those_of_fractions():
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, (3, 2), stride=2, padding=1, dilation=(1, 2))
    network = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 2 * 2, 2)).eval()
    inputs = [Fraction(n * n % 7 - 3, 10) for n in range(2 * 4 * 4)]
    outputs = exact_outputs_at(network, inputs, (2, 4, 4))
    points = torch.tensor([float(x) for x in inputs], dtype=torch.float64).view(1, 2, 4, 4)
    np.testing.assert_allclose([float(y) for y in outputs], network.double()(points)[0].tolist(), rtol=1e-12)
    assert all(isinstance(y, Fraction) for y in outputs)
