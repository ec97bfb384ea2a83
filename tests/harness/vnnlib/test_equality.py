"""Points that meet a constraint with equality: decided in exact arithmetic, without branches."""

import operator
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from small_properties import declared, run, text_of, with_weights
from torch import nn

from cerdeq import Box, verify
from cerdeq.onnx.layers import WithConstant
from harness.attacks.exact import NoExactRuleError, exact_outputs_at
from harness.checker.properties import confirm_sat
from harness.vnnlib.boundary import likely_vertices
from harness.vnnlib.brackets import parse
from harness.vnnlib.properties import Case, Constraint, InputBox
from harness.vnnlib.query import region_of, with_violations
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


def piecewise(*weights, biases=None):
    """Return a network of these weights with ReLUs between them."""
    layers = [nn.Linear(len(w[0]), len(w)) for w in weights]
    network = nn.Sequential(*[each for layer in layers for each in (layer, nn.ReLU())][:-1])
    with_weights(network, *map(torch.tensor, weights))
    for layer, bias in zip(layers, biases or [], strict=False):
        layer.bias.data = torch.tensor(bias)
    return network


def scaled_identity():
    """Return a network of arithmetic with constants alone: y = (2 x - 1) / 2 + 0.5."""
    constants = [(operator.mul, 2.0), (operator.sub, 1.0), (operator.truediv, 2.0), (operator.add, 0.5)]
    layers = [WithConstant(function, torch.tensor([number]), False) for function, number in constants]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Identity()).eval()
    network.input_shape = (1,)
    return network


IDENTITY = [[1.0], [-1.0]], [[1.0, -1.0]]
PEAK = {"biases": [[0.3, -0.3], [1.0]]}  # y = 1 - |x - 0.3|, of the float32 0.3
TWO_BOXES = "(or (and (>= X_0 0) (<= X_0 1)) (and (>= X_0 2) (<= X_0 3)))"
LONG, UNIT = "0.1815863597130689", "(and (>= X_0 0) (<= X_0 1))"
SQUARE = f"(and {' '.join(f'(>= X_{n} 0.2) (<= X_{n} 0.7)' for n in range(2))})"
ALONG = [[1.0, 1.0]], [[1.0], [3.0]]  # both outputs depend on the sum alone
MANY = f"(and {' '.join(f'(>= X_{n} 0.25) (<= X_{n} 0.75)' for n in range(12))})"  # 4,096 corners
SIGNS = [[1.0 if n % 3 else -1.0 for n in range(12)]], [[1.0]]


@pytest.mark.parametrize(
    ("network", "box", "constraints", "stricter"),
    [
        (scaled_identity(), TWO_BOXES, "(and (>= Y_0 1.4) (<= Y_0 2.0))", "(and (>= Y_0 1.4) (<= Y_0 1.9999))"),
        (scaled_identity(), UNIT, f"(>= (* {LONG} Y_0) {LONG})", f"(>= (* {LONG} Y_0) 0.18158636)"),
        (piecewise(*IDENTITY), TWO_BOXES, "(and (>= Y_0 1.4) (<= Y_0 2))", "(and (>= Y_0 1.4) (<= Y_0 1.9999))"),
        (piecewise([[-1.0], [1.0]], [[-1.0, -1.0]], **PEAK), UNIT, "(>= Y_0 1)", "(>= Y_0 1.0001)"),
        (piecewise(*ALONG), SQUARE, "(and (<= Y_0 1) (>= Y_1 3))", "(and (<= Y_0 0.9999) (>= Y_1 3))"),
        (piecewise(*SIGNS), MANY, "(>= Y_0 5)", "(>= Y_0 5.0001)"),
    ],
    ids=["constants", "sixteen digits", "two boxes", "a peak inside", "a vertex", "a corner of many inputs"],
)  # fmt: skip
def test_counterexamples_on_the_boundary_alone_are_found(network, box, constraints, stricter):
    inputs, outputs = network.input_shape[0], 2 if "Y_1" in constraints else 1
    for text, status in ((constraints, "sat"), (stricter, "unsat")):
        property_ = property_of(parse(f"{declared(inputs, outputs)}(assert {box})(assert {text})"))
        answer = solve(property_, network, partial(run, network), seconds=20)
        assert answer.status == status, answer
        if status == "sat":
            confirm_sat(property_, network, partial(run, network), answer.counterexample_text)


class Forward(nn.Module):
    """`function` of the module, whose c is a buffer, and of its input."""

    def __init__(self, function, c):
        super().__init__()
        self.function = function
        self.register_buffer("c", c)

    def forward(self, x):
        return self.function(self, x)


def test_exact_arithmetic_is_that_of_fractions():
    """Constants of a model's forward are numbers of Python or tensors; what is computed of constants has no rule."""
    constant = torch.tensor([0.1, -0.7, 0.3])
    forward = {"a sum": lambda m, x: (m.c - x * 0.1) / 3 + (-x) * m.c - x, "moved": lambda m, x: x[:, [2, 0, 1]] * m.c}
    inputs = [Fraction(1, 3), Fraction(-2, 7), Fraction(5)]
    c = [Fraction(float(number)) for number in constant]
    expected = {
        "a sum": [(k - x * Fraction(0.1)) / 3 - x * k - x for x, k in zip(inputs, c, strict=True)],
        "moved": [inputs[n] * k for n, k in zip((2, 0, 1), c, strict=True)],
    }
    for name, function in forward.items():
        assert exact_outputs_at(Forward(function, constant).eval(), inputs, (3,)) == expected[name]
    with pytest.raises(NoExactRuleError):
        exact_outputs_at(Forward(lambda m, x: x * (m.c / 3), constant).eval(), inputs, (3,))
    with pytest.raises(NoExactRuleError):
        exact_outputs_at(nn.Sigmoid().eval(), inputs, (3,))


def test_slopes_that_overflow_give_no_vertex_and_no_warning():
    """At the point, the first output is inf - inf."""
    network = with_weights(nn.Sequential(nn.Linear(2, 2)), torch.tensor([[1e300, -1e300], [1.0, 0.0]]).double())
    box = InputBox((Fraction(0),) * 2, (Fraction(10) ** 10,) * 2)
    cases = [Case(box, (Constraint({0: Fraction(1)}, Fraction(0)),))]
    region = region_of(box, (2,))
    extended = with_violations(network, region, cases, 2)
    assert [*likely_vertices(extended, cases, region, region.center + region.radius)] == []
